"""ImageNet and its kin: which classes, which names, which images make val, and what differs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from timm.data import ImageNetInfo

from harness.datasets import get_dataset
from harness.datasets import imagenet as module
from harness.datasets.imagenet import DEVKIT, META, TRUTH, class_folders, synsets_of

Ship = Callable[..., object]


def filled(place: Path, folders: tuple[str, ...], images: int = 1) -> Path:
    for folder in folders:
        (place / folder).mkdir(parents=True)
        for image in range(images):
            (place / folder / f"{folder}_{image}.JPEG").write_bytes(b"x")
    return place


def test_classes_are_those_of_imagenet_in_its_order():
    synsets = synsets_of("imagenet")
    assert list(synsets) == sorted(ImageNetInfo("imagenet-1k").label_names())
    captions = dict(zip(synsets, get_dataset("imagenet").classes, strict=True))
    assert (captions["n01440764"], captions["n15075141"]) == ("tench", "toilet paper")
    for name in ("imagenet-sketch", "imagenetv2"):
        assert get_dataset(name).classes == get_dataset("imagenet").classes
    for name in ("imagenet-a", "imagenet-r"):
        dataset = get_dataset(name)
        assert len(dataset.classes) == dataset.class_count == 200
        assert list(dataset.synsets) == sorted(dataset.synsets)
        assert dataset.classes == tuple(captions[synset] for synset in dataset.synsets)
        assert len(set(dataset.classes)) == 200
    names, counts = np.unique(get_dataset("imagenet").classes, return_counts=True)
    assert names[counts > 1].tolist() == ["missile", "sunglasses"]  # of two classes each


def test_folders_of_imagenetv2_are_numbers(tmp_path: Path):
    dataset = get_dataset("imagenetv2")
    filled(tmp_path / dataset.folder / dataset.images, tuple(map(str, range(1000))))
    split = dataset.at(tmp_path).split("test")
    for label in (2, 9, 10, 100, 999):
        assert split.labels[label] == label
        assert split.image_ids[label].endswith(f"/{label}/{label}_0.JPEG")


def test_val_is_carved_by_name_alone(tmp_path: Path):
    dataset = get_dataset("imagenet")
    place = tmp_path / "imagenet" / "images"
    few, many = dataset.synsets[:2]
    filled(place / "val", (few, many))
    filled(place / "train", (few,), images=24)
    filled(place / "train", (many,), images=300)
    found = dataset.at(tmp_path)
    for label, (synset, size, carved) in enumerate([(few, 24, 4), (many, 300, 50)]):
        names = [f"{synset}_{i}.JPEG" for i in range(size)]
        wanted = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())[:carved]
        parts = {}
        for split in ("train", "val"):
            ids = np.array(found.split(split).image_ids)[found.labels(split) == label]
            parts[split] = {image_id.rpartition("/")[2] for image_id in ids}
        assert parts["val"] == set(wanted)
        assert parts["train"] == set(names) - set(wanted)


def test_unsorted_validation_images_need_the_devkit(ship: Ship, tmp_path: Path):
    ship("imagenet", without=(DEVKIT.file, "ILSVRC2012_img_train.tar"))
    with pytest.raises(FileNotFoundError, match=f"which is in '{DEVKIT.file}'; get"):
        get_dataset("imagenet").at(tmp_path)


def test_sorted_validation_images_are_the_same_dataset(ship: Ship, tmp_path: Path):
    ship("imagenet")
    flat = get_dataset("imagenet").at(tmp_path)
    facts = (flat.revision, flat.split("test").image_ids, flat.labels("test").tolist())
    val = flat.place / "images" / "val"
    for image_id in facts[1]:
        folder, name = image_id.split("/")[-2:]
        (val / folder).mkdir(exist_ok=True)
        (val / name).rename(val / folder / name)
    shutil.rmtree(flat.place / "ILSVRC2012_devkit_t12")
    (flat.place / DEVKIT.file).unlink()
    found = get_dataset("imagenet").at(tmp_path)
    assert (found.revision, found.split("test").image_ids, found.labels("test").tolist()) == facts
    assert found.split("test")[0].image.mode == "RGB"


@pytest.mark.parametrize(("file", "content", "match"), [
    (META, b"\x80\4junk", r"meta.mat' isn't the devkit's list of classes"),
    (TRUTH, b"2\n77\n", r"knows no class of number '77'"),
    (TRUTH, b"2\n", r"val_0000000\d.JPEG': .* has 1 classes"),
])  # fmt: skip
def test_a_devkit_that_lies_is_named(file, content, match, ship: Ship, tmp_path: Path):
    ship("imagenet")
    found = get_dataset("imagenet").at(tmp_path)
    (found.place / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        found.split("test")


def test_without_training_images_it_is_for_testing_only(ship: Ship, tmp_path: Path):
    copy = ship("imagenet", without=("ILSVRC2012_img_train.tar",))
    found = get_dataset("imagenet").at(tmp_path)
    assert [len(found.split(name)) for name in ("train", "val")] == [0, 0]
    assert len(found.split("test")) == len(copy.examples["test"])
    lines = "\n".join(found.problems())
    assert "train: 0 images instead of 1,231,167" in lines
    assert f"class folders missing in '{found.place / 'images' / 'train'}': 1,000" in lines


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """All folders of ImageNet-A, with an image each."""
    dataset = get_dataset("imagenet-a")
    return filled(tmp_path / dataset.folder / dataset.images, dataset.synsets)


def test_one_missing_and_one_unknown_folder_are_named(whole: Path, tmp_path: Path):
    assert get_dataset("imagenet-a").at(tmp_path).problems() == ["test: 200 images instead of 7,500"]
    shutil.rmtree(whole / "n12267677")
    filled(whole, ("n99999999",))
    found = get_dataset("imagenet-a").at(tmp_path)
    assert found.problems() == [
        "test: 199 images instead of 7,500",
        "test: no image of 1 classes, such as 'acorn'",
        f"class folders missing in '{whole}': 1, 'n12267677'",
        f"folders of no class in '{whole}', left out: 'n99999999'",
    ]
    assert found.labels("test").tolist() == list(range(199))


def test_other_class_names_and_empty_images_are_told(whole: Path, tmp_path: Path):
    (whole.parent / "classnames.txt").write_text("n12267677 oak fruit\nn01498041 stingray\nx\n")
    (whole / "n12267677" / "n12267677_0.JPEG").write_bytes(b"")
    found = get_dataset("imagenet-a").at(tmp_path)
    [line] = [line for line in found.problems() if "classnames.txt" in line]
    assert "has 1 other names: n12267677 is 'oak fruit' there and 'acorn' here" in line
    assert found.classes[-1] == "acorn"  # the names there aren't used
    [line] = [line for line in found.problems() if "empty" in line]
    assert "1 empty image" in line
    assert "n12267677/n12267677_0.JPEG" in line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CACHED_FROM", 1)
    for path in ("b/2.JPEG", "b/10.png", "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg"):
        file = tmp_path / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(path))
    (tmp_path / "images" / "top.jpg").touch()
    (tmp_path / "images" / "a" / "deeper.jpg").mkdir()
    return tmp_path / "images"


def names(folder: Path, **how: bool) -> dict[str, list[str]]:
    return {name: listed.names for name, listed in class_folders(folder, **how).items()}


def test_a_kept_listing_is_used_until_a_name_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = class_folders(folder)
    assert list(first) == ["a", "b"]
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"]}
    assert first["b"].sizes == [8, 8]
    scanned, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(Path(path).name) or scan(path))
    assert class_folders(folder) == first
    assert scanned == ["images"]
    os.utime(folder / "b", ns=(1, 1))
    (folder / "c").mkdir()
    scanned.clear()
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"], "c": []}
    assert scanned == ["images", "b", "c"]
    (folder / "a" / "1.jpg").unlink()
    (folder / "c").rmdir()
    os.utime(folder / "a", ns=(2, 2))
    assert names(folder) == {"a": [], "b": ["10.png", "2.JPEG"]}
    assert names(folder, fresh=True) == names(folder)
    for name, error in (("none", FileNotFoundError), ("top.jpg", NotADirectoryError)):
        with pytest.raises(error, match=name):
            class_folders(folder / name)


@pytest.mark.parametrize("content", [b"", b"\x80\4", b"[]", b'{"a": 0}', b'{"a": [1]}'])
def test_what_can_not_be_understood_or_was_overwritten_is_listed_anew(content, folder: Path):
    first = class_folders(folder)
    [file] = (folder.parent / "cache").rglob("*.json")
    assert set(json.loads(file.read_bytes())) == {"a", "b"}
    file.write_bytes(content)
    assert class_folders(folder) == first
    (folder / "a" / "1.jpg").write_bytes(b"longer than before")
    sizes = [class_folders(folder, fresh=fresh)["a"].sizes for fresh in (False, True, False)]
    assert sizes == [[7], [18], [18]]


def test_a_cache_that_can_not_be_written_costs_only_time(folder: Path, monkeypatch):
    (folder.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    assert names(folder) == {"a": ["1.jpg"], "b": ["10.png", "2.JPEG"]}
