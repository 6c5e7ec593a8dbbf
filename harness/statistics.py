"""Intervals for accuracies, paired differences, agreement and latency."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 1 << 22  # resampled values held at once by bootstrap_mean


class Interval(NamedTuple):
    """Carry an estimate and the two ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion of k successes in n trials.

    Returns:
        (low, high), fractions in [0, 1].

    Raises:
        ValueError: n is not positive, k lies outside 0..n, or confidence outside (0, 1).
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k={k} and n={n}")
    z = NormalDist().inv_cdf(0.5 + checked_confidence(confidence) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Return top-1 of a minus top-1 of b with a percentile bootstrap over images.

    Resampling images with replacement is a multinomial draw of how many of them fall into the
    outcomes (only a right, only b right, both or neither), so no image is ever indexed.

    Args:
        correct_a: (n,) bool, whether a was right on each image.
        correct_b: (n,) bool, the same images in the same order.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the interval.

    Raises:
        ValueError: The two differ in length, are empty or are not boolean.
    """
    only_a, only_b, n = discordant(correct_a, correct_b)
    _checked_resamples(resamples)
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = _percentiles((counts[:, 0] - counts[:, 1]) / n, confidence)
    return Interval((only_a - only_b) / n, low, high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean over independent runs (seeds) with Student's t interval.

    Raises:
        ValueError: Fewer than two values (one run says nothing about the spread) or NaN.
    """
    sample = finite_sample(values)
    if sample.size < 2:
        raise ValueError(f"a t interval needs at least 2 values, got {sample.size}")
    from scipy.special import stdtrit

    mean = float(sample.mean())
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    half = float(stdtrit(sample.size - 1, 0.5 + checked_confidence(confidence) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def bootstrap_mean(
    values: ArrayLike, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Return the mean over images (of Kendall taus, say) with a percentile bootstrap.

    Raises:
        ValueError: No values, or NaN among them; drop those first and say how many they were.
    """
    sample = finite_sample(values)
    _checked_resamples(resamples)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // sample.size)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        part[:] = sample[generator.integers(sample.size, size=(part.size, sample.size))].mean(1)
    low, high = _percentiles(means, confidence)
    return Interval(float(sample.mean()), low, high)


def bootstrap_counts(
    values: ArrayLike, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Return what `bootstrap_mean` does, quickly where few values are distinct.

    Such are the numbers of seeds that were right on an image, and their differences. Resampling
    is a multinomial draw of how often each distinct value comes.

    Raises:
        ValueError: No values, or NaN among them.
    """
    sample = finite_sample(values)
    _checked_resamples(resamples)
    distinct, counts = np.unique(sample, return_counts=True)
    shares = counts / sample.size
    drawn = np.random.default_rng(seed).multinomial(sample.size, shares, size=resamples)
    low, high = _percentiles(drawn @ distinct / sample.size, confidence)
    return Interval(float(sample.mean()), low, high)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median with the exact, distribution-free interval between order statistics.

    The interval covers the true median with at least the asked confidence from 6 values on
    (at 95 %). With fewer it is the whole range, which covers it with 1 - 2**(1 - n) only.

    Raises:
        ValueError: No values, or NaN among them.
    """
    ordered = np.sort(finite_sample(values))
    n, tail, below = ordered.size, (1 - checked_confidence(confidence)) / 2, 0
    cumulative = 1
    while below < (n - 1) // 2 and cumulative / (1 << n) <= tail:
        below += 1
        cumulative += math.comb(n, below)
    below = max(0, below - 1)
    return Interval(float(np.median(ordered)), float(ordered[below]), float(ordered[n - 1 - below]))


def discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Return how many images only a got right, only b got right, and all images.

    Raises:
        ValueError: The two differ in length, are empty or are not boolean.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    for name, flags in (("correct_a", a), ("correct_b", b)):
        if flags.dtype != np.bool_ or flags.ndim != 1:
            raise ValueError(f"{name} must be (n,) bool, got {flags.shape} {flags.dtype}")
    if a.size != b.size or not a.size:
        raise ValueError(f"need the same images for both, got {a.size} and {b.size}")
    return int((a & ~b).sum()), int((b & ~a).sum()), a.size


def _percentiles(resampled: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - checked_confidence(confidence)) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def finite_sample(values: ArrayLike) -> NDArray[np.float64]:
    """Return a list of numbers as an array.

    Raises:
        ValueError: None, or NaN among them.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"need a non-empty list of values, got shape {sample.shape}")
    if missing := int(np.isnan(sample).sum()):
        raise ValueError(f"{missing} of {sample.size} values are NaN: drop them and report it")
    return sample


def checked_confidence(confidence: float) -> float:
    """Return the confidence; a ValueError if it isn't in (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return confidence


def _checked_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
