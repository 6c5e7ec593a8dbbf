"""How faithful setups are to their dense tower: pictures to calibrate with, search by and judge by, and bounds."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Dataset, OwnDataset, Rendered, Split
from harness.datasets.few_shot import batches, seeded_order, turns
from harness.datasets.text_features import nameable
from harness.measure.rows import Variant, make_row, run
from harness.records.metrics import NEIGHBOURS as NEAREST
from harness.records.metrics import cosine_distance, neighbours, overlap, predicted
from harness.records.record import DENSE
from harness.records.statistics import Interval, over_images, tail_levels, tail_over_images
from zoo.core.adaptive import signal
from zoo.core.digests import digest
from zoo.core.settings import check_fields
from zoo.deploy.quantization import LEAST_PICTURES
from zoo.deploy.runtime import Prepared
from zoo.loading.towers import Tower

# Of features to dense; share of the nearest pictures that stay; of answers that are right.
COSINE, NEIGHBOURS, CHANGE = "cosine", "neighbours", "diff_to_dense"
TAIL_COSINE = "cosine_95"  # the cosine that 95 % of pictures reach
PARTS = ("to calibrate with", "to search by", "held out")
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
    min_cosine_95: float | None = None  # cosine that 95 % of pictures reach
    min_neighbours: float | None = None  # mean share of a picture's 10 nearest other ones that stay
    max_loss: float | None = None  # points of top-1 that may be lost; the pictures need classes
    speed_up: float | None = None  # times as fast as the dense tower in float32

    def __post_init__(self) -> None:
        if not self.floors:
            raise ValueError(
                "no bound on fidelity: expected --min-cosine, --min-cosine-95, --min-neighbours or --max-loss"
            )
        ranges = dict.fromkeys(("min_cosine", "min_cosine_95", "min_neighbours"), "(0, 1)") | {"max_loss": "(0, 100)"}
        check_fields(self, speed_up="(1, inf)", **ranges)

    @property
    def floors(self) -> dict[str, float]:
        """The least that means, or the cosine of 95 % of pictures, may be, by metric that is bounded."""
        loss = None if self.max_loss is None else -self.max_loss / 100
        floors = {COSINE: self.min_cosine, TAIL_COSINE: self.min_cosine_95, NEIGHBOURS: self.min_neighbours}
        floors |= {CHANGE: loss}
        return {metric: least for metric, least in floors.items() if least is not None}

    @property
    def words(self) -> str:
        """All bounds in words."""
        words = {
            f"mean cosine at least {self.min_cosine}": self.min_cosine,
            f"cosine at least {self.min_cosine_95} of 95 % of the pictures": self.min_cosine_95,
            f"mean share of nearest pictures that stay at least {self.min_neighbours}": self.min_neighbours,
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
            best = 0.0 if metric == CHANGE else 1.0
            if metric == TAIL_COSINE:
                distances = 1 - np.asarray(values[COSINE])
                low = 1 - float(np.quantile(distances, tail_levels(count)[1], method="higher"))
            else:
                sample = _pad(metric, values[metric])
                low = float(sample.mean() - _NORMAL * sample.std(ddof=1) / math.sqrt(count))
            shares.append((best - low) / (best - least))
        return max(shares)

    def meets(self, figures: Mapping[str, Interval]) -> bool:
        """Tell whether the lower ends of all intervals in `Pictures.figures` meet the bounds on fidelity."""
        return all(figures[metric].low >= least for metric, least in self.floors.items())


def _pad(metric: str, values: Sequence[float]) -> NDArray[np.float64]:
    """Return values; changes of top-1 get one more picture that is won and one that is lost.

    Without these, no change among few pictures would pass for no change at all. Source: Agresti and Min, 2005.
    """
    return np.append(np.asarray(values, dtype=float), [1.0, -1.0] if metric == CHANGE else [])


def split_pictures(
    dataset: Dataset,
    sizes: tuple[int, int, int],
    seed: int,
    *,
    learned: Collection[str],
    tower: Tower,
    classifier: Tensor | None = None,
) -> "list[Pictures]":
    """Return pictures to calibrate with, to search by and held out, about ``sizes`` of each, that share no group.

    A user's own pictures are all divided, whole groups at a time. Of other datasets, and datasets in ``learned``, from
    which weights were learned, train and val are divided between the first two, and test is held out. With a
    ``classifier`` pictures are of its classes. There are `LEAST_PICTURES` different ones to calibrate with, or none.

    Raises:
        ValueError: too few pictures or groups, or a picture of one part that is a copy of another part's.
    """
    beside, test = join_splits([dataset.split("train"), dataset.split("val")]), dataset.split("test")
    if (isinstance(dataset, OwnDataset) and dataset.name not in learned) or not len(beside):
        halves = _divide(dataset, join_splits([beside, test]), sizes, seed)
    else:
        halves = [*_divide(dataset, beside, sizes[:2], seed), test]
    parts = []
    for half, size in zip(halves, sizes, strict=True):
        split = nameable(half, classifier)
        groups = _number_groups(dataset, split)
        places = np.sort(turns(groups)[:size])  # groups give in turn, so that few pictures show many of them
        parts.append(Pictures(split.subset(places), groups[places], tower, classifier))
    if sizes[0] and len(set(parts[0].digests)) < LEAST_PICTURES:  # the other parts have them, then
        return split_pictures(dataset, (0, *sizes[1:]), seed, learned=learned, tower=tower, classifier=classifier)
    for part, least, what in zip(parts, (0, 2, LEAST_GROUPS), PARTS, strict=True):
        if part.photographs < least:
            raise ValueError(
                f"dataset {dataset.asked_as!r} has {len(part)} pictures {what}, of {part.photographs} photographs: "
                f"expected {least} photographs at least; give more pictures"
            )
    _require_no_copies(parts)
    return parts


def _divide(dataset: Dataset, split: Split, sizes: Sequence[int], seed: int) -> list[Split]:
    """Divide a split in proportion to sizes, whole groups at a time."""
    groups = _number_groups(dataset, split)
    order = seeded_order(int(groups.max(initial=-1)) + 1, seed)
    ends = [round(len(order) * end / sum(sizes)) for end in np.cumsum([0, *sizes])]
    return [split.subset(np.flatnonzero(np.isin(groups, order[start:end]))) for start, end in pairwise(ends)]


def _require_no_copies(parts: "Sequence[Pictures]") -> None:
    """Refuse a picture that is in two parts, under whatever name, by a ValueError."""
    first = dict[str, tuple[str, str]]()  # part and name of a picture, by its digest
    for part, what in zip(parts, PARTS, strict=True):
        for name, mark in zip(part.split.image_ids, part.digests, strict=True):
            other_part, other = first.setdefault(mark, (what, name))
            if other_part != what:
                raise ValueError(f"picture {name!r} {what} is a copy of {other!r} {other_part}: remove one of them")


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

    @cached_property
    def digests(self) -> list[str]:
        """A digest of each picture as the tower takes it."""
        return [digest(image.numpy().tobytes()) for images in self._batches() for image in images]

    @property
    def images(self) -> Tensor:
        """The preprocessed pictures, (n, 3, H, W)."""
        return torch.cat(list(self._batches()))

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
        """Return unit features (n, D) of rows of one dense tower in one precision, by key; shared blocks run once."""
        like = next(rows[0].vit.parameters())
        parts: dict[str, list[Tensor]] = {row.key: [] for row in rows}
        with torch.inference_mode():
            for images in self._batches():
                for key, output in run(rows, images.to(like.device, like.dtype)).items():
                    parts[key].append(output.features)
        return {key: torch.cat(part) for key, part in parts.items()}

    def features_of(self, model: Prepared) -> Tensor:
        """Return unit features (n, D) of a model as a runtime runs it, on the tower's device."""
        device = next(self.tower.vit.parameters()).device
        with torch.inference_mode():
            parts = [model.call(images.to(device, model.dtype)).float().cpu() for images in self._batches()]
        return F.normalize(torch.cat(parts), dim=-1)

    @cached_property
    def _truth(self) -> Tensor:
        dense = make_row(self.tower, DENSE, {})
        return self.features([dense])[dense.key]

    def distances(self, rows: Sequence[Variant]) -> dict[str, NDArray[np.float64]]:
        """Return each row's 1 - cosine to dense, (n,), by key."""
        return {key: cosine_distance(each, self._truth) for key, each in self.features(rows).items()}

    def signals(self, block: int) -> NDArray[np.float64]:
        """Return each picture's signal in the dense tower's tokens at the input of a block, (n,)."""
        vit, parts = self.tower.vit, []
        like = next(vit.parameters())
        with torch.inference_mode():
            for images in self._batches():
                tokens, _ = vit.advance(vit.embed(images.to(like.device, like.dtype)), 0, block)
                parts.append(signal(tokens).double().cpu().numpy())
        return np.concatenate(parts)

    def values(self, model: Prepared) -> dict[str, list[float]]:
        """Return a model's values, with a classifier those of top-1, too; none if its features overflowed."""
        features = self.features_of(model)
        if not features.isfinite().all():
            return {}
        values = {COSINE: (1 - cosine_distance(features, self._truth)).tolist()}
        if len(self) > NEAREST:
            stay = overlap(neighbours(features, features), neighbours(self._truth, self._truth))
            values[NEIGHBOURS] = stay.tolist()
        if self.classifier is not None:
            now, before = (predicted(each, self.classifier) == self.split.labels for each in (features, self._truth))
            values[CHANGE] = (now.astype(float) - before).tolist()
        return values

    def figures(self, values: Values, seed: int) -> dict[str, Interval]:
        """Return each metric's mean with its 95 % interval over photographs, and the cosine that 95 % of them reach."""
        figures = {}
        for metric, each in values.items():
            padded = _pad(metric, each)
            more = self.groups.max() + 1 + np.arange(len(padded) - len(each))
            interval = over_images(padded, np.append(self.groups, more), seed)
            assert interval is not None  # there are two photographs at least
            figures[metric] = interval._replace(estimate=float(np.mean(each)))
        tail = tail_over_images(1 - np.asarray(values[COSINE]), self.groups)
        assert tail is not None
        figures[TAIL_COSINE] = Interval(1 - tail.estimate, 1 - tail.high, 1 - tail.low)
        return figures
