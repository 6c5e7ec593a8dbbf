"""Check agreement against scipy, against sets, and against the trap of comparing id lists."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from harness import agreement

shapes = st.tuples(st.integers(1, 5), st.integers(2, 24))
tied = st.integers(-3, 3)
smooth = st.floats(allow_nan=False, width=32)


@st.composite
def score_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    a = draw(arrays.arrays(np.float32, shape, elements=smooth))
    b = draw(arrays.arrays(np.int64, shape, elements=tied))
    return a, b


def slow_tau(a: np.ndarray, b: np.ndarray) -> float:
    if len(set(a.tolist())) == 1 or len(set(b.tolist())) == 1:
        return float("nan")
    return float(stats.kendalltau(a, b, variant="b").statistic)


@given(score_pairs())
def test_tau_equals_scipy_on_every_row(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    expected = [slow_tau(*rows) for rows in zip(a, b, strict=True)]
    np.testing.assert_allclose(agreement.kendall_tau(a, b), expected, atol=1e-12)


def test_tau_of_196_patches_and_many_images_equals_scipy() -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 60, size=(1100, 196))
    b = a + generator.normal(0, 30, size=a.shape)
    taus = agreement.kendall_tau(a, b)
    for row in (0, 511, 512, 1024, 1099):  # both sides of every chunk boundary
        assert taus[row] == pytest.approx(slow_tau(a[row], b[row]), abs=1e-12)


@given(score_pairs())
def test_tau_is_symmetric_odd_and_blind_to_monotone_maps(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = pair
    taus = agreement.kendall_tau(a, b)
    np.testing.assert_allclose(agreement.kendall_tau(b, a), taus, atol=1e-12)
    np.testing.assert_allclose(agreement.kendall_tau(a, -b), -taus, atol=1e-12)
    np.testing.assert_array_equal(agreement.kendall_tau(a, b**3 + 7), taus)


def test_tau_is_exactly_one_and_nan_where_constant() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(agreement.kendall_tau(scores, scores), [1, np.nan, 1])


def test_torch_scores_are_welcome() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2]])
    assert agreement.kendall_tau(scores, -scores).tolist() == [-1]


@given(score_pairs(), st.data())
def test_match_equals_sets_with_stable_ties(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    a, b = pair
    k = data.draw(st.integers(1, a.shape[1]))

    def best(row: np.ndarray) -> set[int]:
        return set(sorted(range(len(row)), key=lambda patch: -float(row[patch]))[:k])

    expected = [len(best(x) & best(y)) / k for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(agreement.match_at_k(a, b, k), expected)


def test_match_handles_unsigned_scores() -> None:
    scores = np.array([[0, 1, 2]], dtype=np.uint8)
    assert agreement.match_at_k(scores, [[0.0, 0.1, 0.2]], 1).tolist() == [1.0]


def test_unrelated_scores_match_by_chance() -> None:
    a, b = np.random.default_rng(0).random((2, 2000, 196))
    assert agreement.match_chance(100, 196) == pytest.approx(0.510, abs=5e-4)
    assert agreement.match_at_k(a, b, 100).mean() == pytest.approx(100 / 196, abs=0.005)
    assert agreement.kendall_tau(a, b).mean() == pytest.approx(0, abs=0.005)


@given(st.integers(2, 30), st.integers(0, 10))
def test_rank_vector_inverts_a_ranking(n: int, seed: int) -> None:
    ranking = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (3, 1)), axis=1)
    ranks = agreement.rank_vector(ranking)
    for row in range(3):
        assert [ranks[row].tolist().index(place) for place in range(n)] == ranking[row].tolist()
    np.testing.assert_array_equal(np.argsort(-agreement.ranking_importance(ranking)), ranking)


def test_comparing_rank_vectors_is_not_comparing_id_lists() -> None:
    generator = np.random.default_rng(0)
    importance = generator.random((200, 196))
    noisy = importance + generator.normal(0, 0.08, size=importance.shape)
    rankings = np.argsort(-importance), np.argsort(-noisy)
    by_rank = agreement.kendall_tau(*map(agreement.rank_vector, rankings)).mean()
    assert by_rank == pytest.approx(agreement.kendall_tau(importance, noisy).mean())
    assert by_rank > 0.7
    assert abs(agreement.kendall_tau(*rankings).mean()) < 0.2


def test_refusals_name_what_is_wrong() -> None:
    two = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 3\)"):
        agreement.kendall_tau(two, two[:, :3])
    with pytest.raises(ValueError, match=r"got \(4,\), \(4,\)"):
        agreement.match_at_k(two[0], two[0], 2)
    with pytest.raises(ValueError, match="scores_b has NaN in 1 of 2 images"):
        agreement.kendall_tau(two, [[0, 1, 2, float("nan")], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"1\.\.4 .* got 5"):
        agreement.match_at_k(two, two, 5)
    with pytest.raises(ValueError, match=r"1\.\.4 .* got 0"):
        agreement.match_chance(0, 4)
    with pytest.raises(ValueError, match=r"row 1 .* 0\.\.2 \(1 of 2 rows are not\): \[0, 2, 2\]"):
        agreement.rank_vector([[0, 1, 2], [0, 2, 2]])
    with pytest.raises(ValueError, match=r"integers, got \(1, 2\) float64"):
        agreement.rank_vector([[0.0, 1.0]])
