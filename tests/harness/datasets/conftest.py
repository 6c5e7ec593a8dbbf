"""Small copies of the public datasets, packed as their sources ship them."""

import hashlib
import io
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
from harness.datasets.imagenet import DEVKIT
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


# Split file, path of an image (class folder c, split s, number i), class folders with class names,
# and how images and what lies beside them are packed.
ZHOU: dict[str, tuple[str, str, dict[str, str], Callable[[Files], Files]]] = {
    "caltech101": (
        "split_zhou_Caltech101.json", "{c}/image_{n:04}.jpg",
        {"Faces": "face", "airplanes": "airplane", "brain": "brain"},
        lambda f: {"caltech-101.zip": zipped({
            "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"\0\5\26\7",
            "caltech-101/Annotations.tar": tarred({"Annotations/a.mat": b"MATLAB"}, "w"),
            "caltech-101/101_ObjectCategories.tar.gz": tarred(
                {f"101_ObjectCategories/{k}": v for k, v in f.items()}
                | {"101_ObjectCategories/Faces_easy/image_0001.jpg": photo("easy")}),
        })},
    ),
    "oxford-pets": (
        "split_zhou_OxfordPets.json", "{c}_{n}.jpg",
        {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog"},
        lambda f: {"images.tar.gz": tarred(
            {f"images/{k}": v for k, v in f.items()} | {"images/Abyssinian_100.mat": b"MATLAB"})},
    ),
    "stanford-cars": (
        "split_zhou_StanfordCars.json", "cars_{part}/{n:05}.jpg",
        {"a": "2000 AM General Hummer SUV", "b": "2012 smart fortwo Convertible"},
        lambda f: {f"cars_{part}.tgz": tarred(
            {k: v for k, v in f.items() if part in k}) for part in ("train", "test")},
    ),
    "flowers102": (
        "split_zhou_OxfordFlowers.json", "image_{n:05}.jpg",
        {"1": "pink primrose", "2": "hard-leaved pocket orchid"},
        lambda f: {"102flowers.tgz": tarred({f"jpg/{k}": v for k, v in f.items()})},
    ),
    "food101": (
        "split_zhou_Food101.json", "{c}/{n}.jpg", {"apple_pie": "apple_pie", "pho": "pho"},
        lambda f: {"food-101.tar.gz": tarred(
            {f"food-101/images/{k}": v for k, v in f.items()}
            | {"food-101/README.txt": b"x", "food-101/meta/classes.txt": b"apple_pie\npho\n"})},
    ),
    "sun397": (
        "split_zhou_SUN397.json", "a/{c}/sun_{n}.jpg",
        {"abbey": "abbey", "apse/indoor": "indoor apse"},
        lambda f: {"SUN397.tar.gz": tarred({f"SUN397/{k}": v for k, v in f.items()})},
    ),
    "dtd": (
        "split_zhou_DescribableTextures.json", "{c}/{c}_{n:04}.jpg",
        {"banded": "banded", "zigzagged": "zigzagged"},
        lambda f: {"dtd-r1.0.1.tar.gz": tarred(
            {f"dtd/images/{k}": v for k, v in f.items()}
            | {"dtd/imdb/imdb.mat": b"MATLAB", "dtd/labels/test1.txt": b"banded/banded_0001.jpg"})},
    ),
    "eurosat": (
        "split_zhou_EuroSAT.json", "{c}/{c}_{n}.jpg",
        {"AnnualCrop": "Annual Crop Land", "SeaLake": "Sea or Lake"},
        lambda f: {"EuroSAT.zip": zipped({"2750/": b""} | {f"2750/{k}": v for k, v in f.items()})},
    ),
    "ucf101": (
        "split_zhou_UCF101.json", "{c}/v_x_g{n:02}_c01.jpg",
        {"Apply_Eye_Makeup": "Apply_Eye_Makeup", "Yo_Yo": "Yo_Yo"},
        lambda f: {"UCF-101-midframes.zip": zipped(
            {f"UCF-101-midframes/{k}": v for k, v in f.items()})},
    ),
}  # fmt: skip


def zhou_copy(name: str) -> Copy:
    file, pattern, classes, pack = ZHOU[name]
    lists: dict[str, list[Any]] = {split: [] for split in SPLITS}
    images: dict[str, bytes] = {}
    numbers = iter(range(1, 100))
    for label, folder in enumerate(classes):
        for split in IN_TURN:
            part = "test" if split == "test" else "train"
            path = pattern.format(c=folder, n=next(numbers), part=part)
            images[path] = photo(path)
            lists[split].append([path, label, classes[folder]])
    examples = {s: [(f"{name}/{p}", at, images[p]) for p, at, _ in lists[s]] for s in SPLITS}
    return Copy({**pack(images), file: json.dumps(lists).encode()}, examples)


def aircraft_copy() -> Copy:
    variants, images, lists = ("707-320", "F-16A/B"), {}, dict.fromkeys(SPLITS, "")
    examples: dict[str, list[tuple[str, int, bytes]]] = {split: [] for split in SPLITS}
    for label in (0, 1):
        for place, split in enumerate(IN_TURN):
            number = f"{label}{place:06}"
            lists[split] += f"{number} {variants[label]}\n"
            images[f"images/{number}.jpg"] = photo(number)
            examples[split].append((f"fgvc-aircraft/{number}.jpg", label, photo(number)))
    texts = {f"images_variant_{split}.txt": text for split, text in lists.items()}
    texts["variants.txt"] = "\n".join(variants) + "\n"
    data = images | {file: text.encode() for file, text in texts.items()}
    packed = {f"fgvc-aircraft-2013b/data/{k}": v for k, v in data.items()}
    packed["fgvc-aircraft-2013b/README.md"] = b"x"
    return Copy({"fgvc-aircraft-2013b.tar.gz": tarred(packed)}, examples)


# Archive, folder in it, folder of the images, class folders by label, file.
SYNSETS: dict[str, tuple[str, str, str, dict[int, str], str]] = {
    "imagenetv2": (
        "imagenetv2-matched-frequency.tar.gz", "imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency-format-val", {0: "0", 2: "2", 10: "10"}, "{i}ab.jpeg",
    ),  # a plain tar, whatever it is called
    "imagenet-sketch": ("ImageNet-Sketch.zip", "sketch", "images",
                        {0: "n01440764", 999: "n15075141"}, "sketch_{i}.JPEG"),
    "imagenet-a": ("imagenet-a.tar", "imagenet-a", "imagenet-a",
                   {0: "n01498041", 199: "n12267677"}, "0.0{i}_digital clock _ acorn_0.86.jpg"),
    "imagenet-r": ("imagenet-r.tar", "imagenet-r", "imagenet-r",
                   {0: "n01443537", 199: "n12267677"}, "art_{i}.jpg"),
}  # fmt: skip


def synset_copy(name: str) -> Copy:
    file, top, folder, classes, pattern = SYNSETS[name]
    images = {f"{c}/{pattern.format(i=i)}": label for label, c in classes.items() for i in (0, 1)}
    packed = {f"{top}/{path}": photo(path) for path in images} | {f"{top}/README.txt": b"x"}
    test = [(f"{name}/{folder}/{path}", label, photo(path)) for path, label in images.items()]
    content = zipped(packed) if file.endswith(".zip") else tarred(packed, "w")
    return Copy({file: content}, {"train": [], "val": [], "test": test})


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


def make_copy(name: str) -> Copy:
    if name in ZHOU or name in SYNSETS:
        return zhou_copy(name) if name in ZHOU else synset_copy(name)
    return imagenet_copy() if name == "imagenet" else aircraft_copy()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget the datasets that a test gives by path."""
    yield
    forget()


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Copy]:
    """Put a copy's archives where a user puts them, and let the dataset know their sums."""

    def call(name: str, *, without: tuple[str, ...] = ()) -> Copy:
        copy, dataset = make_copy(name), get_dataset(name)
        assert isinstance(dataset, RootedDataset)
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
