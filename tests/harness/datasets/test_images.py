"""Image files: what is listed below folders, how images are named and read, and what decoding all of them finds."""

import hashlib
import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import write_images
from PIL import ExifTags, Image
from rich.console import Console

from harness.base.terminal import Progress
from harness.datasets import Options, get_dataset, names_of
from harness.datasets import images as module
from harness.datasets.folder import FolderDataset
from harness.datasets.images import decode_all, decode_image, find_images, folder_images

SQUARE = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
BAD = ("folder-pets/test/dog/2.png", "folder-pets/train/cat/1.png")
QUIET = Progress()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    (folder / "b").mkdir(parents=True)
    SQUARE.save(folder / "c.png")
    SQUARE.rotate(90).save(folder / "a.JPG")
    SQUARE.rotate(180).save(folder / "b" / "z.webp", lossless=True)
    (folder / "notes.txt").write_text("no image")
    (folder / "b" / "._z.webp").write_bytes(b"what another system leaves behind")
    (folder / ".thumbnails").mkdir()
    SQUARE.save(folder / ".thumbnails" / "c.png")
    return folder


def ids(folder: Path) -> list[str]:
    return list(folder_images(folder).split.image_ids)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def test_every_image_below_the_folder_in_the_order_of_names(folder: Path):
    found = folder_images(folder)
    names = ("a.JPG", "b/z.webp", "c.png")
    assert ids(folder) == [digest(folder / name) for name in names] == [example.image_id for example in found.split]
    for example, name in zip(found.split, names, strict=True):
        assert (example.image.mode, example.label) == ("RGB", -1)
        assert np.array_equal(example.image, Image.open(folder / name).convert("RGB"))
    (folder / "b" / "z.webp").unlink()
    with pytest.raises(ValueError, match=r"no images below this folder; .*; hidden files and folders don't count"):
        folder_images(folder / "b")


def test_the_revision_follows_names_and_sizes_and_nothing_else(folder: Path, tmp_path: Path):
    revisions = [folder_images(folder).revision]
    moved = folder.rename(tmp_path / "elsewhere")
    assert folder_images(moved).revision == revisions[0]
    for change in (
        lambda: (moved / "c.png").rename(moved / "d.png"),
        lambda: os.truncate(moved / "d.png", 1000),
        (moved / "a.JPG").unlink,
    ):
        change()
        revisions.append(folder_images(moved).revision)
    assert len(set(revisions)) == 4


def test_links_are_followed_and_what_is_named_like_an_image_and_not_read_has_its_reason(folder: Path, tmp_path: Path):
    """Loops of links end, and count once; hidden files don't count."""
    (tmp_path / "other").mkdir()
    SQUARE.rotate(270).save(tmp_path / "other" / "q.png")
    for name, to in {
        **{"b/up": folder, "zz": folder / "b", "loop.png": "loop.png", "gone.png": "nowhere"},
        **{"linked": tmp_path / "other", "one.png": tmp_path / "other" / "q.png"},
    }.items():
        (folder / name).symlink_to(to)
    SQUARE.save(folder / ".c.png")
    (folder / "b" / "x.HEIC").write_bytes(b"heic")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.png").mkdir()
    assert {str(file.path.relative_to(folder)): file.wrong for file in find_images(folder)} == {
        "b/x.HEIC": ".heic files aren't read; convert it, for instance to .png",
        "gone.png": "it is a link to 'nowhere', which can't be read: No such file or directory",
        "loop.png": "it is a link to 'loop.png', which can't be read: Too many levels of symbolic links",
        "pipe.jpg": "it is a pipe; expected a regular file",
        **dict.fromkeys(["a.JPG", "b/z.webp", "c.png", "linked/q.png", "one.png"]),
    }
    assert ids(folder).count(digest(tmp_path / "other" / "q.png")) == 2


@pytest.mark.parametrize(("mode", "kind"), [
    *((mode, "PNG") for mode in ("RGBA", "LA", "P", "1", "I;16")), ("I", "TIFF"), ("CMYK", "JPEG"),
])  # fmt: skip
def test_every_mode_becomes_rgb(mode: str, kind: str):
    grey = np.full((6, 5), 153, dtype=np.uint8)  # in PIL's palette, so that nothing dithers
    if mode == "1":
        grey = np.where(np.arange(30).reshape(6, 5) % 2, 255, 0).astype(np.uint8)
    wide = grey.astype(np.uint16 if mode == "I;16" else np.int32) * 256 + 9
    image = Image.fromarray(wide) if mode.startswith("I") else Image.fromarray(grey).convert("RGB").convert(mode)
    assert image.mode == mode
    found = decode_image(encode(image, kind), "")
    assert (found.mode, found.size) == ("RGB", (5, 6))
    assert np.abs(np.asarray(found).astype(int) - grey[..., None]).max() <= 1


def test_transparency_is_dropped_unless_there_is_a_colour_behind():
    palette = SQUARE.convert("P")
    clear = decode_image(encode(palette, "PNG", transparency=bytes(range(0, 250, 25))), "")
    assert np.array_equal(clear, palette.convert("RGB"))
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((0, 0), (200, 0, 0, 255))
    shown = decode_image(encode(picture, "PNG"), "", behind="white")
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (255, 255, 255)]


# From an image as it is stored to how it stands, by EXIF's orientation.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def encode(image: Image.Image, kind: str, exif: bytes = b"", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **({"exif": exif} if exif else {}), **options)
    return file.getvalue()


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "TIFF", "WEBP", "PNG of 16 bits"])
def test_images_stand_upright(kind: str):
    pixels = np.random.default_rng(5).integers(0, 256, (12, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 if "16" in kind else pixels)
    kind = kind.partition(" ")[0]
    stored = np.asarray(decode_image(encode(image, kind), ""))
    for value, upright in UPRIGHT.items():
        turned = decode_image(encode(image, kind, orientation(value)), "")
        assert np.array_equal(turned, upright(stored)), value


@pytest.mark.filterwarnings("ignore:.*(EXIF|data):UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [
    b"Exif\0\0", b"Exif\0\0no TIFF", orientation(6)[:20], orientation(9),
    orientation(6).replace(b"\0\x03\0\0\0\x01", b"\0\x02\xff\xff\xff\xff"),
])  # fmt: skip
def test_an_image_with_damaged_exif_is_as_it_is_stored(kind: str, exif: bytes):
    plain, odd = (decode_image(encode(SQUARE, kind, own), "") for own in (b"", exif))
    assert np.array_equal(odd, plain)


@pytest.mark.filterwarnings("error")
def test_images_that_are_refused_are_named(folder: Path, monkeypatch):
    """Of large ones PIL only warns up to twice its limit and refuses beyond; here both are refused."""
    split = folder_images(folder).split
    for limit in (60, 40):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"image '.*a.JPG' is too large to be trusted \(.*pixels"):
            split[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert split[0].image.size == (10, 10)
    for name, kept in (("a.JPG", 300), ("c.png", 0)):
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])
        with pytest.raises(ValueError, match=rf"image '.*{name}' can't be read \(.*; replace"):
            split[("a.JPG", "b", "c.png").index(name)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three images of two classes in train and in test; one of each is damaged."""
    names = itertools.product(("train", "test"), ("cat", "dog"), range(3))
    folder = write_images(tmp_path / "pets", [f"{split}/{kind}/{i}.png" for split, kind, i in names])
    for name in BAD:
        os.truncate(tmp_path / name.removeprefix("folder-"), 60)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = module._decode
    monkeypatch.setattr(module, "_decode", lambda split, i: seen.append(split.image_id(i)) or real(split, i))
    return seen


def test_what_cannot_be_read_is_found_and_alone_tried_again(pets: Path, calls: list[str]):
    first = decode_all(FolderDataset(pets), QUIET)
    lost = {name: [at for at, image in enumerate(own) if not image.pixels] for name, own in first.items()}
    assert lost == {"train": [1], "val": [], "test": [5]}
    assert (first["test"][5].image_id, first["train"][1].image_id) == BAD
    assert "can't be read" in first["test"][5].wrong
    for known, count in ((True, 2), (False, 12)):
        calls.clear()
        assert decode_all(FolderDataset(pets), QUIET, known=known) == first
        assert len(calls) == count


def test_bad_images_are_counted_and_left_out(pets: Path):
    console = Console(record=True, width=300)
    [name] = names_of([f"folder:{pets}"], Options(skip_bad=True, progress=Progress(console)))
    said = console.export_text()
    assert "folder-pets: left out, as they can't be read: 2 images" in said
    dataset, whole = get_dataset(name), FolderDataset(pets)
    assert (dataset.left_out, dataset.asked_with) == (set(BAD), ("--skip-bad",))
    for split in ("train", "test"):
        assert list(dataset.split(split).image_ids) == [i for i in whole.split(split).image_ids if i not in BAD]
    for number in (0, 2):
        (pets / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="class 'cat' of 'folder-pets' has no images left in train: all 3"):
        names_of([f"folder:{pets}"], Options(skip_bad=True))
