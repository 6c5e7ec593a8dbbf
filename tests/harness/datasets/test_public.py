"""Public datasets, on small copies packed as their sources ship them: one contract over all, and ImageNet's own."""

import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from packing import encoded, tarred, write_images, zipped
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo
from torchvision.datasets.imagenet import ARCHIVE_META

from harness.datasets import get_dataset, list_datasets
from harness.datasets import public as module
from harness.datasets.base import SPLITS
from harness.datasets.public import RootedDataset, captions_of, class_folders, synsets_of

NAMES = [name for name in list_datasets() if isinstance(get_dataset(name), RootedDataset)]
IN_TURN = ("train", "train", "train", "val", "test", "test")  # splits of a class's images
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
Files = Mapping[str, bytes]


class Copy(NamedTuple):
    archives: Files
    examples: dict[str, list[tuple[str, int, bytes]]]  # id, label and content by split


def photo(key: str) -> bytes:
    return encoded(key, "JPEG")


def pack(dataset: RootedDataset, files: Files) -> dict[str, bytes]:
    """Pack files, by their paths below the dataset's folder, into its archives as the source does."""
    packed: dict[str, bytes] = {}
    for archive in reversed([one for one in dataset.archives if one.packed]):  # one that lies in another comes later
        held = {path: data for path, data in (files | packed).items() if Path(path).is_relative_to(archive.holds)}
        if not archive.loose:  # what lies beside it comes along
            held |= {path: data for path, data in files.items() if Path(path).parent == Path()}
        inside = archive.holds if archive.loose else "."
        names = {f"{archive.strip}/{Path(p).relative_to(inside)}".strip("/"): data for p, data in held.items()}
        names["README.txt"] = b"x"
        packed[archive.file] = zipped(names.items()) if archive.file.endswith(".zip") else tarred(names.items(), "w:gz")
    inner = {archive.holds for archive in dataset.archives}
    return {file: data for file, data in packed.items() if file not in inner}


def list_copy(dataset: RootedDataset) -> Copy:
    """Two classes of a list, CoOp's or Aircraft's own; images lie in the folders that archives hold, in turn."""
    inner, aircraft = {archive.file for archive in dataset.archives}, dataset.layout == "aircraft"
    roots = [archive.holds for archive in dataset.archives if archive.packed and archive.holds not in inner]
    lists: dict[str, list[Any]] = {split: [] for split in SPLITS}
    examples: dict[str, list[tuple[str, int, bytes]]] = {split: [] for split in SPLITS}
    files: dict[str, bytes] = {}
    for number, (label, split) in enumerate(itertools.product((0, 1), IN_TURN)):
        name = ("Yo_Yo", "apse/indoor")[label]
        path = Path(roots[number % len(roots)]) / (f"{number:07}.jpg" if aircraft else f"{name}_{number}.jpg")
        own = path.relative_to(dataset.images).as_posix()
        files[path.as_posix()] = photo(own)
        lists[split].append([own, label, name])
        examples[split].append((f"{dataset.name}/{own}", label, photo(own)))
    if not aircraft:
        return Copy({**pack(dataset, files), dataset.list_file: json.dumps(lists).encode()}, examples)
    texts = {f"images_variant_{s}.txt": [f"{p[:-4]} {name}" for p, _, name in lists[s]] for s in SPLITS}
    texts["variants.txt"] = ["Yo_Yo", "apse/indoor"]
    return Copy(pack(dataset, files | {f: "\n".join(lines).encode() for f, lines in texts.items()}), examples)


def folder_copy(dataset: RootedDataset) -> Copy:
    folders = range(dataset.class_count) if dataset.numbered else synsets_of(dataset.synsets)
    labels = (0, 2, 10, dataset.class_count - 1)
    paths = {f"{dataset.images}/{folders[label]}/{i} _ a.JPEG": label for label in labels for i in (0, 1)}
    test = [(f"{dataset.name}/{path}", label, photo(path)) for path, label in paths.items()]
    return Copy(pack(dataset, {path: photo(path) for path in paths}), {"train": [], "val": [], "test": test})


def imagenet_copy() -> Copy:
    """Two classes of 24 and 300; val is carved by names alone; numbers in the devkit aren't in WordNet's order."""
    classes = {0: "n01440764", 1: "n01443537"}
    inner, found = {}, {split: [] for split in SPLITS}
    for label, synset in classes.items():
        names = sorted(f"{synset}_{i}.JPEG" for i in range((24, 300)[label]))
        carved = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())[: (4, 50)[label]]
        for name in names:
            split = "val" if name in carved else "train"
            found[split].append((f"imagenet/images/train/{synset}/{name}", label, photo(name)))
        inner[f"{synset}.tar"] = tarred((name, photo(name)) for name in names)
    truth = [2, 1, 2, 1]  # 1 is the goldfish
    vals = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(4)]
    for name, told in zip(vals, truth, strict=True):
        found["test"].append((f"imagenet/images/val/{classes[2 - told]}/{name}", 2 - told, photo(name)))
    kinds = [("ILSVRC2012_ID", "i4"), *((k, "O") for k in ("WNID", "words", "gloss", "x"))]
    told = [(1, "n01443537", 0), (2, "n01440764", 0), (1001, "n00015388", 5)]  # the last has kinds below it
    rows = [(number, synset, "words", "gloss", below) for number, synset, below in told]
    savemat(meta := io.BytesIO(), {"synsets": np.array(rows, dtype=kinds)})
    archives = {
        "ILSVRC2012_img_train.tar": tarred(inner.items()),
        "ILSVRC2012_img_val.tar": tarred((name, photo(name)) for name in vals),
        DEVKIT: tarred([(META, meta.getvalue()), (TRUTH, "".join(f"{n}\n" for n in truth).encode())], "w:gz"),
    }
    return Copy(archives, found)


COPIES: dict[str, Callable[[RootedDataset], Copy]] = {
    "split file": list_copy, "aircraft": list_copy, "class folders": folder_copy, "imagenet": lambda _: imagenet_copy(),
}  # fmt: skip


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Copy]:

    def call(name: str) -> Copy:
        dataset: Any = get_dataset(name)
        copy = COPIES[dataset.layout](dataset)
        (tmp_path / dataset.folder).mkdir()
        archives = {archive.file: archive for archive in dataset.archives}
        for file, content in copy.archives.items():
            (tmp_path / dataset.folder / file).write_bytes(content)
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if file == DEVKIT:
                monkeypatch.setitem(ARCHIVE_META, "devkit", (DEVKIT, digest))
            else:
                archives[file] = replace(archives[file], sums=(f"md5:{digest}",))
        monkeypatch.setattr(dataset, "archives", tuple(archives.values()))
        return copy

    return call


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named_with_where_to_get_it(name: str, tmp_path: Path):
    dataset = get_dataset(name)
    assert dataset.captions_seen == (True,) * dataset.class_count
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*--root FOLDER"):
        dataset.split("test")
    with pytest.raises(FileNotFoundError) as caught:
        dataset.at(tmp_path)
    for archive in dataset.archives:
        assert all(url.startswith("https://") for url in (archive.page, archive.url or archive.page))
        assert archive.optional or (archive.file in str(caught.value) and archive.page in str(caught.value))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_unpacked_and_read(name: str, ship, tmp_path: Path):
    copy = ship(name)
    dataset = get_dataset(name).at(tmp_path)
    problems = "\n".join(dataset.problems())
    for split in SPLITS:
        wanted, found = sorted(copy.examples[split]), dataset.split(split)
        assert sorted(zip(found.image_ids, found.labels.tolist(), strict=True)) == [one[:2] for one in wanted]
        pictures = {example.image_id: example for example in found}
        for image_id, label, content in wanted:
            assert pictures[image_id].label == label
            assert np.array_equal(pictures[image_id].image, Image.open(io.BytesIO(content)).convert("RGB"))
        told = f"{split} images: {len(found)} instead of {dataset.counts[split]:,}"
        assert (told in problems) == (len(found) != dataset.counts[split])
    # Unpacked by hand does as well.
    for file in (file for file in copy.archives if not file.endswith(".json")):
        (dataset.place / file).unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(dataset.place, tmp_path / "elsewhere")
    second = get_dataset(name).at(tmp_path / "elsewhere")
    assert (second.revision, second.split("test").image_ids) == (dataset.revision, dataset.split("test").image_ids)


def test_an_image_that_changes_changes_the_revision(ship, tmp_path: Path):
    ship("dtd")
    dataset = get_dataset("dtd").at(tmp_path)
    file = dataset.place / "images" / dataset.split("test").image_ids[1].removeprefix("dtd/")
    file.write_bytes(file.read_bytes()[:100])
    changed = get_dataset("dtd").at(tmp_path)
    with pytest.raises(ValueError, match=f"image '.*{file.name}' can't be read"):
        changed.split("test")[1]
    assert changed.revision != dataset.revision
    file.unlink()
    assert f"1 missing image in '{file.parents[1]}" in "\n".join(get_dataset("dtd").at(tmp_path).problems())
    (dataset.place / dataset.archives[0].file).write_bytes(b"another")
    shutil.rmtree(dataset.place / "images")
    with pytest.raises(ValueError, match=f"dtd-r1.0.1.tar.gz' has md5:.* expected {dataset.archives[0].sums[0]}"):
        get_dataset("dtd").at(tmp_path)


@pytest.mark.parametrize(("file", "content", "match"), [
    ("variants.txt", None, "variants.txt'"),
    ("images_variant_val.txt", b"1000000 MiG\n", "val.txt', line 1: '1000000 MiG'"),
    ("images_variant_val.txt", b"../x Yo_Yo\n", "image '../x.jpg' is a link or path out of"),
    ("images_variant_test.txt", b"0000000 Yo_Yo\n1000000 apse/indoor\n",
     "'0000000.jpg' is in train and again in test"),
])  # fmt: skip
def test_lists_that_lie(file: str, content: bytes | None, match: str, ship, tmp_path: Path):
    ship("fgvc-aircraft")
    found = get_dataset("fgvc-aircraft").at(tmp_path)
    (found.place / file).unlink()
    if content is not None:
        (found.place / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        found.split("test")


def test_classes_are_those_of_imagenet_in_its_order():
    synsets = synsets_of("imagenet")
    assert list(synsets) == sorted(ImageNetInfo("imagenet-1k").label_names())
    captions = dict(zip(synsets, captions_of(synsets), strict=True))
    assert (captions["n01440764"], captions["n15075141"]) == ("tench", "toilet paper")
    for subset in ("imagenet_a", "imagenet_r"):
        assert list(synsets_of(subset)) == sorted(set(synsets_of(subset)))
        assert len(set(captions_of(synsets_of(subset)))) == 200


def test_validation_images_are_sorted_by_the_devkit_or_by_hand(ship, tmp_path: Path):
    ship("imagenet")
    found = get_dataset("imagenet").at(tmp_path)
    devkit = (found.place / DEVKIT).rename(tmp_path / DEVKIT)
    with pytest.raises(ValueError, match=f"{DEVKIT}.*classes of the images in '{found.place / 'images/val'}'"):
        found.split("test")
    devkit.rename(found.place / DEVKIT)
    facts = (found.revision, found.split("test").image_ids, found.labels("test").tolist())
    (found.place / DEVKIT).unlink()
    (found.place / "images/val/n99999999").mkdir()  # of no class
    found = get_dataset("imagenet").at(tmp_path)
    assert (found.revision, found.split("test").image_ids, found.labels("test").tolist()) == facts


def test_a_kept_listing_is_used_until_a_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CACHED_FROM", 1)
    write_images(folder := tmp_path / "images", ("b/2.png", "b/10.png", "a/1.png", ".git/x.png", "a/deeper/x.png"))
    first = class_folders(folder)
    assert [(name, list(inner)) for name, inner in first.items()] == [("a", ["1.png"]), ("b", ["10.png", "2.png"])]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_list_images", pytest.fail)
        assert class_folders(folder) == first
    (folder / "a" / "1.png").unlink()
    os.utime(folder / "a", ns=(2, 2))
    assert class_folders(folder)["a"] == {}
