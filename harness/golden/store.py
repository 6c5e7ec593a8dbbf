"""Golden rankings on disk: a folder of Parquet shards as ``rank`` makes it, or one small file."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.base.store import (
    BrokenShardError,
    Origin,
    ShardFacts,
    reading,
    shard_path,
    shard_paths,
    write_with_room,
)
from harness.datasets import Dataset, kind_of
from harness.datasets.base import DATA_DIR, Split
from zoo.core.files import cache_folder, write_whole
from zoo.ranking.golden import GoldenConfig

FOLDER_SPLIT = "all"  # the split of a folder of images, which has no others
PROVENANCE_KEY, SHARD_KEY = b"golden", b"shard"  # of a Parquet file's metadata
MAGIC = b"PAR1"
UNKNOWN = -1  # label of an image without one
_CHECKSUM = b'"sha256": "'
_COLUMNS = ("importance", "labels", "least", "ranking")


@dataclass(frozen=True, kw_only=True)
class Provenance(Origin):
    """What a set of rankings was made from, and how. Two are equal whatever their versions."""

    model: str  # of the dense tower, with its weight tag
    weights: str  # `zoo.core.digests.fingerprint` of the tower
    dataset: str  # its name, or that of the folder of images
    revision: str  # of the dataset or folder
    split: str  # train, val or test; `FOLDER_SPLIT` for a folder
    score: str  # preservation, label or confidence
    block: int  # reduction point, 0-based
    window: int  # side in patches
    stride: int  # in patches
    dtype: str  # of the computation
    action: str = "remove"  # or merge; the files that ship don't say
    batch: int | None = None  # sequences per pass decide the last bits; None in the files that ship
    greedy: int | None = None  # patches removed per round; None = one-shot
    approximate: str | None = None  # how the score was approximated; None = exact

    def described(self) -> str:
        """Return the settings in words."""
        names = [entry.name for entry in fields(GoldenConfig)]
        return GoldenConfig(**{name: getattr(self, name) for name in names}).describe()

    def command(self) -> str:
        """Return the command that makes such rankings."""
        prefix = kind_of(self.dataset)
        name = self.dataset if prefix is None else f"{prefix}:PATH"
        source = f"--dataset {name} --split {self.split}"
        if self.split == FOLDER_SPLIT:
            source = "--images FOLDER"
        flags = " ".join(golden_flags(self))
        return f"patchrank rank --model {self.model} {source} {flags}"


def golden_flags(settings: GoldenConfig | Provenance) -> list[str]:
    """Return the flags of ``rank`` that ask for these settings."""
    names = {"approximate": "approx"}
    values = [(entry.name, getattr(settings, entry.name)) for entry in fields(GoldenConfig)]
    flags = [(names.get(name, name), str(value)) for name, value in values if value not in (None, GoldenConfig.action)]
    return [word for name, value in flags for word in (f"--{name}", value)]


def ranked_revision(dataset: Dataset, score: str) -> str:
    """Return the revision that rankings of a dataset go by; by some scores, prompts matter."""
    return dataset.revision if score == "preservation" else dataset.condition


@dataclass(frozen=True, kw_only=True, eq=False)
class Rankings:
    """Golden rankings of n images of N patches.

    Attributes:
        image_ids: as the dataset gives them.
        importance: (n, N), higher = keep, distance to the image's least.
        labels: (n,), ``UNKNOWN`` where there is none.
        least: (n,) importance of the image's least important patch: the golden score is minus
            (importance + least). NaN where unknown.
        ranking: (n, N) patch positions, most important first. Of the exact importance in a store;
            the small file leaves it out, and it is made from the float16 values.
    """

    image_ids: tuple[str, ...]
    importance: NDArray[np.float16]
    provenance: Provenance
    labels: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    least: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    ranking: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))

    def __post_init__(self) -> None:
        """Fill in what the file left out."""
        count = len(self.image_ids)
        if not self.labels.size:
            object.__setattr__(self, "labels", np.full(count, UNKNOWN, np.int32))
        if not self.least.size:
            object.__setattr__(self, "least", np.full(count, np.nan, np.float32))
        if not self.ranking.size:
            ranking = np.argsort(-self.importance.astype(np.float32), axis=1, kind="stable")
            object.__setattr__(self, "ranking", ranking.astype(np.int16))

    def __len__(self) -> int:
        """Count the images."""
        return len(self.image_ids)

    def write(self, path: Path) -> None:
        """Write ids and importance as one small file, the form in which rankings ship."""
        importance = lists(self.importance, self.importance.shape[1])
        table = pa.table({"image_id": list(self.image_ids), "importance": importance})
        facts = {PROVENANCE_KEY: self.provenance.json().encode()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, encode_table(table.replace_schema_metadata(facts)))

    @classmethod
    def read(cls, path: Path) -> "Rankings":
        """Read a store, finished or not, or a small file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: no rankings, a broken shard, or shards that were made differently.
        """
        if path.is_dir():
            return _joined(path)
        if not path.is_file():
            raise FileNotFoundError(f"rankings {str(path)!r} do not exist")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is not a Parquet file: {error}") from error
        facts = table.schema.metadata or {}
        if PROVENANCE_KEY not in facts:
            raise ValueError(f"{str(path)!r} holds no golden rankings: no provenance inside")
        if SHARD_KEY in facts:
            return Shard.decode(path.read_bytes())
        return Rankings(
            image_ids=tuple(table["image_id"].to_pylist()),
            importance=flat(table, "importance"),
            provenance=Provenance.parse(facts[PROVENANCE_KEY]),
        )

    def require(self, **expected: Any) -> None:
        """Refuse rankings of which a field of ``Provenance`` has another value.

        Raises:
            ValueError: names both values and the command that makes fitting rankings.
        """
        for name, value in expected.items():
            stored = getattr(self.provenance, name)
            if stored != value:
                raise ValueError(
                    f"these rankings were made with {name}={stored!r}, wanted {value!r}; make them "
                    f"with: {replace(self.provenance, **expected).command()}"
                )

    def of(self, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the importance of these images, (len(image_ids), N) float32, NaN where unknown."""
        row = {image_id: i for i, image_id in enumerate(self.image_ids)}
        rows = np.array([row.get(image_id, -1) for image_id in image_ids], dtype=np.int64)
        return np.where(rows[:, None] < 0, np.nan, self.importance[rows]).astype(np.float32)

    def take(self, image_ids: Sequence[str]) -> "Rankings":
        """Return the rankings of these images alone, in this order.

        Raises:
            ValueError: an image has none.
        """
        row = {image_id: i for i, image_id in enumerate(self.image_ids)}
        if lacking := [image_id for image_id in image_ids if image_id not in row]:
            raise ValueError(f"{len(lacking)} images have no ranking, such as {lacking[0]!r}")
        rows = [row[image_id] for image_id in image_ids]
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return Rankings(image_ids=tuple(image_ids), provenance=self.provenance, **columns)


def ranked(split: Split, rankings: Rankings) -> NDArray[np.int64]:
    """Return the positions in ``split`` of the images that have a ranking, (k,) ascending."""
    known = set(rankings.image_ids)
    return np.array([i for i, name in enumerate(split.image_ids) if name in known], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard(Rankings):
    """Golden rankings of consecutive images as one Parquet file with a checksum."""

    first: int  # position of the first image in the order of the store
    size: int  # images in a full shard of the store

    @classmethod
    def from_importance(
        cls,
        importance: NDArray[np.float32],
        labels: NDArray[Any],
        *,
        first: int,
        size: int,
        image_ids: Sequence[str],
        provenance: Provenance,
    ) -> Self:
        """Make a shard from exact importance, (n, N) float32.

        Raises:
            ValueError: importance is not a finite number, or in no range that float16 has.
        """
        if not np.isfinite(importance).all():
            raise ValueError(
                "the importance of a patch is no finite number: the tower overflowed; use --dtype bfloat16 or float32"
            )
        half = to_half(importance)
        if not np.isfinite(half).all():
            spread = np.ptp(importance)
            raise ValueError(f"importance spreads over {spread:g}, above float16's 65504")
        columns: dict[str, Any] = {
            "labels": np.asarray(labels, dtype=np.int32),
            "importance": half,
            "least": importance.min(axis=1),
            "ranking": np.argsort(-importance, axis=1, kind="stable").astype(np.int16),
        }
        ids = tuple(image_ids)
        return cls(first=first, size=size, image_ids=ids, provenance=provenance, **columns)

    def encode(self) -> bytes:
        """Return the file; the same shard gives the same bytes with the same pyarrow."""
        width = self.importance.shape[1]
        content = {
            "image_id": pa.array(self.image_ids, pa.string()),
            "label": pa.array(self.labels, pa.int32(), mask=self.labels == UNKNOWN),
            "importance": lists(self.importance, width),
            "least": pa.array(self.least, pa.float32()),
            "ranking": lists(self.ranking, width),
        }
        provenance = self.provenance.json().encode()
        place = {"first": self.first, "count": len(self), "size": self.size}
        shard = json.dumps({**place, "sha256": self._digest(provenance)}).encode()
        metadata = {PROVENANCE_KEY: provenance, SHARD_KEY: shard}
        return encode_table(pa.table(content).replace_schema_metadata(metadata))

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file back and check all of it.

        Raises:
            BrokenShardError: something in it isn't as ``encode`` wrote it.
            ValueError: a file of somebody else's, or of a version that knows other provenance.
        """
        if content[:4] != MAGIC or content[-4:] != MAGIC:
            raise BrokenShardError("cut off, or no Parquet file")
        with reading():
            file = pq.ParquetFile(pa.BufferReader(content))
            metadata = file.metadata.metadata or {}
        if not metadata.keys() & {PROVENANCE_KEY, SHARD_KEY} and _CHECKSUM not in content:
            raise ValueError("a Parquet file, but not of golden rankings")
        with reading():
            table = file.read(use_threads=False)
            place, provenance = json.loads(metadata[SHARD_KEY]), metadata[PROVENANCE_KEY]
            columns: dict[str, Any] = {
                "image_ids": tuple(table["image_id"].to_pylist()),
                "labels": table["label"].fill_null(UNKNOWN).to_numpy(),
                "importance": flat(table, "importance"),
                "least": table["least"].to_numpy(),
                "ranking": flat(table, "ranking"),
            }
            facts: Any = None  # parsed only once the checksum has proved it whole
            shard = cls(first=place["first"], size=place["size"], provenance=facts, **columns)
            if shard._digest(provenance) != place["sha256"]:
                raise BrokenShardError("content and checksum differ")
        shard = replace(shard, provenance=Provenance.parse(provenance))
        shard._check()
        return shard

    def _digest(self, provenance: bytes) -> str:
        digest = hashlib.sha256(provenance)
        digest.update(json.dumps([self.first, self.size, self.image_ids]).encode())
        for name in _COLUMNS:
            array = getattr(self, name)
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _check(self) -> None:
        if not 1 <= len(self) <= self.size or self.first % self.size:
            text = f"holds {len(self)} images from {self.first}, of {self.size} per shard"
            raise BrokenShardError(text)
        if not np.isfinite(self.importance).all() or not np.isfinite(self.least).all():
            raise BrokenShardError("importance is not finite")
        if (np.sort(self.ranking, axis=1) != np.arange(self.ranking.shape[1])).any():
            raise BrokenShardError("a ranking doesn't hold every patch once")


def to_half(importance: NDArray[np.float32]) -> NDArray[np.float16]:
    """Store importance as float16 of its distance to the image's least, which keeps the order.

    Cosines crowd just below 1, where float16 is coarse; their differences don't.
    """
    with np.errstate(over="ignore"):  # the caller refuses infinity
        lifted = importance - importance.min(axis=1, keepdims=True)
        return np.asarray(lifted, dtype=np.float16)


def encode_table(table: Any) -> bytes:
    """Return a table of rankings as a Parquet file, small: byte planes apart, then zstd."""
    split = [name for name in ("importance", "ranking") if name in table.column_names]
    apart = [f"{name}.list.element" for name in split]
    zstd: dict[str, Any] = {"compression": "zstd", "compression_level": 19}
    plain = {"use_dictionary": False, "write_statistics": False}
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_byte_stream_split=apart, **plain, **zstd)
    return bytes(sink.getvalue())


def flat(table: Any, column: str) -> NDArray[Any]:
    """Return a column of equally long lists as an array (n, N)."""
    values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(table), -1)


def lists(values: NDArray[Any], width: int) -> Any:
    """Return (n, width) numbers as a column of n lists, the reverse of ``flat``."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


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


def facts_of(path: Path, index: int) -> ShardFacts:
    """Read and check a shard, see ``read_shard``, and return what ``survey`` asks for."""
    shard = read_shard(path, index)
    return ShardFacts(len(shard), shard.size, shard.provenance)


def write_shard(folder: Path, index: int, shard: Shard, resume: str) -> None:
    """Write a shard, see ``write_with_room``."""
    write_with_room(shard_path(folder, index), shard.encode(), resume)


def _joined(folder: Path) -> Rankings:
    """Read all shards of a folder as one."""
    shards: list[Shard] = []
    for index, path in shard_paths(folder).items():
        try:
            shards.append(read_shard(path, index))
        except BrokenShardError as error:
            raise ValueError(
                f"{str(path)!r} is broken: {error}; the `rank` command that made the store finds it and makes it again"
            ) from error
        differences = shards[-1].provenance.differences(shards[0].provenance)
        if differences:
            raise ValueError(
                f"shards of {str(folder)!r} were made differently: {path.name} has "
                f"{'; '.join(differences)}; make them again in another folder with: "
                f"{shards[0].provenance.command()}"
            )
    if not shards:
        raise ValueError(f"{str(folder)!r} holds no golden rankings: no part-00000.parquet")
    return Rankings(
        image_ids=tuple(name for shard in shards for name in shard.image_ids),
        provenance=shards[0].provenance,
        **{name: np.concatenate([getattr(s, name) for s in shards]) for name in _COLUMNS},
    )


def store_name(model: str, dataset: str, split: str, score: str = "preservation") -> str:
    """Return what the rankings of a split are called, without folder or ending."""
    role = "golden" if score == "preservation" else f"golden_{score}"
    # Names of towers and folders may hold slashes, colons or spaces.
    return re.sub(r"[^\w.,-]+", "-", f"{role}-{model}-{dataset}-{split}")


def shipped_rankings(model: str, dataset: str, split: str, block: int) -> Path | None:
    """Return the file that ships with the rankings by preservation, None if there is none.

    ``model`` is a dense timm name with its weight tag; ``block`` the reduction point, 0-based.
    """
    path = DATA_DIR / f"{store_name(model, dataset, split)}.parquet"
    if path.is_file() and Rankings.read(path).provenance.block == block:
        return path
    return None


def own_store(model: str, dataset: str, split: str, config: GoldenConfig) -> Path:
    """Return where in the user's cache ``rank`` keeps rankings, one store per settings."""
    name = store_name(model, dataset, split, config.score)
    way = "merge" if config.action == "merge" else ""
    way += f"b{config.block}w{config.window}s{config.stride}"
    way += f"g{config.greedy}" if config.greedy is not None else ""
    way += "-" + config.approximate.replace(":", "") if config.approximate is not None else ""
    return cache_folder() / "rankings" / f"{name}-{way}"


def find_rankings(model: str, dataset: str, split: str, block: int = GoldenConfig.block) -> Rankings | None:
    """Find the golden rankings by removal and preservation: shipped ones or, of more images, the user's own.

    ``model`` is a dense timm name with its weight tag; ``block`` the reduction point, 0-based.

    Raises:
        ValueError: the user's own are broken.
    """
    name = store_name(model, dataset, split)
    paths = [DATA_DIR / f"{name}.parquet", *sorted((cache_folder() / "rankings").glob(f"{name}-*"))]
    # The first shard of a store may still be in work.
    paths = [path for path in paths if (shard_paths(path) if path.is_dir() else path.is_file())]
    every = map(Rankings.read, paths)
    fitting = [one for one in every if (one.provenance.block, one.provenance.action) == (block, "remove")]
    return max(fitting, key=len, default=None)  # of equally many the first, so the shipped ones
