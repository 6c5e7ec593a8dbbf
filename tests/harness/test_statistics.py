"""Check intervals against scipy, statsmodels, resampling and their own definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness import statistics

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
floats = st.floats(-1e3, 1e3, allow_nan=False)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400)


def split(outcomes: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(outcomes, dtype=bool)
    return table[:, 0], table[:, 1]


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(case: tuple[int, int], confidence: float) -> None:
    k, n = case
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert statistics.wilson_interval(k, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)


@given(counts)
def test_wilson_mirrors_and_contains_the_share(case: tuple[int, int]) -> None:
    k, n = case
    low, high = statistics.wilson_interval(k, n)
    mirrored_low, mirrored_high = statistics.wilson_interval(n - k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high))


def test_paired_difference_equals_resampling_images_one_by_one() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(300) < 0.7, generator.random(300) < 0.6
    picks = generator.integers(300, size=(20_000, 300))
    naive = np.quantile(a[picks].mean(1) - b[picks].mean(1), [0.025, 0.975])
    estimate, low, high = statistics.paired_difference(a, b, seed=1, resamples=20_000)
    assert estimate == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx(tuple(naive), abs=1.5 / 300)


@given(pairs)
def test_paired_difference_is_about_b_against_a(outcomes: list[tuple[bool, bool]]) -> None:
    a, b = split(outcomes)
    estimate, low, high = statistics.paired_difference(a, b, seed=3, resamples=500)
    assert estimate == pytest.approx(a.mean() - b.mean())
    assert -1 <= low <= high <= 1
    assert statistics.paired_difference(a, b, 3, 500) == (estimate, low, high)
    assert statistics.paired_difference(a, a, seed=3, resamples=10) == (0, 0, 0)


@given(st.lists(floats, min_size=2, max_size=60), st.sampled_from([0.5, 0.95, 0.99]))
def test_mean_interval_equals_scipys_t(values: list[float], confidence: float) -> None:
    mean, error = np.mean(values), stats.sem(values)
    ends = stats.t.interval(confidence, len(values) - 1, mean, error) if error else (mean, mean)
    expected = pytest.approx((mean, *ends), rel=1e-9, abs=1e-9)
    assert statistics.mean_interval(values, confidence) == expected


def test_bootstrap_mean_has_the_width_theory_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(0.4, 0.2, size=500)
    mean, low, high = statistics.bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(500)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    monkeypatch.setattr(statistics, "_CHUNK", 1500)  # chunks must not change what is drawn
    assert statistics.bootstrap_mean(values, seed=0) == (mean, low, high)


@pytest.mark.parametrize("n", [6, 7, 10, 11, 25, 50])
def test_median_interval_is_the_narrowest_that_covers(n: int) -> None:
    median, low, high = statistics.median_interval(list(np.arange(n)[::-1]))
    below = int(low)
    assert (median, low + high) == ((n - 1) / 2, n - 1)
    assert 2 * stats.binom.cdf(below, n, 0.5) <= 0.05 < 2 * stats.binom.cdf(below + 1, n, 0.5)


def test_median_interval_of_few_values_is_their_range() -> None:
    assert statistics.median_interval([3.0, 1.0, 2.0]) == (2, 1, 3)
    assert statistics.median_interval([4.0]) == (4, 4, 4)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} and n={n}"):
        statistics.wilson_interval(k, n)


def test_refusals_name_the_value() -> None:
    right = np.ones(3, bool)
    with pytest.raises(ValueError, match="got 3 and 2"):
        statistics.paired_difference(right, right[:2], seed=0)
    with pytest.raises(ValueError, match=r"correct_b must be .* int64"):
        statistics.paired_difference(right, right.astype(np.int64), seed=0)
    with pytest.raises(ValueError, match="got 0 and 0"):
        statistics.paired_difference(right[:0], right[:0], seed=0)
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        statistics.mean_interval([0.5])
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        statistics.bootstrap_mean([0.1, float("nan")], seed=0)
    with pytest.raises(ValueError, match="non-empty"):
        statistics.median_interval([])
    with pytest.raises(ValueError, match=r"\(0, 1\), got 95"):
        statistics.wilson_interval(1, 2, 95)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        statistics.bootstrap_mean([0.1], seed=0, resamples=0)


@given(pairs, st.integers(1, 4))
def test_the_quick_bootstrap_is_the_slow_one(outcomes: list[tuple[bool, bool]], seeds: int) -> None:
    a, b = split(outcomes)
    values = (a * 1.0 - b) / seeds
    quick = statistics.bootstrap_counts(values, seed=0, resamples=4000)
    slow = statistics.bootstrap_mean(values, seed=1, resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert quick.estimate == pytest.approx(slow.estimate)
    assert quick == pytest.approx(slow, abs=0.25 * error + 1e-9 + 1.01 / (seeds * len(values)))


def test_the_quick_bootstrap_refuses_what_the_slow_one_does() -> None:
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        statistics.bootstrap_counts([0.5, float("nan")], seed=0)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        statistics.bootstrap_counts([0.5], seed=0, resamples=0)
