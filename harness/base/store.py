"""Parquet files with a checksum, and stores: folders of numbered files that a later run of the same job goes on with.

One run at a time writes a store, each file whole; missing and broken files are found and made again.
"""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.base.lines import hold_lock, require_appendable
from zoo.core.digests import digest
from zoo.core.errors import NoRoomError, is_out_of_memory
from zoo.core.files import PARTIAL, require_file, write_whole
from zoo.core.json_reader import from_json

VERSION = 1  # of the metadata
CODEC = "zstd"
LOCK = ".lock"  # pandas, polars and datasets leave out names that start with a dot
_MAGIC = b"PAR1"
_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")


class BrokenShardError(ValueError):
    """A file that is cut off, changed or not one at all."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn any error except too little memory into a BrokenShardError; a changed footer can raise anything."""
    try:
        yield
    except BrokenShardError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BrokenShardError(f"unreadable ({type(error).__name__})") from error


def to_lists(values: NDArray[Any]) -> Any:
    """Return (n, width) numbers as a column of n lists."""
    flat = pa.array(values.reshape(-1))
    kind = pa.list_(pa.field("element", flat.type), values.shape[1])  # as Parquet names it
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def from_lists(table: Any, column: str) -> NDArray[Any]:
    """Return a column of equally long lists as an array (n, width), the reverse of ``to_lists``."""
    values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(table), table.schema.field(column).type.list_size)


def seal(table: Any, kind: str, metadata: Mapping[str, Any], raw: Collection[str] = ()) -> bytes:
    """Return a pyarrow table as a Parquet file; equal tables give equal bytes with one pyarrow.

    ``kind`` is the key of ``metadata``, which are JSON values, and of a sha256 of both and the table. Lists are made
    small: byte planes apart, then zstd; ``raw`` columns stay as they are.
    """
    values: dict[str, Any] = json.loads(json.dumps(metadata))  # as they will be read
    values |= {"kind": kind, "version": VERSION}
    text = json.dumps(values | {"sha256": _digest(table, values)}, sort_keys=True)
    lists = [entry.name for entry in table.schema if pa.types.is_fixed_size_list(entry.type)]
    leaves = {name: f"{name}.list.element" if name in lists else name for name in table.column_names}
    packed = [leaf for name, leaf in leaves.items() if name not in raw]
    options: dict[str, Any] = {
        "compression": {leaf: CODEC if leaf in packed else "none" for leaf in leaves.values()},
        "compression_level": dict.fromkeys(packed, 19),
        "use_byte_stream_split": [leaves[name] for name in lists if name not in raw],
    }
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({kind.encode(): text.encode()})
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False, **options)
    return bytes(sink.getvalue())


def unseal(content: bytes, kind: str) -> tuple[Any, dict[str, Any]]:
    """Read the table and metadata of a file of ``seal``.

    Raises:
        BrokenShardError: the file has changed since.
        ValueError: a file of another kind, or of a version that this package doesn't know.
    """
    if content[:4] != _MAGIC or content[-4:] != _MAGIC:
        raise BrokenShardError("cut off, or no Parquet file")
    with _reading():
        file = pq.ParquetFile(pa.BufferReader(content))
        texts, whole = file.metadata.metadata or {}, file.metadata
        rows = sum(whole.row_group(at).num_rows for at in range(whole.num_row_groups))
        if rows != whole.num_rows:  # Arrow would take memory for them
            raise BrokenShardError("its numbers of rows don't agree")
    if kind.encode() not in texts and json.dumps({"kind": kind})[1:-1].encode() not in content:
        raise ValueError(f"a Parquet file, but not of {kind}")
    with _reading():
        metadata = json.loads(texts[kind.encode()])
        table, known = file.read(use_threads=False), metadata.pop("sha256")
        if _digest(table, metadata) != known or metadata.pop("kind") != kind:
            raise BrokenShardError("content and checksum differ")
    if (version := metadata.pop("version")) != VERSION:
        raise ValueError(f"{kind} of version {version!r}; this package reads {VERSION}, update it")
    return table.replace_schema_metadata(None), metadata


def _digest(table: Any, metadata: Mapping[str, Any]) -> str:
    parts: list[Any] = [metadata]
    for entry in table.schema:
        column = table[entry.name].combine_chunks()
        if pa.types.is_fixed_size_list(entry.type):
            parts.append([entry.name, str(entry.type.value_type), entry.type.list_size, len(column)])
            parts.append(np.asarray(column.is_valid()).tobytes())
            parts.append(np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).tobytes())
        else:
            parts.append([entry.name, str(entry.type)])
            parts.append(repr(column.to_pylist()).encode())
    return digest(*parts, length=64)


@dataclass(frozen=True, kw_only=True)
class ShardProvenance:
    """Describe what shards were made from, and how; equality leaves versions out."""

    versions: Mapping[str, str] = field(default_factory=dict, compare=False)  # of the packages that computed them

    def differences(self, other: Self) -> list[str]:
        """List the fields but versions in which ``other`` differs, with both values."""
        names = [entry.name for entry in fields(self) if entry.compare]
        there, wanted = vars(self), vars(other)
        return [f"{n}={there[n]!r} there, {wanted[n]!r} wanted" for n in names if there[n] != wanted[n]]


P = TypeVar("P", bound=ShardProvenance)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard(Generic[P]):
    """A file of a store: a table of images, or of other items, from position ``first`` on.

    It covers ``covers`` items, a full shard ``size``; items without a row are in its ``notes``.
    """

    table: Any
    provenance: P
    first: int
    covers: int
    size: int
    notes: Sequence[Any] = ()  # JSON values

    def differences(self, provenance: P, size: int) -> str:
        """List in what a shard was made otherwise; of another size it may hold items of a second shard."""
        sizes = [f"shard size {self.size} there, {size} wanted"] if self.size != size else []
        return "; ".join(self.provenance.differences(provenance) + sizes)


@dataclass(frozen=True, kw_only=True)
class ShardKind(Generic[P]):
    """How shards of one content are written, checked and called."""

    key: str  # of the file's metadata
    what: str  # content, in words
    command: str  # that makes the shards
    provenance: type[P]
    check: Callable[[Shard[P]], object]  # raises for content that was never written
    raw: tuple[str, ...] = ()  # columns that no compression makes smaller

    def encode(self, shard: Shard[P]) -> bytes:
        """Return the file, see `seal`."""
        metadata = {"provenance": asdict(shard.provenance), "notes": shard.notes}
        metadata |= {name: getattr(shard, name) for name in ("first", "covers", "size")}
        return seal(shard.table, self.key, metadata, self.raw)

    def decode(self, content: bytes) -> Shard[P]:
        """Read a file back and check all of it; raises as `unseal`."""
        table, metadata = unseal(content, self.key)
        provenance: P = from_json(self.provenance, metadata.pop("provenance"), "provenance")
        shard = Shard(table=table, provenance=provenance, **metadata)
        if not 1 <= shard.covers <= shard.size or shard.first % shard.size:
            raise BrokenShardError(f"covers {shard.covers} from {shard.first}, of {shard.size} per shard")
        with _reading():
            self.check(shard)
        return shard

    def read(self, path: Path, index: int) -> Shard[P]:
        """Read and check a shard; one with another's name is broken."""
        require_file(path)
        content = path.read_bytes()
        try:
            shard = self.decode(content)
        except BrokenShardError:
            raise
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}; use another folder for {self.what}") from error
        except MemoryError as error:
            remedy = "free some, and the same command goes on; if it fails again, the file is damaged: delete it"
            raise MemoryError(f"too little memory to read {str(path)!r} ({error}): {remedy}") from error
        if shard.first != index * shard.size:
            raise BrokenShardError(f"starts at {shard.first}, not at {index * shard.size}")
        return shard

    def shards(self, folder: Path) -> Iterator[Shard[P]]:
        """Yield the shards of a store, finished or not, one in memory at a time; FileNotFoundError if there are none.

        ValueError for a shard that is broken, somebody else's, or made in another way or size than the first.
        """
        first: Shard[P] | None = None
        for index, path in (shard_paths(folder) if folder.is_dir() else {}).items():
            try:
                shard = self.read(path, index)
            except BrokenShardError as error:
                mend = f"the `{self.command}` command that made it finds it and makes it again"
                raise ValueError(f"{str(path)!r} is broken: {error}; {mend}") from error
            first = first or replace(shard, table=None)
            if differences := shard.differences(first.provenance, first.size):
                raise ValueError(
                    f"shards of {str(folder)!r} were made differently: {path.name} has {differences}; "
                    "make them again in another folder"
                )
            yield shard
        if first is None:
            raise FileNotFoundError(f"{str(folder)!r} holds no {self.what}: no {shard_path(folder, 0).name}")

    def facts(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Yield the metadata of the shards of a folder, without a check of their content."""
        for path in shard_paths(folder).values():
            yield json.loads(pq.read_metadata(path).metadata[self.key.encode()])


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard belongs; ``index`` counts from 0."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path) -> dict[int, Path]:
    """List the files named like shards, by index, ascending; ValueError if two names have one index."""
    names = ((_SHARD_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in names if match)
    for (index, path), (other, second) in pairwise(numbered):
        if index == other:
            raise ValueError(f"{str(folder)!r} holds shard {index} twice, {path.name} and {second.name}: remove one")
    return dict(numbered)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it while the body runs; ValueError if one writes there."""
    require_appendable(folder / "any")
    with hold_lock(folder / LOCK, folder):  # without locks two runs would only do the same work twice
        yield


class Store(Generic[P]):
    """A folder of shards that a run fills, until they cover the first ``total`` images."""

    def __init__(self, folder: Path, kind: ShardKind[P], *, size: int, total: int) -> None:
        self.folder, self.kind, self.size, self.total = folder, kind, size, total
        self.present: dict[int, Shard[P]] = {}  # by index, whole shards at opening, without their rows

    @contextlib.contextmanager
    def open(self, say: Callable[[str], object]) -> Iterator[Self]:
        """Keep other runs out, remove partial files, check all shards, and tell broken ones by ``say``.

        Raise ValueError for a broken file behind the last shard, which no run makes again.
        """
        with lock_folder(self.folder):
            for path in self.folder.glob(f".*{PARTIAL}"):
                path.unlink(missing_ok=True)
            for index, path in shard_paths(self.folder).items():
                try:
                    self.present[index] = replace(self.kind.read(path, index), table=None)
                except BrokenShardError as error:
                    if index * self.size >= self.total:
                        raise ValueError(
                            f"{str(path)!r} is broken: {error}; it lies behind the last of {self.total:,} items, so "
                            "that nothing makes it again: delete it"
                        ) from error
                    say(f"{path.name} is broken ({error}): to be made again")
            yield self

    def positions(self, index: int) -> range:
        """Return the positions that a shard covers."""
        return range(index * self.size, min((index + 1) * self.size, self.total))

    def missing(self, provenance: P) -> list[int]:
        """Return the shards that must be made; ValueError names other settings of present shards."""
        for shard in self.present.values():
            if differences := shard.differences(provenance, self.size):
                raise ValueError(
                    f"{str(self.folder)!r} holds {self.kind.what} made with other settings: {differences}. "
                    "Use another --output, or delete that folder"
                )
        count = -(-self.total // self.size)
        covers = {index: shard.covers for index, shard in self.present.items()}
        return [index for index in range(count) if covers.get(index, 0) < len(self.positions(index))]

    def write(self, index: int, table: Any, provenance: P, notes: Sequence[Any] = ()) -> None:
        """Write a shard whole or not at all; NoRoomError says how much is needed and free, and how to go on."""
        at = self.positions(index)
        shard = Shard(table=table, provenance=provenance, first=at.start, covers=len(at), size=self.size, notes=notes)
        try:
            write_whole(shard_path(self.folder, index), self.kind.encode(shard))
        except NoRoomError as error:
            raise NoRoomError(f"{error}. Finished shards are kept; make room, then the same command goes on") from error

    def require_whole(self, indices: Sequence[int]) -> None:
        """Refuse a store from which shards that were made have vanished."""
        if gone := [index for index in indices if not shard_path(self.folder, index).is_file()]:
            raise ValueError(f"{len(gone)} shards have vanished from {str(self.folder)!r} meanwhile")
