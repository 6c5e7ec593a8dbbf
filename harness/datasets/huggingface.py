"""Datasets of the Hugging Face `datasets` library, from its cache of the hub or from a folder.

timm's reader of these takes neither a config nor what ``save_to_disk`` wrote, and goes to the network whenever it can.
No code of a dataset is run, and nothing is unpickled: of the library's readers only `READERS` are used.
"""

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants
from numpy.typing import NDArray

from harness.datasets.base import SPLIT_NAMES, SPLITS, OwnDataset, Rendered, Split, SplitName, require_unique
from harness.datasets.images import MISSING, decode_image
from zoo.core.digests import digest
from zoo.core.settings import expected

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
LOOKED_AT = 32  # images of a split whose bytes count for its revision
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
READERS = ("arrow", "cache", "imagefolder", "parquet")
# Keys of choices behind "#", as in #image=img,test=validation: config, columns, and splits. If one split is named,
# splits without a name are empty.
CHOICES = ("config", "image", "label", *SPLITS)
MENDS = {"Image": "cast_column", "ClassLabel": "class_encode_column"}  # methods that make a column of a type


class HfRows(NamedTuple):
    """The rows of a split; images are read on demand."""

    images: Any  # a ``datasets.Dataset`` of one column, in Arrow's format
    labels: NDArray[np.int64]
    where: str

    def read(self, index: int) -> bytes:
        """Return the bytes of an image's file; empty if the row has none."""
        image = self.images[index].column(0)[0].as_py() or {}
        content: bytes = image.get("bytes") or b""
        if content or not (path := image.get("path")):
            return content
        if not Path(path).is_file():  # nor a pipe or device
            raise FileNotFoundError(
                f"image in row {index} of {self.where} is only named, as {path!r}; no file is there"
            )
        return Path(path).read_bytes()

    def facts(self) -> bytes:
        """Return labels, files' sizes and hashes of a few images, for a hash."""
        images, count = self.images[:].column(0), len(self.labels)
        sizes = _numbers(pc.binary_length(pc.struct_field(images, "bytes")))
        for at in np.flatnonzero(sizes <= 0).tolist():
            path = (images[at].as_py() or {}).get("path")
            if path and Path(path).is_file():
                sizes[at] = Path(path).stat().st_size
        few = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist()
        hashes = [sha256(self.read(at)).digest() for at in few if sizes[at] > 0]
        numbers = [column.astype("<i8").tobytes() for column in (self.labels, sizes)]
        return b"".join([f"{count}\0".encode(), *numbers, *hashes])


class HfDataset(OwnDataset):
    """The images and classes of a dataset that `datasets` can open.

    An image's id is its split and row, the same on every machine and with every release of the library. The place is a
    folder's path or ``owner/name``, then perhaps ``#`` and choices, see ``CHOICES``.
    """

    prefix, downloads = "hfds", True
    expected = "folder, or owner/name of the hub"
    what = "a dataset of the Hugging Face `datasets` library, in a folder or as owner/name"

    def __init__(self, place: Path, *, download: bool = False) -> None:
        source, choice = _parse_place(str(place))
        local = Path(source).is_absolute()
        where = f"folder {source!r}" if local else f"dataset {source!r} of the hub"
        self.asked_path = "#".join(filter(None, (source, ",".join(f"{key}={value}" for key, value in choice.items()))))
        name = Path(source).resolve().name if local else source
        self.name_after(" ".join((name, *(choice[key] for key in CHOICES[:3] if key in choice))), where)
        self.title = f"Images of {name}"
        tables = _load(source, choice.get("config"), where, offline=local or not download)
        self._rows: dict[SplitName, HfRows] = {}
        names: tuple[str, ...] = ()
        for split, name in _choose_splits(list(tables), choice, where).items():
            features = tables[name].features
            image = _column(features, "Image", f"#image={choice.get('image', '')}", where)
            label = _column(features, "ClassLabel", f"#label={choice.get('label', '')}", where)
            if names and names != tuple(features[label].names):
                raise ValueError(f"{where}: {name!r} has other classes than another split")
            names = tuple(features[label].names)
            self._rows[split] = _read_rows(tables[name], image, label, f"split {name!r} of {where}")
        self.classes = tuple(" ".join(name.replace("_", " ").split()) for name in names)
        require_unique(self.classes, names, where)

    def _revision(self) -> str:
        """12 hex digits over classes, labels, files' sizes and a few files, in the rows' order."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        parts = [part for split, rows in self._rows.items() for part in (f"\0{split}\0".encode(), rows.facts())]
        return digest("\0".join(self.classes).encode(), *parts, length=12)

    def _split(self, name: SplitName) -> Split:
        def render(index: int, _variant: int) -> Rendered:
            rows = self._rows[name]
            return decode_image(rows.read(index), f"in row {index} of {rows.where}"), None

        labels = self._rows[name].labels if name in self._rows else np.empty(0, dtype=np.int64)
        return Split(labels, lambda index: f"{self.name}/{name}/{index}", render)


def _parse_place(text: str) -> tuple[str, dict[str, str]]:
    """Return a folder's absolute path, or ``owner/name`` of the hub, and the choices after ``#``."""
    where, _, choices = text.rpartition("#")
    if not where or Path(text).expanduser().is_dir():  # "#" may be part of its name
        where, choices = text, ""
    choice: dict[str, str] = {}
    for part in filter(None, choices.split(",")):
        key, _, value = part.partition("=")
        if key not in CHOICES or key in choice or not value:
            raise ValueError(f"hfds:{text}: {part!r} after '#': expected KEY=VALUE, each once of {', '.join(CHOICES)}")
        choice[key] = value
    folder = Path(where).expanduser().absolute()
    if not folder.is_dir() and (folder.exists() or not HUB_NAME.fullmatch(where)):
        raise FileNotFoundError(f"hfds:{text} is neither a folder nor owner/name on the hub, such as uoft-cs/cifar10")
    return str(folder) if folder.is_dir() else where, {key: choice[key] for key in CHOICES if key in choice}


def _load(place: str, config: str | None, where: str, *, offline: bool) -> dict[str, Any]:
    """Open a dataset's splits, each a ``datasets.Dataset``, by name; "" where it has none."""
    try:
        library: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError("hfds: needs `datasets`; pip install 'clip-patchrank[hfds]'") from error
    library.utils.logging.set_verbosity(library.utils.logging.CRITICAL)
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    before = (library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    if offline:
        library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        tables = _open(library, place, config)
    except Exception as error:  # the library raises whatever it stumbles over
        why = ": ".join(" ".join(str(cause).split()) for cause in (error, error.__cause__) if cause)
        hint = "; name it as in #config=CONFIG" if "onfig" in why else ""
        if offline and not Path(place).is_absolute():
            hint += f"; it isn't in the cache {str(library.config.HF_DATASETS_CACHE)!r}; --download gets it"
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{where} can't be read: {why}{hint}") from error
    finally:
        library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
    if isinstance(tables, library.Dataset):
        return {str(tables.split or ""): tables}
    return {str(name): split for name, split in tables.items()}


def _open(library: Any, place: str, config: str | None) -> Any:
    if any((Path(place) / file).is_file() for file in SAVED):
        if config is not None:
            raise ValueError(f"config={config}: what save_to_disk wrote has none")
        return library.load_from_disk(place)
    builder = library.load_dataset_builder(place, config)
    *_, reader = type(builder).__module__.split(".")
    if reader not in READERS or not type(builder).__module__.startswith("datasets.packaged_"):
        raise ValueError(f"its files are read by {reader!r}; expected {', '.join(READERS)}, which give images")
    builder.download_and_prepare()
    return builder.as_dataset()


def _choose_splits(names: Sequence[str], choice: Mapping[str, str], where: str) -> dict[SplitName, str]:
    """Return the dataset's splits by ours; others are left out."""
    chosen: dict[SplitName, str] = {split: choice[split] for split in SPLITS if split in choice}
    for split, name in chosen.items():
        if name not in names:
            raise ValueError(f"{where}: {split}={name}: {expected(name, names)}")
    if chosen:
        return chosen
    if list(names) == [""]:  # as with a folder: without splits, all is for testing
        return {"test": ""}
    known = [name for name in names if name.lower() in SPLIT_NAMES]
    chosen = {SPLIT_NAMES[name.lower()]: name for name in known}
    if not known or len(chosen) < len(known):
        raise ValueError(f"{where} has the splits {', '.join(names)}; say which is which, as in #test={names[0]}")
    return chosen


def _column(features: Mapping[str, object], kind: str, asked: str, where: str) -> str:
    """Find the only column of a type, or check a column that is asked for, as in ``#image=img``."""
    types = {name: type(feature).__name__ for name, feature in features.items()}
    fitting = [name for name, type_name in types.items() if type_name == kind]
    name = asked.partition("=")[2] or (fitting[0] if len(fitting) == 1 else "")
    if name in fitting:
        return name
    known = expected(name, fitting) if fitting else "expected a column"
    there = ", ".join(f"{name} ({type_name})" for name, type_name in types.items())
    mend = f"`datasets.Dataset.{MENDS[kind]}` makes one of another, then save it again"
    raise ValueError(f"{where}: {asked}: {known} of type {kind}; there is {there}; {mend}")


def _read_rows(table: Any, image: str, label: str, where: str) -> HfRows:
    whole = table.select_columns([image, label]).with_format("arrow")[:]
    try:
        whole.validate(full=True)  # of images only where they begin and end; else to read one may end the process
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: the table is damaged: {error}") from error
    labels = _numbers(whole.column(label))
    wrong = np.count_nonzero((labels < 0) | (labels >= table.features[label].num_classes))
    if wrong:
        raise ValueError(
            f"{where}: {wrong:,} of {len(labels):,} rows have no label of a class; name others, as in #test=val"
        )
    return HfRows(table.select_columns([image]).with_format("arrow"), labels, where)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.fill_null(column, MISSING).to_numpy().astype(np.int64)
    return numbers
