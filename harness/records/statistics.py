"""Intervals, tests of whether models differ, families of tests, agreement of rankings.

All else is scipy's, whose permutation_test holds all draws in memory; for Holm's adjustment alone statsmodels would
bring pandas along.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLEAR = "*"
LEVEL = 0.05  # of tests; intervals cover the rest
TAIL = 0.95  # share of images that a quantile of a metric is of
_LESS_THAN_A_RANK = 1e-9
LEAST_FOR_TAIL = 72  # images from which on its interval has two ends
MCNEMAR = "exact McNemar test"
SIGN_FLIP = "exact sign-flip test over images"
FLIPPED = "sign-flip test over images"  # of real-valued differences, see `sign_flip`
SEED = 0  # of all draws: the same values always have the same interval and p-value
LEAST_ROUNDS = 6  # values of which a median has an interval
RESAMPLES = 10_000  # of a bootstrap
FLIPS = 20_000  # random sign-flips: the least p-value is 1/20,001, so 1,000 tests can be clear together
POWER = 0.8  # with which a detectable difference is found
_CHUNK = 1 << 22  # resampled values held at once
_NEVER = 1e-60  # a chance that changes no p-value anybody could print
_DEEP = 1000  # 2**-1000 is still a number
_ALL = 14  # differences whose sign-flips are all tried
_NEAR = 1 - 1e-9  # sums this near the observed one, relatively, are equal but for rounding

K = TypeVar("K", bound=Hashable)


class Interval(NamedTuple):
    """Carry an estimate and the two ends of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def exact(value: float) -> Interval:
    """Return a value as an interval of no width."""
    return Interval(value, value, value)


def finite_sample(values: ArrayLike) -> NDArray[np.float64]:
    """Return a list of numbers as an array; ValueError if it is empty or has NaN."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"need a non-empty list of values, got shape {sample.shape}")
    if missing := int(np.isnan(sample).sum()):
        raise ValueError(f"{missing} of {sample.size} values are NaN: drop them and report it")
    return sample


def wilson_interval(hits: ArrayLike) -> Interval:
    """Return the share of (n,) hits, bool or 0 and 1, with its Wilson score interval."""
    from scipy.stats import binomtest

    sample = finite_sample(hits)
    low, high = binomtest(int(sample.sum()), sample.size).proportion_ci(1 - LEVEL, method="wilson")
    return Interval(float(sample.mean()), float(low), float(high))


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean over at least two independent runs (seeds) with Student's t interval."""
    sample = finite_sample(values)
    if sample.size < 2:
        raise ValueError(f"a t interval needs at least 2 values, got {sample.size}")
    from scipy.stats import sem, t

    mean = float(sample.mean())
    half = float(t.ppf(1 - LEVEL / 2, sample.size - 1) * sem(sample))
    return Interval(mean, mean - half, mean + half)


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median with the exact, distribution-free interval between order statistics.

    From `LEAST_ROUNDS` values on it covers the true median with at least 95 %; of fewer it is the whole range, which
    covers the median with 1 - 2**(1 - n) only.
    """
    from scipy.stats import quantile_test

    sample = finite_sample(values)
    ends = quantile_test(sample, p=0.5).confidence_interval(1 - LEVEL)
    low, high = (sample.min(), sample.max()) if np.isnan(ends).any() else ends
    return Interval(float(np.median(sample)), float(low), float(high))


def discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Return how many images only a got right, only b got right, and all images, by two (n,) bool."""
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if {a.dtype, b.dtype} != {np.dtype(bool)} or a.shape != b.shape or not a.size:
        raise ValueError(f"need (n,) bool of the same images, got {a.shape} {a.dtype} and {b.shape} {b.dtype}")
    return int((a & ~b).sum()), int((b & ~a).sum()), a.size


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike) -> Interval:
    """Return top-1 of a minus that of b, both (n,) bool of the same images, with a percentile bootstrap over images."""
    only_a, only_b, n = discordant(correct_a, correct_b)
    return _bootstrap_shares(np.array([only_a, only_b, n - only_a - only_b]), np.array([1, -1, 0]))


def bootstrap_counts(values: ArrayLike) -> Interval:
    """Return `bootstrap_mean` without groups, quickly where few values are distinct, such as numbers of seeds."""
    distinct, counts = np.unique(finite_sample(values), return_counts=True)
    return _bootstrap_shares(counts, distinct)


def _bootstrap_shares(counts: NDArray[np.int64], worths: NDArray[Any]) -> Interval:
    """Draw the number of images of each outcome, a multinomial, so that no image is ever indexed."""
    n = int(counts.sum())
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=RESAMPLES)
    return Interval(float(counts @ worths / n), *_percentiles(drawn @ worths / n))


def bootstrap_mean(values: ArrayLike, groups: ArrayLike | None = None, seed: int = SEED) -> Interval:
    """Return the mean over images (of Kendall taus, say) with a percentile bootstrap; ValueError for NaN.

    Images of one of the ``groups``, (n,) numbers from 0, such as crops of one photograph, say less than independent
    images, so whole groups are resampled. Source: Davison and Hinkley, 1997, 3.8.
    """
    sample = finite_sample(values)
    sums, sizes = (sample, None) if groups is None else (_sums(sample, groups), np.bincount(np.asarray(groups)))
    return Interval(float(sample.mean()), *_percentiles(_resampled(sums, sizes, seed)))


def _resampled(sums: NDArray[np.float64], sizes: NDArray[Any] | None, seed: int) -> NDArray[np.float64]:
    """Return the sum of (n,) values over that of their ``sizes``, or over n, of each resample."""
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // sums.size)
    ratios = []
    for start in range(0, RESAMPLES, rows):
        drawn = generator.integers(sums.size, size=(min(rows, RESAMPLES - start), sums.size))
        ratios.append(sums[drawn].sum(1) / (sums.size if sizes is None else sizes[drawn].sum(1)))
    return np.concatenate(ratios)


def paired_mean(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> Interval:
    """Return the mean of a minus b over the same images, with the interval of `bootstrap_mean`."""
    return bootstrap_mean(np.subtract(a, b, dtype=np.float64), groups)


def paired_ratio(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> Interval:
    """Return the mean of ``a`` over the mean of ``b`` on the same images, with the resampling of `bootstrap_mean`."""
    top, bottom = finite_sample(a), finite_sample(b)
    if groups is not None:
        top, bottom = _sums(top, groups), _sums(bottom, groups)
    return Interval(float(top.sum() / bottom.sum()), *_percentiles(_resampled(top, bottom, SEED)))


def _sums(values: NDArray[np.float64], groups: ArrayLike) -> NDArray[np.float64]:
    return np.bincount(np.asarray(groups), weights=values).astype(np.float64)


def _percentiles(resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def over_images(values: ArrayLike, groups: ArrayLike | None = None, seed: int = SEED) -> Interval | None:
    """Return `bootstrap_mean` of (B,) values, one per image, without NaN; None if they have no spread."""
    every = np.asarray(values, dtype=np.float64)
    if not has_spread(every, groups):
        return None
    defined = ~np.isnan(every)
    left = None if groups is None else np.unique(np.asarray(groups)[defined], return_inverse=True)[1]
    mean, low, high = bootstrap_mean(every[defined], left, seed)
    return Interval(mean, min(low, mean), max(high, mean))  # of equal values the mean differs by the last digit


def tail_over_images(values: ArrayLike, groups: ArrayLike | None = None) -> Interval | None:
    """Return the 95 % quantile of (B,) values, one per image, with the exact interval between order statistics.

    Images of one group tell as much as one image. From 72 groups on the interval covers the true quantile with at least
    95 %; of fewer its upper end is the largest value. None if the values have no spread.
    """
    sample = finite_sample(values)
    if not has_spread(sample, groups):
        return None
    low, high = tail_levels(sample.size if groups is None else len(np.unique(np.asarray(groups))))
    ends = float(np.quantile(sample, low, method="lower")), float(np.quantile(sample, high, method="higher"))
    estimate = tail(sample)
    return Interval(estimate, min(ends[0], estimate), max(ends[1], estimate))


def tail_levels(count: int) -> tuple[float, float]:
    """Return the levels of those order statistics of so many values that have the true 95 % quantile between them.

    They have it with a probability of 95 %, and are moved inwards by less than a rank, lest rounding take the next one.
    """
    from scipy.stats import binom

    below = binom.ppf([LEVEL / 2, 1 - LEVEL / 2], count, TAIL)  # how many are below the true quantile
    low, high = np.minimum([below[0] - 1, below[1]], count - 1) / (count - 1)
    return float(low) + _LESS_THAN_A_RANK, float(high) - _LESS_THAN_A_RANK


def tail(values: ArrayLike) -> float:
    """Return the 95 % quantile of values."""
    return float(np.quantile(np.asarray(values), TAIL))


def has_spread(values: NDArray[np.float64], groups: ArrayLike | None) -> bool:
    """Tell whether two of (B,) values, of images of two groups, aren't NaN: one value has no spread."""
    known = np.arange(len(values)) if groups is None else np.asarray(groups)
    return len(np.unique(known[~np.isnan(values)])) > 1


def sign_flip_exact(differences: ArrayLike) -> float:
    """Return the two-sided exact p-value that (n,) whole differences are as likely up as down.

    The paired permutation test of their sum: if neither of two models is better, each image's difference could as well
    have the other sign, and all 2**n choices of signs are equally likely. Their sums are counted, not drawn. With
    differences of -1, 0 and 1 it is McNemar's exact test; with sums over seeds it judges the mean over these seeds, and
    says nothing of others. Source: Fisher, 1935.
    """
    sample = np.asarray(differences)
    if sample.ndim != 1 or not sample.size or not np.issubdtype(sample.dtype, np.integer):
        raise ValueError(f"differences must be (n,) integers, got {sample.shape} {sample.dtype}")
    total = abs(int(sample.sum()))
    if not total:
        return 1.0
    from scipy.stats import binom, binomtest

    sizes, counts = np.unique(np.abs(sample[sample != 0]), return_counts=True)
    if sizes.tolist() == [1]:
        return float(binomtest(int((sample > 0).sum()), int(counts[0])).pvalue)
    # Chances of the sum of one size after the other, from its least on in steps of 2, without those below _NEVER.
    chances, least = np.ones(1), 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        odds = binom.pmf(np.arange(count + 1), count, 0.5)
        kept = np.flatnonzero(odds > _NEVER)
        spread = np.zeros(size * (len(kept) - 1) + 1)
        spread[::size] = odds[kept]
        chances = np.convolve(chances, spread)
        least += size * (2 * int(kept[0]) - count)
    tail = float(chances[least + 2 * np.arange(chances.size) >= total].sum())
    # Two choices of signs at least reach the total: the observed one and its opposite.
    return min(1.0, max(2 * tail, 2.0 ** (1 - min(int(counts.sum()), _DEEP))))


def sign_flip(differences: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Return the two-sided p-value that the mean of paired differences is zero.

    If the two models of a pair could be exchanged, each difference is as likely as its negative. Of up to 14
    differences that aren't zero all sign-flips are tried; of more, 20,000 random ones, and the p-value is
    (hits + 1) / (draws + 1), which is valid for any number of draws. Images of one of the ``groups``, see
    `bootstrap_mean`, change their sign together. Sources: Fisher, 1935; Phipson and Smyth, 2010.
    """
    sample = finite_sample(differences)
    sample = sample if groups is None else _sums(sample, groups)
    sample = sample[sample != 0]
    least = _NEAR * abs(sample.sum())
    if sample.size <= _ALL:
        return float((np.abs(_signed_sums(sample)) >= least).mean())
    generator, sums = np.random.default_rng(SEED), np.zeros(FLIPS)
    for part in np.pad(sample, (0, -sample.size % 8)).reshape(-1, 8):  # eight signs are the bits of a random byte
        sums += _signed_sums(part)[generator.integers(256, size=FLIPS, dtype=np.uint8)]
    return float(((np.abs(sums) >= least).sum() + 1) / (FLIPS + 1))


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of (k,) values with every choice of signs, (2**k,)."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values adjusted for being judged together, in the order given.

    The smallest of m is multiplied by m, the next by m - 1 and so on, and each is at least the one before. The chance
    that any true null hypothesis ends up to 5 % is at most 5 %. Source: Holm, 1979.
    """
    sample = np.asarray(p_values, dtype=np.float64)
    order, m = np.argsort(sample), sample.size
    adjusted = np.empty_like(sample)
    adjusted[order] = np.maximum.accumulate(sample[order] * np.arange(m, 0, -1))
    return np.minimum(adjusted, 1.0)


@dataclass(frozen=True, kw_only=True)
class Together(Generic[K]):
    """P-values of one family."""

    alone: Mapping[K, float]  # of each difference that was tested, as if there were no other
    adjusted: Mapping[K, float]  # the same by Holm over the family
    clear: frozenset[K]  # keys of at most 5 % adjusted: if nothing really differs, the set is empty in 95 %

    def mark(self, key: K) -> str:
        """Return the mark of a clear difference, else an empty string."""
        return CLEAR if key in self.clear else ""


def together(p_values: Mapping[K, float | None]) -> Together[K]:
    """Judge differences together, see `holm`; differences without a p-value aren't in the family."""
    alone = {key: p for key, p in p_values.items() if p is not None}
    adjusted = dict(zip(alone, holm(list(alone.values())).tolist(), strict=True))
    return Together(alone=alone, adjusted=adjusted, clear=frozenset(k for k, p in adjusted.items() if p <= LEVEL))


def mark_note(test: str, rows: str = "all rows", of: str = "zero") -> str:
    """Say what the mark means."""
    return f"{CLEAR} clear of {of}, {rows} judged together ({test}, Holm, 5 %)"


def minimum_detectable_difference(n: int, discordance: float) -> float | None:
    """Return the least difference in top-1 that McNemar's exact test finds with a power of 80 %; None if it finds none.

    Discordant images, the share of n on which two models disagree, are binomial among all n, and those of the
    better model among them: exact, no normal approximation. Source: Duffy, 1984.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    first, last = (max(0, int(binom.ppf(p, n, discordance))) for p in (1e-9, 1 - 1e-9))
    trials = np.arange(first, last + 1)
    critical = binom.ppf(LEVEL / 2, trials, 0.5)  # most that the worse model may win
    critical -= binom.cdf(critical, trials, 0.5) > LEVEL / 2

    def lacking(share: float) -> float:
        tails = sum(binom.cdf(critical, trials, (1 + sign * share) / 2) for sign in (-1, 1))
        return POWER - float(binom.pmf(trials, n, discordance) @ tails)

    return None if lacking(1.0) > 0 else float(brentq(lacking, 0.0, 1.0)) * discordance


def detectable_note(images: int, discordances: Sequence[float]) -> str:
    """Say, after a semicolon, which difference ``images`` may miss in rows of these `discordant` shares."""
    if not discordances:
        return ""
    if (least := minimum_detectable_difference(images, max(discordances))) is None:
        return f"; without {CLEAR}: the models disagree on too few images to show any difference"
    return f"; without {CLEAR}: a difference below {100 * least:.1f} points may go unnoticed (80 % power)"


# Rankings are compared by scores per patch, (B, N), higher = keep, never by lists of patch ids: on the same data tau of
# rank vectors was 0.81 and of the lists of ids about 0. Ties go to the lower patch position.


def kendall_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return Kendall's tau-b of every image, (B,) in [-1, 1], of two (B, N) scores; NaN where one side is all ties."""
    from scipy.stats import kendalltau

    a, b = _require_pair(scores_a, scores_b)
    return np.asarray(kendalltau(a, b, variant="b", axis=1).statistic, dtype=np.float64)


def weighted_tau(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """Return the top-weighted Kendall tau of every image, (B,) in [-1, 1], of two (B, N) scores; NaN likewise.

    A pair of patches counts by the sum of both 1 / (1 + rank) (Vigna, 2015), ranked by a and by b.
    """
    from scipy.stats import weightedtau

    a, b = _require_pair(scores_a, scores_b)
    with np.errstate(invalid="ignore"):  # scipy adds infinities up
        return np.asarray(weightedtau(a, b, axis=1).statistic, dtype=np.float64)


def match_at_k(scores_a: ArrayLike, scores_b: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return the share, (B,), of the k best patches by a, (B, N), that are among the k best by b, k in 1..N.

    With k = the patch tokens that a model keeps, this is the overlap exactly at its pruning border. Unrelated scores
    have k / N.
    """
    a, b = _require_pair(scores_a, scores_b)
    if not 1 <= k <= a.shape[1]:
        raise ValueError(f"k must lie in 1..{a.shape[1]} (the number of patches), got {k}")
    return np.asarray(((_places(a) < k) & (_places(b) < k)).sum(axis=1) / k)


def _places(scores: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the place of each patch among its image's, 0 = most important: (B, N), rows permuting 0..N-1."""
    from scipy.stats import rankdata

    # By way of dense ranks, as minus an unsigned score would be no order.
    order = np.argsort(-rankdata(scores, method="dense", axis=1), axis=1, kind="stable")
    return np.argsort(order, axis=1)


def _require_pair(scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    a, b = np.asarray(scores_a), np.asarray(scores_b)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise ValueError(f"need two (B, N) arrays of one shape, N >= 2; got {a.shape}, {b.shape}")
    for name, scores in (("scores_a", a), ("scores_b", b)):
        if missing := int(np.isnan(scores).any(axis=1).sum()):
            raise ValueError(f"{name} has NaN in {missing} of {len(scores)} images")
    return a, b
