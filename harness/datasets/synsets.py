"""ImageNet and what is tested like it: a folder per class, classes by WordNet number."""

import abc
import functools
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import ClassVar

import numpy as np

from harness.datasets.base import SplitName
from harness.datasets.imagenet import ClassFolder, class_folders
from harness.datasets.images import ImageList, shortened
from harness.datasets.rooted import RootedDataset

NAMES = "classnames.txt"  # which CoOp asks for, and this doesn't


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
    templates = ("a photo of a {}.",)

    @property
    @abc.abstractmethod
    def images(self) -> str:
        """Folder of the class folders that are tested by."""

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

    def _found(self, images: str) -> ImageList:
        """List the images of all classes, class by class."""
        listing = self._listing(images)
        known = [
            (label, folder, listing[folder])
            for label, folder in enumerate(self.class_folders)
            if folder in listing
        ]
        return ImageList(
            root=self.place / images,
            paths=[f"{folder}/{name}" for _, folder, listed in known for name in listed.names],
            labels=np.repeat(
                np.array([label for label, _, _ in known], dtype=np.int64),
                [len(listed.names) for _, _, listed in known],
            ),
            prefix=f"{self.name}/{images}",
            dataset=repr(self.name),
            listed="it was there when the folder was listed",
            known_sizes=np.array(
                [size for _, _, listed in known for size in listed.sizes], dtype=np.int64
            ),
        )

    def _images(self, name: SplitName) -> ImageList:
        return self._tested if name == "test" else self._none

    @functools.cached_property
    def _tested(self) -> ImageList:
        return self._found(self.images)

    @functools.cached_property
    def _none(self) -> ImageList:
        return ImageList(
            root=self.place,
            paths=(),
            labels=np.zeros(0, dtype=np.int64),
            prefix=self.name,
            dataset=repr(self.name),
            listed="",
        )

    def _lists(self) -> bytes:
        return b""

    def _differences(self) -> Iterator[str]:
        yield from super()._differences()
        yield from self._folder_differences(self.images)
        yield from self._name_differences()

    def _folder_differences(self, images: str) -> Iterator[str]:
        """Compare the class folders with the classes; the folders are listed anew."""
        place = self.place / images
        there = set(class_folders(place, fresh=True)) if place.is_dir() else set()
        wanted = self.class_folders
        if missing := [folder for folder in wanted if folder not in there]:
            yield f"class folders missing in {str(place)!r}: {len(missing):,}, {shortened(missing)}"
        if extra := sorted(there - set(wanted)):
            yield f"folders of no class in {str(place)!r}, left out: {shortened(extra)}"

    def _name_differences(self) -> Iterator[str]:
        """Compare the file of class names that CoOp asks for, if there is one."""
        file = self.place / NAMES
        if not file.is_file():
            return
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        told = {synset: name.strip() for synset, _, name in (line.partition(" ") for line in lines)}
        other = [
            f"{synset} is {told[synset]!r} there and {name!r} here"
            for synset, name in zip(self.synsets, self.classes, strict=True)
            if synset in told and told[synset] != name
        ]
        if other:
            yield f"{str(file)!r} isn't used and has {len(other):,} other names: {other[0]}"
