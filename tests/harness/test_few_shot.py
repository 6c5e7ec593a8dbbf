"""K images per class: balanced, nested, seeded; which images a seed draws never changes."""

import numpy as np
import pytest

from harness.datasets import get_dataset, shots
from harness.few import few


@pytest.mark.parametrize(
    ("k", "seed", "wanted"),
    [
        (1, 0, [92, 196, 269, 403, 504, 608, 657, 850, 855, 921]),
        (
            2,
            3,
            # fmt: off
            [20, 186, 225, 304, 320, 467, 472, 545, 548, 611, 616, 629, 643, 734, 769, 838, 842,
             871, 947, 1073],
            # fmt: on
        ),
    ],
)
def test_a_seed_draws_what_it_always_drew(k: int, seed: int, wanted: list[int]):
    assert shots(get_dataset("fashion"), k, seed).tolist() == wanted


@pytest.mark.parametrize(
    ("k", "seed", "wanted"),
    [
        (1, 0, [6, 21, 34, 37, 48, 82, 129, 130, 163, 185]),
        (
            2,
            3,
            # fmt: off
            [6, 7, 24, 30, 35, 47, 50, 58, 63, 65, 71, 93, 99, 108, 116, 121, 122, 124, 159, 192],
            # fmt: on
        ),
    ],
)
def test_of_ranked_images_too(k: int, seed: int, wanted: list[int]):
    dataset = get_dataset("fashion")
    val = dataset.split("val")[:200]
    assert few(dataset, val.image_ids, val.labels, k, seed).tolist() == wanted
    turned = few(dataset, val.image_ids[::-1], val.labels[::-1], k, seed)
    assert np.sort(199 - turned).tolist() == wanted
