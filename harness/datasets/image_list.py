"""A list of image files with their labels, and the split that they make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import Rendered, Split
from harness.datasets.images import how_many, read_image

SHOWN = 3  # images or classes in a line
MISSING = -1


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images below a folder.

    Attributes:
        root: the folder.
        paths: of the images, relative to it, with "/".
        labels: (n,) int64.
        prefix: what ids start with, before "/" and the path.
        dataset: whose images these are, for messages.
        listed: what lists them, for messages.
        known_sizes: bytes of each file where they are known already.
        names: in ids, where they aren't the paths.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int64]
    prefix: str
    dataset: str
    listed: str
    known_sizes: NDArray[np.int64] | None = None
    names: Sequence[str] | None = None

    def subset(self, places: NDArray[np.int64]) -> "ImageList":
        """Keep the images at some positions, in that order."""
        assert self.names is None
        return replace(
            self,
            paths=[self.paths[place] for place in places],
            labels=self.labels[places],
            known_sizes=None if self.known_sizes is None else self.known_sizes[places],
        )

    def split(self) -> Split:
        """Make the split; images are opened when they are asked for."""
        names = self.paths if self.names is None else self.names

        def image_id(index: int) -> str:
            return f"{self.prefix}/{names[index]}"

        def render(index: int, _variant: int) -> Rendered:
            path = self.root / self.paths[index]
            if not path.is_file():
                raise FileNotFoundError(
                    f"image {str(path)!r} of {self.dataset} is missing; {self.listed}"
                )
            return read_image(path), None

        return Split(self.labels, image_id, render)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each file, (n,) int64; -1 of those that are missing."""
        if self.known_sizes is not None:
            return self.known_sizes
        return np.array([_size(self.root / path) for path in self.paths], dtype=np.int64)

    def add_to(self, digest: Any) -> None:
        """Add names and sizes to a hash."""
        names = self.paths if self.names is None else self.names
        for name, size in zip(names, self.sizes.tolist(), strict=True):
            digest.update(f"{name}\0{size}\0".encode())

    def differences(self) -> Iterator[str]:
        """Say which images are missing or empty."""
        for size, what in ((MISSING, "missing"), (0, "empty")):
            if (where := np.flatnonzero(self.sizes == size)).size:
                names = [self.paths[index] for index in where[: SHOWN + 1]]
                yield (
                    f"{how_many(where.size, what)} in {str(self.root)!r}: {shortened(names)}; "
                    f"{self.listed}"
                )


def shortened(names: Sequence[str]) -> str:
    """List the first few."""
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
