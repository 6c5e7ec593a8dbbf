"""What `datasets list` and `datasets check` say and return."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.entry import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bag and a dress in each split, three of each."""
    folder = tmp_path / "shop"
    for seed, name in enumerate(
        f"{split}/{kind}/{i}.png" for split in ("train", "val", "test") for kind in ("bag", "dress") for i in range(3)
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def row(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_damaged_images(folder: Path, capsys):
    os.truncate(folder / "test" / "bag" / "1.png", 70)
    (folder / "train" / "bag" / "0.png").write_text("no image")
    assert main(["datasets", "check", "--dataset", f"folder:{folder}"]) == 1
    out = capsys.readouterr().out
    assert row(out, "bag") == ["3", "3", "3", "2"]
    assert "problem: 2 unreadable images; --skip-bad leaves them out" in out
    for name in ("test/bag/1.png", "train/bag/0.png"):
        assert f"  image '{folder / name}' can't be read (" in out
    assert out.rstrip().endswith("18 images read, problems: 1")
    assert main(["datasets", "check", "--dataset", f"folder:{folder}", "--fast"]) == 0
    out = capsys.readouterr().out
    assert row(out, "bag") == ["3", "3", "3"]
    assert "18 images listed, no problem found" in out


def test_copies_in_two_splits_and_in_two_classes(folder: Path, capsys):
    content = (folder / "train" / "bag" / "0.png").read_bytes()
    (folder / "test" / "bag" / "copy.png").write_bytes(content)
    content = (folder / "val" / "bag" / "0.png").read_bytes()
    (folder / "val" / "dress" / "copy.png").write_bytes(content)
    assert main(["datasets", "check", "--dataset", f"folder:{folder}"]) == 1
    out = capsys.readouterr().out
    options = "'folder-shop/train/bag/0.png', 'folder-shop/test/bag/copy.png'"
    assert f"problem: images that are in two splits, pixel for pixel: 1, such as {options}" in out
    options = "'folder-shop/val/bag/0.png', 'folder-shop/val/dress/copy.png'"
    assert f"problem: images that are in two classes, pixel for pixel: 1, such as {options}" in out


@pytest.mark.parametrize(("given", "match"), [
    ("fasion", "Did you mean 'fashion'"),
    ("folder:gone", "folder '.*gone' does not exist"),
    ("caltech101", "dataset 'caltech101' isn't shipped here; say where it lies: --root"),
    ("fashion --root x", "--root: none of fashion lies below a root"),
    ("fashion --download", "--download: none of fashion lies below a root"),
])  # fmt: skip
def test_what_can_not_be_checked(given: str, match: str, capsys, monkeypatch):
    monkeypatch.delenv("CLIP_PATCHRANK_DATA", raising=False)
    assert main(["datasets", "check", "--dataset", *given.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    with pytest.raises(ValueError, match=match):
        raise ValueError(err)
