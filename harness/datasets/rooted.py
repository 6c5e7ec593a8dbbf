"""Data sets that aren't shipped here: their images lie below a root that the user names."""

import abc
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from harness.archives.archive import Archive
from harness.datasets.base import Dataset, Split, SplitName
from harness.progress import Progress


class RootedDataset(Dataset):
    """A public data set in a folder below a root, laid out as CoOp's DATASETS.md says.

    What doesn't hang on the images is known without a root. Images, labels and whatever else is
    read need ``at``.

    folder: below the root. archives: files that the source ships. counts: images per split of the
    whole data set, 0 where it has no such split. class_count: its number of classes.
    homepage: of the source. citation: of the paper.
    """

    folder: ClassVar[str]
    archives: ClassVar[tuple[Archive, ...]]
    counts: ClassVar[Mapping[SplitName, int]]
    class_count: ClassVar[int]
    homepage: ClassVar[str]
    citation: ClassVar[str]
    files = ()
    build_command = "none: it is downloaded"
    root: Path | None = None

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """Return the data set as it lies below a root; archives that are there are unpacked.

        Args:
            root: the folder that holds ``folder``.
            download: get what is missing, where that needs no licence.
            progress: where to show it; None for nowhere.

        Raises:
            FileNotFoundError: something is missing; names it, where it was looked for and how to
                get it.
            ValueError: an archive that is damaged, not the source's or not to be trusted.
        """
        bound = copy.copy(self)
        bound.root = root.expanduser().absolute()
        return bound

    @property
    def place(self) -> Path:
        """The folder of the data set.

        Raises:
            FileNotFoundError: no root was given.
        """
        if self.root is None:
            raise FileNotFoundError(
                f"dataset {self.name!r} isn't shipped here; say where it lies: --root FOLDER, the "
                f"folder that holds {self.folder!r}"
            )
        return self.root / self.folder

    @property
    def captions_seen(self) -> tuple[bool, ...]:
        """True throughout: nobody knows, so no result counts as zero-shot."""
        return (True,) * self.class_count

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in [0, 1]."""
        return 1 / self.class_count

    @abc.abstractmethod
    def _split(self, name: SplitName) -> Split: ...

    def problems(self) -> list[str]:
        """Say in what the data differs from the whole data set: images, classes, archives.

        No image is opened.
        """
        raise NotImplementedError
