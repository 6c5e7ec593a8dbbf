"""Check that rank vectors invert rankings, and that places are those of a stable sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.agreement import places, rank_vector, ranking_importance


@given(st.integers(2, 30), st.integers(0, 10))
def test_rank_vector_inverts_a_ranking(n: int, seed: int) -> None:
    ranking = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (3, 1)), axis=1)
    ranks = rank_vector(ranking)
    for row in range(3):
        assert [ranks[row].tolist().index(place) for place in range(n)] == ranking[row].tolist()
    np.testing.assert_array_equal(np.argsort(-ranking_importance(ranking)), ranking)


@given(arrays.arrays(np.uint8, (3, 12), elements=st.integers(0, 5)))
def test_places_are_those_in_a_stable_sort(scores: np.ndarray) -> None:
    """Unsigned scores, whose negatives would be no order."""
    for row, found in zip(scores.tolist(), places(scores), strict=True):
        best_first = sorted(range(12), key=lambda patch: -row[patch])
        assert found[best_first].tolist() == list(range(12))


def test_what_is_no_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 .* 0\.\.2 \(1 of 2 rows are not\): \[0, 2, 2\]"):
        rank_vector([[0, 1, 2], [0, 2, 2]])
    with pytest.raises(ValueError, match=r"integers, got \(1, 2\) float64"):
        rank_vector([[0.0, 1.0]])
