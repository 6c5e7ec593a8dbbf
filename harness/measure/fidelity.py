"""How faithful reductions are to their dense tower: pictures to search by, others held out to judge by, and bounds."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from harness.datasets.text_features import nameable
from harness.measure.rows import Variant, make_row, run
from harness.records.metrics import cosine_distance, predicted
from harness.records.record import DENSE
from harness.records.statistics import over_images
from zoo.core.settings import check_fields
from zoo.deploy.optimized import OptimizedHost
from zoo.loading.towers import Tower

COSINE, CHANGE = "cosine", "diff_to_dense"  # of the features to dense, and of answers that are right
LEAST_GROUPS = 10  # photographs held out; of fewer a bootstrap says nothing
KEPT = 2 << 30  # bytes of preprocessed pictures that are held in memory
_NORMAL = 1.96  # standard errors from a mean to the end of its interval

Values = Mapping[str, Sequence[float]]  # by metric, one per picture


@dataclass(frozen=True, kw_only=True)
class SetupBounds:
    """What a setup must meet; None where nothing is asked.

    Raises:
        ValueError: no bound on fidelity, or a bound out of range.
    """

    min_cosine: float | None = None  # mean cosine to the dense tower's features
    max_loss: float | None = None  # points of top-1 that may be lost; the pictures need classes
    speed_up: float | None = None  # times as fast as the dense tower in float32

    def __post_init__(self) -> None:
        if not self.floors:
            raise ValueError("no bound on fidelity: expected --min-cosine, --max-loss or both")
        check_fields(self, min_cosine="(0, 1)", max_loss="(0, 100)", speed_up="(1, inf)")

    @property
    def floors(self) -> dict[str, float]:
        """The least that means may be, by metric that is bounded."""
        loss = None if self.max_loss is None else -self.max_loss / 100
        return {metric: least for metric, least in ((COSINE, self.min_cosine), (CHANGE, loss)) if least is not None}

    @property
    def words(self) -> str:
        """All bounds in words."""
        words = {
            f"mean cosine at least {self.min_cosine}": self.min_cosine,
            f"at most {self.max_loss} points of top-1 lost": self.max_loss,
            f"{self.speed_up} times as fast as dense in eager float32": self.speed_up,
        }
        return ", ".join(text for text, value in words.items() if value is not None)

    def share(self, values: Values, count: int) -> float:
        """Return how much of what is allowed would be used up on ``count`` other pictures, at most 1 if it is met.

        The lower end of the mean's interval there counts; the spread of these values predicts it.
        """
        if not values:
            return math.inf
        shares = []
        for metric, least in self.floors.items():
            sample, best = _pad(metric, values[metric]), 0.0 if metric == CHANGE else 1.0
            low = float(sample.mean() - _NORMAL * sample.std(ddof=1) / math.sqrt(count))
            shares.append((best - low) / (best - least))
        return max(shares)

    def meets(self, figures: Mapping[str, Any]) -> bool:
        """Tell whether the lower ends of all intervals in `Pictures.figures` meet the bounds on fidelity."""
        return all(figures[metric]["low"] >= least for metric, least in self.floors.items())


def _pad(metric: str, values: Sequence[float]) -> NDArray[np.float64]:
    """Return values; changes of top-1 get one more picture that is won and one that is lost.

    Without these, no change among few pictures would pass for no change at all. Source: Agresti and Min, 2005.
    """
    return np.append(np.asarray(values, dtype=float), [1.0, -1.0] if metric == CHANGE else [])


def split_pictures(
    dataset: Dataset,
    sizes: tuple[int, int],
    seed: int,
    *,
    learned: Collection[str],
    tower: Tower,
    classifier: Tensor | None = None,
) -> "list[Pictures]":
    """Return pictures to search by and pictures held out, about ``sizes`` of each, that share no group.

    A user's own pictures are all divided, whole groups at a time. Other datasets, and datasets in ``learned``, from
    which weights were learned, give train and val to search by and hold out test. With a ``classifier`` pictures are
    of its classes.

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
        split = nameable(half, classifier)
        groups = _number_groups(dataset, split)
        places = np.sort(turns(groups)[:size])  # groups give in turn, so that few pictures show many of them
        part = Pictures(split.subset(places), groups[places], tower, classifier)
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
    """Pictures with the dense tower's features in float32."""

    split: Split
    groups: NDArray[np.int64]  # (n,) number of each one's photograph
    tower: Tower
    classifier: Tensor | None = None
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
        for _, images in batches(self.split, self.tower.preprocess):
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
                    outputs = {key: output.features for key, output in run(rows, placed).items()}
                for key, features in outputs.items():
                    parts[key].append(features)
        return {key: torch.cat(part) for key, part in parts.items()}

    @cached_property
    def _truth(self) -> Tensor:
        dense = make_row(self.tower, DENSE, {})
        return self.features([dense])[dense.key]

    def distances(self, rows: Sequence[Variant]) -> dict[str, NDArray[np.float64]]:
        """Return each row's 1 - cosine to dense, (n,), by key."""
        return {key: cosine_distance(each, self._truth) for key, each in self.features(rows).items()}

    def values(self, row: Variant) -> dict[str, list[float]]:
        """Return a row's values, with a classifier those of top-1, too; none if its features overflowed."""
        features = self.features([row])[row.key]
        if not features.isfinite().all():
            return {}
        values = {COSINE: (1 - cosine_distance(features, self._truth)).tolist()}
        if self.classifier is not None:
            now, before = (predicted(each, self.classifier) == self.split.labels for each in (features, self._truth))
            values[CHANGE] = (now.astype(float) - before).tolist()
        return values

    def figures(self, values: Values, seed: int) -> dict[str, Any]:
        """Return each metric's mean with its 95 % interval over photographs."""
        figures = {}
        for metric, each in values.items():
            padded = _pad(metric, each)
            more = self.groups.max() + 1 + np.arange(len(padded) - len(each))
            _, low, high = over_images(padded, np.append(self.groups, more), seed) or (None, None, None)
            figures[metric] = {"estimate": float(np.mean(each)), "low": low, "high": high}
        return figures
