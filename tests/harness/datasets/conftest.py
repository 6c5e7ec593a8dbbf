"""Small copies of the public datasets, packed as their sources ship them."""

import hashlib
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from harness.datasets import forget, get_dataset, imagenet
from harness.datasets.archives import Archive
from harness.datasets.coop import AircraftDataset, CoopDataset
from harness.datasets.imagenet import DEVKIT, ImageNet, SynsetDataset
from harness.datasets.rooted import RootedDataset

Files = Mapping[str, bytes]
SPLITS = ("train", "val", "test")
IN_TURN = ("train", "train", "train", "val", "test", "test")  # splits of a class's images


def pixels_of(key: str) -> np.ndarray:
    """Noise that belongs to a key, of a size that belongs to it, too."""
    drawn = np.random.default_rng(list(key.encode()))
    return drawn.integers(0, 256, (*drawn.integers(9, 20, 2), 3), dtype=np.uint8)


@pytest.fixture
def pixels() -> Callable[[str], np.ndarray]:
    return pixels_of


@pytest.fixture
def write_images() -> Callable[[Path, Iterable[str]], None]:
    """Write images at paths below a folder."""

    def call(folder: Path, paths: Iterable[str]) -> None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_of(path)).save(folder / path)

    return call


def photo(key: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels_of(key)).save(content, "JPEG")
    return content.getvalue()


def tarred(files: Files, kind: str = "w:gz") -> bytes:
    """Pack files with their folders."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=kind) as tar:
        for folder in sorted({str(p) for f in files for p in Path(f).parents} - {"."}):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture(name="tarred")
def _tarred() -> Callable[..., bytes]:
    return tarred


def zipped(files: Files) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


class Copy(NamedTuple):
    """A copy as shipped: archives by name, and the examples (id, label, bytes) by split."""

    archives: Files
    examples: Mapping[str, list[tuple[str, int, bytes]]]


def pack(dataset: RootedDataset, files: Files) -> dict[str, bytes]:
    """Pack files, by their paths below the dataset's folder, into its archives as the source does."""
    packed: dict[str, bytes] = {}
    for archive in dataset.archives:
        if not archive.packed:
            continue
        held = {path: data for path, data in (files | packed).items() if Path(path).is_relative_to(archive.holds)}
        if archive.holds != archive.into:  # what lies beside it comes along
            held |= {path: data for path, data in files.items() if Path(path).parent == Path()}
        names = {f"{archive.strip}/{Path(p).relative_to(archive.into)}".strip("/"): data for p, data in held.items()}
        names["README.txt"] = b"x"
        packed[archive.file] = zipped(names) if archive.file.endswith(".zip") else tarred(names, "w:gz")
    inner = {archive.holds for archive in dataset.archives}
    return {file: data for file, data in packed.items() if file not in inner}


def coop_copy(dataset: CoopDataset) -> Copy:
    """Two classes; images lie in the folders that archives hold, in turn."""
    inner = {archive.file for archive in dataset.archives}
    roots = [a.holds for a in dataset.archives if a.packed and a.holds not in inner]
    lists: dict[str, list[Any]] = {split: [] for split in SPLITS}
    examples: dict[str, list[tuple[str, int, bytes]]] = {split: [] for split in SPLITS}
    files: dict[str, bytes] = {}
    for number, (label, split) in enumerate(itertools.product((0, 1), IN_TURN)):
        name = ("Yo_Yo", "apse/indoor")[label]
        path = Path(roots[number % len(roots)]) / f"{name}_{number}.jpg"
        if isinstance(dataset, AircraftDataset):
            path = Path(roots[0]) / f"{number:07}.jpg"
        own = path.relative_to(dataset.images).as_posix()
        files[path.as_posix()] = photo(own)
        lists[split].append([own, label, name])
        examples[split].append((f"{dataset.name}/{own}", label, photo(own)))
    if not isinstance(dataset, AircraftDataset):
        return Copy({**pack(dataset, files), dataset.split_file: json.dumps(lists).encode()}, examples)
    texts = {dataset.split_file.format(s): [f"{p[:-4]} {name}" for p, _, name in lists[s]] for s in SPLITS}
    texts[dataset.class_list] = ["Yo_Yo", "apse/indoor"]
    return Copy(pack(dataset, files | {f: "\n".join(lines).encode() for f, lines in texts.items()}), examples)


def synset_copy(dataset: SynsetDataset) -> Copy:
    classes = {label: dataset.class_folders[label] for label in (0, 2, 10, dataset.class_count - 1)}
    paths = {f"{dataset.images}/{c}/{i} _ a.JPEG": label for label, c in classes.items() for i in (0, 1)}
    test = [(f"{dataset.name}/{path}", label, photo(path)) for path, label in paths.items()]
    return Copy(pack(dataset, {path: photo(path) for path in paths}), {"train": [], "val": [], "test": test})


def imagenet_copy() -> Copy:
    """Two classes; their numbers in the devkit aren't in WordNet's order."""
    classes = {0: "n01440764", 1: "n01443537"}
    inner, found = {}, {split: [] for split in SPLITS}
    for label, synset in classes.items():
        names = sorted(f"{synset}_{i}.JPEG" for i in range(10))
        carved = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())[:2]
        for name in names:
            split = "val" if name in carved else "train"
            found[split].append((f"imagenet/images/train/{synset}/{name}", label, photo(name)))
        inner[f"{synset}.tar"] = tarred({name: photo(name) for name in names}, "w")
    truth = [2, 1, 2, 1]  # 1 is the goldfish
    vals = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(4)]
    for name, told in zip(vals, truth, strict=True):
        key = f"imagenet/images/val/{classes[2 - told]}/{name}"
        found["test"].append((key, 2 - told, photo(name)))
    kinds = [("ILSVRC2012_ID", "i4"), *((k, "O") for k in ("WNID", "words", "gloss", "x"))]
    told = [(1, "n01443537"), (2, "n01440764"), (1001, "n00015388")]
    rows = np.array([(*row, "words", "gloss", 0) for row in told], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": rows})
    lines = "".join(f"{number}\n" for number in truth)
    data = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": lines.encode()}
    archives = {
        "ILSVRC2012_img_train.tar": tarred(inner, "w"),
        "ILSVRC2012_img_val.tar": tarred({name: photo(name) for name in vals}, "w"),
        DEVKIT.file: tarred({f"ILSVRC2012_devkit_t12/data/{k}": v for k, v in data.items()}),
    }
    return Copy(archives, found)


def make_copy(dataset: Any) -> Copy:
    if isinstance(dataset, ImageNet):
        return imagenet_copy()
    return coop_copy(dataset) if isinstance(dataset, CoopDataset) else synset_copy(dataset)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget the datasets that a test gives by path."""
    yield
    forget()


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Copy]:
    """Put a copy's archives where a user puts them, and let the dataset know their sums."""

    def call(name: str, *, without: tuple[str, ...] = ()) -> Copy:
        dataset: Any = get_dataset(name)
        copy = make_copy(dataset)
        place = tmp_path / dataset.folder
        place.mkdir()
        for file in copy.archives.keys() - set(without):
            (place / file).write_bytes(copy.archives[file])

        def known(archive: Archive) -> Archive:
            content = copy.archives.get(archive.file, b"")
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            return replace(archive, checksums=(f"md5:{digest}",)) if content else archive

        monkeypatch.setattr(dataset, "archives", tuple(map(known, dataset.archives)))
        monkeypatch.setattr(imagenet, "DEVKIT", known(DEVKIT))
        return copy

    return call
