"""K images per class out of those that are ranked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import Dataset


def few(
    dataset: Dataset, image_ids: Sequence[str], labels: NDArray[np.int64], k: int, seed: int
) -> NDArray[np.int64]:
    """Draw k positions of every class: (classes * k,) int64, sorted.

    One seed gives nested sets: the images for k are among those for k + 1. Which images a seed
    draws depends on which are ranked, not on their order.

    Args:
        dataset: whose classes these are.
        image_ids: n ids of ranked images.
        labels: (n,) their classes.
        k: images per class, at least 1.
        seed: of the choice.

    Raises:
        ValueError: a class has fewer than k ranked images.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(dataset.classes))
    poorest = int(counts.argmin())
    if counts[poorest] < k:
        raise ValueError(
            f"--shots {k}: class {dataset.classes[poorest]!r} of {dataset.name!r} has "
            f"{counts[poorest]} ranked images; k can be at most that, or rank more of them"
        )
    named = np.argsort(np.array(image_ids))
    order = named[np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")]
    drawn = [order[labels[order] == label][:k] for label in range(len(dataset.classes))]
    return np.sort(np.concatenate(drawn)).astype(np.int64)
