"""Families of p-values by hand, and what is said of them."""

import numpy as np
import pytest

from harness.statistics import (
    CLEAR,
    MCNEMAR,
    detectable_note,
    mark_note,
    mcnemar_exact,
    minimum_detectable_difference,
    paired_p,
    sign_flip_exact,
    together,
)

A = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
B = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], dtype=bool)


def test_a_family_by_hand():
    family = together({"a": 0.01, "b": 0.04, "c": None, "d": 0.03})
    assert family.alone == {"a": 0.01, "b": 0.04, "d": 0.03}
    assert family.adjusted == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert family.clear == {"a"}
    assert [family.mark(key) for key in "abcd"] == [CLEAR, "", "", ""]
    assert together({"b": 0.04}).clear == {"b"}  # the only one that was asked


def test_nothing_to_judge_is_an_empty_family():
    for empty in (together({}), together({"a": None})):
        assert (empty.alone, empty.adjusted, empty.clear) == ({}, {}, frozenset())


def test_rows_of_one_seed_go_by_mcnemar_and_others_by_sign_flips():
    assert paired_p(A, B) == paired_p(A.astype(int), B * 1.0) == mcnemar_exact(A, B)
    sums = A.astype(int) + B
    assert paired_p(sums, A, 2, 1) == sign_flip_exact(sums - 2 * A)
    assert paired_p(sums, 3 * A, 2, 3) == sign_flip_exact(3 * sums - 6 * A)
    assert paired_p(sums, sums, 2, 2) == 1


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="same images for both, got 10 and 9"):
        paired_p(A, B[1:], 2, 2)
    with pytest.raises(ValueError, match="same images for both, got 10 and 9"):
        paired_p(A, B[1:])
    with pytest.raises(ValueError, match=r"integers, got \(0,\)"):
        paired_p(A[:0], B[:0], 2, 2)


def test_the_notes_name_test_and_family():
    assert mark_note(MCNEMAR) == (
        "* clear of zero, all rows judged together (exact McNemar test, Holm, 5 %)"
    )
    assert "two rows judged together" in mark_note(MCNEMAR, "two rows")


def test_the_largest_discordance_without_a_mark_decides_what_images_show():
    least = minimum_detectable_difference(500, 0.1)
    assert least is not None
    assert detectable_note(500, [0.02, 0.1]).startswith(
        f"; without *: 500 images show {100 * least:.1f} points"
    )
    assert "too few images" in detectable_note(500, [0.001])
    assert detectable_note(500, []) == ""
