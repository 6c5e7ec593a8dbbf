"""Split files of CoOp with their images, in small copies of their exact form."""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli import main
from harness.datasets import SplitName, get_dataset, list_datasets, names_of
from harness.datasets.coop import CoopSplit

NAMES = ("ankle_boot", "bag", "dress")
COUNTS: dict[SplitName, int] = {"train": 16, "val": 5, "test": 7}
Lists = dict[str, list[Any]]
Make = Callable[..., Path]


def lists() -> Lists:
    """Like OxfordPets: by class, a folder per class, classes with underscores."""
    return {
        split: [
            [f"{name}/{name.title()}_{split}_{i}.png", label, name]
            for label, name in enumerate(NAMES)
            for i in range(count)
        ]
        for split, count in COUNTS.items()
    }


@pytest.fixture
def make(tmp_path: Path, write_images) -> Make:
    """Write a split file and its images; return the file."""

    def call(folder: str = "oxford_pets", images: str = "images") -> Path:
        paths = [path for entries in lists().values() for path, _, _ in entries]
        write_images(tmp_path / folder / images, paths)
        return written(lists(), tmp_path / folder)

    return call


def test_the_images_and_labels_are_the_files(make: Make, pixels):
    file = make()
    dataset = CoopSplit(file)
    assert (dataset.name, dataset.title) == ("coop-shop", "Shop, split by CoOp")
    assert dataset.classes == ("ankle boot", "bag", "dress")
    assert dataset.captions_seen == (True, True, True)
    assert dataset.templates == ("a photo of a {}.",)
    assert dataset.revision == hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    for split, told in lists().items():
        found = dataset.split(split)  # type: ignore[arg-type]
        assert found.labels.dtype == np.int64
        assert found.labels.tolist() == [label for _, label, _ in told]
        ids = tuple(f"coop/split_zhou_Shop/{path}" for path, _, _ in told)
        assert found.image_ids == ids == tuple(example.image_id for example in found)
        for example, (path, label, _) in zip(found, told, strict=True):
            assert np.array_equal(example.image, pixels(path))
            assert (example.image.mode, example.label, example.mask) == ("RGB", label, None)


@pytest.mark.parametrize(("folder", "images"), [("caltech-101", "101_ObjectCategories"), ("cars", "")])
def test_images_are_beside_the_file_or_in_a_folder_there(folder: str, images: str, make: Make):
    file = make(folder=folder, images=images)
    (file.parent / "annotations").mkdir()
    dataset = CoopSplit(file)
    assert dataset.root == (file.parent / images if images else file.parent)
    assert len([example.image for example in dataset.split("val")]) == 15


def test_names_hold_no_path_and_stay_when_files_move(make: Make, tmp_path: Path):
    first = CoopSplit(make())
    ids = first.split("test").image_ids
    moved = (tmp_path / "oxford_pets").rename(tmp_path / "elsewhere")
    (moved / "images").rename(tmp_path / "disk")
    (moved / "images").symlink_to(tmp_path / "disk")
    second = CoopSplit(moved / "split_zhou_Shop.json")
    assert (second.name, second.revision) == (first.name, first.revision)
    assert second.split("test").image_ids == ids
    assert second.split("test")[2].label == 0
    assert not any(str(tmp_path) in text for text in (*ids, first.name, first.title))
    assert second.asked_as == f"coop:{moved / 'split_zhou_Shop.json'}"


def test_nothing_is_read_before_it_is_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch):
    file = make()
    monkeypatch.setattr(Image, "open", None)
    split = CoopSplit(file).split("test")
    assert len(split) == len(split.image_ids) == len(split.labels) == 21
    with pytest.raises(ValueError, match="can't be read"):
        split[0]


def test_it_is_found_by_file_then_by_name(make: Make, monkeypatch: pytest.MonkeyPatch):
    before, file = list_datasets(), make()
    dataset = get_dataset(f"coop:{file}")
    assert isinstance(dataset, CoopSplit)
    assert get_dataset("coop-shop") is dataset
    assert list_datasets() == before
    monkeypatch.chdir(file.parent)
    assert get_dataset("coop:split_zhou_Shop.json").asked_as == f"coop:{file}"
    assert names_of(["fashion", f"coop:{file}", "emoji"]) == ["fashion", "coop-shop", "emoji"]


@pytest.mark.parametrize("what", ["bag/Bag_val_3.png", "dress"])
def test_links_that_leave_the_folder(what: str, make: Make, tmp_path: Path):
    file = make()
    place = file.parent / "images" / what
    place.rename(tmp_path / "secret")
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"image '{what}.*' is a link out of the folder of images"):
        CoopSplit(file)
    (tmp_path / "secret").rename(file.parent / "images" / "inside")
    place.unlink()
    place.symlink_to(file.parent / "images" / "inside")
    assert len(CoopSplit(file).split("val")) == 15


def test_images_that_are_nowhere(make: Make):
    file = make(images="images/deeper")
    match = r"'ankle_boot/.*_train_0.png' is neither beside it, in '.*', .*\(tried: 'images'\)"
    with pytest.raises(FileNotFoundError, match=match):
        CoopSplit(file)
    file = make(folder="other")
    (file.parent / "images" / lists()["val"][0][0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'ankle_boot/.*_val_0.png' is neither"):
        CoopSplit(file)
    make(folder="both", images="a")
    with pytest.raises(ValueError, match="in each of the folders 'a', 'b'; leave one"):
        CoopSplit(make(folder="both", images="b"))


def test_images_that_are_missing_or_damaged(make: Make):
    file = make()
    folder = file.parent / "images" / "bag"
    (folder / "Bag_test_1.png").unlink()
    (folder / "Bag_test_2.png").write_bytes((folder / "Bag_test_2.png").read_bytes()[:90])
    os.truncate(folder / "Bag_test_3.png", 0)
    split = CoopSplit(file).split("test")
    match = r"'.*Bag_test_1.png' of coop-shop is missing; .*un"
    with pytest.raises(FileNotFoundError, match=match):
        split[8]
    for place in (9, 10):
        with pytest.raises(ValueError, match=rf"image '.*Bag_test_{place - 7}.png' can't be read"):
            split[place]
    assert split[11].label == 1
    told = r"1 missing image in '.*bag/.*Bag_test_1.png'; .* 1 empty image in .*--skip-bad"
    with pytest.raises(FileNotFoundError, match=told):
        names_of([f"coop:{file}"], skip_bad=False)
    assert main(["datasets", "check", f"coop:{file}", "--fast"]) == 1
    assert names_of([f"coop:{file}"], skip_bad=True) == ["coop-shop"]
    assert len(get_dataset("coop-shop").split("test")) == len(split) - 3


def test_refusals_of_what_is_given(make: Make, tmp_path: Path):
    file = make()
    for given, match in (
        ("coop:", r"'coop:': expected coop:PATH of a split_zhou_\*.json"),
        (f"coop:{tmp_path}", r"is a folder; give the split_zhou_\*.json in it"),
        ("coop-cars", "'coop-cars' is made from a split file of CoOp; give coop:PATH"),
        ("coop", "no dataset is called 'coop'.*coop:PATH is a split file of CoOp"),
        (f"coop:{file.rename(file.with_name('split_zhou_-.json'))}", "needs letters or digits"),
    ):
        with pytest.raises(ValueError, match=match):
            get_dataset(given)
    with pytest.raises(FileNotFoundError, match=r"split file '.*nowhere.json' does not exist"):
        get_dataset(f"coop:{tmp_path / 'nowhere.json'}")
    with pytest.raises(ValueError, match="another one given is called 'coop-shop', too"):
        names_of([f"coop:{make(folder='a')}", f"coop:{make(folder='b')}"])


def few() -> Lists:
    """Two images of each class in each split."""
    pairs = [(name, label, i) for label, name in enumerate(NAMES) for i in range(2)]
    return {s: [[f"{name}/{s}_{i}.png", label, name] for name, label, i in pairs] for s in COUNTS}


def written(told: Any, folder: Path) -> Path:
    file = folder / "split_zhou_Shop.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    return file


def edited(split: str, place: int, entry: Any) -> Lists:
    told = few()
    told[split][place] = entry
    return told


@pytest.mark.parametrize(("told", "match"), [
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ([], "expected an object of train, val, test, got <class 'list'>"),
    ({"train": [], "test": []}, r"got the keys \['test', 'train'\]"),
    (few() | {"extra": []}, r"got the keys \['extra', 'test', 'train', 'val'\]"),
    (few() | {"val": {}}, "val must be a list, got {}"),
    (few() | {"test": []}, "test has no images"),
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
    (edited("test", 0, few()["train"][0]), "'ankle_boot/train_0.png' is in both train and te"),
    (edited("test", 0, few()["test"][1]), "'ankle_boot/test_1.png' is twice in test"),
    (edited("test", 0, ["./bag//train_0.png", 1, "bag"]), "'bag/train_0.png' is in both trai"),
])  # fmt: skip
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
