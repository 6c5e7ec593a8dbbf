"""Correctness as a bitmap: nothing is lost, and the order is the images'."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from harness.records import by_image, images_digest, pack_correct, unpack_correct

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


IDS = [f"plain/test-{n}" for n in range(10)]


def test_answers_are_had_by_id_of_the_very_images() -> None:
    found = by_image(CORRECT, images_digest(IDS), IDS)
    assert list(found) == IDS
    assert [found[name] for name in IDS] == CORRECT.tolist()
    assert type(found[IDS[0]]) is bool


@pytest.mark.parametrize("ids", [IDS[::-1], IDS[:9], [*IDS[:9], "other"], []])
def test_answers_of_other_images_are_refused(ids: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"these {len(ids)} images have the hash .* of 10, is of"):
        by_image(CORRECT, images_digest(IDS), ids)


def test_a_record_that_does_not_know_its_images_gives_no_answers_by_id() -> None:
    with pytest.raises(ValueError, match="of 10, doesn't say which images it is of: expected None"):
        by_image(CORRECT, None, IDS)
