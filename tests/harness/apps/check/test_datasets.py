"""What `datasets list` and `datasets check` say and return."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.entry import main
from harness.datasets import forget, get_dataset, names_of
from harness.datasets.base import Dataset
from harness.datasets.folder import FolderDataset
from harness.datasets.rooted import RootedDataset


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


def test_a_whole_folder(folder: Path, capsys):
    assert main(["datasets", "check", "--dataset", f"folder:{folder}"]) == 0
    out = capsys.readouterr().out
    assert row(out, "bag") == row(out, "dress") == ["3", "3", "3", "0"]
    assert row(out, "(all)") == ["6", "6", "6", "0"]
    revision = FolderDataset(folder).revision
    assert f"folder-shop, revision {revision}: 18 images read, no problem found" in out
    assert "problem:" not in out
    assert "note:" not in out


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


def test_classes_that_a_split_lacks(folder: Path, capsys):
    for path in (folder / "train" / "dress").iterdir():
        path.unlink()
    (folder / "train" / "dress").rmdir()
    assert main(["datasets", "check", "--dataset", f"folder:{folder}", "--fast"]) == 1
    out = capsys.readouterr().out
    assert "problem: train has no image of 1 classes: 'dress'" in out
    assert row(out, "dress") == ["0", "3", "3"]


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


def test_a_dataset_of_a_source_says_its_own_problems(folder: Path, monkeypatch, capsys):
    inner = FolderDataset(folder)
    content = (folder / "train" / "bag" / "0.png").read_bytes()
    (folder / "test" / "bag" / "2.png").write_bytes(content)

    class Bound(RootedDataset):
        name = folder = "shelf"
        classes = inner.classes

        def __init__(self) -> None:
            """Have no other facts."""

        def at(self, root: Path, **options: object) -> Dataset:
            self.root = root
            return self

        def problems(self, progress: object = None) -> list[str]:
            return ["test: 6 images instead of 7"]

        def _split(self, name):
            return inner._split(name)

        def _revision(self) -> str:
            return "0" * 12

    Bound.__abstractmethods__ = frozenset()  # whatever else a source's dataset has to say
    monkeypatch.setattr("harness.datasets._listed", lambda: {"shelf": Bound()})
    monkeypatch.setattr("harness.datasets.shipped_facts", lambda name: Bound())
    assert main(["datasets", "check", "--dataset", "shelf", "--root", str(folder.parent)]) == 1
    out = capsys.readouterr().out
    assert "problem: test: 6 images instead of 7" in out
    assert "note: images that are in two splits" in out
    assert names_of(["shelf"], root=folder.parent) == ["shelf"]
    assert get_dataset("shelf").asked_with == ("--root", str(folder.parent))
    forget()
    monkeypatch.setenv("CLIP_PATCHRANK_DATA", str(folder.parent))
    assert main(["datasets", "check", "--dataset", "shelf", "--fast"]) == 1
