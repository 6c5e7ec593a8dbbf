"""What a predictor learns from: tokens and golden importance of some images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """Tokens of n images, (n, prefix + N, D): a tensor, or what reads some of it when asked."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, prefix + N, D)."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the tokens of the images ``rows`` (k,) int64, in this order."""


@dataclass(frozen=True, kw_only=True)
class RankedTokens:
    """What a predictor learns from.

    Attributes:
        tokens: (n, prefix + N, D) tokens that enter the reduction point, any float type.
        importance: (n, N) golden importance, higher = keep.
        prefix: number of prefix tokens.
        grid: (rows, columns).
    """

    tokens: Rows
    importance: Tensor
    prefix: int
    grid: tuple[int, int]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.importance)

    def take(self, rows: Tensor) -> "RankedTokens":
        """Return the images ``rows`` (k,) int64 alone; their tokens aren't copied."""
        return replace(self, tokens=_Chosen(self.tokens, rows), importance=self.importance[rows])


class _Chosen:
    """Some of other rows."""

    def __init__(self, tokens: Rows, rows: Tensor) -> None:
        self._tokens, self._rows = tokens, rows
        self.shape = (len(rows), *tokens.shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self._tokens[self._rows[rows]]
