"""Datasets whose splits and class names are those of a split file of CoOp."""

import abc
import functools
from typing import ClassVar

from harness.datasets.archives import Archive
from harness.datasets.base import SplitName
from harness.datasets.image_list import ImageList
from harness.datasets.rooted import RootedDataset
from harness.datasets.split_file import SplitFile, read_split_file
from harness.images import require_inside

LIST = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


def drive(number: str) -> str:
    """Return the address of a file on Google Drive, without the page that warns of large ones."""
    return f"https://drive.usercontent.google.com/download?id={number}&export=download&confirm=t"


def split_archive(file: str, number: str) -> Archive:
    """Describe CoOp's split file, which lies on Google Drive; nobody publishes its sum."""
    return Archive(file=file, holds=file, page=LIST, url=drive(number))


class ZhouDataset(RootedDataset):
    """Images that CoOp's split file lists; labels and class names are its own.

    split_file: name of it. images: the folder that its paths are relative to, in ``folder``.
    """

    images: ClassVar[str]

    @property
    @abc.abstractmethod
    def split_file(self) -> str:
        """Name of CoOp's split file."""

    @functools.cached_property
    def _told(self) -> SplitFile:
        told = read_split_file(self.place / self.split_file)
        require_inside(self.place / self.images, told.paths, f"split file {str(told.file)!r}")
        return told

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the split file, underscores as spaces, in the order of its labels."""
        return self._told.classes

    def _lists(self) -> bytes:
        return bytes.fromhex(self._told.digest)

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _images(self, name: SplitName) -> ImageList:
        root = self.place / self.images
        return self._told.images(name, root, prefix=self.name, dataset=repr(self.name))
