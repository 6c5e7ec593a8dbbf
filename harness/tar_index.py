"""Where the samples of a tar of the WebDataset layout lie, so that each can be read by itself.

A sample is KEY.png (jpg, jpeg, webp) and KEY.cls, a number. Nothing is extracted, other members are
never read, and what a header says is checked against the file.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zoo.files import write_whole
from zoo.weights import cache_folder

IMAGES = frozenset(("jpg", "jpeg", "png", "webp"))
LABEL = "cls"
PICKLES = frozenset(("npy", "pickle", "pkl", "pth", "pt", "pyd"))  # npy: labels of several classes
FIELDS = IMAGES | PICKLES | {LABEL}
LARGEST = 256 << 20  # bytes of an image file
LONGEST = 20  # bytes of a label
KEPT = 10_000  # samples from which on an index is worth keeping
BLOCK = 512  # bytes of a tar's record


class Sample(NamedTuple):
    """One labelled image: its tar by number, where its bytes are, its label, key and extension."""

    shard: int
    offset: int
    size: int
    label: int
    key: str
    extension: str


@dataclass
class _Fields:
    """The members of a key, as far as they matter."""

    image: tuple[int, int, str] | None = None  # offset, bytes, extension
    label: int | None = None
    pickled: str | None = None


def index_of(shards: Sequence[Path]) -> list[Sample]:
    """List the samples of some tars, in order; a large index is kept in the user's cache.

    Raises:
        ValueError: a tar that is truncated or damaged, or a sample without one image and one label.
    """
    told = [(str(path.resolve()), *_facts(path)) for path in shards]
    name = sha256(json.dumps(told).encode()).hexdigest()[:20]
    path = cache_folder() / "tars" / f"{name}.json"
    if path.is_file():
        try:
            return [Sample(*entry) for entry in json.loads(path.read_bytes())]
        except (ValueError, TypeError):
            path.unlink()  # it is made again
    found = [sample for number, shard in enumerate(shards) for sample in _samples(number, shard)]
    if len(found) >= KEPT:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found).encode())
    return found


def _facts(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def read_sample(shard: Path, sample: Sample) -> bytes:
    """Read the bytes of a sample's image.

    Raises:
        FileNotFoundError: the tar has gone.
        ValueError: it is shorter than it was.
    """
    with shard.open("rb") as file:
        file.seek(sample.offset)
        content = file.read(sample.size)
    if len(content) != sample.size:
        raise ValueError(f"tar {str(shard)!r} ends within {sample.key!r}; it was cut meanwhile")
    return content


def _samples(number: int, shard: Path) -> list[Sample]:
    """Index one tar."""
    what = f"tar {str(shard)!r}"
    keys: dict[str, _Fields] = {}
    with shard.open("rb") as file:
        handle = file.fileno()
        length = os.fstat(handle).st_size
        for member in _members(file, what):
            _take(handle, member, length, keys, what)
    return [_sample(number, key, fields, what) for key, fields in keys.items()]


def _members(file: BinaryIO, what: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar that is whole."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
                yield member
            end = tar.offset
    except (tarfile.TarError, OSError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(
            f"{what} is truncated or no plain tar ({error}); get or make it again, uncompressed"
        ) from error
    # tarfile takes a damaged header for the end; the mark of a tar's end are blocks of zeros.
    if os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK):
        raise ValueError(
            f"{what} is truncated or damaged after byte {end:,}: the mark of a tar's end is "
            "missing; get or make it again"
        )


def _take(
    handle: int, member: tarfile.TarInfo, length: int, keys: dict[str, _Fields], what: str
) -> None:
    """Note a member if it is an image or a label; whether it is a pickle; nothing else."""
    if not member.isreg():  # folders, links and devices have no bytes of their own
        return
    where = f"{what}: member {member.name!r}"
    if member.offset_data + member.size > length:
        raise ValueError(f"{where} ends after the file does: the tar is truncated; get it again")
    parent, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    if not stem or extension not in FIELDS:
        return
    key = f"{parent}/{stem}" if parent else stem
    fields = keys.setdefault(key, _Fields())
    if extension in IMAGES:
        if fields.image is not None:
            raise ValueError(f"{where} is a second image of that key")
        if member.size > LARGEST or member.issparse():
            raise ValueError(f"{where} has {member.size:,} bytes; expected {LARGEST:,} at most")
        fields.image = (member.offset_data, member.size, extension)
    elif extension == LABEL:
        if fields.label is not None:
            raise ValueError(f"{where} is a second label of that key")
        told = os.pread(handle, min(member.size, LONGEST + 1), member.offset_data)
        fields.label = _label(told, where)
    else:
        fields.pickled = base


def _label(told: bytes, where: str) -> int:
    if len(told) > LONGEST or not told.strip().isdigit():
        raise ValueError(f"{where} is {told[:LONGEST]!r}; expected the number of a class")
    return int(told)


def _sample(number: int, key: str, fields: _Fields, what: str) -> Sample:
    """Return a whole sample."""
    if not key.isprintable():
        raise ValueError(f"{what}: key {key!r} can't be printed")
    if fields.image is None:
        raise ValueError(f"{what}: {key!r} has no image ({', '.join(sorted(IMAGES))})")
    if fields.label is None:
        hint = ""
        if fields.pickled is not None:
            hint = f"; {fields.pickled!r} is no plain number and isn't read"
        raise ValueError(f"{what}: {key!r} has no label, {key}.{LABEL}{hint}")
    offset, size, extension = fields.image
    return Sample(number, offset, size, fields.label, key, extension)
