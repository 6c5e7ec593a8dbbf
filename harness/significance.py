"""Tests of whether two models differ, many at once, and what so many images can show."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics import checked_confidence, discordant, finite_sample

_NEVER = 1e-60  # a chance that changes no p-value anybody could print
_DEEP = 1000  # 2**-1000 is still a number


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the two-sided exact McNemar p-value that a and b are equally often right.

    Counts are exact integers, so many images neither overflow nor round.

    Raises:
        ValueError: The two differ in length, are empty or are not boolean.
    """
    only_a, only_b, _ = discordant(correct_a, correct_b)
    trials = only_a + only_b
    term = tail = 1
    for successes in range(1, min(only_a, only_b) + 1):
        term = term * (trials - successes + 1) // successes
        tail += term
    return min(1.0, 2 * tail / (1 << trials)) if trials else 1.0


def sign_flip_exact(differences: ArrayLike) -> float:
    """Return the two-sided exact p-value that differences are as likely up as down.

    The paired permutation test of their sum: if neither of two models is better, each image's
    difference could as well have the other sign, and all 2**n ways are equally likely. Their sums
    are counted, not drawn. With differences of -1, 0 and 1 it is McNemar's test; with sums over
    seeds it judges the mean over these seeds, and says nothing of others. Source: Fisher, 1935.

    Args:
        differences: (n,) whole numbers, such as how many more seeds of a than of b were right on
            an image.

    Raises:
        ValueError: None, or they are not whole numbers.
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


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values adjusted for being judged together, in the order given.

    Of m the smallest is multiplied by m, the next by m - 1 and so on, none ends below one before.
    The chance that any true null hypothesis ends up to 5 % is at most 5 %. Source: Holm, 1979.

    Raises:
        ValueError: No p-values, or one is NaN or outside [0, 1].
    """
    sample = finite_sample(p_values)
    if sample.min() < 0 or sample.max() > 1:
        raise ValueError(f"p-values must lie in [0, 1], got {sample.min()} to {sample.max()}")
    order = np.argsort(sample)
    adjusted = np.empty_like(sample)
    adjusted[order] = np.maximum.accumulate(sample[order] * np.arange(sample.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def minimum_detectable_difference(
    n: int, discordance: float, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the least difference in top-1 that `mcnemar_exact` finds with the asked power.

    Discordant images, which just one of two models gets right, are binomial among all n, and those
    of the better model among them: exact, no normal approximation. Source: Duffy, 1984.

    Returns:
        A fraction, at most the discordance (a share of n); None if even all of it is too little.

    Raises:
        ValueError: An argument out of its range.
    """
    if n < 1 or not 0 <= discordance <= 1:
        raise ValueError(f"need n >= 1 and discordance in [0, 1], got {n} and {discordance}")
    alpha = 1 - checked_confidence(confidence)
    if not alpha < power < 1:
        raise ValueError(f"power must lie in ({alpha:.3g}, 1), got {power}")
    from scipy.optimize import brentq
    from scipy.stats import binom

    first, last = (max(0, int(binom.ppf(p, n, discordance))) for p in (1e-9, 1 - 1e-9))
    trials = np.arange(first, last + 1)
    critical = binom.ppf(alpha / 2, trials, 0.5)  # most that the worse model may win
    critical -= binom.cdf(critical, trials, 0.5) > alpha / 2

    def lacking(share: float) -> float:
        tails = sum(binom.cdf(critical, trials, (1 + way * share) / 2) for way in (-1, 1))
        return power - float(binom.pmf(trials, n, discordance) @ tails)

    return None if lacking(1.0) > 0 else float(brentq(lacking, 0.0, 1.0)) * discordance
