"""ImageNet: the 1,000 classes of ILSVRC 2012, tested as usual by its validation images."""

import functools
import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from harness.datasets.archives import Archive, Provider
from harness.datasets.base import SplitName
from harness.datasets.image_list import ImageList
from harness.datasets.rooted import counted
from harness.datasets.synsets import SynsetDataset
from harness.progress import Progress

HOME = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
TRAIN = "images/train"
VAL = "images/val"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# It says which class each of the unsorted validation images is of.
DEVKIT = Archive(
    file="ILSVRC2012_devkit_t12.tar.gz",
    holds=TRUTH,
    page=HOME,
    checksums=("md5:fa75699e90414af021442c21a62c3abf",),
)
CARVED = 50  # images of a class
CARVED_SHARE = 5  # one in as many, of classes with few images


class ImageNet(SynsetDataset):
    """Test is the official validation set, as in CoOp; val is carved out of the training images.

    CoOp chooses by the test images. Here, of each class the 50 training images whose names have the
    smallest sha256 make val (a fifth, where a class has fewer than 250), and the others train. The
    validation images may lie in folders by class or, as shipped, in one. Without the training
    images train and val are empty.
    """

    name = "imagenet"
    title = "ImageNet (ILSVRC 2012)"
    license = "non-commercial research, by registration"
    source = "Stanford and Princeton, 2012"
    homepage = "https://image-net.org"
    citation = (
        "O. Russakovsky, J. Deng, H. Su et al., ImageNet Large Scale Visual Recognition "
        "Challenge, IJCV 2015"
    )
    folder = "imagenet"
    images = VAL
    synset_list = "imagenet"
    class_count = 1000
    counts = counted(train=1_231_167, val=50_000, test=50_000)
    archives = (
        Archive(
            file="ILSVRC2012_img_val.tar",
            holds=VAL,
            page=HOME,
            checksums=("md5:29b22e2961454d5413ddabcf34fc5622",),
            into=VAL,
        ),
        Archive(
            file="ILSVRC2012_img_train.tar",
            holds=TRAIN,
            page=HOME,
            checksums=("md5:1d675b47d978889d74fa0da5fadfb00e",),
            into=TRAIN,
            nested=True,
            optional=True,
        ),
    )
    devkit = DEVKIT

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """See ``RootedDataset.at``; of unsorted validation images the devkit is needed, too."""
        bound = super().at(root, download=download, progress=progress)
        if bound._unsorted:
            Provider(
                dataset=self.name,
                folder=bound.place,
                archives=(self.devkit,),
                may_download=download,
                progress=progress or Progress(),
            ).provide()
        return bound

    @functools.cached_property
    def _unsorted(self) -> bool:
        """Whether validation images lie in one folder."""
        return not set(self._listing(VAL)) & set(self.synsets)

    @functools.cached_property
    def _tested(self) -> ImageList:
        return self._flat() if self._unsorted else self._found(VAL)

    def _flat(self) -> ImageList:
        """List validation images that lie in one folder, in the order of those in class folders."""
        folder, classes = self.place / VAL, self._truth()
        listed = []
        for path in folder.iterdir():
            if match := VAL_FILE.fullmatch(path.name):
                number = int(match[1])
                if not 1 <= number <= len(classes):
                    raise ValueError(f"image {str(path)!r}: {TRUTH!r} has {len(classes):,} classes")
                listed.append((classes[number - 1], path.name))
        listed.sort()
        return ImageList(
            root=folder,
            paths=[name for _, name in listed],
            names=[f"{self.synsets[label]}/{name}" for label, name in listed],
            labels=np.array([label for label, _ in listed], dtype=np.int64),
            prefix=f"{self.name}/{VAL}",
            dataset=repr(self.name),
            listed="it was there when the folder was listed",
        )

    def _truth(self) -> list[int]:
        """Return the label of each validation image, in the order of their numbers."""
        labels = _labels_of_numbers(self.place / META, self.synsets)
        file = self.place / TRUTH
        told = file.read_text(encoding="utf-8", errors="replace").split()
        if unknown := [number for number in told if number not in labels]:
            raise ValueError(f"{str(file)!r}: {META!r} knows no class of number {unknown[0]!r}")
        return [labels[number] for number in told]

    @functools.cached_property
    def _trained(self) -> tuple[ImageList, ImageList]:
        """List the training images for train and for val."""
        whole = self._found(TRAIN)
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
            return self._tested
        return self._trained[name == "val"]

    def _differences(self) -> Iterator[str]:
        yield from super()._differences()
        yield from self._folder_differences(TRAIN)


def _labels_of_numbers(file: Path, synsets: tuple[str, ...]) -> dict[str, int]:
    """Return labels by the challenge's own numbers of classes, which aren't in WordNet's order."""
    from scipy.io import loadmat

    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is missing; it is in {DEVKIT.file!r}")
    try:
        rows = loadmat(str(file), squeeze_me=True)["synsets"]
        found = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in np.atleast_1d(rows)}
    except Exception as error:  # the reader raises whatever it stumbles over
        raise ValueError(f"{str(file)!r} isn't the devkit's list of classes: {error}") from error
    labels = {synset: label for label, synset in enumerate(synsets)}
    return {number: labels[synset] for number, synset in found.items() if synset in labels}
