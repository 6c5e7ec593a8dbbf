"""Intervals of what is measured, tests of whether models differ, and many tests judged together.

Scipy has the intervals of Wilson, Student and the median and the exact binomial test. What it lacks is here: bootstraps
as multinomial draws, sign-flip tests (its permutation_test takes all draws in memory), Holm's adjustment (one line,
where statsmodels would bring pandas along), and the least difference that so many images show.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLEAR = "*"
LEVEL = 0.05  # of tests; intervals cover the rest
MCNEMAR = "exact McNemar test"
SIGN_FLIP = "exact sign-flip test over images"
FLIPPED = "sign-flip test over images"  # of real-valued differences, see `sign_flip`
RESAMPLES = 10_000  # of a bootstrap
_CHUNK = 1 << 22  # resampled values held at once by bootstrap_mean
_NEVER = 1e-60  # a chance that changes no p-value anybody could print
_DEEP = 1000  # 2**-1000 is still a number
FLIPS = 20_000  # random sign-flips: the least p-value is 1/20,001, so 1,000 tests can be clear together
_ALL = 14  # differences whose sign-flips are all tried
_NEAR = 1 - 1e-9  # sums this near the observed one, relatively, are equal but for rounding

K = TypeVar("K", bound=Hashable)


class Interval(NamedTuple):
    """Carry an estimate and the two ends of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """Return the ends of the Wilson score interval of a share of k successes in n trials.

    Raises:
        ValueError: n is not positive, or k lies outside 0..n.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k={k} and n={n}")
    from scipy.stats import binomtest

    low, high = binomtest(k, n).proportion_ci(1 - LEVEL, method="wilson")
    return float(low), float(high)


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike, seed: int) -> Interval:
    """Return top-1 of a minus top-1 of b with a percentile bootstrap over images.

    Resampling images with replacement is a multinomial draw of how many of them fall into the outcomes (only a right,
    only b right, both or neither), so no image is ever indexed.

    Both are (n,) bool, whether each image was right, of the same images in the same order.

    Raises:
        ValueError: as `discordant`.
    """
    only_a, only_b, n = discordant(correct_a, correct_b)
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = _percentiles((counts[:, 0] - counts[:, 1]) / n)
    return Interval((only_a - only_b) / n, low, high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean over independent runs (seeds) with Student's t interval.

    Raises:
        ValueError: fewer than two values (one run says nothing about the spread) or NaN.
    """
    sample = finite_sample(values)
    if sample.size < 2:
        raise ValueError(f"a t interval needs at least 2 values, got {sample.size}")
    from scipy.stats import sem, t

    mean = float(sample.mean())
    half = float(t.ppf(1 - LEVEL / 2, sample.size - 1) * sem(sample))
    return Interval(mean, mean - half, mean + half)


def bootstrap_mean(values: ArrayLike, seed: int, groups: ArrayLike | None = None) -> Interval:
    """Return the mean over images (of Kendall taus, say) with a percentile bootstrap.

    Images of one of the ``groups``, (n,) numbers from 0, such as crops of one photograph, say less than as many others,
    so whole groups are resampled. Source: Davison and Hinkley, 1997, 3.8.

    Raises:
        ValueError: no values, or NaN among them; drop those first and say how many they were.
    """
    sample = finite_sample(values)
    sums, sizes = (sample, None) if groups is None else (_sums(sample, groups), np.bincount(np.asarray(groups)))
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // sums.size)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, rows):
        part = means[start : start + rows]
        drawn = generator.integers(sums.size, size=(part.size, sums.size))
        part[:] = sums[drawn].mean(1) if sizes is None else sums[drawn].sum(1) / sizes[drawn].sum(1)
    return Interval(float(sample.mean()), *_percentiles(means))


def bootstrap_quantile(values: ArrayLike, q: float, seed: int, groups: ArrayLike | None = None) -> Interval:
    """Return a quantile over images, an observed value, with a percentile bootstrap.

    It is the least value that a share ``q`` of the images doesn't exceed. Groups are those of `bootstrap_mean`.

    Raises:
        ValueError: no values, NaN among them, or q outside (0, 1).
    """
    sample = finite_sample(values)
    if not 0 < q < 1:
        raise ValueError(f"a quantile needs q in (0, 1), got {q}")
    numbers = np.arange(sample.size) if groups is None else np.asarray(groups)
    order, count = np.argsort(sample, kind="stable"), int(numbers.max()) + 1
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // sample.size)

    def quantiles(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the quantile where each group, (draws, groups), is there so many times."""
        weights = times[:, numbers[order]].cumsum(axis=1)
        return np.asarray(sample[order][(weights < q * weights[:, -1:]).sum(axis=1)])

    parts = [
        quantiles(generator.multinomial(count, np.full(count, 1 / count), size=min(rows, RESAMPLES - start)))
        for start in range(0, RESAMPLES, rows)
    ]
    estimate = quantiles(np.ones((1, count), dtype=np.int64))[0]
    return Interval(float(estimate), *_percentiles(np.concatenate(parts)))


def _sums(values: NDArray[np.float64], groups: ArrayLike) -> NDArray[np.float64]:
    """Return the sum of the values of each group."""
    numbers = np.asarray(groups)
    if numbers.shape != values.shape:
        raise ValueError(f"need a group of each image, got {numbers.size} and {values.size}")
    return np.bincount(numbers, weights=values).astype(np.float64)


def paired_mean(a: ArrayLike, b: ArrayLike, seed: int, groups: ArrayLike | None = None) -> Interval:
    """Return the mean of a minus b over the same images, with the interval of `bootstrap_mean`.

    Raises:
        ValueError: not as many values of both, none, or NaN among them.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"need the same images for both, got {first.size} and {second.size}")
    return bootstrap_mean(first - second, seed, groups)


def bootstrap_counts(values: ArrayLike, seed: int) -> Interval:
    """Return what `bootstrap_mean` does, quickly where few values are distinct.

    Such are the numbers of seeds that were right on an image, and their differences. Resampling is a multinomial draw
    of how often each distinct value comes.

    Raises:
        ValueError: no values, or NaN among them.
    """
    sample = finite_sample(values)
    distinct, counts = np.unique(sample, return_counts=True)
    shares = counts / sample.size
    drawn = np.random.default_rng(seed).multinomial(sample.size, shares, size=RESAMPLES)
    return Interval(float(sample.mean()), *_percentiles(drawn @ distinct / sample.size))


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median with the exact, distribution-free interval between order statistics.

    From 6 values on it covers the true median with at least 95 %. With fewer it is the whole range, which covers it
    with 1 - 2**(1 - n) only.

    Raises:
        ValueError: no values, or NaN among them.
    """
    sample = finite_sample(values)
    from scipy.stats import quantile_test

    ends = quantile_test(sample, p=0.5).confidence_interval(1 - LEVEL)
    low, high = (sample.min(), sample.max()) if np.isnan(ends).any() else ends
    return Interval(float(np.median(sample)), float(low), float(high))


def discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Return how many images only a got right, only b got right, and all images.

    Raises:
        ValueError: the two differ in length, are empty or are not boolean.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    for name, flags in (("correct_a", a), ("correct_b", b)):
        if flags.dtype != np.bool_ or flags.ndim != 1:
            raise ValueError(f"{name} must be (n,) bool, got {flags.shape} {flags.dtype}")
    if a.size != b.size or not a.size:
        raise ValueError(f"need the same images for both, got {a.size} and {b.size}")
    return int((a & ~b).sum()), int((b & ~a).sum()), a.size


def _percentiles(resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def finite_sample(values: ArrayLike) -> NDArray[np.float64]:
    """Return a list of numbers as an array.

    Raises:
        ValueError: there are none, or NaN is among them.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"need a non-empty list of values, got shape {sample.shape}")
    if missing := int(np.isnan(sample).sum()):
        raise ValueError(f"{missing} of {sample.size} values are NaN: drop them and report it")
    return sample


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the two-sided exact McNemar p-value that a and b are equally often right.

    Raises:
        ValueError: as `discordant`.
    """
    only_a, only_b, _ = discordant(correct_a, correct_b)
    return _even_odds(only_a, only_a + only_b) if only_a + only_b else 1.0


@functools.lru_cache(maxsize=1 << 14)  # many rows on the same images differ by the same counts
def _even_odds(k: int, n: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(k, n).pvalue)


def sign_flip_exact(differences: ArrayLike) -> float:
    """Return the two-sided exact p-value that differences are as likely up as down.

    The paired permutation test of their sum: if neither of two models is better, each image's difference could as well
    have the other sign, and all 2**n ways are equally likely. Their sums are counted, not drawn. With differences of
    -1, 0 and 1 it is McNemar's test; with sums over seeds it judges the mean over these seeds, and says nothing of
    others. Source: Fisher, 1935.

    Differences are (n,) whole numbers, such as how many more seeds of a than of b were right on an image.

    Raises:
        ValueError: there are none, or they are not whole numbers.
    """
    sample = np.asarray(differences)
    if sample.ndim != 1 or not sample.size or not np.issubdtype(sample.dtype, np.integer):
        raise ValueError(f"differences must be (n,) integers, got {sample.shape} {sample.dtype}")
    total = abs(int(sample.sum()))
    sizes, counts = np.unique(np.abs(sample[sample != 0]), return_counts=True)
    if not total:
        return 1.0
    from scipy.stats import binom

    # Chances of the sum of one size after the other, over the sums from -reach to reach by steps
    # of 2; what is less likely than _NEVER is left out at both ends.
    chances, least = np.ones(1), 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        ups = np.arange(count + 1)
        odds = binom.pmf(ups, count, 0.5)
        kept = np.flatnonzero(odds > _NEVER)
        spread = np.zeros(size * (len(kept) - 1) + 1)
        spread[::size] = odds[kept]
        chances = np.convolve(chances, spread)
        least += size * (2 * int(kept[0]) - count)
    sums = least + 2 * np.arange(chances.size)
    tail = float(chances[sums >= total].sum())
    # The signs as they are, and all of them the other way round, are two ways at least.
    return min(1.0, max(2 * tail, 2.0 ** (1 - min(int(counts.sum()), _DEEP))))


def sign_flip(differences: ArrayLike, seed: int, groups: ArrayLike | None = None) -> float:
    """Return the two-sided p-value that the mean of paired, real-valued differences is zero.

    Where the two of a pair could be exchanged, each difference is as likely as its negative. Of up to 14 differences
    that aren't zero all sign-flips are tried; of more, 20,000 random ones, and the p-value is (hits + 1) / (draws + 1),
    which is valid whatever the number of draws. Images of one of the ``groups``, see `bootstrap_mean`, change their
    sign together. Sources: Fisher, 1935; Phipson and Smyth, 2010.

    Raises:
        ValueError: no differences, or NaN among them.
    """
    return float(sign_flips([differences], seed, groups)[0])


def sign_flips(differences: Sequence[ArrayLike], seed: int, groups: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return the p-value by `sign_flip` of each of several lists of differences, many times as fast.

    All use the same random signs, as calls with the same seed would.

    Raises:
        ValueError: as `sign_flip`.
    """
    samples = [finite_sample(own) if groups is None else _sums(finite_sample(own), groups) for own in differences]
    samples = [sample[sample != 0] for sample in samples]
    p_values = np.empty(len(samples))
    many = [at for at, sample in enumerate(samples) if sample.size > _ALL]
    drawn = dict(zip(many, _drawn([samples[at] for at in many], seed), strict=True)) if many else {}
    for at, sample in enumerate(samples):
        sums = drawn[at] if at in drawn else _signed_sums(sample[np.newaxis])[0]
        hits = np.abs(sums) >= _NEAR * abs(sample.sum())
        p_values[at] = (hits.sum() + 1) / (FLIPS + 1) if at in drawn else hits.mean()
    return p_values


def _drawn(samples: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Return the sums of lists with random signs, (lists, FLIPS); a list that is longer goes on where others end."""
    most = max(sample.size for sample in samples)
    values = np.zeros((len(samples), most + -most % 8))
    for at, sample in enumerate(samples):
        values[at, : sample.size] = sample
    generator, drawn = np.random.default_rng(seed), np.zeros((len(samples), FLIPS))
    for start in range(0, values.shape[1], 8):  # eight signs are the bits of a random byte
        signs = generator.integers(256, size=FLIPS, dtype=np.uint8)
        drawn += _signed_sums(values[:, start : start + 8])[:, signs]
    return drawn


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of each row (n, k) with every choice of signs, (n, 2**k)."""
    sums = np.zeros((len(values), 1))
    for column in values.T[..., np.newaxis]:
        sums = np.concatenate([sums - column, sums + column], axis=1)
    return sums


def holm(p_values: ArrayLike, of: int = 0) -> NDArray[np.float64]:
    """Return p-values adjusted for being judged together, in the order given.

    Of m the smallest is multiplied by m, the next by m - 1 and so on, none ends below one before. The chance that any
    true null hypothesis ends up to 5 % is at most 5 %. Source: Holm, 1979.

    Args:
        p_values: of the differences that were tested.
        of: how many there were to test, if more: the chance holds however those tested were chosen, as the others count
            as p-values of 1.

    Raises:
        ValueError: No p-values, or one is NaN or outside [0, 1].
    """
    sample = finite_sample(p_values)
    if sample.min() < 0 or sample.max() > 1:
        raise ValueError(f"p-values must lie in [0, 1], got {sample.min()} to {sample.max()}")
    order, m = np.argsort(sample), max(of, sample.size)
    adjusted = np.empty_like(sample)
    adjusted[order] = np.maximum.accumulate(sample[order] * np.arange(m, m - sample.size, -1))
    return np.minimum(adjusted, 1.0)


def minimum_detectable_difference(n: int, discordance: float, power: float = 0.8) -> float | None:
    """Return the least difference in top-1 that `mcnemar_exact` finds with the asked power.

    Discordant images, which just one of two models gets right, are binomial among all n, and those of the better model
    among them: exact, no normal approximation. Source: Duffy, 1984.

    Returns:
        A fraction, at most the discordance (a share of n); None if even all of it is too little.

    Raises:
        ValueError: An argument out of its range.
    """
    if n < 1 or not 0 <= discordance <= 1:
        raise ValueError(f"need n >= 1 and discordance in [0, 1], got {n} and {discordance}")
    if not LEVEL < power < 1:
        raise ValueError(f"power must lie in ({LEVEL}, 1), got {power}")
    from scipy.optimize import brentq
    from scipy.stats import binom

    first, last = (max(0, int(binom.ppf(p, n, discordance))) for p in (1e-9, 1 - 1e-9))
    trials = np.arange(first, last + 1)
    critical = binom.ppf(LEVEL / 2, trials, 0.5)  # most that the worse model may win
    critical -= binom.cdf(critical, trials, 0.5) > LEVEL / 2

    def lacking(share: float) -> float:
        tails = sum(binom.cdf(critical, trials, (1 + way * share) / 2) for way in (-1, 1))
        return power - float(binom.pmf(trials, n, discordance) @ tails)

    return None if lacking(1.0) > 0 else float(brentq(lacking, 0.0, 1.0)) * discordance


@dataclass(frozen=True, kw_only=True)
class Together(Generic[K]):
    """P-values of one family."""

    alone: Mapping[K, float]  # of each difference that was tested, as if it were the only one
    adjusted: Mapping[K, float]  # the same by Holm over all of them
    # Those that stay at most 5 %: where none really differs, one is among them in 5 %.
    clear: frozenset[K]

    def mark(self, key: K) -> str:
        """Return what stands behind a difference: the mark if it is clear, or nothing."""
        return CLEAR if key in self.clear else ""


def together(p_values: Mapping[K, float | None], of: int = 0) -> Together[K]:
    """Judge differences together; those without a p-value aren't in the family, save for ``of``: see `holm`."""
    alone = {key: p for key, p in p_values.items() if p is not None}
    adjusted = dict(zip(alone, holm(list(alone.values()), of).tolist() if alone else (), strict=True))
    clear = frozenset(key for key, p in adjusted.items() if p <= LEVEL)
    return Together(alone=alone, adjusted=adjusted, clear=clear)


def paired_p(hits_a: ArrayLike, hits_b: ArrayLike, seeds_a: int = 1, seeds_b: int = 1) -> float:
    """Return the exact p-value that two rows are equally often right on the same images.

    McNemar's test of one seed each, else the sign-flip test of the means over these seeds. Hits are (n,), how many of
    the seeds were right on each image; of one seed bool will do.

    Raises:
        ValueError: not the same images, or none.
    """
    a, b = np.asarray(hits_a), np.asarray(hits_b)
    if seeds_a == seeds_b == 1:
        return mcnemar_exact(a.astype(np.bool_), b.astype(np.bool_))
    if a.shape != b.shape:
        raise ValueError(f"need the same images for both, got {a.size} and {b.size}")
    whole = lcm(seeds_a, seeds_b)
    a, b = (hits.astype(np.int64) * (whole // n) for hits, n in ((a, seeds_a), (b, seeds_b)))
    return sign_flip_exact(a - b)


def mark_note(test: str, rows: str = "all rows", of: str = "zero") -> str:
    """Say what the mark means."""
    return f"{CLEAR} clear of {of}, {rows} judged together ({test}, Holm, 5 %)"


def detectable_note(images: int, discordances: Sequence[float]) -> str:
    """Say what so many images would show of the rows without a mark, after a semicolon.

    ``discordances`` are the shares of images that just one of two models is right on, of each row without a mark.
    """
    if not discordances:
        return ""
    most = max(discordances)
    least = minimum_detectable_difference(images, most)
    if least is None:
        what = "too few images that just one of two models gets right to show any difference"
    else:
        what = (
            f"{images} images show {100 * least:.1f} points with power 80 %, in one comparison, "
            f"where just one of two models is right on {100 * most:.1f} % of them (the most here)"
        )
    return f"; without {CLEAR}: {what}"
