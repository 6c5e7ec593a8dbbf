"""Agreement of two rankings of the same patches: as a whole, at the top, and at the border; and means over images.

All compare *scores per patch* (higher = keep), two (B, N) arrays, never lists of patch ids: on the same data tau of
rank vectors was 0.81 and of the lists of ids about 0. Ties go to the lower patch position.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.records.statistics import bootstrap_mean

BAND = 0.1  # of all patches: how far on either side of the border `border_overlap` looks


class ImageMean(NamedTuple):
    """Carry a mean over images with its 95 % bootstrap interval; None of fewer than two values."""

    mean: float | None
    low: float | None
    high: float | None
    counted: int  # images behind the mean
    undefined: int  # images without a value (NaN: one side gives all patches the same score)


def over_images(values: ArrayLike, seed: int = 0, groups: ArrayLike | None = None) -> ImageMean:
    """Return the mean of (B,) values, one per image, those that are NaN left out; groups as for `bootstrap_mean`."""
    every = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(every)
    counts = int(defined.sum()), int((~defined).sum())
    if not has_spread(every, groups):
        return ImageMean(None, None, None, *counts)
    left = None if groups is None else np.unique(np.asarray(groups)[defined], return_inverse=True)[1]
    mean, low, high = bootstrap_mean(every[defined], seed, left)
    return ImageMean(mean, min(low, mean), max(high, mean), *counts)  # equal values leave it out by the last digit


def has_spread(values: NDArray[np.float64], groups: ArrayLike | None) -> bool:
    """Tell whether two of (B,) values, of images of two groups, aren't NaN: one says nothing about the spread."""
    known = np.arange(len(values)) if groups is None else np.asarray(groups)
    return len(np.unique(known[~np.isnan(values)])) > 1


def kendall_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return Kendall's tau-b of every image, (B,) in [-1, 1], of two (B, N) scores; NaN where one side is all ties."""
    a, b = _require_pair(scores_a, scores_b)
    return np.asarray(stats.kendalltau(a, b, variant="b", axis=1).statistic, dtype=np.float64)


def weighted_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return the top-weighted Kendall tau of every image, (B,) in [-1, 1], of two (B, N) scores; NaN likewise.

    A pair of patches counts by 1 / (1 + rank) of the one plus that of the other, so that the best patches matter most
    (Vigna, 2015). The ranks are those by a and those by b in turn, and the two results are averaged.
    """
    a, b = _require_pair(scores_a, scores_b)
    with np.errstate(invalid="ignore"):  # scipy adds infinities up
        return np.asarray(stats.weightedtau(a, b, axis=1).statistic, dtype=np.float64)


def match_at_k(scores_a: ArrayLike, scores_b: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return the share, (B,), of the k best patches by a, (B, N), that are among the k best by b, k in 1..N.

    With k = the patch tokens that a model keeps, this is the overlap exactly at its pruning border.
    """
    a, b = _require_pair(scores_a, scores_b)
    match_chance(k, a.shape[1])
    shared: NDArray[np.float64] = ((_places(a) < k) & (_places(b) < k)).sum(axis=1) / k
    return shared


def match_chance(k: int, n: int) -> float:
    """Return the match at k expected from unrelated scores of n patches."""
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n} (the number of patches), got {k}")
    return k / n


def border_overlap(truth: ArrayLike, scores: ArrayLike, k: int, band: float = BAND) -> NDArray[np.float64]:
    """Return the share, (B,), of the patches near the border that fall on the same side of it by both (B, N).

    Near are those whose place in the true order is within ``band`` of all patches, one at least, from the border
    between the k-th and the next, k in 1..N-1: the ones a model may get wrong at the least loss, and the first it does
    get wrong.
    """
    true, other = map(_places, _require_pair(truth, scores))
    first, last = _border(k, true.shape[1], band)
    near = (true >= first) & (true < last)
    same: NDArray[np.float64] = (near & ((true < k) == (other < k))).sum(axis=1) / (last - first)
    return same


def border_chance(k: int, n: int, band: float = BAND) -> float:
    """Return the border overlap expected from unrelated scores of n patches."""
    first, last = _border(k, n, band)
    return ((k - first) * k + (last - k) * (n - k)) / (n * (last - first))


def _border(k: int, n: int, band: float) -> tuple[int, int]:
    """Return the first place near the border and the one after the last."""
    if not 1 <= k < n:
        raise ValueError(f"a border has patches on both sides: k must lie in 1..{n - 1}, got {k}")
    reach = max(1, round(band * n))
    return max(0, k - reach), min(n, k + reach)


def _places(scores: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the place of each patch among its image's, 0 = most important: (B, N), rows permuting 0..N-1."""
    # By way of dense ranks, as minus an unsigned score would be no order.
    order = np.argsort(-stats.rankdata(scores, method="dense", axis=1), axis=1, kind="stable")
    return np.argsort(order, axis=1)


def _require_pair(scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    a, b = np.asarray(scores_a), np.asarray(scores_b)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise ValueError(f"need two (B, N) arrays of one shape, N >= 2; got {a.shape}, {b.shape}")
    for name, scores in (("scores_a", a), ("scores_b", b)):
        if missing := int(np.isnan(scores).any(axis=1).sum()):
            raise ValueError(f"{name} has NaN in {missing} of {len(scores)} images")
    return a, b
