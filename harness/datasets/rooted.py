"""Datasets that aren't shipped here: their images lie below a root that the user names."""

import abc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np

from harness.base.terminal import Progress
from harness.datasets.archives import Archive, Provider, require_sum
from harness.datasets.base import SPLITS, Dataset, Split, SplitName
from harness.datasets.images import ImageList, shorten


@dataclass(eq=False, kw_only=True)
class RootedDataset(Dataset):
    """A public dataset in a folder below a root, laid out as CoOp's DATASETS.md says.

    What doesn't hang on the images is known without a root. Images, labels and whatever else is
    read need ``at``.

    folder: below the root. images: folder of the images, in that. archives: files that the source ships.
    counts: images per split of the whole dataset, 0 where it has no such split. class_count: its
    number of classes. homepage: of the source; docs/datasets.md names the papers.
    """

    name: str
    title: str
    license: str
    source: str
    homepage: str
    folder: str
    images: str
    archives: tuple[Archive, ...]
    class_count: int
    counts: Mapping[SplitName, int]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    root: Path | None = None

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """Return the dataset as it lies below a root; archives that are there are unpacked.

        With ``download`` what is missing is fetched, where that needs no licence.

        Raises:
            FileNotFoundError: no such root; or something is missing: names it, where it was looked
                for and how to get it.
            NotADirectoryError: the root is a file.
            ValueError: an archive or list is damaged, not the source's or not to be trusted.
            OSError: a download failed, or there is no room.
        """
        whole = root.expanduser().absolute()
        if whole.exists() and not whole.is_dir():
            raise NotADirectoryError(f"--root {str(root)!r} is a file; give a folder")
        if not whole.exists() and not download:
            raise FileNotFoundError(
                f"--root {str(root)!r}: there is no such folder; {self.name!r} is looked for in {self.folder!r} in it"
            )
        bound = replace(self, root=whole)
        Provider(self.name, bound.place, bound.archives, download, progress or Progress()).provide()
        return bound

    @property
    def place(self) -> Path:
        """The folder of the dataset; without a root a FileNotFoundError."""
        if self.root is None:
            raise FileNotFoundError(
                f"dataset {self.name!r} isn't shipped here; say where it lies: --root FOLDER, the folder that holds "
                f"{self.folder!r}; docs/datasets.md says what belongs there"
            )
        return self.root / self.folder

    @property
    def captions_seen(self) -> tuple[bool, ...]:
        """True throughout: nobody knows, so no result counts as zero-shot."""
        return (True,) * self.class_count

    def _revision(self) -> str:
        """12 hex digits over what lists the images and their names and sizes."""
        digest = hashlib.sha256(self._listed_by())
        for split in SPLITS:
            self._images(split).add_to(digest)
        return digest.hexdigest()[:12]

    def _listed_by(self) -> bytes:
        """Return what says which images and classes there are, b"" where folders do."""
        return b""

    @abc.abstractmethod
    def _images(self, name: SplitName) -> ImageList:
        """List the images of a split."""

    def _split(self, name: SplitName) -> Split:
        return self._images(name).split()

    def differences(self) -> list[str]:
        """List what images are missing or empty; none is opened."""
        return [line for split in SPLITS for line in self._images(split).differences()]

    def problems(self, progress: Progress | None = None) -> list[str]:
        """List in what the data differs from the whole dataset: images, classes, archives.

        No image is opened. Archives that are still there are read, which takes long.
        """
        problems = []
        if (count := len(self.classes)) != self.class_count:
            problems.append(f"classes: {count:,} instead of {self.class_count:,}")
        for split in SPLITS:
            labels = self.labels(split)
            if len(labels) != self.counts[split]:
                problems.append(f"{split}: {len(labels):,} images instead of {self.counts[split]:,}")
            lacking = np.flatnonzero(np.bincount(labels, minlength=len(self.classes)) == 0)
            if self.counts[split] and lacking.size:
                few = shorten([self.classes[label] for label in lacking])
                problems.append(f"{split}: no image of {lacking.size:,} classes, such as {few}")
        problems += self.differences()
        for archive in self.archives:
            if (file := archive.find(self.place)) is not None:
                with (progress or Progress()).bytes(file.name, file.stat().st_size) as update:
                    try:
                        require_sum(archive, file, update)
                    except ValueError as error:
                        problems.append(str(error))
        return problems


def counted(*, train: int = 0, val: int = 0, test: int) -> Mapping[SplitName, int]:
    """Say how many images the splits have."""
    return MappingProxyType({"train": train, "val": val, "test": test})
