"""Metrics: one decorated function each; all that show, compare or check them ask here."""

import base64
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness.base.table import NOT_MEASURED
from harness.records import statistics
from harness.records.statistics import Interval

Importance = NDArray[np.float32]  # (n, N), higher = keep, NaN where unknown
NEIGHBOURS = 10  # nearest images that `neighbours` looks for
LEAST_GALLERY = 500  # of fewer images the nearest say little about features
RECALL_AT = (1, 5, 10)
OVERFLOW = "image features overflowed; use --dtype bfloat16 or float32"
_PART = 2048  # images at once, so that a matrix of all pairs is never held
_ROUNDING = 1e-4  # by which a mean of rounded values may leave its range


def require_order(thing: Any, *names: str) -> None:
    """Raise ValueError unless the three named numbers rise and are finite; a middle one may be alone, or none there."""
    ends = {name: getattr(thing, name) for name in names}
    known = [number for number in ends.values() if number is not None]
    alone = known == [ends[names[1]]]
    if (len(known) not in {0, 3} and not alone) or known != sorted(known) or not all(map(math.isfinite, known)):
        raise ValueError(f"need {' <= '.join(names)}, got {ends}")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Carry a metric of one row on a dataset: its mean, the ends of a 95 % interval, and more where there is more."""

    mean: int | float
    low: float | None = None
    high: float | None = None
    values: str | None = None  # of each image, as `pack` does it; rows and runs are compared by these in pairs
    at: int | float | None = None  # number of patches that it is for
    chance: float | None = None  # what unrelated rankings give

    def __post_init__(self) -> None:
        require_order(self, "low", "mean", "high")

    @property
    def interval(self) -> Interval | None:
        """The mean with the ends of its interval; None without one."""
        return None if self.low is None or self.high is None else Interval(self.mean, self.low, self.high)

    def per_image(self, count: int) -> NDArray[np.float64] | None:
        """Return (count,) values; None if there are none."""
        return None if self.values is None else unpack(self.values, count).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Texts that describe images."""

    features: Tensor  # (m, D), unit, of distinct texts
    pairs: NDArray[np.int64]  # (p, 2), an image and a text that describes it


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a row does with n images, as metrics see it; ValueError for features that aren't finite."""

    features: Tensor  # (n, D), unit
    final_tokens: int | None = None  # patch tokens left at the end
    scores: NDArray[np.float32] | None = None  # (n, N) the row's importance of patches, if it ranks them
    golden: Importance | None = None  # (n, N), NaN rows where there is no golden ranking
    classifier: Tensor | None = None  # (classes, D), the row's own, NaN rows for classes that can't win
    scale: float | None = None  # of cosines in the classes' logits; None of a linear probe
    labels: NDArray[np.int64] | None = None  # (n,)
    captions: Captions | None = None
    groups: NDArray[np.int64] | None = None  # (n,) see `bootstrap_mean`
    detail: NDArray[np.float32] | None = None  # (n,) of the images at the input's size, see `measure_detail`
    patch_distance: NDArray[np.float32] | None = None  # (n,) 1 - cosine to dense, mean over patches
    foreground: NDArray[np.float32] | None = None  # (n, 2) IoU by dense's linear probe and by the row's own
    costs: Mapping[str, float] = field(default_factory=dict)
    dense: "Sample | None" = None  # the dense row's on the same images; None of the dense row itself

    def __post_init__(self) -> None:
        _require_finite(self.features)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64] | None:
        """(n,) classes; None without a classifier."""
        return None if self.classifier is None else predicted(self.features, self.classifier)

    @functools.cached_property
    def hits(self) -> NDArray[np.bool_] | None:
        """(n,) whether the predicted class is right; None without labels."""
        return None if self.predicted is None or self.labels is None else np.asarray(self.predicted == self.labels)

    @functools.cached_property
    def neighbours(self) -> NDArray[np.int64]:
        """(n, 10) nearest images by its own features."""
        return neighbours(self.features, self.features)

    @functools.cached_property
    def recalls(self) -> dict[str, NDArray[Any]]:
        """(n,) values of `recalls`; none without captions."""
        return {} if self.captions is None else recalls(self.features, self.captions)

    @functools.cached_property
    def taus(self) -> NDArray[np.float64] | None:
        """(n,) Kendall taus to the golden rankings, NaN where undefined; None if fewer than two have one."""
        if self.scores is None or self.golden is None:
            return None
        taus = self.ranked(statistics.kendall_tau)
        return taus if statistics.has_spread(taus, self.groups) else None

    def ranked(self, compare: Callable[[Any, Any], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return (n,) what ``compare`` gives of golden importance and scores, NaN where there is no golden ranking."""
        assert self.scores is not None
        assert self.golden is not None
        known = np.asarray(~np.isnan(self.golden).any(axis=1))
        values = np.full(len(known), np.nan)
        if known.any():
            values[known] = compare(self.golden[known], self.scores[known])
        return values


class PerImage(NamedTuple):
    """Values per image of a metric that is for a number of patches, or has a level of chance."""

    values: NDArray[Any]
    chance: float | None = None
    at: int | None = None


Found = NDArray[Any] | PerImage | float | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Describe a metric for all that show, compare or check it."""

    name: str
    function: Callable[[Sample], Found]
    heading: str = ""  # of its column in reports, CSV apart; empty: it has none
    form: str = ".2f"  # ``format`` of a value; if it ends in %, the column is in percent
    unit: str = ""  # suffix of its column in CSV, where the name doesn't say it
    better: Literal["", "higher", "lower"] = ""  # empty: neither
    # How far `check` lets it move: not at all, an attribute of its bounds, or a number; empty: unchecked.
    bound: str | float = "exact"
    fidelity: str = ""  # of one that says how near to the dense model a row is: what it is, for captions
    plotted: str = ""  # what the files of its plots against cost begin with; empty: it has none
    least: float = -1e9  # that it can be; rounding may take it a little further
    most: float = 1e9
    # Of (n,) values, one per image, and the images' groups.
    interval: Callable[[NDArray[Any], NDArray[np.int64] | None], Interval | None] = statistics.over_images
    stored: bool = True  # whether records keep the value of each image

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return self.heading.partition(",")[0] or self.name.replace("_", " ")

    def text(self, value: float | None) -> str:
        """Format a value; a dash if it was not measured."""
        return NOT_MEASURED if value is None else format(value, self.form).removesuffix("%")

    def require_value(self, value: float) -> None:
        """Raise ValueError for a number that it can't have."""
        slack = _ROUNDING * max(1.0, abs(value))
        if not self.least - slack <= value <= self.most + slack:
            raise ValueError(f"{self.name} must lie in [{self.least:g}, {self.most:g}], got {value!r}")

    def measure(self, sample: Sample) -> Measured | None:
        """Return the metric of a sample with its interval; None where there is none to measure."""
        own = self.function(sample)
        if own is None or isinstance(own, (int, float)):
            return None if own is None else Measured(mean=own)
        values, chance, at = own if isinstance(own, PerImage) else PerImage(own)
        return self.summarise(values, sample.groups, chance, at)

    def summarise(
        self, values: NDArray[Any], groups: NDArray[np.int64] | None, chance: float | None, at: float | None
    ) -> Measured | None:
        """Return the metric of (n,) values, one per image, with its interval; None if they have no spread."""
        packed = None
        if self.stored:  # the mean is that of the values as they are stored
            packed = pack(values)
            values = unpack(packed, len(values))
        found = self.interval(values, groups)
        if found is None:
            return None
        return Measured(mean=found.estimate, low=found.low, high=found.high, values=packed, at=at, chance=chance)


METRICS: dict[str, Metric] = {}  # as their columns stand


def metric(name: str, **facts: Any) -> Callable[[Callable[[Sample], Found]], Callable[[Sample], Found]]:
    """Register a function as the metric ``name``; ``facts`` are the other fields of `Metric`.

    The function returns (n,) values, one per image, NaN where one has none; or a number that has no interval; or None
    where there is nothing to measure.
    """

    def register(function: Callable[[Sample], Found]) -> Callable[[Sample], Found]:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered twice")
        METRICS[name] = Metric(name=name, function=function, **facts)
        return function

    return register


def fidelity_metrics() -> list[Metric]:
    """Return the metrics that say how near to the dense model a row is."""
    return [one for one in METRICS.values() if one.fidelity]


def measure(sample: Sample) -> dict[str, Measured]:
    """Return every metric that a sample has."""
    return {name: own for name, one in METRICS.items() if (own := one.measure(sample)) is not None}


def pack(values: ArrayLike) -> str:
    """Return (n,) bool as a hex bitmap, first image in the highest bit; other numbers as base64 of "<f2", 3 digits."""
    numbers = np.asarray(values)
    if numbers.ndim != 1:
        raise ValueError(f"values must be (n,), got {numbers.shape}")
    if numbers.dtype == np.bool_:
        return f"bits:{np.packbits(numbers).tobytes().hex()}"
    with np.errstate(over="ignore"):  # infinite then, which is refused
        halves = _finite(numbers.astype("<f2"))
    return f"half:{base64.b64encode(halves.tobytes()).decode()}"


def unpack(packed: str, count: int) -> NDArray[Any]:
    """Return (count,) bool or float64; ValueError for what `pack` didn't make of that many images."""
    kind, _, text = packed.partition(":")
    if kind == "bits":
        raw = bytes.fromhex(text)
        flags = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)).astype(np.bool_)
        if len(raw) == math.ceil(count / 8) and not flags[count:].any():
            return flags[:count]
    elif kind == "half":
        raw = base64.b64decode(text, validate=True)
        if len(raw) == 2 * count:
            return _finite(np.frombuffer(raw, dtype="<f2").astype(np.float64))
    else:
        raise ValueError(f"values must begin with 'bits:' or 'half:', got {packed[:8]!r}")
    raise ValueError(f"values of {len(raw)} bytes are not of {count} images")


def _finite(numbers: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(numbers).all():
        raise ValueError("values must be finite numbers")
    return numbers


SHARE: dict[str, Any] = {"form": ".1%", "unit": "fraction", "least": 0, "most": 1, "better": "higher"}
DIFFERENCE: dict[str, Any] = SHARE | {"form": "+.1%", "least": -1, "bound": "", "stored": False}
RANKING: dict[str, Any] = {"better": "higher", "bound": "", "stored": False}  # of the patches, beside the golden one


def _declare_recalls() -> None:
    """Register the recalls at k of images by text and of texts by image, with differences to the dense row's."""

    def recall(name: str, sample: Sample) -> Found:
        return sample.recalls.get(name)

    def difference(name: str, sample: Sample) -> Found:
        if sample.dense is None or name not in sample.recalls:
            return None
        return np.asarray(sample.recalls[name] - sample.dense.recalls[name].astype(float))

    for k in RECALL_AT:
        for found, way in (("image", "Text → image"), ("text", "Image → text")):
            name = f"recall_{found}_{k}"
            declare = metric(name, heading=f"{way} R@{k}, %", bound="flips", **SHARE)
            declare(functools.partial(recall, name))
            metric(f"{name}_diff", heading=f"{way} R@{k} to dense", **DIFFERENCE)(functools.partial(difference, name))


_declare_recalls()


@metric(
    "cosine_distance", heading="1 - cosine", form=".4f", least=0, most=2, better="lower", bound="cosine",
    fidelity="1 - cosine of the features to dense", plotted="fidelity",
)  # fmt: skip
def _cosine_distance(sample: Sample) -> Found:
    return None if sample.dense is None else cosine_distance(sample.features, sample.dense.features)


@metric(
    "patch_distance", heading="1 - cosine per patch", form=".4f", least=0, most=2, better="lower", bound="cosine",
    fidelity="1 - cosine to dense of the features per patch, mean over patches",
)  # fmt: skip
def _patch_distance(sample: Sample) -> Found:
    """Compare `Tokens.unmerge` with dense's tokens, normalised as those that leave the tower."""
    return sample.patch_distance


def _declare_foreground(name: str, column: int, heading: str) -> None:
    facts = {**SHARE, "bound": ""}
    metric(name, heading=heading, **facts)(lambda s: None if s.foreground is None else s.foreground[:, column])


_declare_foreground("foreground_iou", 0, "Foreground IoU by dense's probe, %")
_declare_foreground("foreground_iou_own", 1, "Foreground IoU by its own probe, %")


@metric(
    "dense_agreement", heading="Dense's answer, %", **SHARE, bound="flips",
    fidelity="same class as dense, %",
)  # fmt: skip
def _dense_agreement(sample: Sample) -> Found:
    return None if sample.dense is None or sample.predicted is None else sample.predicted == sample.dense.predicted


@metric(
    "kl_to_dense", heading="KL, nats", form=".3f", unit="nats", least=0, most=1e6, better="lower", bound="divergence",
    fidelity="divergence of class probabilities from dense, nats",
)  # fmt: skip
def _kl_to_dense(sample: Sample) -> Found:
    """Return KL(dense || row) of each image's class probabilities, by the softmax at the tower's own temperature.

    A linear probe has none. Each row has its own classifier where prompts were learned. Classes whose row is NaN are
    left out of both.
    """
    dense, scale = sample.dense, sample.scale
    if dense is None or sample.classifier is None or dense.classifier is None or scale is None:
        return None
    known = ~(sample.classifier + dense.classifier).isnan().any(dim=1)
    ours, theirs = sample.classifier[known].double().T, dense.classifier[known].double().T
    parts = []
    for own, other in zip(sample.features.split(_PART), dense.features.split(_PART), strict=True):
        pairs = ((other, theirs), (own, ours))
        p, q = ((scale * (images.double() @ classes)).log_softmax(dim=1) for images, classes in pairs)
        parts.append((p.exp() * (p - q)).sum(dim=1).clamp(min=0))
    return np.asarray(torch.cat(parts).numpy())


@metric(
    "neighbour_overlap", heading="Neighbours@10, %", **SHARE, bound="divergence",
    fidelity="dense's 10 nearest images found, %",
)  # fmt: skip
def _neighbour_overlap(sample: Sample) -> Found:
    """Find with a row's own features the images that are nearest by dense ones."""
    if sample.dense is None or len(sample.features) < LEAST_GALLERY:
        return None
    return overlap(neighbours(sample.features, sample.dense.features), sample.dense.neighbours)


@metric(
    "top1", heading="Top-1, %", **SHARE, bound="", plotted="accuracy",
    interval=lambda values, _: statistics.wilson_interval(values),
)  # fmt: skip
def _top1(sample: Sample) -> Found:
    return sample.hits


@metric(
    "diff_to_dense", heading="To dense", **DIFFERENCE,
    interval=lambda values, _: statistics.paired_difference(values > 0, values < 0),
)  # fmt: skip
def _diff_to_dense(sample: Sample) -> Found:
    if sample.dense is None or sample.hits is None or sample.dense.hits is None:
        return None
    return sample.hits.astype(np.int8) - sample.dense.hits.astype(np.int8)


@metric("margin", least=-2, most=2, better="higher", bound="cosine")
def _margin(sample: Sample) -> Found:
    """Return the mean cosine with an image's own class minus that with the best other class.

    It moves with every feature, of images and of text, long before an answer flips. None where there is only one class.
    """
    if sample.classifier is None or sample.scale is None or sample.labels is None:
        return None
    cosines = (sample.features @ sample.classifier.T).nan_to_num(nan=-torch.inf)
    own = torch.from_numpy(sample.labels).unsqueeze(1)
    others = cosines.scatter(1, own, -torch.inf).amax(dim=1)
    mean = float((cosines.gather(1, own).squeeze(1) - others).mean())
    return mean if math.isfinite(mean) else None


def _declare_cost(name: str, most: float, **facts: Any) -> None:
    metric(name, least=0, most=most, better="lower", **facts)(lambda sample: sample.costs.get(name))


_declare_cost("gflops", 1e9, heading="GFLOPs")  # 1e9 multiply-adds per image
_declare_cost("params", 1e15, unit="count")


@metric("tau", heading="Kendall τ", form="+.2f", least=-1, most=1, **RANKING | {"bound": "tau"})
def _tau(sample: Sample) -> Found:
    return sample.taus


@metric("weighted_tau", heading="Weighted τ", form="+.2f", least=-1, most=1, **RANKING)
def _weighted_tau(sample: Sample) -> Found:
    return None if sample.taus is None else sample.ranked(statistics.weighted_tau)


@metric("match_at_k", heading="Match at k (chance), %", **SHARE | RANKING)
def _match_at_k(sample: Sample) -> Found:
    """Share golden's k best patches, k being as many as the row keeps."""
    if sample.taus is None:
        return None
    assert sample.golden is not None
    assert sample.final_tokens is not None
    cells = sample.golden.shape[1]
    k = min(sample.final_tokens, cells)
    return PerImage(sample.ranked(functools.partial(statistics.match_at_k, k=k)), statistics.match_chance(k, cells), k)


@metric("final_tokens", heading="Final tokens", form="", least=0, most=1e9)
def _final_tokens(sample: Sample) -> Found:
    return sample.final_tokens


@metric("detail", form=".1f", least=0, most=255, bound="")
def _detail(sample: Sample) -> Found:
    """Tell of the dense row alone how much detail the images have: tables are split by it."""
    return sample.detail


def _require_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError(OVERFLOW)


def predicted(features: Tensor, classifier: Tensor) -> NDArray[np.int64]:
    """Return the best class of each image, (n,), by features (n, D) and a classifier (classes, D).

    Rows of NaN are classes that can't win. Raises ValueError for features that aren't finite.
    """
    _require_finite(features)
    logits = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    return np.asarray(logits.argmax(dim=1).numpy())


def cosine_distance(features: Tensor, dense: Tensor) -> NDArray[np.float64]:
    """Return 1 - cosine of each image's unit features (n, D) with the dense model's, (n,).

    By the difference of the two, so that nothing is cancelled and equal features are at exactly 0.
    """
    return np.asarray(((features.double() - dense.double()).square().sum(dim=1) / 2).numpy())


def neighbours(features: Tensor, gallery: Tensor) -> NDArray[np.int64]:
    """Return the `NEIGHBOURS` images whose ``gallery`` features are nearest each one's, (n, 10).

    Both are unit features (n, D) of the same images; an image is not its own neighbour.
    """
    parts = []
    for start, own in zip(range(0, len(features), _PART), features.split(_PART), strict=True):
        cosines = own @ gallery.T
        cosines[torch.arange(len(own)), start + torch.arange(len(own))] = -torch.inf
        parts.append(cosines.topk(NEIGHBOURS, dim=1).indices)
    return np.asarray(torch.cat(parts).numpy())


def overlap(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each image's true neighbours (n, k) that are among those found, (n,)."""
    return np.asarray((found[:, :, np.newaxis] == truth[:, np.newaxis]).any(axis=1).mean(axis=1))


def found_after(queries: Tensor, gallery: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of a gallery come before the first that is a query's own, (n,).

    Both are unit features, (n, D) and (m, D); ``pairs`` (p, 2) are a query and an entry of its own. What is as near as
    the own one comes before it, so that features that are all alike find nothing.
    """
    own, counts = torch.from_numpy(pairs), []
    for start, part in zip(range(0, len(queries), _PART), queries.split(_PART), strict=True):
        cosines = part @ gallery.T
        here = own[(own[:, 0] >= start) & (own[:, 0] < start + len(part))]
        mine = torch.zeros_like(cosines, dtype=torch.bool)
        mine[here[:, 0] - start, here[:, 1]] = True
        first = cosines.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
        counts.append((cosines.masked_fill(mine, -torch.inf) >= first).sum(dim=1))
    return np.asarray(torch.cat(counts).numpy())


def recalls(features: Tensor, captions: Captions) -> dict[str, NDArray[Any]]:
    """Return the metrics ``recall_*`` of each image, (n,), by unit image features (n, D).

    ``recall_text_K`` tells whether a text of the image is among the K nearest of all texts; ``recall_image_K`` is the
    share of its texts for which it, or another image of theirs, is among the K nearest images.
    """
    images, texts = captions.pairs.T
    by_image = found_after(features, captions.features, captions.pairs)
    by_text = found_after(captions.features, features, np.ascontiguousarray(captions.pairs[:, ::-1]))[texts]
    count = np.bincount(images, minlength=len(features))
    values: dict[str, NDArray[Any]] = {}
    for k in RECALL_AT:
        values[f"recall_image_{k}"] = np.bincount(images, by_text < k, minlength=len(features)) / count
        values[f"recall_text_{k}"] = by_image < k
    return values
