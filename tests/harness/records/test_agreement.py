"""Agreement of rankings: identities, sets, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.records import statistics
from harness.records.statistics import bootstrap_mean

shapes = st.tuples(st.integers(1, 5), st.integers(2, 24))
tied = st.integers(-3, 3)
smooth = st.floats(allow_nan=False, width=32)
Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def score_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    a = draw(arrays.arrays(np.float32, shape, elements=smooth))
    b = draw(arrays.arrays(np.int64, shape, elements=tied))
    return a, b


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
    assert statistics.match_chance(100, 196) == pytest.approx(0.510, abs=5e-4)
    assert statistics.match_at_k(a, b, 100).mean() == pytest.approx(100 / 196, abs=0.005)
    assert statistics.kendall_tau(a, b).mean() == pytest.approx(0, abs=0.005)


def test_the_mean_over_images_leaves_out_what_has_no_value():
    found = statistics.over_images([0.1, math.nan, 0.3, 0.2, math.nan])
    assert found == bootstrap_mean([0.1, 0.3, 0.2], seed=0)
    assert found.estimate == pytest.approx(0.2)
    for value in np.random.default_rng(0).random(50):
        alike = statistics.over_images([value] * 7)
        assert alike.low <= alike.estimate <= alike.high
    for few in ([0.5], [0.5, math.nan], [math.nan] * 2, []):
        assert statistics.over_images(few) is None
