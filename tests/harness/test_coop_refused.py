"""Split files of CoOp that are refused for what they say, before any image is looked for."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from harness.datasets import get_dataset
from harness.datasets.coop import CoopSplit

SPLITS = ("train", "val", "test")
NAMES = ("ankle_boot", "bag", "dress")
Lists = dict[str, list[Any]]


def lists() -> Lists:
    """Two images of each class in each split."""
    return {
        split: [
            [f"{name}/{split}_{i}.png", label, name]
            for label, name in enumerate(NAMES)
            for i in range(2)
        ]
        for split in SPLITS
    }


def written(told: Any, folder: Path) -> Path:
    file = folder / "split_zhou_Shop.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    return file


def test_the_copy_itself_is_only_in_want_of_images(tmp_path: Path):
    match = "image 'ankle_boot/train_0.png' is neither beside it, in '.*', .*there is none"
    with pytest.raises(FileNotFoundError, match=match):
        CoopSplit(written(lists(), tmp_path))


def edited(split: str, place: int, entry: Any) -> Lists:
    told = lists()
    told[split][place] = entry
    return told


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "expected an object of train, val, test, got <class 'list'>"),
        ({"train": [], "test": []}, r"got the keys \['test', 'train'\]"),
        (lists() | {"extra": []}, r"got the keys \['extra', 'test', 'train', 'val'\]"),
        (lists() | {"val": {}}, "val must be a list, got {}"),
        (lists() | {"test": []}, "test has no images"),
        (edited("val", 2, "a.jpg"), r"val\[2\] is 'a.jpg'; expected \[relative path, label, class"),
        (edited("val", 2, ["a.jpg", 0]), r"val\[2\] is \['a.jpg', 0\]; expected"),
        (edited("val", 2, ["a.jpg", "0", "bag"]), r"val\[2\] is .*; expected"),
        (edited("val", 2, ["a.jpg", 1.0, "bag"]), r"val\[2\] is .*; expected"),
        (edited("val", 2, ["a.jpg", True, "bag"]), r"val\[2\] is .*; expected"),
        (edited("val", 2, ["a.jpg", 1, None]), r"val\[2\] is .*; expected"),
        (edited("val", 2, ["", 1, "bag"]), "'' is no path of an image"),
        (edited("val", 2, ["a\0.jpg", 1, "bag"]), "is no path of an image"),
        (edited("val", 2, ["\ud800.jpg", 1, "bag"]), "is no path of an image"),
        (edited("val", 2, ["a.jpg", 1, "_"]), "class name '' can't be put into a prompt"),
        (edited("val", 2, ["a.jpg", 1, "a\x1b[2J"]), r"class name 'a\\x1b\[2J' can't be put"),
        (edited("test", 0, ["a.jpg", 1, "dog"]), "label 1 is both 'bag' and 'dog'"),
        (edited("test", 0, ["a.jpg", 3, "bag"]), "labels 1 and 3 are both 'bag'"),
        (edited("test", 0, ["a.jpg", 4, "dog"]), "without gaps; 3 is missing, and 4 is there"),
        (edited("test", 0, ["a.jpg", -1, "dog"]), "without gaps; 0 is missing, and -1 is there"),
        (
            edited("test", 0, lists()["train"][0]),
            "'ankle_boot/train_0.png' is in both train and test",
        ),
        (edited("test", 0, lists()["test"][1]), "'ankle_boot/test_1.png' is twice in test"),
        (
            edited("test", 0, ["./bag//train_0.png", 1, "bag"]),
            "'bag/train_0.png' is in both train and test",
        ),
    ],
)
def test_refusals_of_the_file(told: Any, match: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"split file '.*split_zhou_Shop.json'.*{match}"):
        CoopSplit(written(told, tmp_path))


@pytest.mark.parametrize(
    "path", ["/etc/x.png", "../x.png", "bag/../../x.png", "..", "..\\x.png", "C:x.png", "//h/x.png"]
)
def test_paths_that_leave_the_folder(path: str, tmp_path: Path):
    match = rf"train\[3\]: path {re.escape(repr(path))} may leave the folder"
    with pytest.raises(ValueError, match=match):
        CoopSplit(written(edited("train", 3, [path, 1, "bag"]), tmp_path))


@pytest.mark.parametrize("name", ["shot_16-seed_1.pkl", "split_zhou_Shop.json"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / name).write_bytes(pickle.dumps({"train": [], "val": []}))
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(ValueError, match=r"pickle, which may run any code .*drawn from it here"):
        get_dataset(f"coop:{tmp_path / name}")
