"""Agreement of two rankings of the same patches: as a whole, at the top, and at the border.

All compare *scores per patch* (higher = keep), never lists of patch ids: on the same data tau between rank vectors was
0.81 and between the lists of ids about 0. Scores are two (B, N) arrays, N >= 2. Ties go to the lower patch position, on
both sides. The result is (B,), one value per image. A ValueError says that shapes differ or are others, or that a score
is NaN.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.records.statistics import Interval, bootstrap_mean

BAND = 0.1  # of all patches: how far on either side of the border `border_overlap` looks


@dataclass(frozen=True, kw_only=True)
class ImageMean:
    """Carry a mean over images with its 95 % bootstrap interval; None of fewer than two values."""

    mean: float | None
    low: float | None
    high: float | None
    counted: int  # images behind the mean
    undefined: int  # images without a value (NaN: one side gives all patches the same score)

    @property
    def interval(self) -> Interval | None:
        """The mean with the ends of its interval; None where there is none."""
        if self.mean is None or self.low is None or self.high is None:
            return None
        return Interval(self.mean, self.low, self.high)


def over_images(values: ArrayLike, seed: int = 0, groups: ArrayLike | None = None) -> ImageMean:
    """Return the mean of (B,) values, one per image, those that are NaN left out and counted.

    ``groups`` are as for `bootstrap_mean`.
    """
    every = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(every)
    known = every[defined]
    counts = {"counted": len(known), "undefined": len(every) - len(known)}
    if not has_spread(every, groups):
        return ImageMean(mean=None, low=None, high=None, **counts)
    left = None if groups is None else np.unique(np.asarray(groups)[defined], return_inverse=True)[1]
    mean, low, high = bootstrap_mean(known, seed, left)
    # Equal values would otherwise leave the mean outside by its last digit.
    return ImageMean(mean=mean, low=min(low, mean), high=max(high, mean), **counts)


def has_spread(values: NDArray[np.float64], groups: ArrayLike | None = None) -> bool:
    """Tell whether two of (B,) values, of images of two groups, aren't NaN: one says nothing about the spread."""
    defined = ~np.isnan(values)
    known = np.arange(len(values)) if groups is None else np.asarray(groups)
    return len(np.unique(known[defined])) > 1


def kendall_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return Kendall's tau-b of every image, by scipy.

    10,000 images of 196 patches take 1 to 3 seconds of one core, so nothing of our own is needed.

    Args:
        scores_a: (B, N) numbers per patch; only their order within an image counts.
        scores_b: (B, N) numbers in the same sense: two importances, or two rank vectors.

    Returns:
        (B,) in [-1, 1]; NaN where one side gives all patches the same value.
    """
    a, b = _require_pair(scores_a, scores_b)
    return np.asarray(stats.kendalltau(a, b, variant="b", axis=1).statistic, dtype=np.float64)


def weighted_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return the top-weighted Kendall tau of every image, by scipy (3 to 4 s for 10,000 of 196).

    A pair of patches counts by 1 / (1 + rank) of the one plus that of the other, so that the best patches matter most
    (Vigna, 2015). The ranks are those by a and those by b in turn, and the two results are averaged.

    Returns:
        (B,) in [-1, 1], 0 on average for unrelated scores; NaN as in `kendall_tau`.
    """
    a, b = _require_pair(scores_a, scores_b)
    with np.errstate(invalid="ignore"):  # scipy adds infinities up
        return np.asarray(stats.weightedtau(a, b, axis=1).statistic, dtype=np.float64)


def match_at_k(scores_a: ArrayLike, scores_b: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return the share of the k best patches of a that are among the k best of b, k in 1..N.

    With k = the patch tokens that a model keeps, this is the overlap exactly at its pruning border.

    Returns:
        (B,) in [0, 1]; unrelated scores give `match_chance(k, N)` on average.
    """
    a, b = _require_pair(scores_a, scores_b)
    match_chance(k, a.shape[1])
    shared: NDArray[np.float64] = ((places(a) < k) & (places(b) < k)).sum(axis=1) / k
    return shared


def match_chance(k: int, n: int) -> float:
    """Return the match at k expected from unrelated scores of n patches.

    Raises:
        ValueError: k lies outside 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n} (the number of patches), got {k}")
    return k / n


def border_overlap(truth: ArrayLike, scores: ArrayLike, k: int, band: float = BAND) -> NDArray[np.float64]:
    """Return the share of the patches near the border that fall on the same side of it.

    Near are those whose place in the true order is within ``band`` of all patches from the border between the k-th and
    the next: the ones a model may get wrong at the least loss, and the first it does get wrong.

    Args:
        truth: (B, N); its order says which patches are near.
        scores: (B, N).
        k: patches above the border, 1..N-1.
        band: share of the N patches looked at on either side, at least one patch, in (0, 1].

    Returns:
        (B,) in [0, 1]; unrelated scores give `border_chance(k, N, band)` on average.
    """
    true, other = map(places, _require_pair(truth, scores))
    first, last = _border(k, true.shape[1], band)
    near = (true >= first) & (true < last)
    same: NDArray[np.float64] = (near & ((true < k) == (other < k))).sum(axis=1) / (last - first)
    return same


def border_chance(k: int, n: int, band: float = BAND) -> float:
    """Return the border overlap expected from unrelated scores of n patches."""
    first, last = _border(k, n, band)
    return ((k - first) * k + (last - k) * (n - k)) / (n * (last - first))


def places(scores: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the place of each patch among its image's, 0 = most important: (B, N), rows permuting 0..N-1."""
    # By way of dense ranks, as minus an unsigned score would be no order.
    order = np.argsort(-stats.rankdata(scores, method="dense", axis=1), axis=1, kind="stable")
    return np.argsort(order, axis=1)


def _border(k: int, n: int, band: float) -> tuple[int, int]:
    """Return the first place near the border and the one after the last."""
    if not 1 <= k < n:
        raise ValueError(f"a border has patches on both sides: k must lie in 1..{n - 1}, got {k}")
    if not 0 < band <= 1:
        raise ValueError(f"band must lie in (0, 1], got {band}")
    reach = max(1, round(band * n))
    return max(0, k - reach), min(n, k + reach)


def _require_pair(scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    a, b = np.asarray(scores_a), np.asarray(scores_b)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise ValueError(f"need two (B, N) arrays of one shape, N >= 2; got {a.shape}, {b.shape}")
    for name, scores in (("scores_a", a), ("scores_b", b)):
        if missing := int(np.isnan(scores).any(axis=1).sum()):
            raise ValueError(f"{name} has NaN in {missing} of {len(scores)} images")
    return a, b
