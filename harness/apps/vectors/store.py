"""Embeddings on disk: a store of Parquet shards, each with what it was made from and how."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.apps.setup import Setup
from harness.base.store import BrokenShardError, Origin, Shard, ShardKind, from_lists, to_lists
from zoo.core.files import write_whole

DTYPES = {"float16": np.float16, "float32": np.float32}  # of embeddings
IMAGES, TEXTS = "images", "texts"  # kinds, by what the rows are of
NAMES = {IMAGES: "path", TEXTS: "text"}  # columns
_MEND = "make them with: patchrank embed SOURCE --output DIR"


class Bad(NamedTuple):
    """A picture or text without an embedding: its position in the source, its name, and why."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class VectorsProvenance(Origin):
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
    weights: str  # `zoo.core.files.fingerprint` of the image tower
    reducer: str | None = None  # digest of the method's own weights, None without
    text_weights: str | None = None  # digest of the text tower's; None of images
    preprocessing: str  # of pictures, in words
    dtype: str  # of the computation
    optimised: bool = False  # by `zoo.optimize`, which can't take every tower
    batch: int  # pictures per pass decide the last bits
    embedding_dtype: str
    width: int

    @property
    def setup(self) -> Setup:
        """The model as it was run."""
        names = {entry.name for entry in fields(Setup)} & {entry.name for entry in fields(self)}
        return Setup(**{name: getattr(self, name) for name in names} | {"options": dict(self.options)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """The embeddings of consecutive pictures or texts.

    Attributes:
        ids: (n,) int64 positions in the source, ascending; of the bad ones there is no row.
        names: (n,) paths or texts.
        embeddings: (n, D), of unit length, in the provenance's precision.
        bad: those without a row.
    """

    ids: NDArray[np.int64]
    names: Sequence[str]
    embeddings: NDArray[np.floating]
    provenance: VectorsProvenance
    bad: Sequence[Bad] = ()

    @classmethod
    def from_shard(cls, shard: Shard[VectorsProvenance]) -> Self:
        """Take the embeddings of a shard."""
        return cls(
            ids=shard.table["id"].to_numpy(),
            names=shard.table[NAMES[shard.provenance.kind]].to_pylist(),
            embeddings=from_lists(shard.table, "embedding"),
            provenance=shard.provenance,
            bad=[Bad(*note) for note in shard.notes],
        )

    def table(self) -> Any:
        """Return the table of a shard."""
        values = np.ascontiguousarray(self.embeddings, DTYPES[self.provenance.embedding_dtype])
        names = pa.array(self.names, pa.string())
        return pa.table({"id": self.ids, NAMES[self.provenance.kind]: names, "embedding": to_lists(values)})


def _check(shard: Shard[VectorsProvenance]) -> None:
    """Refuse rows that don't cover what they should."""
    vectors = Vectors.from_shard(shard)
    covered = sorted([*vectors.ids.tolist(), *(bad.id for bad in vectors.bad)])
    if covered != list(range(shard.first, shard.first + shard.covers)):
        raise BrokenShardError(f"doesn't hold the {shard.covers} from {shard.first} on")
    if vectors.embeddings.dtype != DTYPES[shard.provenance.embedding_dtype]:
        raise BrokenShardError("its columns aren't as they were written")


VECTORS = ShardKind(
    key="vectors", what="embeddings", command="embed", provenance=VectorsProvenance, check=_check, raw=("embedding",)
)


def read_vectors(folder: Path) -> Iterator[Vectors]:
    """Yield the shards of a folder, one in memory at a time.

    Raises:
        FileNotFoundError: no folder, or nothing in it.
        ValueError: a shard is broken, somebody else's, or made in another way than the first.
    """
    try:
        yield from map(Vectors.from_shard, VECTORS.shards(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {_MEND}") from error


def read_provenance(folder: Path) -> VectorsProvenance:
    """Return what the embeddings in a folder were made from, by its first shard; raise as ``read_vectors`` does."""
    return next(read_vectors(folder)).provenance


def errors_path(folder: Path) -> Path:
    """Return where the bad ones of a folder are listed: beside it, as readers take every file in it for a shard."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.errors.parquet")


def write_errors(folder: Path) -> int:
    """List the bad pictures or texts of all shards in one file, and count them; without any there is no file."""
    path, column, bad = errors_path(folder), NAMES[IMAGES], list[Bad]()
    for facts in VECTORS.facts(folder):
        bad += [Bad(*note) for note in facts["notes"]]
        column = NAMES[facts["provenance"]["kind"]]
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
