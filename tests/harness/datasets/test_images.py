"""Folders of images: what is listed, how images are named and read, and what is refused."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets.images import folder_images

SQUARE = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three images, one of them in a subfolder, and of other things."""
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
    assert found.name == "holiday"
    assert len(found.split) == 3
    names = ("a.JPG", "b/z.webp", "c.png")
    assert ids(folder) == [digest(folder / name) for name in names] == [example.image_id for example in found.split]
    for example, name in zip(found.split, names, strict=True):
        assert (example.image.mode, example.label) == ("RGB", -1)
        assert np.array_equal(example.image, Image.open(folder / name).convert("RGB"))


def test_the_revision_follows_names_and_sizes_and_nothing_else(folder: Path, tmp_path: Path):
    revisions = [folder_images(folder).revision]
    assert re.fullmatch("[0-9a-f]{12}", revisions[0])
    (folder / "notes.txt").write_text("still no image")
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


def test_links_are_followed_and_loops_of_them_end_and_count_once(folder: Path, tmp_path: Path):
    (folder / "b" / "up").symlink_to(folder)
    (folder / "zz").symlink_to(folder / "b")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("gone.png")
    assert len(ids(folder)) == 3
    other = tmp_path / "other"
    other.mkdir()
    SQUARE.rotate(270).save(other / "q.png")
    (folder / "linked").symlink_to(other)
    (folder / "one.png").symlink_to(other / "q.png")
    assert ids(folder).count(digest(other / "q.png")) == 2


@pytest.mark.parametrize(("mode", "extension"), [
    *((mode, "png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")), ("I", "tif"), ("CMYK", "jpg"),
])  # fmt: skip
def test_every_mode_becomes_rgb(mode: str, extension: str, tmp_path: Path):
    grey = np.full((6, 5), 153, dtype=np.uint8)  # in PIL's palette, so that nothing dithers
    image = Image.fromarray(grey).convert("RGB")
    if mode == "1":
        grey = np.where(np.arange(30).reshape(6, 5) % 2, 255, 0).astype(np.uint8)
        image = Image.fromarray(grey).convert("1")
    elif mode.startswith("I"):
        wide = grey.astype(np.uint16 if mode == "I;16" else np.int32) * 256 + 9
        image = Image.fromarray(wide)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / f"x.{extension}")
    [example] = folder_images(tmp_path).split
    assert (example.image.mode, example.image.size) == ("RGB", (5, 6))
    assert np.abs(np.asarray(example.image).astype(int) - grey[..., None]).max() <= 1


def test_images_lie_as_they_are_stored_and_transparency_is_dropped(tmp_path: Path):
    palette = SQUARE.convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes(range(0, 250, 25)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees for display
    SQUARE.crop((0, 0, 10, 4)).save(tmp_path / "b.png", exif=exif)
    clear, turned = folder_images(tmp_path).split
    assert np.array_equal(clear.image, palette.convert("RGB"))
    assert turned.image.size == (10, 4)


@pytest.mark.parametrize(("kept", "extension"), [(0, "png"), (300, "jpg")])
def test_a_damaged_image_is_named(kept: int, extension: str, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"good.{extension}")
    bad = tmp_path / f"bad.{extension}"
    bad.write_bytes((tmp_path / f"good.{extension}").read_bytes()[:kept])
    split = folder_images(tmp_path).split
    with pytest.raises(ValueError, match=rf"image '.*bad.{extension}' can't be read \(.*; replace"):
        split[0]
    assert split[1].image.size == (40, 40)


@pytest.mark.parametrize("limit", [60])
@pytest.mark.filterwarnings("error")
def test_decompression_bombs_are_named(limit: int, folder: Path, monkeypatch):
    """PIL only warns up to twice its limit and refuses beyond; here both are refused."""
    split = folder_images(folder).split
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"image '.*a.JPG' is too large to be trusted \(.*pixels"):
        split[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert split[0].image.size == (10, 10)


def test_no_folder_no_images(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    for path, error, match in (
        (tmp_path / "nowhere", FileNotFoundError, r"--images '.*nowhere': there is no such folder"),
        (folder / "c.png", NotADirectoryError, r"--images '.*c.png': not a folder; give the one"),
        (tmp_path / "empty", ValueError, r"'.*empty': no images below .* are .avif, .bmp"),
    ):
        with pytest.raises(error, match=match):
            folder_images(path)
