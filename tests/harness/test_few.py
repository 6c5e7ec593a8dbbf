"""K ranked images per class: balanced, nested, seeded, free of the order."""

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.datasets.base import Dataset
from harness.few import few

LABELS = np.array([0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 0, 3], dtype=np.int64)
IDS = tuple(f"toy/train-{i:02d}" for i in range(len(LABELS)))


def draw(toy: Dataset, k: int, seed: int = 0) -> NDArray[np.int64]:
    return few(toy, IDS, LABELS, k, seed)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_of_each_class_once(k: int, toy: Dataset):
    rows = draw(toy, k)
    assert np.bincount(LABELS[rows]).tolist() == [k] * 4
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_more_shots_hold_the_fewer(seed: int, toy: Dataset):
    one, two, three = (set(draw(toy, k, seed).tolist()) for k in (1, 2, 3))
    assert one < two < three


def test_the_seed_decides(toy: Dataset):
    assert np.array_equal(draw(toy, 1, 3), draw(toy, 1, 3))
    assert len({tuple(draw(toy, 1, seed)) for seed in range(20)}) > 5


def test_the_order_of_the_images_does_not_matter(toy: Dataset):
    turned = few(toy, IDS[::-1], LABELS[::-1], 2, 0)
    assert {IDS[::-1][i] for i in turned} == {IDS[i] for i in draw(toy, 2)}


def test_images_without_label_are_left_out(toy: Dataset):
    labels = np.where(np.arange(14) == 0, -1, LABELS)
    rows = few(toy, IDS, labels, 3, 0)
    assert 0 not in rows
    assert np.bincount(labels[rows]).tolist() == [3] * 4


def test_more_than_a_class_has(toy: Dataset):
    match = "--shots 4: class 'dog' of 'toy' has 3 ranked images; k can be at most that"
    with pytest.raises(ValueError, match=match):
        draw(toy, 4)


def test_a_class_that_nothing_is_ranked_of(toy: Dataset):
    known = LABELS != 3
    with pytest.raises(ValueError, match="class 'zebra' of 'toy' has 0 ranked images"):
        few(toy, [i for i, k in zip(IDS, known, strict=True) if k], LABELS[known], 1, 0)
