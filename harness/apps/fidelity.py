"""How faithful reductions are to their dense tower: pictures to search by, others held out to judge by, and bounds."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import SPLITS, Dataset, OwnDataset, Rendered, Split
from harness.datasets.few_shot import batches, seeded_order, turns
from harness.measure.rows import Variant, run
from harness.records.metrics import cosine_distance
from harness.records.statistics import over_images
from zoo.core.messages import check_fields
from zoo.deploy.optimized import OptimizedHost

LEAST_GROUPS = 10  # photographs held out; of fewer a bootstrap says nothing
KEPT = 2 << 30  # bytes of preprocessed pictures that are held in memory
_NORMAL = 1.96  # standard errors from a mean to the end of its interval


@dataclass(frozen=True, kw_only=True)
class SetupBounds:
    """What a setup must meet.

    Raises:
        ValueError: a bound out of range.
    """

    min_cosine: float  # mean cosine to the dense tower's features
    speed_up: float | None = None  # times as fast as the dense tower in float32; None where nothing is asked

    def __post_init__(self) -> None:
        check_fields(self, min_cosine="(0, 1)", speed_up="(1, inf)")

    @property
    def words(self) -> str:
        """The bounds in words."""
        faster = "" if self.speed_up is None else f", {self.speed_up} times as fast as dense in eager float32"
        return f"mean cosine at least {self.min_cosine}{faster}"

    def share(self, cosines: Sequence[float], count: int) -> float:
        """Return how much of what is allowed would be used up on ``count`` other pictures, at most 1 if it is met.

        What counts there is the lower end of the mean's interval, which is foretold from the spread here.
        """
        if not len(cosines):
            return math.inf
        low = float(np.mean(cosines) - _NORMAL * np.std(cosines, ddof=1) / math.sqrt(count))
        return (1.0 - low) / (1.0 - self.min_cosine)


def split_pictures(
    dataset: Dataset, sizes: tuple[int, int], seed: int, *, learned: Collection[str], dense: Variant, preprocess: Any
) -> "list[Pictures]":
    """Return pictures to search by and others held out, about so many of each, that share no group.

    All of a user's own pictures are shared out, whole groups at a time. Of other datasets, and of those with a name in
    ``learned``, from which something learned its weights, pictures to search by are from train and val and those held
    out from test.

    Raises:
        ValueError: too few pictures or groups.
    """
    halves = [join_splits([dataset.split("train"), dataset.split("val")]), dataset.split("test")]
    if (isinstance(dataset, OwnDataset) and dataset.name not in learned) or not len(halves[0]):
        whole = join_splits([dataset.split(name) for name in SPLITS])
        groups = _number_groups(dataset, whole)
        order = seeded_order(int(groups.max(initial=-1)) + 1, seed)
        first = np.isin(groups, order[: max(1, round(len(order) * sizes[0] / sum(sizes)))])
        halves = [whole.subset(np.flatnonzero(half)) for half in (first, ~first)]
    parts = []
    for half, size, least, what in zip(halves, sizes, (2, LEAST_GROUPS), ("to search by", "held out"), strict=True):
        groups = _number_groups(dataset, half)
        places = np.sort(turns(groups)[:size])  # groups give in turn, so that few pictures show many of them
        part = Pictures(half.subset(places), groups[places], dense, preprocess)
        if part.photographs < least:
            raise ValueError(
                f"dataset {dataset.asked_as!r} has {len(part)} pictures {what}, of {part.photographs} photographs: "
                f"expected {least} photographs at least; give more pictures"
            )
        parts.append(part)
    return parts


def _number_groups(dataset: Dataset, split: Split) -> NDArray[np.int64]:
    """Return the number of each picture's group, (n,)."""
    names = [dataset.group_of(image_id) for image_id in split.image_ids]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def join_splits(parts: Sequence[Split]) -> Split:
    """Return several splits as one."""
    starts = np.cumsum([0, *map(len, parts)])
    ids = [image_id for part in parts for image_id in part.image_ids]

    def render(index: int, variant: int) -> Rendered:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        example = parts[number].variant(variant)[index - int(starts[number])]
        return example.image, example.mask

    return Split(np.concatenate([part.labels for part in parts]), ids.__getitem__, render)


@dataclass
class Pictures:
    """Some pictures beside what the dense tower in float32 makes of them."""

    split: Split
    groups: NDArray[np.int64]  # (n,) number of each one's photograph
    dense: Variant
    preprocess: Any
    _kept: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def photographs(self) -> int:
        """How many photographs they show."""
        return len(np.unique(self.groups))

    def _batches(self) -> Iterator[Tensor]:
        """Yield preprocessed pictures, read again only where memory can't hold them."""
        if self._kept:
            yield from self._kept
            return
        every: list[Tensor] = []
        for _, images in batches(self.split, self.preprocess):
            if len(self) * images[0].numel() * images.element_size() <= KEPT:
                every.append(images)
            yield images
        self._kept = every

    def features(self, rows: Sequence[Variant]) -> dict[str, Tensor]:
        """Return unit features (n, D) of rows of one dense tower in one precision, by key.

        Blocks that rows share run once, but not those of optimised models, which write into what they are given.
        """
        like = next(rows[0].vit.parameters())
        parts: dict[str, list[Tensor]] = {row.key: [] for row in rows}
        with torch.inference_mode():
            for images in self._batches():
                placed = images.to(like.device, like.dtype)
                if isinstance(rows[0].vit, OptimizedHost):
                    outputs = {row.key: F.normalize(row.vit(placed).float(), dim=-1).cpu() for row in rows}
                else:
                    outputs = {key: outcome.features for key, outcome in run(rows, placed).items()}
                for key, features in outputs.items():
                    parts[key].append(features)
        return {key: torch.cat(part) for key, part in parts.items()}

    @cached_property
    def _truth(self) -> Tensor:
        return self.features([self.dense])[self.dense.key]

    def distances(self, rows: Sequence[Variant]) -> dict[str, NDArray[np.float64]]:
        """Return each row's 1 - cosine to dense, (n,), by key."""
        return {key: cosine_distance(each, self._truth) for key, each in self.features(rows).items()}

    def cosines(self, row: Variant) -> list[float]:
        """Return a row's cosine to dense of each picture, none if its features overflowed."""
        cosines = 1 - self.distances([row])[row.key]
        return cosines.tolist() if np.isfinite(cosines).all() else []

    def summarise(self, cosines: Sequence[float], seed: int) -> dict[str, Any]:
        """Return the mean of cosines with its 95 % interval over photographs."""
        _, low, high = over_images(cosines, seed, self.groups) or (None, None, None)
        return {"estimate": float(np.mean(cosines)), "low": low, "high": high}
