"""Differences of one table judged together: which are clear, and what the others would show."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.significance import (
    holm,
    mcnemar_exact,
    minimum_detectable_difference,
    sign_flip_exact,
)

CLEAR = "*"
LEVEL = 0.05
MCNEMAR = "exact McNemar test"
SIGN_FLIP = "exact sign-flip test over images"

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Together(Generic[K]):
    """P-values of one family.

    Attributes:
        alone: of each difference that was tested, as if it were the only one.
        adjusted: the same by Holm over all of them.
    """

    alone: Mapping[K, float]
    adjusted: Mapping[K, float]

    @property
    def clear(self) -> frozenset[K]:
        """Those that stay at most 5 %: where none really differs, one is among them in 5 %."""
        return frozenset(key for key, p in self.adjusted.items() if p <= LEVEL)

    def mark(self, key: K) -> str:
        """Return what stands behind a difference: the mark if it is clear, or nothing."""
        return CLEAR if key in self.clear else ""


def together(p_values: Mapping[K, float | None]) -> Together[K]:
    """Judge differences together; those without a p-value aren't in the family."""
    alone = {key: p for key, p in p_values.items() if p is not None}
    adjusted = holm(list(alone.values())).tolist() if alone else []
    return Together(alone=alone, adjusted=dict(zip(alone, adjusted, strict=True)))


def paired_p(hits_a: ArrayLike, hits_b: ArrayLike, seeds_a: int = 1, seeds_b: int = 1) -> float:
    """Return the exact p-value that two rows are equally often right on the same images.

    McNemar's test of one seed each, else the sign-flip test of the means over these seeds.

    Args:
        hits_a: (n,) how many seeds of a were right on each image; of one seed bool will do.
        hits_b: likewise of b.
        seeds_a: number of them.
        seeds_b: likewise of b.

    Raises:
        ValueError: not the same images, or none.
    """
    a, b = np.asarray(hits_a), np.asarray(hits_b)
    if seeds_a == seeds_b == 1:
        return mcnemar_exact(a.astype(np.bool_), b.astype(np.bool_))
    if a.shape != b.shape:
        raise ValueError(f"need the same images for both, got {a.size} and {b.size}")
    whole = lcm(seeds_a, seeds_b)
    return sign_flip_exact(_whole(a, whole // seeds_a) - _whole(b, whole // seeds_b))


def _whole(hits: NDArray[np.generic], times: int) -> NDArray[np.int64]:
    return hits.astype(np.int64) * times


def mark_note(test: str, rows: str = "all rows", of: str = "zero") -> str:
    """Say what the mark means."""
    return f"{CLEAR} clear of {of}, {rows} judged together ({test}, Holm, 5 %)"


def detectable_note(images: int, discordances: Sequence[float]) -> str:
    """Say what so many images would show of the rows without a mark, after a semicolon.

    Args:
        images: judged.
        discordances: share of images that just one of two models is right on, of each row without
            a mark.
    """
    if not discordances:
        return ""
    most = max(discordances)
    found = minimum_detectable_difference(images, most)
    if found is None:
        what = "too few images that just one of two models gets right to show any difference"
    else:
        what = (
            f"{images} images show {100 * found:.1f} points with power 80 %, in one comparison, "
            f"where just one of two models is right on {100 * most:.1f} % of them (the most here)"
        )
    return f"; without {CLEAR}: {what}"
