"""ImageNet and what is tested like it: a folder per class, classes by WordNet number."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from harness.base.terminal import Progress
from harness.datasets.archives import Archive, Provider, drive
from harness.datasets.base import SplitName, cached_json, keep_json
from harness.datasets.images import EXTENSIONS, ImageList, shorten
from harness.datasets.rooted import RootedDataset, counted

CACHED_FROM = 20_000  # files; fewer are listed in no time
TRAIN = "images/train"
VAL = "images/val"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
HOME = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
# It says which class each of the unsorted validation images is of.
DEVKIT = Archive(
    file="ILSVRC2012_devkit_t12.tar.gz", holds=TRUTH, page=HOME, checksums=("md5:fa75699e90414af021442c21a62c3abf",)
)
CARVED = 50  # images of a class
CARVED_SHARE = 5  # one in as many, of classes with few images

Listing = dict[str, dict[str, int]]  # by folder: the image files by sorted names, and their bytes


def class_folders(folder: Path, *, fresh: bool = False) -> Listing:
    """List the images in each folder of a folder, sorted; nothing where there is no such folder.

    Files that aren't images by their extension, and names with a dot in front, don't count. A long
    listing is kept in the user's cache as long as no folder says that a name was added or removed; a file that was
    overwritten in place goes unnoticed unless ``fresh``.
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        inner = sorted((e.name, e.stat().st_mtime_ns) for e in entries if e.name[0] != "." and e.is_dir())
    file, kept = cached_json("folders", os.path.realpath(folder), inner)
    if kept is not None and not fresh:
        listing: Listing = kept
        return listing
    listing = {name: _list_files(folder / name) for name, _ in inner}
    if sum(map(len, listing.values())) >= CACHED_FROM:
        with suppress(OSError, RuntimeError):  # a cache that can't be written costs time only
            keep_json(file, listing)
    return listing


def _list_files(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return dict(
            sorted(
                (entry.name, entry.stat().st_size)
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122  (a million)
                and entry.name[0] != "."
                and entry.is_file()
            )
        )


def synsets_of(subset: str) -> tuple[str, ...]:
    """Return the WordNet numbers of "imagenet", "imagenet_a" or "imagenet_r", as timm has them."""
    text = files("timm.data").joinpath("_info", f"{subset}_synsets.txt").read_text()
    return tuple(text.split())


@dataclass(eq=False, kw_only=True)
class SynsetDataset(RootedDataset):
    """Images in a folder per class, to test by. Class names are those that CLIP chose for ImageNet's.

    Two names stand for two classes each, "missile" and "sunglasses", as they do in CLIP's list: by
    text nobody can tell these apart.

    synset_list: which classes, see ``synsets_of``. numbered: whether folders are called by label.
    """

    synset_list: str = "imagenet"
    numbered: bool = False

    @functools.cached_property
    def synsets(self) -> tuple[str, ...]:
        """WordNet numbers by label."""
        return synsets_of(self.synset_list)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names that CLIP chose, by label; known without a root."""
        from open_clip import IMAGENET_CLASSNAMES

        names = dict(zip(synsets_of("imagenet"), IMAGENET_CLASSNAMES, strict=True))
        return tuple(names[synset] for synset in self.synsets)

    @property
    def class_folders(self) -> tuple[str, ...]:
        """Names of the class folders, by label."""
        return tuple(map(str, range(self.class_count))) if self.numbered else self.synsets

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _class_images(self, images: str) -> ImageList:
        """List the images of all classes, class by class."""
        listing = class_folders(self.place / images)
        present = [(label, name, listing.get(name, {})) for label, name in enumerate(self.class_folders)]
        return ImageList(
            root=self.place / images,
            paths=[f"{folder}/{name}" for _, folder, inner in present for name in inner],
            labels=np.repeat(np.arange(len(present)), [len(inner) for _, _, inner in present]),
            prefix=f"{self.name}/{images}",
            known_sizes=np.array([size for _, _, inner in present for size in inner.values()], np.int64),
        )

    def _images(self, name: SplitName) -> ImageList:
        tested = self._class_images(self.images)
        return tested if name == "test" else tested.subset(np.arange(0))

    def problems(self, progress: Progress | None = None) -> list[str]:
        """See ``RootedDataset.problems``; class folders are compared, too."""
        return [*super().problems(progress), *self._folder_differences(self.images)]

    def _folder_differences(self, images: str) -> Iterator[str]:
        """Compare the class folders with the classes; the folders are listed anew."""
        there, where = set(class_folders(self.place / images, fresh=True)), repr(str(self.place / images))
        if missing := [folder for folder in self.class_folders if folder not in there]:
            yield f"class folders missing in {where}: {len(missing):,}, {shorten(missing)}"
        if extra := sorted(there - set(self.class_folders)):
            yield f"folders of no class in {where}, left out: {shorten(extra)}"


@dataclass(eq=False, kw_only=True)
class ImageNet(SynsetDataset):
    """Test is the official validation set, as in CoOp; val is carved out of the training images.

    CoOp chooses by the test images. Here, of each class the 50 training images whose names have the
    smallest sha256 make val (a fifth, where a class has fewer than 250), and the others train. The
    validation images may lie in folders by class or, as shipped, in one. Without the training
    images train and val are empty.
    """

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """See ``RootedDataset.at``; of unsorted validation images the devkit is needed, too."""
        bound = super().at(root, download=download, progress=progress)
        if bound._unsorted:
            Provider(bound.name, bound.place, (DEVKIT,), download, progress or Progress()).provide()
        return bound

    @functools.cached_property
    def _unsorted(self) -> bool:
        """Whether validation images lie in one folder."""
        return not set(class_folders(self.place / VAL)) & set(self.synsets)

    @functools.cached_property
    def _flat(self) -> ImageList:
        """Validation images that lie in one folder, in the order of those in class folders."""
        folder, classes = self.place / VAL, self._truth()
        entries = []
        for path in folder.iterdir():
            if match := VAL_FILE.fullmatch(path.name):
                number = int(match[1])
                if not 1 <= number <= len(classes):
                    raise ValueError(f"image {str(path)!r}: {TRUTH!r} has {len(classes):,} classes")
                entries.append((classes[number - 1], path.name))
        entries.sort()
        return ImageList(
            root=folder,
            paths=[name for _, name in entries],
            names=[f"{self.synsets[label]}/{name}" for label, name in entries],
            labels=np.array([label for label, _ in entries], dtype=np.int64),
            prefix=f"{self.name}/{VAL}",
        )

    def _truth(self) -> list[int]:
        """Return the label of each validation image, in the order of their numbers."""
        labels = _labels_of_numbers(self.place / META, self.synsets)
        file = self.place / TRUTH
        numbers = file.read_text(encoding="utf-8", errors="replace").split()
        if unknown := [number for number in numbers if number not in labels]:
            raise ValueError(f"{str(file)!r}: {META!r} knows no class of number {unknown[0]!r}")
        return [labels[number] for number in numbers]

    @functools.cached_property
    def _trained(self) -> tuple[ImageList, ImageList]:
        """The training images for train and for val."""
        whole = self._class_images(TRAIN)
        names = [path.rpartition("/")[2] for path in whole.paths]
        hashes = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
        order = np.frombuffer(hashes, dtype=">u8")
        carved = np.zeros(len(names), dtype=bool)
        starts = np.searchsorted(whole.labels, np.arange(self.class_count + 1))
        for start, end in pairwise(starts.tolist()):
            most = min(CARVED, (end - start) // CARVED_SHARE)
            carved[start + np.argsort(order[start:end], kind="stable")[:most]] = True
        return whole.subset(np.flatnonzero(~carved)), whole.subset(np.flatnonzero(carved))

    def _images(self, name: SplitName) -> ImageList:
        if name == "test":
            return self._flat if self._unsorted else self._class_images(VAL)
        return self._trained[name == "val"]

    def problems(self, progress: Progress | None = None) -> list[str]:
        """See ``SynsetDataset.problems``; the folders to train on are compared, too."""
        return [*super().problems(progress), *self._folder_differences(TRAIN)]


def _labels_of_numbers(file: Path, synsets: tuple[str, ...]) -> dict[str, int]:
    """Return labels by the challenge's own numbers of classes, which aren't in WordNet's order."""
    from scipy.io import loadmat

    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is missing; it is in {DEVKIT.file!r}")
    try:
        rows: Any = loadmat(str(file), squeeze_me=True)["synsets"]
        pairs = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in np.atleast_1d(rows)]
    except Exception as error:  # the reader raises whatever it stumbles over
        raise ValueError(f"{str(file)!r} isn't the devkit's list of classes: {error}") from error
    labels = {synset: label for label, synset in enumerate(synsets)}
    return {str(number): labels[synset] for number, synset in pairs if synset in labels}


_V2 = "imagenetv2-matched-frequency"
_A, _R = "https://github.com/hendrycks/natural-adv-examples", "https://github.com/hendrycks/imagenet-r"
_SKETCH = "https://github.com/HaohanWang/ImageNet-Sketch"
_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
# fmt: off
DATASETS = (
    ImageNet(
        name="imagenet", title="ImageNet (ILSVRC 2012)",
        license="non-commercial research, by registration", source="Stanford and Princeton, 2012",
        homepage="https://image-net.org", folder="imagenet", images=VAL,
        class_count=1000, counts=counted(train=1_231_167, val=50_000, test=50_000),
        archives=(
            Archive(file="ILSVRC2012_img_val.tar", holds=VAL, into=VAL, page=HOME,
                    checksums=("md5:29b22e2961454d5413ddabcf34fc5622",)),
            Archive(file="ILSVRC2012_img_train.tar", holds=TRAIN, into=TRAIN, page=HOME,
                    checksums=("md5:1d675b47d978889d74fa0da5fadfb00e",), nested=True, optional=True),
        ),
    ),
    SynsetDataset(
        name="imagenetv2", title="ImageNetV2, matched frequency",
        license="MIT (repository); the images are of Flickr", source="UC Berkeley, 2019",
        homepage="https://github.com/modestyachts/ImageNetV2",
        folder="imagenetv2", images=f"{_V2}-format-val", numbered=True, class_count=1000, counts=counted(test=10_000),
        archives=(
            Archive(file=f"{_V2}.tar.gz", holds=f"{_V2}-format-val", page="https://github.com/modestyachts/ImageNetV2",
                    url=f"https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/{_V2}.tar.gz",
                    checksums=("sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
                               # As it was on S3.
                               "sha256:a32004f9e773279307499059d320336a23ccdc62cb32063da29bae9bd04c122c")),
        ),
    ),
    SynsetDataset(
        name="imagenet-a", title="ImageNet-A, natural adversarial examples", license="MIT", source="UC Berkeley, 2019",
        homepage=_A, folder="imagenet-adversarial", images="imagenet-a", synset_list="imagenet_a",
        class_count=200, counts=counted(test=7500),
        archives=(
            Archive(file="imagenet-a.tar", holds="imagenet-a", page=_A, url=f"{_BERKELEY}/imagenet-a.tar",
                    checksums=("sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",)),
        ),
    ),
    SynsetDataset(
        name="imagenet-r", title="ImageNet-R, renditions", license="MIT", source="UC Berkeley, 2020",
        homepage=_R, folder="imagenet-rendition", images="imagenet-r", synset_list="imagenet_r",
        class_count=200, counts=counted(test=30_000),
        archives=(
            Archive(file="imagenet-r.tar", holds="imagenet-r", page=_R, url=f"{_BERKELEY}/imagenet-r.tar",
                    checksums=("sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",)),
        ),
    ),
    SynsetDataset(
        name="imagenet-sketch", title="ImageNet-Sketch, drawings",
        license="MIT (repository); the images are of the web", source="CMU, 2019", homepage=_SKETCH,
        folder="imagenet-sketch", images="images", class_count=1000, counts=counted(test=50_889),
        archives=(
            Archive(file="ImageNet-Sketch.zip", holds="images", page=_SKETCH,
                    url=drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"), strip="sketch", into="images"),
        ),
    ),
)
# fmt: on
