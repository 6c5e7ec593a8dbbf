"""A folder of numbered Parquet shards: one run writes it, each file whole, and what is missing can be made."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from harness.base.lock import hold_lock
from zoo.core.files import PARTIAL, NoRoomError, write_whole

CODEC = "zstd"  # of our shards
AMPLE = 2**30  # bytes of free memory with which any shard can be read
LOCK = ".lock"  # pandas, polars and datasets leave out names that start with a dot
_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")


class BrokenShardError(ValueError):
    """A shard that is cut off, changed or not one at all."""


def free_memory() -> int:
    """Return the bytes that no program uses, without those that the system could free; ample where it doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return AMPLE


def has_codec() -> bool:
    """Tell whether this pyarrow reads our shards' compression."""
    return bool(pa.Codec.is_available(CODEC))


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Take whatever goes wrong in the body for a broken file, unless this machine may be what it lacks.

    Raises:
        BrokenShardError: the file is broken.
        OSError: memory is short, or this pyarrow lacks the codec of our files.
    """
    try:
        yield
    except BrokenShardError:
        raise
    except Exception as error:  # a changed footer can raise anything, MemoryError included
        # pyarrow's own errors are kinds of these.
        short = isinstance(error, MemoryError) and free_memory() < AMPLE
        if short or (isinstance(error, NotImplementedError) and not has_codec()):
            raise OSError(
                f"a shard can't be read here ({str(error).strip() or type(error).__name__}), which doesn't show it to "
                f"be broken, so it is kept; free some memory, or install a pyarrow with {CODEC}"
            ) from error
        raise BrokenShardError(f"unreadable ({type(error).__name__})") from error


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What shards were made from, and how. Two are equal whatever their versions."""

    # Of the packages that computed them.
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read what ``json`` wrote.

        Raises:
            ValueError: not JSON, an unknown field, or a missing one without a default.
        """
        facts = json.loads(text)
        known = sorted(entry.name for entry in fields(cls))
        if not isinstance(facts, dict) or not facts.keys() <= set(known):
            raise ValueError(f"provenance {facts!r}: expected the fields {', '.join(known)}")
        try:
            return cls(**facts)
        except TypeError as error:
            raise ValueError(f"provenance {facts!r}: {error}") from error

    def json(self) -> str:
        """Return everything as JSON, sorted by name."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: Self) -> list[str]:
        """List the fields in which ``other`` differs, versions aside, with both values."""
        names = [entry.name for entry in fields(self) if entry.compare]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}={a!r} there, {b!r} wanted" for name, a, b in pairs if a != b]


class ShardFacts(NamedTuple):
    """What ``missing`` must know of a whole shard: its images, those of a full one, its origin.

    ``provenance.differences(other)`` lists in words in what another origin differs.
    """

    images: int
    size: int
    provenance: Any


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard belongs; ``index`` counts from 0."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path) -> dict[int, Path]:
    """List the files named like shards, by index, ascending."""
    names = ((_SHARD_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in names if match))


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it while the body runs or the process lives.

    Raises:
        ValueError: another run writes there.
        OSError: the folder can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another run is writing to {str(folder)!r}: wait for its end, or use another --output"
    with hold_lock(folder / LOCK, busy):  # without locks two runs would only do the same work twice
        yield


def survey(folder: Path, read: Callable[[Path, int], ShardFacts]) -> tuple[dict[int, ShardFacts], list[str]]:
    """Check every shard of a claimed folder by ``read``; remove broken ones and half-written files.

    Return the whole shards by index, and a line for each that was removed.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
    present: dict[int, ShardFacts] = {}
    removed = []
    for index, path in shard_paths(folder).items():
        try:
            present[index] = read(path, index)
        except BrokenShardError as error:
            path.unlink(missing_ok=True)
            removed.append(f"{path.name} is broken ({error}): removed, to be made again")
    return present, removed


def missing(
    folder: Path, present: dict[int, ShardFacts], provenance: Any, size: int, total: int, what: str
) -> list[int]:
    """Return the shards that must be made so that the folder holds the first ``total`` images.

    ``what`` it holds is for messages.

    Raises:
        ValueError: a shard was made with other settings; names them and what to do.
    """
    for shard in present.values():
        differences = shard.provenance.differences(provenance)
        if shard.size != size:
            differences.append(f"shard size {shard.size} there, {size} wanted")
        if differences:
            raise ValueError(
                f"{str(folder)!r} holds {what} made with other settings: "
                f"{'; '.join(differences)}. Use another --output, or delete that folder"
            )
    return [
        index
        for index, first in enumerate(range(0, total, size))
        if index not in present or present[index].images < min(size, total - first)
    ]


def write_with_room(path: Path, content: bytes, resume: str) -> None:
    """Write a file whole or not at all; ``resume`` is the command that goes on from here.

    Raises:
        NoRoomError: no room; says how much is needed and free, and how to go on.
        OSError: it can't be written for another reason.
    """
    try:
        write_whole(path, content)
    except NoRoomError as error:
        raise NoRoomError(f"{error}. Finished shards are kept; make room, then go on with: {resume}") from error
