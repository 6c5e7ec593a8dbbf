"""Datasets of the Hugging Face `datasets` library, from its cache of the hub or from a folder.

timm's reader of these takes neither a config nor what ``save_to_disk`` wrote, and goes to the network whenever it can.
Nothing here runs or unpickles what a dataset brings: of the library's ways to read files only those are used that
yield tables with columns for images and classes. The network is used if that is asked for, and not otherwise.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants
from numpy.typing import NDArray

from harness.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    OwnDataset,
    Rendered,
    Split,
    SplitName,
    require_unique,
)
from harness.datasets.images import MISSING, decode_image
from zoo.core.files import require_file
from zoo.core.messages import expected

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
IMAGE, CLASSES = "Image", "ClassLabel"  # types of columns
LOOKED_AT = 32  # images of a split whose bytes count for its revision
OLDEST = 5  # release of the library; those before 4 ran scripts
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
READERS = ("arrow", "cache", "imagefolder", "parquet")
# What may follow "#", as in #image=img,test=validation: the config of a dataset that has several,
# columns, and splits that are so here; to name one split leaves those that aren't named empty.
CHOICES = ("config", "image", "label", *SPLITS)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a dataset is."""

    folder: Path | None  # that holds it, absolute; None on the hub
    name: str  # ``owner/name`` there, or the folder's own
    what: str  # it is, for messages
    choice: dict[str, str]  # of its parts, by CHOICES

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read a folder's path or ``owner/name``, then perhaps ``#`` and a choice."""
        where, sharp, choices = text.rpartition("#")
        if not sharp or Path(text).expanduser().is_dir():  # "#" may be part of its name
            where, choices = text, ""
        chosen: dict[str, str] = {}
        for part in choices.split(",") if choices or where != text else ():
            key, _, value = part.partition("=")
            if key not in CHOICES:
                raise ValueError(f"hfds:{text}: {part!r} after '#': {expected(key, CHOICES)}, as KEY=VALUE")
            if not value or key in chosen:
                raise ValueError(f"hfds:{text}: {part!r} after '#': expected one value for {key}")
            chosen[key] = value
        choice = {key: chosen[key] for key in CHOICES if key in chosen}
        folder = Path(where).expanduser().absolute()
        if folder.is_dir():
            return cls(folder=folder, name=folder.resolve().name, what=f"folder {str(folder)!r}", choice=choice)
        if folder.exists():
            raise NotADirectoryError(f"hfds:{where} is a file; give the folder it lies in")
        if not HUB_NAME.fullmatch(where):
            raise FileNotFoundError(
                f"hfds:{text} is neither a folder nor owner/name on the hub, such as uoft-cs/cifar10"
            )
        return cls(folder=None, name=where, what=f"dataset {where!r} of the hub", choice=choice)

    def __str__(self) -> str:
        """Say what to ask for, with an absolute path."""
        choice = ",".join(f"{key}={value}" for key, value in self.choice.items())
        return f"{self.folder or self.name}{f'#{choice}' if choice else ''}"

    @property
    def saved(self) -> bool:
        """Whether ``save_to_disk`` wrote it."""
        return self.folder is not None and any((self.folder / file).is_file() for file in SAVED)

    def roots(self) -> tuple[str, ...]:
        """Return folders, as real paths, in which images may be that a table only has paths of."""
        own = () if self.folder is None else (self.folder,)
        caches = () if self.saved else (constants.HF_HUB_CACHE, _library().config.HF_DATASETS_CACHE)
        return tuple(os.path.realpath(root) for root in (*own, *caches))


def load(place: Place, *, download: bool = False) -> dict[str, Any]:
    """Open a dataset's splits, each a ``datasets.Dataset``, by name; "" where it has none.

    Raises:
        FileNotFoundError: a dataset of the hub that isn't in the cache; tells how to get it.
        ValueError: the library is missing or too old, or can't read what is there.
        OSError: a download failed.
    """
    if place.folder:
        _require_files(place.folder)
    library = _library()
    get = "" if download or place.folder else "; --download gets it where there is a network"
    with _offline(library, only=not download or place.folder is not None):
        try:
            return _open(library, place)
        except OSError as error:
            if get and isinstance(error, ConnectionError | FileNotFoundError):
                cache = str(library.config.HF_DATASETS_CACHE)
                raise FileNotFoundError(f"{place.what} is not in the cache of `datasets`, {cache!r}{get}") from error
            hint = "; HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE and download else ""
            raise OSError(f"{place.what} can't be opened: {_describe(error)}{hint}") from error
        except Exception as error:  # the library raises whatever it stumbles over
            hint = "; name it as in #config=CONFIG" if "onfig" in str(error) else ""
            raise ValueError(f"{place.what} can't be read: {_describe(error)}{hint}{get}") from error


def _require_files(folder: Path) -> None:
    """Refuse pipes and the like, which the library passes over or waits for; see ``require_file``."""
    for inner, _, names in os.walk(folder):
        for name in names:
            require_file(Path(inner, name))


def _open(library: Any, place: Place) -> dict[str, Any]:
    config = place.choice.get("config")
    if place.saved:
        if config is not None:
            raise ValueError(f"config={config}: what save_to_disk wrote has none")
        tables = library.load_from_disk(str(place.folder))
    else:
        builder = library.load_dataset_builder(str(place.folder or place.name), config)
        *_, reader = type(builder).__module__.split(".")
        if reader not in READERS or not type(builder).__module__.startswith("datasets.packaged_"):
            raise ValueError(f"its files are read by {reader!r}; expected {', '.join(READERS)}, which give images")
        builder.download_and_prepare()
        tables = builder.as_dataset()
    if isinstance(tables, library.Dataset):
        return {str(tables.split or ""): tables}
    return {str(name): split for name, split in tables.items()}


def _describe(error: BaseException) -> str:
    """Put what the library says, and why, into one line."""
    errors = [error, error.__cause__] if error.__cause__ else [error]
    return ": ".join(" ".join(str(one).split()) for one in errors)


def _library() -> Any:
    """Import the library, which keeps its warnings to itself and its bars to terminals."""
    try:
        library: Any = importlib.import_module("datasets")
        here = library.__version__
    except ModuleNotFoundError:
        here = "0"
    if int(here.partition(".")[0]) < OLDEST:
        got = here if here != "0" else "none"
        raise ValueError(f"hfds: needs `datasets`, got {got}; `python -m pip install 'datasets>={OLDEST}'`")
    library.utils.logging.set_verbosity(library.utils.logging.CRITICAL)
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    return library


@contextmanager
def _offline(library: Any, *, only: bool) -> Iterator[None]:
    """Keep the library off the network, if ``only`` what is here may be read."""
    before = (library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    if only:
        library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


class Columns(NamedTuple):
    """The columns of images and of classes, and the classes' names by label."""

    image: str
    label: str
    names: tuple[str, ...]


def _column(features: Mapping[str, Any], kind: str, key: str, place: Place) -> str:
    """Find the one column of a type, or check the one that is asked for."""
    types = {name: type(feature).__name__ for name, feature in features.items()}
    fitting = [name for name, own in types.items() if own == kind]
    name = place.choice.get(key, fitting[0] if len(fitting) == 1 else "")
    if name not in fitting:
        listed = ", ".join(f"{name} ({own})" for name, own in types.items())
        mend = "class_encode_column" if kind == CLASSES else "cast_column"
        known = expected(name, fitting) if fitting else "expected a column"
        way = f"`datasets.Dataset.{mend}` makes one of another, then save it again"
        if fitting:
            way = f"say which, as in #{key}={fitting[0]}"
        raise ValueError(f"{place.what}: #{key}={name}: {known} of type {kind}; there is {listed}; {way}")
    return name


class HfRows:
    """The rows of a split, of which nothing is read before it is asked for.

    roots: folders in which image files may be that the table only has paths of; no dataset may name others.
    """

    def __init__(self, table: Any, columns: Columns, roots: Sequence[str], what: str) -> None:
        self._rows = table.select_columns([columns.image]).with_format("arrow")
        self._columns, self._roots, self.what = columns, roots, what
        self._whole = table.select_columns([columns.image, columns.label]).with_format("arrow")[:]
        try:
            self._whole.validate(full=True)  # of images only where they begin and end
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what}: the table is damaged: {error}") from error

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64, without looking at images; refuses rows without a label of a class."""
        labels = self._numbers(self._whole.column(self._columns.label))
        if wrong := int(np.count_nonzero((labels < 0) | (labels >= len(self._columns.names)))):
            raise ValueError(
                f"{self.what}: {wrong:,} of {len(labels):,} rows have no label of a class; name others, as in #test=val"
            )
        return labels

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image file, (n,) int64; -1 of those that are missing."""
        images = self._whole.column(self._columns.image)
        sizes = self._numbers(pc.binary_length(pc.struct_field(images, "bytes")))
        elsewhere = np.flatnonzero(sizes <= 0)
        paths = pc.struct_field(images, "path").take(pa.array(elsewhere)).to_pylist()
        for index, path in zip(elsewhere.tolist(), paths, strict=True):
            if path and self._is_inside(path) and Path(path).is_file():
                sizes[index] = Path(path).stat().st_size
        return sizes

    @staticmethod
    def _numbers(column: Any) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = pc.fill_null(column, MISSING).to_numpy().astype(np.int64)
        return numbers

    def read(self, index: int) -> bytes:
        """Read the file of an image, in whatever format it is."""
        image = self._rows[index].column(0)[0].as_py() or {"bytes": None, "path": None}
        if image["bytes"]:
            return bytes(image["bytes"])
        if not (path := image["path"]):
            raise ValueError(f"image {self.where(index)} can't be read: the row has none")
        if not self._is_inside(path):
            inside = " or ".join(map(repr, self._roots))
            raise ValueError(f"image {self.where(index)} is only named, as {path!r}; expected a file in {inside}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"image {path!r}, {self.where(index)}, is missing")
        return Path(path).read_bytes()

    def _is_inside(self, path: str) -> bool:
        return any(Path(os.path.realpath(path)).is_relative_to(root) for root in self._roots)

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
                digest.update(sha256(self.read(int(index))).digest())


class HfDataset(OwnDataset):
    """The images and classes of a dataset that `datasets` can open.

    An image's id is its split and row. It stays as long as the rows do, on every machine and with
    every release of the library; where rows have moved, the revision is another.

    The place is a folder's path or ``owner/name``, then perhaps ``#`` and choices, see ``CHOICES``.
    """

    prefix, downloads = "hfds", True
    expected = "folder, or owner/name of the hub"
    what = "a dataset of the Hugging Face `datasets` library, in a folder or as owner/name"
    source = "the Hugging Face `datasets` library"

    def __init__(self, place: Path, *, download: bool = False) -> None:
        source = Place.parse(str(place))
        where, choice = source.what, source.choice
        self.asked_path = str(source)
        self.name_after(" ".join((source.name, *(choice[key] for key in CHOICES[:3] if key in choice))), where)
        self.title = f"Images of {source.name}"
        tables = load(source, download=download)
        chosen = _choose_splits(list(tables), choice, where)
        columns = {own: _columns(tables[own].features, source) for own in chosen.values()}
        first, *others = columns
        for own in others:
            if columns[own] != columns[first]:
                raise ValueError(f"{where}: {own!r} has other columns or classes than {first!r}")
        names = columns[first].names
        self.classes = tuple(" ".join(name.replace("_", " ").split()) for name in names)
        require_unique(self.classes, names, f"{where}: column {columns[first].label!r}")
        self._rows = {
            split: HfRows(tables[own], columns[own], source.roots(), f"split {own!r} of {where}")
            for split, own in chosen.items()
        }
        for rows in self._rows.values():
            _ = rows.labels  # refuses rows without

    def _revision(self) -> str:
        """12 hex digits over classes, labels, files' sizes and a few files, in the rows' order."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        whole = sha256("\0".join(self.classes).encode())
        for split, rows in self._rows.items():
            whole.update(f"\0{split}\0".encode())
            rows.add_to(whole)
        return whole.hexdigest()[:12]

    def _split(self, name: SplitName) -> Split:
        def render(index: int, _variant: int) -> Rendered:
            rows = self._rows[name]
            return decode_image(rows.read(index), rows.where(index)), None

        labels = self._rows[name].labels if name in self._rows else np.empty(0, dtype=np.int64)
        return Split(labels, lambda index: f"{self.name}/{name}/{index}", render)


def _columns(features: Mapping[str, Any], place: Place) -> Columns:
    label = _column(features, CLASSES, "label", place)
    return Columns(_column(features, IMAGE, "image", place), label, tuple(map(str, features[label].names)))


def _choose_splits(names: Sequence[str], choice: Mapping[str, str], what: str) -> dict[SplitName, str]:
    """Say which splits of the dataset are which of ours; others are left alone."""
    chosen: dict[SplitName, str] = {split: choice[split] for split in SPLITS if split in choice}
    for split, name in chosen.items():
        if name not in names:
            raise ValueError(f"{what}: {split}={name}: {expected(name, names)}")
    if chosen:
        return chosen
    if list(names) == [""]:  # as with a folder: without splits, all is for testing
        return {"test": ""}
    known = [name for name in names if name.lower() in SPLIT_NAMES]
    chosen = {SPLIT_NAMES[name.lower()]: name for name in known}
    if not known or len(chosen) < len(known):
        raise ValueError(f"{what} has the splits {', '.join(names)}; say which is which, as in #test={names[0]}")
    return chosen
