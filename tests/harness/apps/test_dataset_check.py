"""What `datasets check` says and returns."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
from packing import write_images

from harness.cli.entry import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = itertools.product(("train", "val", "test"), ("bag", "dress"), range(3))
    return write_images(tmp_path / "shop", [f"{split}/{kind}/{i}.png" for split, kind, i in names])


@pytest.mark.command("datasets check")
def test_damaged_images(folder: Path, capsys):
    os.truncate(folder / "test" / "bag" / "1.png", 70)
    (folder / "train" / "bag" / "0.png").write_text("no image")
    assert main(["datasets", "check", "--dataset", f"folder:{folder}"]) == 1
    out = capsys.readouterr().out
    assert "problem: 2 unreadable images; --skip-bad leaves them out" in out
    assert f"  image '{folder}/test/bag/1.png' can't be read (" in out
    assert out.rstrip().endswith("18 images read, problems: 1")
    assert main(["datasets", "check", "--dataset", f"folder:{folder}", "--fast"]) == 0
    assert "18 images listed, no problem found" in capsys.readouterr().out


def test_copies_in_two_splits_and_in_two_classes(folder: Path, capsys):
    shutil.copy(folder / "train/bag/0.png", folder / "test/bag/copy.png")
    shutil.copy(folder / "val/bag/0.png", folder / "val/dress/copy.png")
    assert main(["datasets", "check", "--dataset", f"folder:{folder}"]) == 1
    out = capsys.readouterr().out
    for where, files in (
        ("two splits", "'folder-shop/train/bag/0.png', 'folder-shop/test/bag/copy.png'"),
        ("two classes", "'folder-shop/val/bag/0.png', 'folder-shop/val/dress/copy.png'"),
    ):
        assert f"problem: images that are in {where}, pixel for pixel: 1, such as {files}" in out
