"""Forms in which embeddings are stored: floats, int8 with a scale each, or a bit per coordinate.

None needs to see other embeddings first, so that shards don't depend on one another.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from harness.base.store import BrokenShardError, from_lists, to_lists

FLOAT32, INT8, BINARY = "float32", "int8", "binary"
PRECISIONS = {FLOAT32: np.float32, "float16": np.float16, INT8: np.int8, BINARY: np.uint8}


class Codes(NamedTuple):
    """Stored embeddings.

    int8: an embedding is its row of ``codes`` times its ``scale``, which makes the largest coordinate 127. binary: bits
    tell which coordinates are above 0, eight to a byte, the first in the highest bit, as `numpy.packbits` has them; an
    embedding is 1 or -1 in each coordinate, by the root of the width.
    """

    precision: str
    width: int  # D
    codes: NDArray[Any]  # (n, D) or, of bits, (n, D / 8 rounded up)
    scale: NDArray[np.float32] | None = None  # (n,) of int8

    @classmethod
    def of(cls, embeddings: NDArray[np.float32], precision: str) -> Self:
        """Encode unit vectors (n, D)."""
        scale, width = None, embeddings.shape[1]
        if precision == BINARY:
            return cls(precision, width, np.packbits(embeddings > 0, axis=1))
        if precision == INT8:
            scale = np.abs(embeddings).max(axis=1) / np.float32(127)
            embeddings = np.rint(embeddings / np.where(scale > 0, scale, 1)[:, None])
        return cls(precision, width, embeddings.astype(PRECISIONS[precision]), scale)

    @classmethod
    def from_table(cls, table: Any, precision: str, width: int) -> Self:
        """Read what ``columns`` gave."""
        scale = table["scale"].to_numpy() if precision == INT8 else None
        return cls(precision, width, from_lists(table, "embedding"), scale)

    @property
    def bytes_each(self) -> int:
        """Bytes of an embedding."""
        return self.codes.shape[1] * self.codes.itemsize + (0 if self.scale is None else self.scale.itemsize)

    def columns(self) -> dict[str, Any]:
        """Return the columns of a table."""
        columns = {"embedding": to_lists(self.codes)}
        return columns if self.scale is None else columns | {"scale": self.scale}

    def check(self) -> None:
        """Refuse numbers of another type or width, or that aren't finite."""
        if not np.isfinite(self.codes if self.scale is None else self.scale).all():
            raise BrokenShardError("an embedding is not finite")
        wide = -(-self.width // 8) if self.precision == BINARY else self.width
        if self.codes.dtype != PRECISIONS[self.precision] or self.codes.shape[1] != wide:
            raise BrokenShardError("its columns aren't as they were written")

    def decode(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """Return the embeddings of some rows, or of all, (n, D)."""
        codes = self.codes[rows]
        if self.precision == BINARY:
            signs = 2 * np.unpackbits(codes, axis=1, count=self.width).astype(np.float32) - 1
            return signs / np.float32(self.width**0.5)
        floats = codes.astype(np.float32)
        return floats if self.scale is None else floats * self.scale[rows, None]

    def distances(self, vector: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the Hamming distances of bits to those of a vector (D,), (n,)."""
        return np.bitwise_count(self.codes ^ np.packbits(vector > 0)).sum(axis=1, dtype=np.int64)
