"""Embeddings on disk: a folder of Parquet shards, each with what it was made from and how."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.apps.setup import Setup
from harness.base.store import BrokenShardError, Origin, ShardFacts, reading, shard_paths
from harness.golden.store import MAGIC, lists
from zoo.core.files import write_whole

PROVENANCE_KEY, SHARD_KEY = b"vectors", b"shard"  # of a Parquet file's metadata
DTYPES = {"float16": np.float16, "float32": np.float32}  # of embeddings
IMAGES, TEXTS = "images", "texts"  # kinds, by what the rows are of
NAMES = {IMAGES: "path", TEXTS: "text"}  # columns
_CHECKSUM = b'"sha256": "'
_MEND = "make them with: patchrank embed SOURCE --output DIR"


class Bad(NamedTuple):
    """A picture or text without an embedding: its position in the source, its name, and why."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Provenance(Origin):
    """What embeddings were made from, and how. Two are equal whatever their versions."""

    kind: str  # images or texts
    source: tuple[str, ...]  # as asked for, with absolute paths
    column: str | None = None  # of images in Parquet
    revision: str  # of the source
    count: int  # pictures or texts in it
    model: str  # dense, as `load_tower` takes it, with absolute paths
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recovery: str | None = None  # its file
    random_weights: bool = False
    weights: str  # `zoo.core.digests.fingerprint` of the image tower
    reducer: str | None = None  # digest of the method's own weights, None without
    text_weights: str | None = None  # digest of the text tower's; None of images
    preprocessing: str  # of pictures, in words
    dtype: str  # of the computation
    optimised: bool = False  # by `zoo.optimize`, which can't take every tower
    batch: int  # pictures per pass decide the last bits
    embedding_dtype: str
    width: int

    def __post_init__(self) -> None:
        """Take a list, as JSON has it, for the source."""
        object.__setattr__(self, "source", tuple(self.source))

    @property
    def setup(self) -> Setup:
        """The model as it was run."""
        names = {entry.name for entry in fields(Setup)} & {entry.name for entry in fields(self)}
        return Setup(**{name: getattr(self, name) for name in names} | {"options": dict(self.options)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """The embeddings of a shard: of ``covers`` consecutive pictures or texts from position ``first``.

    Attributes:
        ids: (n,) int64 positions in the source, ascending; of the bad ones there is no row.
        names: (n,) paths or texts.
        embeddings: (n, D), of unit length, in the provenance's precision.
        bad: those without a row.
        size: what a full shard covers.
    """

    ids: NDArray[np.int64]
    names: Sequence[str]
    embeddings: NDArray[np.floating]
    provenance: Provenance
    first: int
    covers: int
    size: int
    bad: Sequence[Bad] = ()

    def encode(self) -> bytes:
        """Return the file; the same shard gives the same bytes with the same pyarrow."""
        name, width = NAMES[self.provenance.kind], self.provenance.width
        values = np.ascontiguousarray(self.embeddings, DTYPES[self.provenance.embedding_dtype])
        content = {"id": pa.array(self.ids), name: pa.array(self.names, pa.string()), "embedding": lists(values, width)}
        place = {"first": self.first, "covers": self.covers, "size": self.size}
        provenance, shard = self.provenance.json(), {**place, "bad": self.bad}
        whole = json.dumps({**shard, "sha256": _digest(provenance.encode(), shard)})
        facts = {PROVENANCE_KEY: provenance.encode(), SHARD_KEY: whole.encode()}
        packed = {"id": "zstd", name: "zstd", "embedding.list.element": "none"}  # noise doesn't shrink
        sink = pa.BufferOutputStream()
        plain = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
        pq.write_table(pa.table(content).replace_schema_metadata(facts), sink, compression=packed, **plain)
        return bytes(sink.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a shard and check it.

        Raises:
            BrokenShardError: it isn't as ``encode`` wrote it.
            ValueError: it is somebody else's.
        """
        content = path.read_bytes()
        if content[:4] != MAGIC or content[-4:] != MAGIC:
            raise BrokenShardError("cut off, or no Parquet file")
        with reading():
            file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
            metadata = file.metadata.metadata or {}
        if not metadata.keys() & {PROVENANCE_KEY, SHARD_KEY} and _CHECKSUM not in content:
            raise ValueError(f"{str(path)!r} is a Parquet file, but not of embeddings; use another folder")
        with reading():
            shard = json.loads(metadata[SHARD_KEY])
            if shard.pop("sha256") != _digest(metadata[PROVENANCE_KEY], shard):
                raise BrokenShardError("its description and checksum differ")
            table = file.read(use_threads=False)
        try:
            provenance = Provenance.parse(metadata[PROVENANCE_KEY])
        except ValueError as error:
            raise ValueError(f"{str(path)!r} was made by another release: {error}; use another folder") from error
        with reading():
            values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = cls(
                ids=table["id"].to_numpy(),
                names=table[NAMES[provenance.kind]].to_pylist(),
                embeddings=values.reshape(len(table), provenance.width),
                provenance=provenance,
                bad=[Bad(*entry) for entry in shard.pop("bad")],
                **shard,
            )
            vectors._check()
        return vectors

    def _check(self) -> None:
        """Refuse rows that don't cover what they should."""
        covered = sorted([*self.ids.tolist(), *(bad.id for bad in self.bad)])
        if covered != list(range(self.first, self.first + self.covers)) or not 1 <= self.covers <= self.size:
            raise BrokenShardError(f"doesn't hold the {self.covers} from {self.first} on, of {self.size} per shard")
        if self.embeddings.dtype != DTYPES[self.provenance.embedding_dtype] or len(self.names) != len(self.ids):
            raise BrokenShardError("its columns aren't as they were written")


def _digest(provenance: bytes, shard: Mapping[str, Any]) -> str:
    """Return the sha256 over what isn't in pages, which have checksums of their own."""
    return hashlib.sha256(provenance + json.dumps(shard, sort_keys=True).encode()).hexdigest()


def facts_of(path: Path, index: int) -> ShardFacts:
    """Read and check a shard, and return what ``survey`` asks for."""
    vectors = Vectors.read(path)
    if vectors.first != index * vectors.size:
        raise BrokenShardError(f"starts at {vectors.first}, not at {index * vectors.size}")
    return ShardFacts(vectors.covers, vectors.size, vectors.provenance)


def provenance_of(folder: Path) -> Provenance:
    """Return what the embeddings in a folder were made from, by its first shard.

    Raises:
        FileNotFoundError: no folder, or nothing in it.
        ValueError: the first shard is broken or somebody else's.
    """
    paths = shard_paths(folder) if folder.is_dir() else {}
    if not paths:
        raise FileNotFoundError(f"{str(folder)!r} holds no embeddings: no part-00000.parquet; {_MEND}")
    return _read(next(iter(paths.values()))).provenance


def read_vectors(folder: Path) -> Iterator[Vectors]:
    """Yield the shards of a folder, one in memory at a time.

    Raises:
        FileNotFoundError: no folder, or nothing in it.
        ValueError: a shard is broken, somebody else's, or made in another way than the first.
    """
    wanted = provenance_of(folder)
    for path in shard_paths(folder).values():
        vectors = _read(path)
        if differences := vectors.provenance.differences(wanted):
            raise ValueError(
                f"shards of {str(folder)!r} were made differently: {path.name} has {'; '.join(differences)}"
            )
        yield vectors


def _read(path: Path) -> Vectors:
    try:
        return Vectors.read(path)
    except BrokenShardError as error:
        raise ValueError(
            f"{str(path)!r} is broken: {error}; the `embed` command that made it finds it and makes it again"
        ) from error


def errors_path(folder: Path) -> Path:
    """Return where the bad ones of a folder are listed: beside it, as readers take every file in it for a shard."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.errors.parquet")


def write_errors(folder: Path) -> int:
    """List the bad pictures or texts of all shards in one file, and count them; without any there is no file."""
    path, column, bad = errors_path(folder), NAMES[IMAGES], list[Bad]()
    for shard in shard_paths(folder).values():
        metadata = pq.read_metadata(shard).metadata
        bad += [Bad(*entry) for entry in json.loads(metadata[SHARD_KEY])["bad"]]
        column = NAMES[json.loads(metadata[PROVENANCE_KEY])["kind"]]
    if not bad:
        path.unlink(missing_ok=True)
        return 0
    sink = pa.BufferOutputStream()
    ids, names, reasons = zip(*bad, strict=True)
    table = {"id": pa.array(ids, pa.int64()), column: pa.array(names, pa.string()), "reason": pa.array(reasons)}
    pq.write_table(pa.table(table), sink)
    write_whole(path, bytes(sink.getvalue()))
    return len(bad)


def absolute(setup: Setup) -> Setup:
    """Return a setup whose files are found from every folder."""
    kind, colon, place = setup.model.partition(":")
    if kind in ("local-dir", "transformers") and colon:
        setup = dataclasses.replace(setup, model=f"{kind}:{Path(place).absolute()}")
    arch, slash, file = place.partition("/")
    if kind == "open_clip" and slash and Path(file).is_file():
        setup = dataclasses.replace(setup, model=f"{kind}:{arch}/{Path(file).absolute()}")
    if setup.recovery is not None:
        setup = dataclasses.replace(setup, recovery=str(Path(setup.recovery).absolute()))
    return setup
