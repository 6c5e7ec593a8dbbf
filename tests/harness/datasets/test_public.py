"""Public datasets, on small copies packed as their sources ship them: one contract over all, and ImageNet's own."""

import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from packing import encoded, tarred, zipped
from PIL import Image
from timm.data import ImageNetInfo

from harness.datasets import get_dataset, list_datasets
from harness.datasets.base import SPLITS
from harness.datasets.public import RootedDataset, captions_of, synsets_of

NAMES = [name for name in list_datasets() if isinstance(get_dataset(name), RootedDataset)]
IN_TURN = ("train", "train", "train", "val", "test", "test")  # splits of a class's images
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
    """Two classes of 24 and 300 images to train on; val is carved by names alone."""
    classes = {0: "n01440764", 1: "n01443537"}
    found = {split: [] for split in SPLITS}
    for label, synset in classes.items():
        names = sorted(f"{synset}_{i}.JPEG" for i in range((24, 300)[label]))
        carved = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())[: (4, 50)[label]]
        for name in names:
            split = "val" if name in carved else "train"
            found[split].append((f"imagenet/images/train/{synset}/{name}", label, photo(name)))
        found["test"] += [(f"imagenet/images/val/{synset}/{i}.JPEG", label, photo(f"{label}{i}")) for i in range(2)]
    return Copy({path.partition("/")[2]: data for own in found.values() for path, _, data in own}, found)


COPIES: dict[str, Callable[[RootedDataset], Copy]] = {
    "split file": list_copy, "aircraft": list_copy, "class folders": folder_copy, "imagenet": lambda _: imagenet_copy(),
}  # fmt: skip


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Copy]:
    def call(name: str) -> Copy:
        dataset: Any = get_dataset(name)
        copy = COPIES[dataset.layout](dataset)
        archives = {archive.file: archive for archive in dataset.archives}
        for file, content in copy.archives.items():
            path = tmp_path / dataset.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if file in archives:
                digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
                archives[file] = replace(archives[file], sums=(f"md5:{digest}",))
        monkeypatch.setattr(dataset, "archives", tuple(archives.values()))
        return copy

    return call


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named_with_where_to_get_it(name: str, tmp_path: Path):
    dataset = get_dataset(name)
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*--root FOLDER"):
        dataset.split("test")
    with pytest.raises(FileNotFoundError) as caught:
        dataset.at(tmp_path)
    for archive in dataset.archives:
        assert all(url.startswith("https://") for url in (archive.page, archive.url or archive.page))
        assert archive.file in str(caught.value)
        assert archive.page in str(caught.value)


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
    for file in (archive.file for archive in dataset.archives if archive.packed and archive.file in copy.archives):
        (dataset.place / file).unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(dataset.place, tmp_path / "elsewhere")
    second = get_dataset(name).at(tmp_path / "elsewhere")
    assert (second.revision, second.split("test").image_ids) == (dataset.revision, dataset.split("test").image_ids)


def test_an_image_that_changes_changes_the_revision(ship, tmp_path: Path):
    ship("dtd")
    dataset = get_dataset("dtd").at(tmp_path)
    revision = dataset.revision
    file = dataset.place / "images" / dataset.split("test").image_ids[1].removeprefix("dtd/")
    file.write_bytes(file.read_bytes()[:100])
    assert get_dataset("dtd").at(tmp_path).revision != revision
    (dataset.place / dataset.archives[0].file).write_bytes(b"another")
    shutil.rmtree(dataset.place / "images")
    with pytest.raises(ValueError, match=f"dtd-r1.0.1.tar.gz' has md5:.* expected {dataset.archives[0].sums[0]}"):
        get_dataset("dtd").at(tmp_path)


@pytest.mark.parametrize(("file", "content", "match"), [
    ("variants.txt", None, "variants.txt'"),
    ("images_variant_val.txt", b"1000000 MiG\n", "val.txt', line 1: '1000000 MiG'"),
    ("images_variant_val.txt", b"../x Yo_Yo\n", "image '../x.jpg' leaves"),
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
