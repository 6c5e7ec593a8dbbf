"""What all learning shares: images to learn from, images held out, and a checkpoint while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import require_images, seeded_order, subset
from harness.learning.settings import Sources
from zoo.core.digests import digest
from zoo.core.files import cache_file

HELD_OUT = 5  # one image in so many is held out, where no split says which


@dataclass(frozen=True)
class LearningSet:
    """A dataset's images to learn from and those held out; its test split isn't touched."""

    dataset: Dataset
    train: Split
    held_out: Split

    @property
    def provenance(self) -> dict[str, Any]:
        """What a learned file says of the dataset."""
        counts = {"images": len(self.train), "held_out": len(self.held_out)}
        return {"name": self.dataset.name, "revision": self.dataset.revision, **counts}

    @property
    def image_ids(self) -> list[Sequence[str]]:
        """The images of both parts."""
        return [self.train.image_ids, self.held_out.image_ids]


def learning_sets(sources: Sources) -> list[LearningSet]:
    """Return the images of each dataset; ValueError for an unknown one, or one without images."""
    sets = []
    for dataset in map(get_dataset, sources.datasets):
        require_images(dataset, "train", "images to learn from asked for")
        train, val = dataset.split("train"), dataset.split("val")
        if not len(val):
            train, val = (train.subset(positions) for positions in hold_out(len(train)))
        train, val = subset(train, sources.limit), subset(val, sources.held_out)
        if not len(train) or not len(val):
            raise ValueError(
                f"dataset {dataset.name!r} has {len(train)} images to learn from and {len(val)} to stop by; it needs "
                "both, from its train and val splits"
            )
        sets.append(LearningSet(dataset, train, val))
    return sets


def held_out_groups(sets: Sequence[LearningSet]) -> NDArray[np.int64]:
    """Return the number of each held-out image's group, (n,), of one set after the other."""
    names = [
        f"{images.dataset.name}/{images.dataset.group_of(image_id)}"
        for images in sets
        for image_id in images.held_out.image_ids
    ]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def hold_out(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw positions to learn from and every fifth to hold out; ``count`` alone decides which."""
    order = seeded_order(count, 0)
    return order[count // HELD_OUT :], order[: count // HELD_OUT]


@contextmanager
def checkpoint_of(*conditions: object) -> Iterator[Path]:
    """Yield where a fit keeps its state, by all conditions of its result; the file goes when the body ends well."""
    path = cache_file("fits", f"{digest([*conditions, torch.__version__])}.pt")
    yield path
    path.unlink(missing_ok=True)
