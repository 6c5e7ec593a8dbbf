"""The folder of a store while it is being made: what is there, what is missing, whose it is."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.golden.provenance import Provenance
from harness.golden.shards import BrokenShardError, Shard
from zoo.files import PARTIAL, write_whole

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two runs apart
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"part-(\d{5,})\.parquet")
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files this large are not allowed",
    errno.EROFS: "the disk is read-only",
}


class NoRoomError(OSError):
    """A shard can't be written for lack of room."""


@dataclass(frozen=True, kw_only=True)
class Present:
    """What is known of a whole shard.

    Attributes:
        path: the file.
        count: images in it.
        size: images in a full shard.
        provenance: where it comes from.
    """

    path: Path
    count: int
    size: int
    provenance: Provenance


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard belongs; ``index`` counts from 0."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path) -> dict[int, Path]:
    """List the files named like shards, by index, ascending."""
    names = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in names if match))


def read_shard(path: Path, index: int) -> Shard:
    """Read a shard and check it.

    Raises:
        BrokenShardError: it is not whole, or not the one that its name says.
        ValueError: it is somebody else's.
    """
    try:
        shard = Shard.decode(path.read_bytes())
    except BrokenShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}; use another folder for rankings") from error
    if shard.first != index * shard.size:
        raise BrokenShardError(f"starts at image {shard.first}, not at {index * shard.size}")
    return shard


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it while the body runs.

    The claim ends with the process, however that ends.

    Raises:
        ValueError: another run writes there.
        OSError: the folder can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"another run is writing to {str(folder)!r}: wait for its end, or use another --out"
        ) from None
    except OSError:
        pass  # a file system without locks: two runs there would only do the same work twice
    try:
        yield
    finally:
        os.close(handle)


def survey(folder: Path) -> tuple[dict[int, Present], list[str]]:
    """Check every shard of a folder that is claimed; remove broken ones and half-written files.

    Returns:
        The whole shards by index, and a line for each that was removed.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
    present: dict[int, Present] = {}
    removed = []
    for index, path in shard_paths(folder).items():
        try:
            shard = read_shard(path, index)
        except BrokenShardError as error:
            path.unlink(missing_ok=True)
            removed.append(f"{path.name} is broken ({error}): removed, to be made again")
            continue
        present[index] = Present(
            path=path, count=len(shard.image_ids), size=shard.size, provenance=shard.provenance
        )
    return present, removed


def missing(
    folder: Path, present: dict[int, Present], wanted: Provenance, size: int, total: int
) -> list[int]:
    """Return the shards that must be made so that the folder holds the first ``total`` images.

    Args:
        folder: the store.
        present: its whole shards, by index.
        wanted: provenance of what is to be made.
        size: images in a full shard.
        total: images wanted.

    Raises:
        ValueError: a shard was made with other settings; names them and what to do.
    """
    for entry in present.values():
        differences = entry.provenance.differences(wanted)
        if entry.size != size:
            differences.append(f"shard size {entry.size} there, {size} wanted")
        if differences:
            raise ValueError(
                f"{str(folder)!r} holds rankings made with other settings: "
                f"{'; '.join(differences)}. Use another --out, or delete that folder"
            )
    return [
        index
        for index, first in enumerate(range(0, total, size))
        if index not in present or present[index].count < min(size, total - first)
    ]


def write_shard(folder: Path, index: int, shard: Shard, resume: str) -> None:
    """Write a shard whole or not at all.

    Args:
        folder: the store.
        index: which shard.
        shard: what is in it.
        resume: the command that goes on from here.

    Raises:
        NoRoomError: no room; says how much is needed and free, and how to go on.
        OSError: it can't be written for another reason.
    """
    path = shard_path(folder, index)
    content = shard.encode()
    try:
        write_whole(path, content)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(folder).free
        raise NoRoomError(
            f"can't write {str(path)!r}: {_NO_ROOM[error.errno]}; {len(content):,} bytes needed, "
            f"{free:,} free. Finished shards are kept; make room, then go on with: {resume}"
        ) from error
