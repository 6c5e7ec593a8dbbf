"""Intervals, tests, families and agreement against closed forms, enumeration, resampling and statsmodels."""

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from harness.records import statistics

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400)


def split(outcomes: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(outcomes, dtype=bool)
    return table[:, 0], table[:, 1]


def test_paired_difference_equals_resampling_images_one_by_one():
    generator = np.random.default_rng(0)
    a, b = generator.random(300) < 0.7, generator.random(300) < 0.6
    picks = generator.integers(300, size=(20_000, 300))
    naive = np.quantile(a[picks].mean(1) - b[picks].mean(1), [0.025, 0.975])
    estimate, low, high = statistics.paired_difference(a, b)
    assert estimate == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx(tuple(naive), abs=2 / 300)


def test_bootstrap_mean_has_the_width_theory_expects(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 0.2, size=500)
    mean, low, high = statistics.bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(500)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    monkeypatch.setattr(statistics, "_CHUNK", 1500)  # chunks must not change what is drawn
    assert statistics.bootstrap_mean(values) == (mean, low, high)


@pytest.mark.parametrize("n", [6, 7, 10, 11, 25, 50])
def test_median_interval_is_the_narrowest_that_covers(n: int):
    median, low, high = statistics.median_interval(list(np.arange(n)[::-1]))
    below = int(low)
    assert (median, low + high) == ((n - 1) / 2, n - 1)
    assert 2 * stats.binom.cdf(below, n, 0.5) <= 0.05 < 2 * stats.binom.cdf(below + 1, n, 0.5)
    assert statistics.median_interval([3.0, 1.0, 2.0]) == (2, 1, 3)  # of few values: their range
    assert statistics.median_interval([4.0]) == (4, 4, 4)


@pytest.mark.parametrize("count", [72, 200, 1000])
def test_the_interval_of_a_tail_is_scipys_and_of_groups_that_of_fewer_images(count: int):
    values = np.random.default_rng(0).exponential(size=count)
    ends = stats.quantile_test(values, p=0.95).confidence_interval(0.95)
    assert statistics.tail_over_images(values)[1:] == pytest.approx(ends)
    alike, groups = np.repeat(values, 3), np.repeat(np.arange(count), 3)
    low, high = statistics.tail_over_images(alike, groups)[1:]
    assert low <= ends[0] < ends[1] <= high  # three copies of an image tell no more than one


@settings(max_examples=40)
@given(pairs, st.integers(1, 4))
def test_the_quick_bootstrap_is_the_slow_one(outcomes: list[tuple[bool, bool]], seeds: int):
    a, b = split(outcomes)
    values = (a * 1.0 - b) / seeds
    quick = statistics.bootstrap_counts(values)
    slow = statistics.bootstrap_mean(values, seed=1)
    error = values.std() / np.sqrt(len(values))
    assert quick.estimate == pytest.approx(slow.estimate)
    assert quick == pytest.approx(slow, abs=0.25 * error + 1e-9 + 1.01 / (seeds * len(values)))


@given(pairs)
def test_mcnemar_is_the_tails_of_a_fair_coin(outcomes: list[tuple[bool, bool]]):
    """Both tails are counted by whole numbers."""
    a, b = split(outcomes)
    trials, fewer = int((a != b).sum()), min(int((a & ~b).sum()), int((b & ~a).sum()))
    tail = sum(math.comb(trials, at) for at in range(fewer + 1))
    expected = min(1.0, 2 * tail / (1 << trials))
    assert statistics.sign_flip_exact(a.astype(int) - b) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25)  # statsmodels collects garbage in every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_equals_statsmodels(values: list[float]):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="needs test extra")
    expected = multitest.multipletests(values, method="holm")[1]
    assert statistics.holm(values) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def found(n: int, discordance: float, difference: float) -> float:
    """Return how often the exact test finds a difference, among 4000 simulated pairs of models."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    drawn = np.random.default_rng(n).multinomial(n, shares, size=4000)
    distinct, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    p = [stats.binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b in distinct]
    return float(times[np.array(p) <= 0.05].sum() / 4000)


@pytest.mark.parametrize(("n", "discordance"), [(60, 0.4), (300, 0.1), (2000, 0.05)])
def test_the_minimum_detectable_difference_has_its_power(n: int, discordance: float):
    least = statistics.minimum_detectable_difference(n, discordance)
    assert 0 < least < discordance
    assert found(n, discordance, least) == pytest.approx(statistics.POWER, abs=0.025)
    assert found(n, discordance, 0.6 * least) < statistics.POWER - 0.1


RIGHT, TWO, NAN = np.ones(3, bool), np.zeros((2, 4)), float("nan")


@pytest.mark.parametrize(("function", "arguments", "complaint"), [
    (statistics.paired_difference, (RIGHT, RIGHT[:2]), r"got \(3,\) bool and \(2,\) bool"),
    (statistics.paired_difference, (RIGHT, np.ones(3, int)), r"bool and \(3,\) int64"),
    (statistics.mean_interval, ([0.5],), "at least 2 values, got 1"),
    (statistics.bootstrap_mean, ([0.1, NAN],), "1 of 2 values are NaN"),
    (statistics.sign_flip, ([],), "non-empty"),
    (statistics.kendall_tau, (TWO, TWO[:, :3]), r"got \(2, 4\), \(2, 3\)"),
    (statistics.match_at_k, (TWO[0], TWO[0], 2), r"got \(4,\), \(4,\)"),
    (statistics.kendall_tau, (TWO, [[0, 1, 2, NAN], [0] * 4]), "scores_b has NaN in 1 of 2"),
    (statistics.match_at_k, (TWO, TWO, 5), r"1\.\.4 .* got 5"),
    *((statistics.sign_flip_exact, (wrong,), r"must be \(n,\) integers, got") for wrong in ([], [0.5], [True], [[1]])),
])  # fmt: skip
def test_refusals_name_the_value(function: Any, arguments: tuple[object, ...], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        function(*arguments)


def enumerated(differences: list[int]) -> float:
    """Return how many of all ways to give signs have a sum as far from 0."""
    total = abs(sum(differences))
    ways = list(product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(way, differences, strict=True))) for way in ways]
    return sum(found >= total for found in sums) / len(ways)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=10))
def test_sign_flips_are_counted_as_if_one_by_one(differences: list[int]):
    found = statistics.sign_flip_exact(differences)
    assert found == pytest.approx(enumerated(differences), rel=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=9))
def test_few_real_differences_are_flipped_as_by_scipy(differences: list[float]):
    ways = {"permutation_type": "samples", "n_resamples": np.inf}
    expected = stats.permutation_test((np.array(differences),), np.mean, **ways).pvalue
    assert statistics.sign_flip(differences) == pytest.approx(min(1.0, expected))


def test_whole_differences_are_flipped_at_random_as_exactly():
    drawn = np.random.default_rng(1).integers(-3, 5, size=(6, 60))
    for differences in drawn:
        p = statistics.sign_flip_exact(differences)
        error = math.sqrt(p * (1 - p) / statistics.FLIPS)
        assert statistics.sign_flip(differences) == pytest.approx(p, abs=5 * error + 1e-4)


def test_many_random_sign_flips_can_stay_clear_together():
    shifted = np.random.default_rng(2).normal(0.5, 1, size=500)
    p = [statistics.sign_flip(shifted)] * 30
    assert p[0] == 1 / (statistics.FLIPS + 1)
    assert statistics.holm(p).max() < 0.05
    under_none = [statistics.sign_flip(s) for s in np.random.default_rng(3).normal(size=(400, 30))]
    assert stats.kstest(under_none, "uniform").pvalue > 0.01


def test_sign_flips_never_say_impossible():
    assert statistics.sign_flip_exact([1] * 10) == 2**-9
    assert statistics.sign_flip_exact([3] * 400 + [-1]) == pytest.approx(2.0**-400)
    assert 0 < statistics.sign_flip_exact([2] * 5000) < 1e-300
    assert statistics.sign_flip_exact([0, 0]) == statistics.sign_flip_exact([1, -1]) == 1


def test_a_family_by_hand():
    family = statistics.together({"a": 0.01, "b": 0.04, "c": None, "d": 0.03})
    assert family.alone == {"a": 0.01, "b": 0.04, "d": 0.03}
    assert family.adjusted == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert family.clear == {"a"}
    assert [family.mark(key) for key in "abcd"] == [statistics.CLEAR, "", "", ""]
    assert statistics.together({"b": 0.04}).clear == {"b"}  # the only one that was asked


def test_the_table_of_what_so_many_images_can_show():
    page = (Path(__file__).parents[3] / "docs" / "statistics.md").read_text(encoding="utf-8")
    head, _, *lines = re.search(r"^\| images \|(?:.*\n)+?(?=\n)", page, re.M)[0].splitlines()
    shares = [float(share) / 100 for share in re.findall(r"(\d+) %", head)]
    assert len(lines) == 5
    for line in lines:
        images, *told = (cell.strip() for cell in line.strip("|").split("|"))
        found = [statistics.minimum_detectable_difference(int(images.replace(",", "")), s) for s in shares]
        assert told == ["–" if share is None else f"{100 * share:.1f}" for share in found]


def test_images_of_one_group_are_resampled_and_flipped_together():
    """By copies of each image, nothing is learned: intervals and p-values are those of the originals."""
    values = np.random.default_rng(5).normal(0.6, 1, 30)
    copies, groups = np.repeat(values, 4), np.repeat(np.arange(30), 4)
    assert statistics.bootstrap_mean(copies, groups) == pytest.approx(statistics.bootstrap_mean(values))
    assert statistics.sign_flip(copies, groups) == pytest.approx(statistics.sign_flip(4 * values))
    assert statistics.sign_flip(copies) < 0.1 * statistics.sign_flip(copies, groups)
    few = statistics.bootstrap_mean(copies)
    assert few.high - few.low == pytest.approx(np.subtract(*statistics.bootstrap_mean(values)[:0:-1]) / 2, rel=0.1)


def test_groups_of_several_sizes_weigh_by_their_images():
    """A slow reference: whole groups are drawn, and all images of those drawn are averaged."""
    generator = np.random.default_rng(0)
    values, groups = generator.normal(size=9), np.array([0, 0, 0, 1, 2, 2, 3, 3, 3])
    drawn = np.random.default_rng(1).integers(4, size=(10_000, 4))
    means = [np.concatenate([values[groups == group] for group in draw]).mean() for draw in drawn]
    assert statistics.bootstrap_mean(values, groups, seed=1) == pytest.approx(
        (values.mean(), *np.quantile(means, [0.025, 0.975]))
    )


# --- agreement of rankings

Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def score_pairs(draw: st.DrawFn) -> Pair:
    """Draw scores of equal (images, patches), of which the second have many ties."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 24)))
    smooth = arrays.arrays(np.float32, shape, elements=st.floats(allow_nan=False, width=32))
    return draw(smooth), draw(arrays.arrays(np.int64, shape, elements=st.integers(-3, 3)))


@given(score_pairs())
def test_tau_is_symmetric_odd_and_blind_to_monotone_maps(pair: Pair):
    a, b = pair
    taus = statistics.kendall_tau(a, b)
    alike = [1 in (len({*x}), len({*y})) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_array_equal(np.isnan(taus), alike)
    np.testing.assert_allclose(statistics.kendall_tau(b, a), taus, atol=1e-12)
    np.testing.assert_allclose(statistics.kendall_tau(a, -b), -taus, atol=1e-12)
    np.testing.assert_allclose(statistics.kendall_tau(a, b**3 + 7), taus, atol=1e-12)


def slow_weighted_tau(a: list[float], b: list[float]) -> float:
    """Sum over pairs as printed; rank r, by one side and then the other, weighs 1 / (1 + r)."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    results = []
    for first, second in ((a, b), (b, a)):
        order = sorted(range(len(a)), key=lambda i: (first[i], second[i]), reverse=True)
        weight = {patch: 1 / (1 + rank) for rank, patch in enumerate(order)}

        def product(x: list[float], y: list[float], weight: dict[int, float] = weight) -> float:
            signs = ((x[i] > x[j]) - (x[i] < x[j]) for i, j in pairs)
            others = ((y[i] > y[j]) - (y[i] < y[j]) for i, j in pairs)
            terms = zip(pairs, signs, others, strict=True)
            return sum((weight[i] + weight[j]) * s * o for (i, j), s, o in terms)

        scale = math.sqrt(product(a, a) * product(b, b))
        results.append(product(a, b) / scale if scale else math.nan)
    return sum(results) / 2


@given(score_pairs())
def test_weighted_tau_equals_its_formula_on_every_row(pair: Pair):
    found = statistics.weighted_tau(*pair)
    rows = [(a.tolist(), b.tolist()) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(found, [slow_weighted_tau(*row) for row in rows], atol=1e-9)


@given(score_pairs(), st.data())
def test_match_equals_sets_with_stable_ties(pair: Pair, data: st.DataObject):
    a, b = pair
    k = data.draw(st.integers(1, a.shape[1]))

    def best(row: np.ndarray) -> set[int]:
        return set(sorted(range(len(row)), key=lambda patch: -float(row[patch]))[:k])

    expected = [len(best(x) & best(y)) / k for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(statistics.match_at_k(a, b, k), expected)
    unsigned = np.array([[0, 1, 2]], dtype=np.uint8)
    assert statistics.match_at_k(unsigned, [[0.0, 0.1, 0.2]], 1).tolist() == [1.0]


def test_unrelated_scores_agree_by_chance():
    a, b = np.random.default_rng(0).random((2, 2000, 196))
    assert statistics.match_at_k(a, b, 100).mean() == pytest.approx(100 / 196, abs=0.005)
    assert statistics.kendall_tau(a, b).mean() == pytest.approx(0, abs=0.005)


def test_the_mean_over_images_leaves_out_what_has_no_value():
    found = statistics.over_images([0.1, math.nan, 0.3, 0.2, math.nan])
    assert found == statistics.bootstrap_mean([0.1, 0.3, 0.2])
    assert found.estimate == pytest.approx(0.2)
    for value in np.random.default_rng(0).random(50):
        alike = statistics.over_images([value] * 7)
        assert alike.low <= alike.estimate <= alike.high
    for few in ([0.5], [0.5, math.nan], [math.nan] * 2, []):
        assert statistics.over_images(few) is None
