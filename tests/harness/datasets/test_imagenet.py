"""ImageNet and its kin: which classes, which names, which images make val, and what differs."""

import hashlib
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


def fill(folder: Path, names: tuple[str, ...], images: int = 1) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for image in range(images):
            (folder / name / f"{name}_{image}.JPEG").write_bytes(b"x")
    return folder


def test_classes_are_those_of_imagenet_in_its_order():
    synsets, classes = synsets_of("imagenet"), get_dataset("imagenet").classes
    assert list(synsets) == sorted(ImageNetInfo("imagenet-1k").label_names())
    captions = dict(zip(synsets, classes, strict=True))
    assert (captions["n01440764"], captions["n15075141"]) == ("tench", "toilet paper")
    for name in ("imagenet-sketch", "imagenetv2"):
        assert get_dataset(name).classes == classes
    for name in ("imagenet-a", "imagenet-r"):
        dataset = get_dataset(name)
        assert len(set(dataset.classes)) == dataset.class_count == 200
        assert list(dataset.synsets) == sorted(dataset.synsets)
        assert dataset.classes == tuple(captions[synset] for synset in dataset.synsets)
    names, counts = np.unique(classes, return_counts=True)
    assert names[counts > 1].tolist() == ["missile", "sunglasses"]  # of two classes each


def test_val_is_carved_by_name_alone(tmp_path: Path):
    dataset = get_dataset("imagenet")
    images = tmp_path / "imagenet" / "images"
    few, many = dataset.synsets[:2]
    fill(images / "val", (few, many))
    fill(images / "train", (few,), images=24)
    fill(images / "train", (many,), images=300)
    found = dataset.at(tmp_path)
    for label, (synset, size, carved) in enumerate([(few, 24, 4), (many, 300, 50)]):
        names = [f"{synset}_{i}.JPEG" for i in range(size)]
        wanted = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())[:carved]
        for split, those in (("train", set(names) - set(wanted)), ("val", set(wanted))):
            ids = np.array(found.split(split).image_ids)[found.labels(split) == label]
            assert {image_id.rpartition("/")[2] for image_id in ids} == those


def test_sorted_validation_images_are_the_same_dataset(ship: Ship, tmp_path: Path):
    ship("imagenet")
    flat = get_dataset("imagenet").at(tmp_path)
    facts = (flat.revision, flat.split("test").image_ids, flat.labels("test").tolist())
    shutil.rmtree(flat.place / "ILSVRC2012_devkit_t12")
    (flat.place / DEVKIT.file).unlink()
    with pytest.raises(FileNotFoundError, match=f"'{DEVKIT.file}'.*by hand only"):
        get_dataset("imagenet").at(tmp_path)
    val = flat.place / "images" / "val"
    for image_id in facts[1]:
        folder, name = image_id.split("/")[-2:]
        (val / folder).mkdir(exist_ok=True)
        (val / name).rename(val / folder / name)
    found = get_dataset("imagenet").at(tmp_path)
    assert (found.revision, found.split("test").image_ids, found.labels("test").tolist()) == facts


@pytest.mark.parametrize(("file", "content", "match"), [
    (META, b"\x80\4junk", r"meta.mat' isn't the devkit's list of classes"),
    (TRUTH, b"2\n77\n", r"no class of number '77'"),
    (TRUTH, b"2\n", r"val_0000000\d.JPEG': .* has 1 classes"),
])  # fmt: skip
def test_a_devkit_that_lies_is_named(file, content, match, ship: Ship, tmp_path: Path):
    ship("imagenet")
    found = get_dataset("imagenet").at(tmp_path)
    (found.place / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        found.split("test")


def test_missing_unknown_and_empty_ones_are_named(tmp_path: Path):
    dataset = get_dataset("imagenet-a")
    whole = fill(tmp_path / dataset.folder / dataset.images, dataset.synsets)
    assert dataset.at(tmp_path).problems() == ["test: 200 images instead of 7,500"]
    shutil.rmtree(whole / "n12267677")
    fill(whole, ("n99999999",))
    (whole / "n01498041" / "n01498041_0.JPEG").write_bytes(b"")
    found = dataset.at(tmp_path)
    assert found.problems() == [
        "test: 199 images instead of 7,500",
        "test: no image of 1 classes, such as 'acorn'",
        f"1 empty image in '{whole}': 'n01498041/n01498041_0.JPEG'",
        f"class folders missing in '{whole}': 1, 'n12267677'",
        f"folders of no class in '{whole}', left out: 'n99999999'",
    ]
    assert found.labels("test").tolist() == list(range(199))


def test_a_kept_listing_is_used_until_a_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CACHED_FROM", 1)
    folder = tmp_path / "images"
    for path in ("b/2.JPEG", "b/10.png", "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg", "a/deeper.jpg/x"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * len(path))
    first = {"a": {"1.jpg": 7}, "b": {"10.png": 8, "2.JPEG": 8}}
    assert class_folders(folder) == first
    assert [list(inner) for inner in class_folders(folder).values()] == [["1.jpg"], ["10.png", "2.JPEG"]]
    scanned, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(Path(path).name) or scan(path))
    assert class_folders(folder) == first
    assert scanned == ["images"]
    (folder / "a" / "1.jpg").write_bytes(b"longer than before")
    assert [class_folders(folder, fresh=f)["a"]["1.jpg"] for f in (False, True, False)] == [7, 18, 18]
    (folder / "a" / "1.jpg").unlink()
    os.utime(folder / "a", ns=(2, 2))
    assert class_folders(folder)["a"] == {}
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # can't be written: costs only time
    assert class_folders(folder)["a"] == class_folders(folder / "none") == {}
