"""The user's own images as datasets: class folders, folders without classes, and split files of CoOp."""

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import noise, write_images
from PIL import Image
from rich.console import Console

from harness.base.terminal import Progress
from harness.datasets import Options, SplitName, get_dataset, names_of
from harness.datasets.few_shot import draw
from harness.datasets.folder import FolderDataset, FolderParted, ImageFolder, captions_of
from harness.datasets.images import folder_images
from harness.datasets.public import CoopSplit

PLAIN = ["dog/b.png", "ankle_boot/2.png", "ankle_boot/1.png", "dog/deeper/a.png"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
NAMES = ["ankle_boot", "bag", "dog", "dog_house"]
CLASSES = ("ankle_boot", "bag", "dress")
COUNTS = {"train": 3, "val": 1, "test": 2}
Make = Callable[..., Path]


def images(count: int, name: str) -> list[str]:
    return [f"{name}/{i}.png" for i in range(count)]


@pytest.fixture
def shop(tmp_path: Path) -> Make:
    return partial(write_images, tmp_path / "My Shop")


def test_class_folders_without_splits_are_test(shop: Make, monkeypatch: pytest.MonkeyPatch):
    folder = shop(PLAIN)
    (folder / "dog" / "notes.txt").write_text("no image")
    dataset = get_dataset(f"folder:{folder}")
    assert (dataset.name, dataset.classes) == ("folder-my-shop", ("ankle boot", "dog"))
    paths = ["ankle_boot/1.png", "ankle_boot/2.png", "dog/b.png", "dog/deeper/a.png"]
    split = dataset.split("test")
    assert split.image_ids == tuple(f"folder-my-shop/{path}" for path in paths)
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert all(np.array_equal(e.image, noise(path)) for e, path in zip(split, paths, strict=True))
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0
    monkeypatch.chdir(folder)
    assert names_of(["fashion", "folder:."]) == ["fashion", "folder-my-shop"]
    monkeypatch.setattr(Image, "open", None)
    assert len(FolderDataset(folder).split("test").image_ids) == 4


@pytest.mark.parametrize(("prefix", "name"), [("folder", "dog/x.heic"), ("images", "dog/x.jxl")])
def test_files_that_are_left_out_are_told(prefix: str, name: str, shop: Make):
    folder, console = shop(PLAIN), Console(record=True, width=300)
    (folder / name).touch()
    names_of([f"{prefix}:{folder}"], Options(progress=Progress(console)))
    assert f"folder '{folder}': left out: 1 image: '{name}' (" in console.export_text()


def test_split_folders(shop: Make, tmp_path: Path):
    dataset = FolderDataset(shop(["train/cat/1.png", "train/dog/1.png", "Validation/dog/2.png", "test/bird/1.png"]))
    assert dataset.classes == ("bird", "cat", "dog")
    assert [dataset.labels(name).tolist() for name in SPLITS] == [[1, 2], [2], [0]]
    dataset = FolderDataset(write_images(tmp_path / "other", ["bus/1.png", "train/1.png", "train/2.png"]))
    assert dataset.classes == ("bus", "train")  # a class may be called like a split
    with pytest.raises(ValueError, match="splits of its own; give folder:PATH"):
        FolderParted(shop([]))


def test_names_and_revisions_stay_when_a_folder_moves_and_tell_other_content(shop: Make, tmp_path: Path):
    before = FolderDataset(shop(PLAIN))
    folder = (tmp_path / "My Shop").rename(tmp_path / "disk")
    (tmp_path / "My Shop").symlink_to(folder)
    (folder / "dog" / "b.png").rename(folder / "dog" / "c.png")
    (folder / "dog" / "b.png").symlink_to("c.png")
    after = FolderDataset(tmp_path / "My Shop")
    assert after.labels("test").tolist() == [0, 0, 1, 1, 1]
    assert not any(str(tmp_path) in text for text in (*after.split("test").image_ids, after.title))
    revisions = [before.revision, after.revision]
    (folder / "dog" / "c.png").replace(folder / "dog" / "b.png")
    assert FolderDataset(tmp_path / "My Shop").revision == before.revision
    for file, content in (("dog/b.png", "x"), ("classes.txt", "ankle_boot boots\ndog dogs\n")):
        (folder / file).write_text(content)
        revisions.append(FolderDataset(folder).revision)
    assert len(set(revisions)) == 4


@pytest.mark.parametrize("link", ["dog/out.png", "bird"])
def test_links_that_leave_the_folder(link: str, shop: Make, tmp_path: Path):
    folder = shop(PLAIN)
    write_images(tmp_path / "secret", ["x.png"])
    (folder / link).symlink_to(tmp_path / "secret" / ("x.png" if "." in link else ""))
    with pytest.raises(ValueError, match=f"{link}.*' is a link out of '{folder}'"):
        list(FolderDataset(folder).split("test"))


FOUR = [f"{name}/1.png" for name in NAMES]


@pytest.mark.parametrize(("paths", "captions", "match"), [
    ([*PLAIN, "1.png"], "", "image '1.png' lies in no class folder; .*images:PATH"),
    (["test/dog/1.png", "test/1.png", "train/dog/1.png"], "", "image 'test/1.png' lies in no class folder of a split"),
    (["test/dog/1.png", "val/dog/1.png", "valid/dog/1.png"], "", "val and valid"),
    (["a-b/1.png", "a_b/1.png"], "", "'a-b' and 'a_b' would both be class 'a b'"),
    (["__/1.png"], "", "'__' can't be put into a prompt"),
    ([], "", "has no subfolders.*give images:"),
    (FOUR, "bag x\nbag y\ndog z\nankle_boot a\ndog_house w", "'bag y': expected one line for each class folder"),
    (FOUR, "bag x\ndog z\nankle_boot a", "no line for the class folder 'dog_house'"),
    (FOUR, "bag x\ndog z\nankle_boot a\ndog_house x", "'bag' and 'dog_house' would both be class 'x'"),
])  # fmt: skip
def test_layouts_and_captions_that_are_refused(paths: list[str], captions: str, match: str, shop: Make, tmp_path: Path):
    (tmp_path / "My Shop").mkdir()
    if captions:
        (tmp_path / "My Shop" / "classes.txt").write_text(captions)
    with pytest.raises(ValueError, match=match):
        FolderDataset(shop(paths))


def test_class_folders_are_parted_by_their_bytes(shop: Make):
    paths = [*images(20, "many"), *images(3, "three"), *images(2, "two"), *images(1, "one")]
    folder = shop(paths)
    dataset = FolderParted(folder)
    sizes = {n: np.bincount(dataset.labels(n), minlength=4).tolist() for n in SPLITS}
    # In order: many, one, three, two.
    assert sizes == {"train": [12, 0, 1, 1], "val": [4, 0, 1, 0], "test": [4, 1, 1, 1]}
    assert sorted(i for n in SPLITS for i in dataset.split(n).image_ids) == sorted(f"{dataset.name}/{p}" for p in paths)
    before = {s: {e.image.tobytes() for e in dataset.split(s)} for s in SPLITS}
    for number, path in enumerate(sorted((folder / "many").iterdir())):
        path.rename(folder / "many" / f"x{19 - number:02d}.png")
    for name in ("x00.png", "x05.png"):  # a copy goes where its original is, in whatever class
        (folder / "one" / name).write_bytes((folder / "many" / name).read_bytes())
    after = FolderParted(folder)
    assert {s: {e.image.tobytes() for e in after.split(s)} for s in SPLITS} == before
    with pytest.raises(ValueError, match=f"check --dataset folder:{folder}` .*folder-parted:{folder}, "):
        draw(FolderDataset(folder), 4, seed=0)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="class folder 'empty' has no images"):
        FolderParted(folder)


def test_images_without_classes_are_parted_by_their_bytes(shop: Make):
    folder = shop([*images(40, "a/deeper"), *images(40, "b"), "top.png"])
    dataset = ImageFolder(folder)
    ids = {name: set(dataset.split(name).image_ids) for name in SPLITS}
    assert sorted(set.union(*ids.values())) == sorted(folder_images(folder).split.image_ids)
    for name, low, high in (("train", 0, 60), ("val", 60, 80), ("test", 80, 100)):
        assert all(low <= int(image_id, 16) % 100 < high for image_id in ids[name])
        assert (dataset.labels(name) == -1).all()
    for path in sorted((folder / "b").iterdir()):
        path.with_stem(f"copy {path.stem}").write_bytes(path.read_bytes())
        path.rename(folder / path.name)
    shop(["new.png"])
    after = {name: set(ImageFolder(folder).split(name).image_ids) for name in SPLITS}
    assert sum(ids[name] <= after[name] for name in SPLITS) == 3
    assert sum(map(len, after.values())) == sum(map(len, ids.values())) + 1


def test_a_file_says_what_folders_mean(tmp_path: Path):
    text = "\ufeffankle_boot boots\r\nbag\thandbag\r\ndog a dog\r\ndog_house kennel\r\n\r\n"
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert captions_of(tmp_path, NAMES, "here") == ("boots", "handbag", "a dog", "kennel")
    (tmp_path / "classes.txt").write_text("a b c x\na y\n")  # the longest folder is meant
    assert captions_of(tmp_path, ["a", "a b c"], "here") == ("y", "x")


def lists(split: str = "", index: int = 0, entry: Any = None) -> dict[str, list[Any]]:
    """List, like OxfordPets, a folder per class; one entry may be another."""
    found: dict[str, list[Any]] = {
        split: [[f"{n}/{split}_{i}.png", label, n] for label, n in enumerate(CLASSES) for i in range(count)]
        for split, count in COUNTS.items()
    }
    if split:
        found[split][index] = entry
    return found


PATHS = [path for entries in lists().values() for path, _, _ in entries]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def call(folder: str = "oxford_pets", images: str = "images") -> Path:
        write_images(tmp_path / folder / images, PATHS)
        file = tmp_path / folder / "split_zhou_Shop.json"
        file.write_text(json.dumps(lists()))
        return file

    return call


def test_the_images_and_labels_are_the_split_file_s(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = make()
    dataset = get_dataset(f"coop:{file}")
    assert dataset.classes == ("ankle boot", "bag", "dress")
    for split, entries in lists().items():
        found = dataset.split(split)  # type: ignore[arg-type]
        assert found.labels.tolist() == [label for _, label, _ in entries]
        assert found.image_ids == tuple(f"coop/split_zhou_Shop/{path}" for path, _, _ in entries)
        assert all(np.array_equal(e.image, noise(path)) for e, (path, _, _) in zip(found, entries, strict=True))
    monkeypatch.chdir(file.parent)
    assert get_dataset("coop:split_zhou_Shop.json").asked_as == f"coop:{file}"
    moved = CoopSplit(make(folder="elsewhere", images=""))  # beside the file
    assert (moved.revision, moved.split("test").image_ids) == (dataset.revision, dataset.split("test").image_ids)
    for other in ("some", "other"):
        write_images(tmp_path / "oxford_pets" / other, PATHS)
    (file.parent / "images").rename(tmp_path / "disk")
    with pytest.raises(FileNotFoundError, match=r"in each of \['other', 'some'\]"):
        CoopSplit(file)


def test_missing_and_empty_images_are_told_or_left_out(make: Make):
    file = make()
    (file.parent / "images/bag/test_1.png").unlink()
    os.truncate(file.parent / "images/dress/test_1.png", 0)
    split = CoopSplit(file).split("test")
    with pytest.raises(FileNotFoundError, match=r"'.*bag/test_1.png' is missing"):
        split[3]
    with pytest.raises(FileNotFoundError, match=r"1 missing image in .*'bag/test_1.png'.*1 empty image .*--skip-bad"):
        names_of([f"coop:{file}"], Options(skip_bad=False))
    assert names_of([f"coop:{file}"], Options(skip_bad=True)) == ["coop-shop"]
    assert len(get_dataset("coop-shop").split("test")) == len(split) - 2


@pytest.mark.parametrize(("content", "match"), [
    (pickle.dumps({"train": [], "val": []}), "JSON"),
    ({"train": [], "test": []}, r"got \{'test': \[\], 'train': \[\]\}"),
    (lists() | {"test": []}, "test has no images"),
    (lists("val", 2, ["a.jpg", "0", "bag"]), r"val\[2\] is \['a.jpg', '0'"),
    (lists("val", 2, ["a.jpg", 3, "a\x1b[2J"]), r"'a\\x1b\[2J \(label 3\)'"),
    (lists("test", 0, ["a.jpg", 1, "dog"]), "label 1 is both 'bag' and 'dog'"),
    (lists("test", 0, ["a.jpg", 3, "bag"]), r"'bag \(label 1\)' and 'bag \(label 3\)'"),
    (lists("test", 0, ["a.jpg", 4, "dog"]), "3 is missing"),
    (lists("test", 0, ["./bag//train_0.png", 1, "bag"]), "'bag/train_0.png' is in train and again in test"),
    *((lists("train", 3, [path, 1, "bag"]), "x.png' leaves '") for path in ("/etc/x.png", "../x.png")),
])  # fmt: skip
def test_refusals_of_the_split_file(content: Any, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "split_zhou_Shop.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    write_images(tmp_path, [*PATHS, "a.jpg"])
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(ValueError, match=rf"'.*split_zhou_Shop.json'.*{match}"):
        CoopSplit(file)


def test_refusals_of_what_is_asked_for(make: Make, tmp_path: Path):
    for name, match in (
        (f"coop:{tmp_path}", r"is a folder; give the split_zhou_\*.json"),
        (f"coop:{tmp_path / 'nowhere.json'}", "nowhere.json' does not exist"),
        (f"coop:{make().rename(tmp_path / 'oxford_pets' / 'split_zhou_-.json')}", "letters or digits"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            get_dataset(name)
    with pytest.raises(ValueError, match="'coop-shop', too"):
        names_of([f"coop:{make(folder='a')}", f"coop:{make(folder='b')}"])
