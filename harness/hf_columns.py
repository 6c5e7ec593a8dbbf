"""The columns of a table of `datasets`: which are meant, and their images and labels."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zoo.reducer import expected

IMAGE, CLASSES = "Image", "ClassLabel"  # types of columns
LOOKED_AT = 32  # images of a split whose bytes count for its revision
MISSING = -1


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns are meant.

    image: of images. label: of classes. names: of the classes, by label.
    """

    image: str
    label: str
    names: tuple[str, ...]


def find_columns(
    features: Mapping[str, Any], image: str | None, label: str | None, what: str
) -> Columns:
    """Find the columns by their types.

    Args:
        features: of the dataset.
        image: the one that is asked for, if any.
        label: likewise.
        what: the dataset is, for messages.

    Raises:
        ValueError: none or several of a type, and none asked for; or that is of another type.
    """
    found = {
        kind: _column(features, kind, asked, key, what)
        for kind, asked, key in ((IMAGE, image, "image"), (CLASSES, label, "label"))
    }
    names = tuple(str(name) for name in features[found[CLASSES]].names)
    return Columns(image=found[IMAGE], label=found[CLASSES], names=names)


def _column(features: Mapping[str, Any], kind: str, asked: str | None, key: str, what: str) -> str:
    """Return the column of a type."""
    types = {name: type(feature).__name__ for name, feature in features.items()}
    fitting = [name for name, own in types.items() if own == kind]
    if asked is not None:
        if asked not in types:
            raise ValueError(f"{what}: {key}={asked}: {expected(asked, fitting or types)}")
        if asked not in fitting:
            raise ValueError(
                f"{what}: {key}={asked}: it is of type {types[asked]}, expected {kind}"
            )
        return asked
    if not fitting:
        listed = ", ".join(f"{name} ({own})" for name, own in types.items())
        mend = "class_encode_column" if kind == CLASSES else "cast_column"
        raise ValueError(
            f"{what} has no column of type {kind}; there is {listed}; `datasets.Dataset.{mend}` "
            "makes one of another, then save it again"
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{what} has {len(fitting)} columns of type {kind}: {', '.join(fitting)}; say which, "
            f"as in #{key}={fitting[0]}"
        )
    return fitting[0]


def captions(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return what prompts say of the classes: their names, with spaces for underscores.

    Raises:
        ValueError: one that can't be put into a prompt, or two that are the same.
    """
    found: dict[str, str] = {}
    for name in names:
        words = " ".join(name.replace("_", " ").split())
        if not words or not words.isprintable():
            raise ValueError(f"{what}: class name {name!r} can't be put into a prompt")
        if words in found:
            raise ValueError(f"{what}: classes {found[words]!r} and {name!r} are both {words!r}")
        found[words] = name
    return tuple(found)


class Rows:
    """The rows of a split, of which nothing is read before it is asked for.

    Args:
        table: a ``datasets.Dataset``.
        columns: which ones count.
        roots: folders in which image files may be that the table only has paths of.
        what: these are, for messages.

    Raises:
        ValueError: the table is damaged.
    """

    def __init__(self, table: Any, columns: Columns, roots: Sequence[str], what: str) -> None:
        self._rows = table.select_columns([columns.image]).with_format("arrow")
        self._columns, self._roots, self.what = columns, roots, what
        whole = table.select_columns([columns.image, columns.label]).with_format("arrow")[:]
        try:
            whole.validate(full=True)  # of images only where they begin and end
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what}: the table is damaged: {error}") from error
        self._whole = whole

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64, without looking at images.

        Raises:
            ValueError: rows without a label, or with one beyond the classes.
        """
        told = pc.fill_null(self._whole.column(self._columns.label), MISSING)
        labels: NDArray[np.int64] = told.to_numpy().astype(np.int64)
        if unlabelled := int(np.count_nonzero(labels < 0)):
            raise ValueError(
                f"{self.what}: {unlabelled:,} of {len(labels):,} rows have no label; leave this "
                "split out by naming those to use, as in #test=validation"
            )
        if len(labels) and labels.max() >= len(self._columns.names):
            raise ValueError(
                f"{self.what}: label {labels.max()} is there; {self._columns.label!r} names "
                f"{len(self._columns.names)} classes, for labels from 0"
            )
        return labels

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image file, (n,) int64; -1 of those that are missing."""
        images = self._whole.column(self._columns.image)
        told = pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), MISSING)
        sizes: NDArray[np.int64] = told.to_numpy().astype(np.int64)
        elsewhere = np.flatnonzero(sizes <= 0)
        paths = pc.struct_field(images, "path").take(pa.array(elsewhere)).to_pylist()
        for index, path in zip(elsewhere.tolist(), paths, strict=True):
            if path and self._is_inside(path) and Path(path).is_file():
                sizes[index] = Path(path).stat().st_size
        return sizes

    def read(self, index: int) -> bytes:
        """Read the file of an image, in whatever format it is.

        Raises:
            FileNotFoundError: only its path is known, and nothing is there.
            ValueError: there is none, or it is a file that the dataset has no business with.
        """
        image = self._image(index)
        if image["bytes"]:
            content: bytes = image["bytes"]
            return content
        path = image["path"]
        if not path:
            raise ValueError(f"image {self.where(index)} can't be read: the row has none")
        if not self._is_inside(path):
            raise ValueError(
                f"image {self.where(index)} is only named, as {path!r}, which is none of the "
                f"dataset's files, in {' or '.join(map(repr, self._roots))}"
            )
        if not Path(path).is_file():
            raise FileNotFoundError(f"image {path!r}, {self.where(index)}, is missing")
        return Path(path).read_bytes()

    def where(self, index: int) -> str:
        """Say which row is meant."""
        return f"in row {index} of {self.what}"

    def add_to(self, digest: Any) -> None:
        """Add labels, sizes and the bytes of a few images to a hash."""
        count = len(self.labels)
        digest.update(f"{count}\0".encode())
        for column in (self.labels, self.sizes):
            digest.update(column.astype("<i8").tobytes())
        for index in np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)):
            if self.sizes[index] > 0:
                digest.update(hashlib.sha256(self.read(int(index))).digest())

    def _image(self, index: int) -> Any:
        """Return a row's ``bytes`` and ``path``, either of which may be None."""
        return self._rows[index].column(0)[0].as_py() or {"bytes": None, "path": None}

    def _is_inside(self, path: str) -> bool:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self._roots)
