"""FGVC-Aircraft: variants of aircraft, in the source's own splits."""

import functools
from collections.abc import Mapping

import numpy as np

from harness.datasets.archives import Archive
from harness.datasets.base import SPLITS, SplitName
from harness.datasets.image_list import ImageList
from harness.datasets.rooted import RootedDataset, counted

HOME = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
CLASSES = "variants.txt"
LISTS = "images_variant_{}.txt"


class FGVCAircraft(RootedDataset):
    """A hundred variants of aircraft; CoOp has no split file of it, the lists are the source's."""

    name = "fgvc-aircraft"
    title = "FGVC-Aircraft, variants"
    license = "non-commercial research"
    source = "Visual Geometry Group, Oxford, 2013 (2013b)"
    homepage = HOME
    citation = (
        "S. Maji, E. Rahtu, J. Kannala, M. Blaschko, A. Vedaldi, Fine-Grained Visual "
        "Classification of Aircraft, arXiv 1306.5151, 2013"
    )
    templates = ("a photo of a {}, a type of aircraft.",)
    folder = "fgvc_aircraft"
    class_count = 100
    counts = counted(train=3334, val=3333, test=3333)
    archives = (
        Archive(
            file="fgvc-aircraft-2013b.tar.gz",
            holds="images",
            page=HOME,
            url=f"{HOME}archives/fgvc-aircraft-2013b.tar.gz",
            checksums=("md5:d4acdd33327262359767eeaa97a4f732",),
            strip="fgvc-aircraft-2013b/data",
        ),
    )

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Variants in the order of the source's list.

        Raises:
            FileNotFoundError: the list is missing.
            ValueError: it is no list, or names a variant twice.
        """
        names = tuple(self._lines(CLASSES))
        if len(set(names)) != len(names):
            raise ValueError(f"list {str(self.place / CLASSES)!r} names a variant twice")
        return names

    @functools.cached_property
    def _listed(self) -> Mapping[SplitName, ImageList]:
        labels = {name: label for label, name in enumerate(self.classes)}
        found: dict[SplitName, ImageList] = {}
        seen: dict[str, str] = {}
        for split in SPLITS:
            file = LISTS.format(split)
            paths, own = [], []
            for number, line in enumerate(self._lines(file), start=1):
                image, _, variant = line.partition(" ")
                where = f"list {str(self.place / file)!r}, line {number}"
                if not image.isdecimal() or variant not in labels:
                    raise ValueError(
                        f"{where}: {line!r} isn't the number of an image and a variant of {CLASSES}"
                    )
                if image in seen:
                    raise ValueError(f"{where}: image {image} is in {seen[image]}, too")
                seen[image] = file
                paths.append(f"{image}.jpg")
                own.append(labels[variant])
            found[split] = ImageList(
                root=self.place / "images",
                paths=paths,
                labels=np.array(own, dtype=np.int64),
                prefix=self.name,
                dataset=repr(self.name),
                listed=f"{file!r} lists it",
            )
        return found

    def _images(self, name: SplitName) -> ImageList:
        return self._listed[name]

    def _lists(self) -> bytes:
        files = (CLASSES, *map(LISTS.format, SPLITS))
        return b"\0".join((self.place / file).read_bytes() for file in files)

    def _lines(self, file: str) -> list[str]:
        path = self.place / file
        if not path.is_file():
            raise FileNotFoundError(
                f"list {str(path)!r} of {self.name!r} is missing; it is in "
                f"{self.archives[0].file!r}, below {self.archives[0].strip!r}"
            )
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"list {str(path)!r} is no text: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"list {str(path)!r} is empty")
        return found
