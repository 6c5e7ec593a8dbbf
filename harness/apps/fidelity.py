"""How faithful a row is to its dense tower: pictures to search by, others held out to judge by, and bounds.

Every metric is a value per picture whose mean must not fall below a number, so that one way of looking at it, the share
of what a bound allows that is used up, orders rows by any of them.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import SPLITS, Dataset, OwnDataset, Rendered, Split, SplitName
from harness.datasets.few_shot import batches, seeded_order, turns
from harness.measure.rows import Variant, run
from harness.models.towers import nameable
from harness.records.agreement import over_images
from harness.records.metrics import LEAST_GALLERY, cosine_distance, neighbours, overlap, predicted
from harness.records.statistics import bootstrap_quantile
from zoo.deploy.optimized import OptimizedHost

COSINE, OVERLAP = "cosine", "neighbour_overlap"
AGREEMENT, CHANGE = "dense_agreement", "top1_change"  # of the answers by text, and of those that are right
Q05 = "cosine_q05"  # the quantile of cosines that stands beside their mean
BEST = {COSINE: 1.0, OVERLAP: 1.0, CHANGE: 0.0}  # that a mean can be
LEAST_GROUPS = 10  # photographs held out; of fewer a bootstrap says nothing
KEPT = 512 << 20  # bytes of preprocessed pictures that are held in memory
_NORMAL = 1.96  # standard errors from a mean to the end of its interval
_RANGES = {
    "min_cosine": (0.0, 1.0, "a mean cosine in (0, 1), such as 0.99"),
    "min_overlap": (0.0, 1.0, "a share in (0, 1), such as 0.9"),
    "max_loss": (0.0, 100.0, "points of top-1 in (0, 100), such as 0.5"),
    "speed_up": (1.0, math.inf, "a number above 1, such as 1.5"),
    "max_ms": (0.0, math.inf, "milliseconds above 0"),
}

Values = Mapping[str, Sequence[float]]  # by metric, one per picture


@dataclass(frozen=True, kw_only=True)
class SetupBounds:
    """What a setup must meet; None where nothing is asked.

    Raises:
        ValueError: no bound, or one out of range.
    """

    min_cosine: float | None = None  # mean cosine to the dense tower's features
    min_overlap: float | None = None  # mean share of the dense tower's ten nearest pictures that are found
    max_loss: float | None = None  # points of top-1 that may be lost; the pictures need classes
    speed_up: float | None = None  # times as fast as the dense tower in float32
    max_ms: float | None = None  # milliseconds of one call, on a whole batch

    def __post_init__(self) -> None:
        """Validate."""
        values = {name: getattr(self, name) for name in _RANGES}
        if all(value is None for value in values.values()):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in _RANGES)
            raise ValueError(f"no bound to meet: expected at least one of {flags}")
        for name, (low, high, words) in _RANGES.items():
            value = values[name]
            if value is None or low < value < high:
                continue
            hint = f"did you mean {value / 100:g}? " if high == 1 < value < 100 else ""
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: {hint}expected {words}")

    @property
    def floors(self) -> dict[str, float]:
        """The least that means may be, by metric that is bounded."""
        loss = None if self.max_loss is None else -self.max_loss / 100
        floors = {COSINE: self.min_cosine, OVERLAP: self.min_overlap, CHANGE: loss}
        return {metric: least for metric, least in floors.items() if least is not None}

    @property
    def words(self) -> str:
        """All bounds in words."""
        texts = {
            "mean cosine at least {}": self.min_cosine,
            "neighbour overlap at least {}": self.min_overlap,
            "at most {} points of top-1 lost": self.max_loss,
            "{} times as fast as dense": self.speed_up,
            "at most {} ms": self.max_ms,
        }
        return ", ".join(text.format(value) for text, value in texts.items() if value is not None)

    def share(self, values: Values, count: int) -> float:
        """Return how much of what is allowed would be used up on ``count`` other pictures, at most 1 if it is met.

        What counts there is the lower end of the mean's interval, which is foretold from the spread here. Without a
        bound on fidelity it is 1 - cosine.
        """
        if not values:
            return math.inf
        shares = []
        for metric, least in (self.floors or {COSINE: 0.0}).items():
            sample, best = _pad(metric, values[metric]), BEST[metric]
            low = float(sample.mean() - _NORMAL * sample.std(ddof=1) / math.sqrt(count))
            shares.append((best - low) / (best - least))
        return max(shares)

    def meets(self, figures: Mapping[str, Any]) -> bool:
        """Tell whether the lower ends of all intervals in `Pictures.figures` meet the bounds on fidelity."""
        return all(figures[metric]["low"] >= least for metric, least in self.floors.items())


class PicturePart(NamedTuple):
    """Some pictures, and the number of each one's group, (n,)."""

    split: Split
    groups: NDArray[np.int64]

    def few(self, count: int) -> "PicturePart":
        """Return so many of them; groups give in turn, so that few pictures show many of them."""
        places = np.sort(turns(self.groups)[:count])
        return PicturePart(self.split.subset(places), self.groups[places])

    @property
    def group_count(self) -> int:
        """How many photographs they show."""
        return len(np.unique(self.groups))


def part_pictures(
    dataset: Dataset, sizes: tuple[int, int], seed: int, *, learned: Collection[str], classifier: Tensor | None = None
) -> list[PicturePart]:
    """Return pictures to search by and others held out, about so many of each, that share no group.

    All of a user's own pictures are shared out, whole groups at a time. Of other datasets, and of those with a name in
    ``learned``, from which something learned its weights, pictures to search by are from train and val and those held
    out from test. ``classifier`` None is for pictures that may be of any class.

    Raises:
        ValueError: too few pictures or groups.
    """
    whole = not isinstance(dataset, OwnDataset) or dataset.name in learned
    search, held = _join(dataset, ("train", "val")), _join(dataset, ("test",))
    if whole and len(search):
        halves = [search, held]
    else:
        every = _join(dataset, SPLITS)
        numbers = _groups(dataset, every)
        order = seeded_order(int(numbers.max(initial=-1)) + 1, seed)
        first = order[: max(1, round(len(order) * sizes[0] / sum(sizes)))]
        chosen = np.isin(numbers, first)
        halves = [every.subset(np.flatnonzero(chosen)), every.subset(np.flatnonzero(~chosen))]
    parts = []
    for half, size, least, what in zip(halves, sizes, (2, LEAST_GROUPS), ("to search by", "held out"), strict=True):
        named = nameable(half, classifier)
        part = PicturePart(named, _groups(dataset, named)).few(size)
        if part.group_count < least:
            raise ValueError(
                f"dataset {dataset.asked_as!r} has {len(part.split)} pictures {what}, of {part.group_count} "
                f"photographs: expected {least} photographs at least; give more pictures"
            )
        parts.append(part)
    return parts


def _join(dataset: Dataset, names: Sequence[SplitName]) -> Split:
    """Return several splits as one."""
    parts = [dataset.split(name) for name in names]
    starts = np.cumsum([0, *map(len, parts)])
    ids = [image_id for part in parts for image_id in part.image_ids]

    def render(index: int, variant: int) -> Rendered:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        example = parts[number].variant(variant)[index - int(starts[number])]
        return example.image, example.mask

    return Split(np.concatenate([part.labels for part in parts]), ids.__getitem__, render)


def _groups(dataset: Dataset, split: Split) -> NDArray[np.int64]:
    names = [dataset.group_of(image_id) for image_id in split.image_ids]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _pad(metric: str, values: Sequence[float]) -> NDArray[np.float64]:
    """Return values; of changes of top-1 with a picture more that is won and one that is lost.

    Else none among few pictures would pass for none among all. Source: Agresti and Min, 2005.
    """
    return np.append(np.asarray(values, dtype=float), [1.0, -1.0] if metric == CHANGE else [])


class Pictures:
    """Some pictures beside what the dense tower in float32 makes of them."""

    def __init__(self, part: PicturePart, dense: Variant, preprocess: Any, classifier: Tensor | None) -> None:
        """Look at nothing yet."""
        self.split, self.groups = self.part = part
        self.dense, self.preprocess, self.classifier = dense, preprocess, classifier
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.split)

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

    @cached_property
    def _answers(self) -> NDArray[np.int64]:
        assert self.classifier is not None
        return predicted(self._truth, self.classifier)

    @cached_property
    def _neighbours(self) -> NDArray[np.int64]:
        return neighbours(self._truth, self._truth)

    def values(self, rows: Sequence[Variant]) -> dict[str, dict[str, list[float]]]:
        """Return each row's values by key: cosine, and what classes, labels and the number of pictures allow.

        A row whose features overflowed has none.
        """
        features = self.features(rows).items()
        return {key: self._values(each) if each.isfinite().all() else {} for key, each in features}

    def _values(self, features: Tensor) -> dict[str, list[float]]:
        values = {COSINE: 1 - cosine_distance(features, self._truth)}
        if len(self) >= LEAST_GALLERY:
            values[OVERLAP] = overlap(neighbours(features, self._truth), self._neighbours)
        if self.classifier is not None:
            answers, labels = predicted(features, self.classifier), self.split.labels
            values[AGREEMENT] = (answers == self._answers).astype(float)
            if (labels >= 0).all():
                values[CHANGE] = (answers == labels).astype(float) - (self._answers == labels)
        return {metric: each.tolist() for metric, each in values.items()}

    def figures(self, values: Values, seed: int) -> dict[str, Any]:
        """Return each metric's mean and the 5 % quantile of cosines, with 95 % intervals over photographs."""
        figures, numbers = {}, np.unique(self.groups, return_inverse=True)[1]
        for metric, each in values.items():
            padded = _pad(metric, each)
            more = numbers.max() + 1 + np.arange(len(padded) - len(each))
            mean = over_images(padded, seed, np.append(numbers, more))
            figures[metric] = {"estimate": float(np.mean(each)), "low": mean.low, "high": mean.high}
        quantile = bootstrap_quantile(values[COSINE], 0.05, seed, numbers)
        return figures | {Q05: quantile._asdict()}
