"""Correctness as a bitmap: nothing is lost, and the order is the images'."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from harness.correctness import pack_correct, unpack_correct

CORRECT = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=np.bool_)


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=1, max_dims=1, max_side=99)))
def test_bits_round_trip(correct: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_correct(pack_correct(correct), len(correct)), correct)


def test_bits_are_in_image_order() -> None:
    assert pack_correct(CORRECT) == "b180"
    np.testing.assert_array_equal(unpack_correct("b180", 10), CORRECT)


def test_bitmaps_are_of_bools() -> None:
    with pytest.raises(ValueError, match=r"\(n,\) bool, got \(2,\) int64"):
        pack_correct(np.array([1, 0]))
