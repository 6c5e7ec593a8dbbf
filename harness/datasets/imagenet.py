"""ImageNet and what is tested like it: a folder per class, classes by WordNet number."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np

from harness.base.terminal import Progress
from harness.datasets.archives import Archive, drive
from harness.datasets.base import SplitName, cached_json, keep_json
from harness.datasets.images import EXTENSIONS, ImageList, shortened
from harness.datasets.rooted import RootedDataset, counted

HOME = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
NAMES = "classnames.txt"  # which CoOp asks for, and this doesn't
CACHED_FROM = 20_000  # files; fewer are listed in no time
VERSION = 1  # of a listing in the cache
TRAIN = "images/train"
VAL = "images/val"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# It says which class each of the unsorted validation images is of.
DEVKIT = Archive(
    file="ILSVRC2012_devkit_t12.tar.gz", holds=TRUTH, page=HOME,
    checksums=("md5:fa75699e90414af021442c21a62c3abf",),
)  # fmt: skip
CARVED = 50  # images of a class
CARVED_SHARE = 5  # one in as many, of classes with few images


class ClassFolder(NamedTuple):
    """The image files of a folder by sorted names, their bytes, and when a name changed, in ns."""

    changed: int
    names: list[str]
    sizes: list[int]


def class_folders(folder: Path, *, fresh: bool = False) -> Mapping[str, ClassFolder]:
    """List the images in each folder of a folder, by the inner folder's name, sorted.

    Files that aren't images by their extension, and names with a dot in front, don't count. A
    listing that is kept is used as long as no folder says that a name was added or removed; a file
    that was overwritten in place goes unnoticed unless ``fresh``.
    """
    with os.scandir(folder) as entries:
        inner = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    file, kept = cached_json("folders", VERSION, os.path.realpath(folder))
    cached: dict[str, ClassFolder] = {}
    with suppress(AttributeError, TypeError):  # nothing is kept, or something else
        cached = {} if fresh else {name: ClassFolder(*facts) for name, facts in kept.items()}
    listings, changed = {}, set(cached) != set(inner)
    for name in inner:
        path = folder / name
        at = path.stat().st_mtime_ns
        if name in cached and cached[name].changed == at:
            listings[name] = cached[name]
        else:
            listings[name], changed = _listed(path, at), True
    if changed and sum(len(listed.names) for listed in listings.values()) >= CACHED_FROM:
        with suppress(OSError, RuntimeError):  # a cache that can't be written costs time only
            keep_json(file, listings)
    return listings


def _listed(path: Path, changed: int) -> ClassFolder:
    with os.scandir(path) as entries:
        files = sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122  (a million)
            and not entry.name.startswith(".")
            and entry.is_file()
        )
    return ClassFolder(changed, [name for name, _ in files], [size for _, size in files])


def synsets_of(subset: str) -> tuple[str, ...]:
    """Return the WordNet numbers of "imagenet", "imagenet_a" or "imagenet_r", as timm has them."""
    text = files("timm.data").joinpath("_info", f"{subset}_synsets.txt").read_text()
    return tuple(text.split())


class SynsetDataset(RootedDataset):
    """Images in a folder per class. Class names are those that CLIP chose for ImageNet's.

    Two names stand for two classes each, "missile" and "sunglasses", as they do in CLIP's list: by
    text nobody can tell these apart.

    synset_list: which classes, see ``synsets_of``. images: folder of the class folders that are
    tested by, in ``folder``; train and val are empty unless a subclass knows of some.
    """

    synset_list: ClassVar[str]
    images: ClassVar[str]

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
        return self.synsets

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _listing(self, images: str) -> Mapping[str, ClassFolder]:
        """List what is in the class folders of one folder; empty if that isn't there."""
        place = self.place / images
        return class_folders(place) if place.is_dir() else {}

    def _class_images(self, images: str) -> ImageList:
        """List the images of all classes, class by class."""
        listing = self._listing(images)
        folders = dict(enumerate(self.class_folders))
        present = [(i, name, listing[name]) for i, name in folders.items() if name in listing]
        labels = np.array([label for label, _, _ in present], dtype=np.int64)
        return ImageList(
            root=self.place / images,
            paths=[f"{folder}/{name}" for _, folder, inner in present for name in inner.names],
            labels=np.repeat(labels, [len(inner.names) for _, _, inner in present]),
            prefix=f"{self.name}/{images}",
            dataset=repr(self.name),
            known_sizes=np.array([n for _, _, inner in present for n in inner.sizes], np.int64),
        )

    def _images(self, name: SplitName) -> ImageList:
        return self._tested if name == "test" else self._tested.subset(np.arange(0))

    @functools.cached_property
    def _tested(self) -> ImageList:
        return self._class_images(self.images)

    def _lists(self) -> bytes:
        return b""

    def problems(self, progress: Progress | None = None) -> list[str]:
        """See ``RootedDataset.problems``; class folders and class names are compared, too."""
        own = (*self._folder_differences(self.images), *self._name_differences())
        return [*super().problems(progress), *own]

    def _folder_differences(self, images: str) -> Iterator[str]:
        """Compare the class folders with the classes; the folders are listed anew."""
        place = self.place / images
        there = set(class_folders(place, fresh=True)) if place.is_dir() else set()
        expected = self.class_folders
        if missing := [folder for folder in expected if folder not in there]:
            yield f"class folders missing in {str(place)!r}: {len(missing):,}, {shortened(missing)}"
        if extra := sorted(there - set(expected)):
            yield f"folders of no class in {str(place)!r}, left out: {shortened(extra)}"

    def _name_differences(self) -> Iterator[str]:
        """Compare the file of class names that CoOp asks for, if there is one."""
        file = self.place / NAMES
        if not file.is_file():
            return
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        names = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in lines}
        other = [
            f"{synset} is {names[synset]!r} there and {name!r} here"
            for synset, name in zip(self.synsets, self.classes, strict=True)
            if names.get(synset, name) != name
        ]
        if other:
            yield f"{str(file)!r} isn't used and has {len(other):,} other names: {other[0]}"


class ImageNet(SynsetDataset):
    """Test is the official validation set, as in CoOp; val is carved out of the training images.

    CoOp chooses by the test images. Here, of each class the 50 training images whose names have the
    smallest sha256 make val (a fifth, where a class has fewer than 250), and the others train. The
    validation images may lie in folders by class or, as shipped, in one. Without the training
    images train and val are empty.
    """

    # fmt: off
    name, title = "imagenet", "ImageNet (ILSVRC 2012)"
    license = "non-commercial research, by registration"
    source = "Stanford and Princeton, 2012"
    homepage = "https://image-net.org"
    folder, images, synset_list = "imagenet", VAL, "imagenet"
    class_count, counts = 1000, counted(train=1_231_167, val=50_000, test=50_000)
    archives = (
        Archive(file="ILSVRC2012_img_val.tar", holds=VAL, into=VAL, page=HOME,
                checksums=("md5:29b22e2961454d5413ddabcf34fc5622",)),
        Archive(file="ILSVRC2012_img_train.tar", holds=TRAIN, into=TRAIN, page=HOME,
                checksums=("md5:1d675b47d978889d74fa0da5fadfb00e",), nested=True, optional=True),
    )
    # fmt: on
    devkit = DEVKIT

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """See ``RootedDataset.at``; of unsorted validation images the devkit is needed, too."""
        bound = super().at(root, download=download, progress=progress)
        if bound._unsorted:
            bound.provide((self.devkit,), download, progress or Progress())
        return bound

    @functools.cached_property
    def _unsorted(self) -> bool:
        """Whether validation images lie in one folder."""
        return not set(self._listing(VAL)) & set(self.synsets)

    @functools.cached_property
    def _tested(self) -> ImageList:
        return self._flat() if self._unsorted else self._class_images(VAL)

    def _flat(self) -> ImageList:
        """List validation images that lie in one folder, in the order of those in class folders."""
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
            dataset=repr(self.name),
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
        """List the training images for train and for val."""
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
        return self._tested if name == "test" else self._trained[name == "val"]

    def problems(self, progress: Progress | None = None) -> list[str]:
        """See ``SynsetDataset.problems``; the folders to train on are compared, too."""
        return [*super().problems(progress), *self._folder_differences(TRAIN)]


def _labels_of_numbers(file: Path, synsets: tuple[str, ...]) -> dict[str, int]:
    """Return labels by the challenge's own numbers of classes, which aren't in WordNet's order."""
    from scipy.io import loadmat

    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is missing; it is in {DEVKIT.file!r}")
    try:
        rows = loadmat(str(file), squeeze_me=True)["synsets"]
        pairs = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in np.atleast_1d(rows)]
    except Exception as error:  # the reader raises whatever it stumbles over
        raise ValueError(f"{str(file)!r} isn't the devkit's list of classes: {error}") from error
    labels = {synset: label for label, synset in enumerate(synsets)}
    return {str(number): labels[synset] for number, synset in pairs if synset in labels}


# fmt: off
class ImageNetV2(SynsetDataset):
    """Ten images of each of the 1,000 classes; for testing only."""

    name, title = "imagenetv2", "ImageNetV2, matched frequency"
    license, source = "MIT (repository); the images are of Flickr", "UC Berkeley, 2019"
    homepage = "https://github.com/modestyachts/ImageNetV2"
    folder, synset_list = "imagenetv2", "imagenet"
    images = "imagenetv2-matched-frequency-format-val"
    class_count, counts = 1000, counted(train=0, val=0, test=10_000)
    archives = (
        Archive(file="imagenetv2-matched-frequency.tar.gz",
                holds=images, page=homepage,
                url="https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                "imagenetv2-matched-frequency.tar.gz",
                checksums=(
                    "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
                    # As it was on S3.
                    "sha256:a32004f9e773279307499059d320336a23ccdc62cb32063da29bae9bd04c122c")),
    )

    @property
    def class_folders(self) -> tuple[str, ...]:
        """Numbers from 0, as words: sorted as such, "10" would come before "2"."""
        return tuple(map(str, range(self.class_count)))


class ImageNetA(SynsetDataset):
    """Hard photographs of 200 classes; for testing only."""

    name, title = "imagenet-a", "ImageNet-A, natural adversarial examples"
    license, source = "MIT", "UC Berkeley, 2019"
    homepage = "https://github.com/hendrycks/natural-adv-examples"
    folder, images, synset_list = "imagenet-adversarial", "imagenet-a", "imagenet_a"
    class_count, counts = 200, counted(train=0, val=0, test=7500)
    archives = (
        Archive(file="imagenet-a.tar", holds="imagenet-a", page=homepage,
                url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                checksums=("sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",)),
    )


class ImageNetR(SynsetDataset):
    """Renditions of 200 classes; for testing only."""

    name, title = "imagenet-r", "ImageNet-R, renditions"
    license, source = "MIT", "UC Berkeley, 2020"
    homepage = "https://github.com/hendrycks/imagenet-r"
    folder, images, synset_list = "imagenet-rendition", "imagenet-r", "imagenet_r"
    class_count, counts = 200, counted(train=0, val=0, test=30_000)
    archives = (
        Archive(file="imagenet-r.tar", holds="imagenet-r", page=homepage,
                url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                checksums=("sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",)),
    )


class ImageNetSketch(SynsetDataset):
    """Drawings of the 1,000 classes; for testing only."""

    name, title = "imagenet-sketch", "ImageNet-Sketch, drawings"
    license, source = "MIT (repository); the images are of the web", "CMU, 2019"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
    folder, images, synset_list = "imagenet-sketch", "images", "imagenet"
    class_count, counts = 1000, counted(train=0, val=0, test=50_889)
    archives = (
        Archive(file="ImageNet-Sketch.zip", holds="images", page=homepage,
                url=drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"), strip="sketch", into="images"),
    )
# fmt: on
