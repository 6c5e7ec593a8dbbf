"""Split files of CoOp with their images, in small copies of their exact form."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli.entry import main
from harness.datasets import SplitName, get_dataset, list_datasets, names_of
from harness.datasets.coop import CoopSplit

NAMES = ("ankle_boot", "bag", "dress")
COUNTS: dict[SplitName, int] = {"train": 3, "val": 1, "test": 2}
Make = Callable[..., Path]


def lists(split: str = "", index: int = 0, entry: Any = None) -> dict[str, list[Any]]:
    """List, like OxfordPets, a folder per class; one entry may be another."""
    found: dict[str, list[Any]] = {
        split: [[f"{n}/{split}_{i}.png", label, n] for label, n in enumerate(NAMES) for i in range(count)]
        for split, count in COUNTS.items()
    }
    if split:
        found[split][index] = entry
    return found


def write(content: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "split_zhou_Shop.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.fixture
def make(tmp_path: Path, write_images) -> Make:
    """Write a split file and its images; return the file."""

    def call(folder: str = "oxford_pets", images: str = "images") -> Path:
        write_images(tmp_path / folder / images, [path for entries in lists().values() for path, _, _ in entries])
        return write(lists(), tmp_path / folder)

    return call


def test_the_images_and_labels_are_the_files(make: Make, pixels, monkeypatch: pytest.MonkeyPatch):
    before, file = list_datasets(), make()
    dataset = get_dataset(f"coop:{file}")
    assert (dataset.name, dataset.title) == ("coop-shop", "Shop, split by CoOp")
    assert dataset.classes == ("ankle boot", "bag", "dress")
    assert dataset.revision == hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    for split, entries in lists().items():
        found = dataset.split(split)  # type: ignore[arg-type]
        assert found.labels.tolist() == [label for _, label, _ in entries]
        assert found.image_ids == tuple(f"coop/split_zhou_Shop/{path}" for path, _, _ in entries)
        for example, (path, label, _) in zip(found, entries, strict=True):
            assert np.array_equal(example.image, pixels(path))
            assert (example.image.mode, example.label, example.mask) == ("RGB", label, None)
    assert get_dataset("coop-shop") is dataset
    assert list_datasets() == before
    monkeypatch.chdir(file.parent)
    assert get_dataset("coop:split_zhou_Shop.json").asked_as == f"coop:{file}"
    assert names_of(["fashion", f"coop:{file}"]) == ["fashion", "coop-shop"]


def test_names_hold_no_path_and_stay_when_files_move(make: Make, tmp_path: Path):
    first = CoopSplit(make(images=""))  # beside the file
    ids = first.split("test").image_ids
    moved = CoopSplit(make(folder="elsewhere", images="some"))  # in a folder there, which may be a link
    (tmp_path / "elsewhere" / "some").rename(tmp_path / "disk")
    (tmp_path / "elsewhere" / "some").symlink_to(tmp_path / "disk")
    assert (moved.name, moved.revision, moved.split("test").image_ids) == (first.name, first.revision, ids)
    assert CoopSplit(moved.file).split("test")[2].label == 1
    assert not any(str(tmp_path) in text for text in (*ids, first.name, first.title))


def test_images_that_are_missing_or_damaged(make: Make):
    file = make()
    for name, cut in (("bag/test_1.png", None), ("dress/test_0.png", 90), ("dress/test_1.png", 0)):
        path = file.parent / "images" / name
        path.unlink() if cut is None else os.truncate(path, cut)
    split = CoopSplit(file).split("test")
    with pytest.raises(FileNotFoundError, match=r"'.*bag/test_1.png' is missing"):
        split[3]
    for index in (4, 5):
        with pytest.raises(ValueError, match=rf"image '.*dress/test_{index - 4}.png' can't be read"):
            split[index]
    with pytest.raises(FileNotFoundError, match=r"1 missing image in .*'bag/test_1.png'.*1 empty image .*--skip-bad"):
        names_of([f"coop:{file}"], skip_bad=False)
    assert main(["datasets", "check", "--dataset", f"coop:{file}", "--fast"]) == 1
    (file.parent / "images" / "dress" / "test_0.png").write_bytes((file.parent / "images/bag/test_0.png").read_bytes())
    assert names_of([f"coop:{file}"], skip_bad=True) == ["coop-shop"]
    assert len(get_dataset("coop-shop").split("test")) == len(split) - 2


@pytest.mark.parametrize(("content", "match"), [
    ("{", "JSON"),
    ([], "got <class 'list'>"),
    ({"train": [], "test": []}, r"\['test', 'train'\]"),
    (lists() | {"val": {}}, "val .*{}"),
    (lists() | {"test": []}, "test has no images"),
    (lists("val", 2, ["a.jpg", "0", "bag"]), r"val\[2\] is \['a.jpg', '0'"),
    (lists("val", 2, ["a\0.jpg", 1, "bag"]), "is no path of an image"),
    (lists("val", 2, ["a.jpg", 3, "a\x1b[2J"]), r"class name 'a\\x1b\[2J"),
    (lists("test", 0, ["a.jpg", 1, "dog"]), "label 1 is both 'bag' and 'dog'"),
    (lists("test", 0, ["a.jpg", 3, "bag"]), r"'bag \(label 1\)' and 'bag \(label 3\)'"),
    (lists("test", 0, ["a.jpg", 4, "dog"]), "3 is missing"),
    (lists("test", 0, lists()["test"][1]), "'ankle_boot/test_1.png' is in test and again in test"),
    (lists("test", 0, ["./bag//train_0.png", 1, "bag"]), "'bag/train_0.png' is in train and again in test"),
    *((lists("train", 3, [path, 1, "bag"]), r"train\[3\]: path '.*x.png'")
      for path in ("/etc/x.png", "bag/../../x.png", "..\\x.png", "C:x.png")),
])  # fmt: skip
def test_refusals_of_the_file(content: Any, match: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"split file '.*split_zhou_Shop.json'.*{match}"):
        CoopSplit(write(content, tmp_path))


def test_refusals_of_what_is_asked_for(make: Make, tmp_path: Path):
    for name, error, match in (
        ("coop:", ValueError, r"'coop:'.*split_zhou_\*.json"),
        (f"coop:{tmp_path}", ValueError, r"is a folder; give the split_zhou_\*.json"),
        ("coop-cars", ValueError, "'coop-cars'.*coop:PATH"),
        (f"coop:{tmp_path / 'nowhere.json'}", FileNotFoundError, "nowhere.json' does not exist"),
        (f"coop:{make().rename(tmp_path / 'oxford_pets' / 'split_zhou_-.json')}", ValueError, "letters or digits"),
    ):
        with pytest.raises(error, match=match):
            get_dataset(name)
    with pytest.raises(ValueError, match="'coop-shop', too"):
        names_of([f"coop:{make(folder='a')}", f"coop:{make(folder='b')}"])


@pytest.mark.parametrize("name", ["shot_16-seed_1.pkl", "split_zhou_Shop.json"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / name).write_bytes(pickle.dumps({"train": [], "val": []}))
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(ValueError, match=f"{name}' is a pickle"):
        get_dataset(f"coop:{tmp_path / name}")
