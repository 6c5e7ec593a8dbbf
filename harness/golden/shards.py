"""A shard of a store: the golden rankings of some images as one Parquet file that proves itself."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.golden.provenance import Provenance

PROVENANCE_KEY, SHARD_KEY = b"golden", b"shard"
MAGIC = b"PAR1"
_CHECKSUM = b'"sha256": "'
UNKNOWN = -1  # label of an image without one
# A name that starts with a dot is no part of the store for pandas, polars and datasets either.


class BrokenShardError(ValueError):
    """A shard that is cut off, changed or not one at all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Golden rankings of consecutive images.

    Attributes:
        first: position of the first image in the order of the store.
        size: images in a full shard of the store.
        image_ids: n ids, as the dataset gives them.
        labels: (n,) int32, ``UNKNOWN`` where there is none.
        importance: (n, N) float16, higher = keep, distance to the image's least.
        least: (n,) float32, importance of the image's least important patch.
        ranking: (n, N) int16, patch positions, most important first.
        provenance: where it comes from.
    """

    first: int
    size: int
    image_ids: tuple[str, ...]
    labels: NDArray[np.int32]
    importance: NDArray[np.float16]
    least: NDArray[np.float32]
    ranking: NDArray[np.int16]
    provenance: Provenance

    @classmethod
    def of(cls, importance: NDArray[np.float32], labels: NDArray[Any], **facts: Any) -> Self:
        """Make a shard from exact importance, (n, N) float32.

        Raises:
            ValueError: importance is not a finite number, or in no range that float16 has.
        """
        if not np.isfinite(importance).all():
            raise ValueError(
                "the importance of a patch is no finite number: the tower overflowed; "
                "use --dtype bfloat16 or float32"
            )
        least = importance.min(axis=1)
        half = to_half(importance)
        if not np.isfinite(half).all():
            raise ValueError(
                f"importance spreads over {np.ptp(importance):g}, above float16's 65504"
            )
        ranking = np.argsort(-importance, axis=1, kind="stable").astype(np.int16)
        known = np.asarray(labels, dtype=np.int32)
        return cls(labels=known, importance=half, least=least, ranking=ranking, **facts)

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
        facts = {name: value for name, value in vars(self).items() if name != "provenance"}
        place: dict[str, Any] = {
            "first": self.first,
            "count": len(self.image_ids),
            "size": self.size,
        }
        place["sha256"] = _digest(provenance, **facts)
        metadata = {PROVENANCE_KEY: provenance, SHARD_KEY: json.dumps(place).encode()}
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
            place = json.loads(metadata[SHARD_KEY])
            told, names = metadata[PROVENANCE_KEY], table["image_id"].to_pylist()
            facts: dict[str, Any] = {
                "first": place["first"],
                "size": place["size"],
                "image_ids": tuple(names),
                "labels": table["label"].fill_null(UNKNOWN).to_numpy(),
                "importance": flat(table, "importance"),
                "least": table["least"].to_numpy(),
                "ranking": flat(table, "ranking"),
            }
            if _digest(told, **facts) != place["sha256"]:
                raise BrokenShardError("content and checksum differ")
        shard = cls(provenance=Provenance.parse(told), **facts)
        shard._check()
        return shard

    def _check(self) -> None:
        if not 1 <= len(self.image_ids) <= self.size or self.first % self.size:
            raise BrokenShardError(
                f"holds {len(self.image_ids)} images from {self.first}, of {self.size} per shard"
            )
        if not np.isfinite(self.importance).all() or not np.isfinite(self.least).all():
            raise BrokenShardError("importance is not finite")
        if (np.sort(self.ranking, axis=1) != np.arange(self.ranking.shape[1])).any():
            raise BrokenShardError("a ranking doesn't hold every patch once")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Take whatever goes wrong in the body for a broken file."""
    try:
        yield
    except BrokenShardError:
        raise
    except Exception as error:  # a changed footer can raise anything, MemoryError included
        raise BrokenShardError(f"unreadable ({type(error).__name__})") from error


def _digest(
    provenance: bytes, first: int, size: int, image_ids: tuple[str, ...], **values: Any
) -> str:
    digest = hashlib.sha256(provenance)
    digest.update(json.dumps([first, size, image_ids]).encode())
    for name, array in sorted(values.items()):
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
        use_byte_stream_split=[f"{name}.list.element" for name in split],
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def flat(table: Any, column: str) -> NDArray[Any]:
    """Return a column of equally long lists as an array (n, N)."""
    values: NDArray[Any] = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(table), -1)


def lists(values: NDArray[Any], width: int) -> Any:
    """Return (n, width) numbers as a column of n lists, the reverse of `flat`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
