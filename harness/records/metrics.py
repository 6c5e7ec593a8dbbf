"""Metrics, one decorated function each, and what tables, comparisons and checks must know of them."""

import base64
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

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
OVERFLOW = "image features overflowed; use --precision bfloat16 or float32"
_PART = 2048  # images at once, so that a matrix of all pairs is never held
SHOWN_DIGITS = 5e-5  # half of the last digit that a table shows
_ROUNDING = 1e-4  # by which a mean of rounded values may leave its range


def require_order(record: object, *names: str) -> None:
    """Raise ValueError unless three named numbers are finite and rise; all may be None, or all but the middle one."""
    numbers = {name: getattr(record, name) for name in names}
    known = [number for number in numbers.values() if number is not None]
    alone = known == [numbers[names[1]]]
    if (len(known) not in {0, 3} and not alone) or known != sorted(known) or not all(map(math.isfinite, known)):
        raise ValueError(f"need {' <= '.join(names)}, got {numbers}")


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """Carry a metric of one row on a dataset: mean, 95 % interval, the value of each image."""

    mean: int | float
    low: float | None = None
    high: float | None = None
    values: str | None = None  # of each image, see `pack`; rows and runs are compared by these in pairs
    at: int | float | None = None  # number of patches that are compared
    chance: float | None = None  # mean of unrelated rankings

    def __post_init__(self) -> None:
        require_order(self, "low", "mean", "high")

    @property
    def interval(self) -> Interval | None:
        """The mean with the ends of its interval; None without interval."""
        return None if self.low is None or self.high is None else Interval(self.mean, self.low, self.high)

    def per_image(self, count: int) -> NDArray[np.float64] | None:
        """Return (count,) values; None if there are none."""
        return None if self.values is None else unpack(self.values, count).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Texts that describe images."""

    features: Tensor  # (m, D), unit, of distinct texts
    pairs: NDArray[np.int64]  # (p, 2), an image and a text that describes it


# Names of values per image that metrics read.
PER_IMAGE = (
    "scores",  # (n, N) float32, the row's importance of patches
    "golden",  # (n, N) float32, golden importance; NaN rows of images without golden ranking
    "labels",  # (n,) int64
    "groups",  # (n,) int64, see `bootstrap_mean`
    "detail",  # (n, 1) float32, of the images at the input's size, see `measure_detail`; of the dense row alone
    "patch_distance",  # (n, 1) float32, 1 - cosine to dense, mean over patches
    "foreground",  # (n, 2) float32, IoU by dense's linear probe and by the row's own
)


@dataclass(frozen=True, kw_only=True)
class MetricInput:
    """What metrics may read of a row on n images; ValueError for features that aren't finite."""

    features: Tensor  # (n, D), unit
    per_image: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # by `PER_IMAGE`
    final_tokens: int | None = None  # patch tokens left at the end, of every image
    classifier: Tensor | None = None  # (classes, D), the row's own, NaN rows for classes that can't win
    scale: float | None = None  # of cosines in the classes' logits; None of a linear probe
    captions: Captions | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    dense: "MetricInput | None" = None  # the dense row's on the same images; None of the dense row itself

    def __post_init__(self) -> None:
        _require_finite(self.features)

    def read(self, name: str) -> Any:
        """Return values per image, a field or a property by name, the dense row's behind ``dense.``; None if absent."""
        if name.startswith("dense."):
            return None if self.dense is None else self.dense.read(name.removeprefix("dense."))
        return self.per_image.get(name) if name in PER_IMAGE else getattr(self, name)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64] | None:
        """(n,) classes; None without a classifier."""
        return None if self.classifier is None else predicted(self.features, self.classifier)

    @functools.cached_property
    def hits(self) -> NDArray[np.bool_] | None:
        """(n,) whether the predicted class is right; None without classifier or labels."""
        labels = self.per_image.get("labels")
        return None if self.predicted is None or labels is None else np.asarray(self.predicted == labels)

    @functools.cached_property
    def neighbours(self) -> NDArray[np.int64]:
        """(n, 10) nearest images by the row's own features."""
        return neighbours(self.features, self.features)

    @functools.cached_property
    def recalls(self) -> dict[str, NDArray[Any]] | None:
        """(n,) values of `recalls`; None without captions."""
        return None if self.captions is None else recalls(self.features, self.captions)

    @functools.cached_property
    def taus(self) -> NDArray[np.float64] | None:
        """(n,) Kendall taus to the golden rankings, NaN where undefined; None if fewer than two have one."""
        golden, scores = map(self.per_image.get, ("golden", "scores"))
        if golden is None or scores is None:
            return None
        taus = compare_rankings(golden, scores, statistics.kendall_tau)
        return taus if statistics.has_spread(taus, self.per_image.get("groups")) else None


class PerImage(NamedTuple):
    """Values per image of a metric that compares a number of patches, or has a level of chance."""

    values: NDArray[Any]
    chance: float | None = None
    at: int | None = None


Value = NDArray[Any] | PerImage | float | None
F = TypeVar("F", bound=Callable[..., Value])


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far `check` lets a metric's mean move, as the same images on another machine move it by rounding."""

    by: float = math.inf  # at most, either way
    setting: str = ""  # of `changes.Tolerances`, a flag of `check` that says ``by``
    flips: bool = False  # whether ``by`` is a number of images whose value of 0 or 1 flips
    in_interval: bool = False  # whether the mean must stay in its expected 95 % interval; without interval within 1 %

    def limits(self, expected: MetricValue, count: int) -> tuple[float, float, str]:
        """Return the least and the largest mean over ``count`` images that is allowed, and both in words."""
        mean, interval, by = expected.mean, expected.interval, self.by
        if self.flips:
            by = (by + 0.5) / count  # half an image for rounding
        if by == math.inf and interval is None:
            by = max(abs(mean) / 100, SHOWN_DIGITS)
        low, high, words = mean - by, mean + by, f"±{by:.4f}" if self.flips else f"±{by:g}"
        if self.in_interval and interval is not None:
            # The interval of a golden row has no width, and rounding is no news.
            low = min(max(interval.low, low), mean - SHOWN_DIGITS)
            high = max(min(interval.high, high), mean + SHOWN_DIGITS)
            words = f"{low:.4f} to {high:.4f}"
        return low, high, words


COUNTED = Tolerance(by=0)
COSINE, DIVERGENCE = Tolerance(setting="cosine"), Tolerance(setting="divergence")
FLIPS = Tolerance(setting="flips", flips=True)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Describe how a metric is measured, shown, compared and checked."""

    name: str
    function: Callable[..., Value]  # of its needs
    needs: tuple[str, ...]  # read by `MetricInput.read`; if one is None there is nothing to measure
    heading: str = ""  # of its column in reports; without heading only CSV has a column
    form: str = ".2f"  # ``format`` of a value; if it ends in %, the column is in percent
    unit: str = ""  # suffix of its column in CSV, unless the name says it
    better: Literal["", "higher", "lower"] = ""  # empty: neither
    tolerance: Tolerance | None = Tolerance(in_interval=True)  # None: unchecked
    fidelity: str = ""  # description for captions of a metric that says how near to the dense model a row is
    plotted: str = ""  # begins the names of its plots against cost; empty: no plots
    least: float = -1e9  # value; rounding may go a little further
    most: float = 1e9
    # Of (n,) values, one per image, and the images' groups.
    interval: Callable[[NDArray[Any], NDArray[np.int64] | None], Interval | None] = statistics.over_images
    stored: bool = True  # whether records keep the value of each image

    @property
    def title(self) -> str:
        """Name in a sentence."""
        return self.heading.partition(",")[0] or self.name.replace("_", " ")

    def text(self, value: float | None) -> str:
        """Format a value; a dash if it was not measured."""
        return NOT_MEASURED if value is None else format(value, self.form).removesuffix("%")

    def require_value(self, value: float) -> None:
        """Raise ValueError for a number beyond its least and most."""
        slack = _ROUNDING * max(1.0, abs(value))
        if not self.least - slack <= value <= self.most + slack:
            raise ValueError(f"{self.name} must lie in [{self.least:g}, {self.most:g}], got {value!r}")

    @property
    def counted(self) -> bool:
        """Whether it is counted and not measured, so that nothing in it may vary."""
        return self.tolerance is COUNTED

    def measure(self, data: MetricInput) -> MetricValue | None:
        """Return the metric with its interval; None where there is nothing to measure."""
        needed = [data.read(name) for name in self.needs]
        value = None if any(entry is None for entry in needed) else self.function(*needed)
        if value is None:
            return None
        if isinstance(value, int | float):
            return MetricValue(mean=value)
        values, chance, at = value if isinstance(value, PerImage) else PerImage(value)
        return self.summarise(values, data.per_image.get("groups"), chance, at)

    def summarise(
        self, values: NDArray[Any], groups: NDArray[np.int64] | None, chance: float | None, at: float | None
    ) -> MetricValue | None:
        """Return the metric of (n,) values, one per image, with its interval; None if they have no spread."""
        packed = pack(values) if self.stored else None
        # The mean is that of the values as they are stored.
        interval = self.interval(values if packed is None else unpack(packed, len(values)), groups)
        if interval is None:
            return None
        mean, low, high = interval
        return MetricValue(mean=mean, low=low, high=high, values=packed, at=at, chance=chance)


METRICS: dict[str, Metric] = {}  # by name, in the order of their columns


def metric(name: str, *, needs: tuple[str, ...], **fields: Any) -> Callable[[F], F]:
    """Register a function as the metric ``name``; ``fields`` are the others of `Metric`.

    The function takes its ``needs`` in that order, see `MetricInput.read`, and returns (n,) values, one per image, NaN
    for images without a value; or a number without interval; or None if there is nothing to measure.
    """

    def register(function: F) -> F:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered twice")
        METRICS[name] = Metric(name=name, function=function, needs=needs, **fields)
        return function

    return register


def measure(data: MetricInput) -> dict[str, MetricValue]:
    """Return every metric that has something to measure."""
    measured = {name: metric.measure(data) for name, metric in METRICS.items()}
    return {name: value for name, value in measured.items() if value is not None}


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
DIFFERENCE: dict[str, Any] = SHARE | {"form": "+.1%", "least": -1, "tolerance": None, "stored": False}
RANKING: dict[str, Any] = {"better": "higher", "tolerance": None, "stored": False}  # of patches, beside the golden one


def _declare_recall(name: str, heading: str) -> None:
    """Register a recall, and its difference to the dense row's."""
    declare = metric(name, needs=("recalls",), heading=f"{heading}, %", tolerance=FLIPS, **SHARE)
    declare(lambda recalls: recalls[name])
    needs = ("recalls", "dense.recalls")
    declare = metric(f"{name}_diff", needs=needs, heading=f"{heading} to dense", **DIFFERENCE)
    declare(lambda recalls, dense: recalls[name] - dense[name].astype(float))


for _k in RECALL_AT:
    _declare_recall(f"recall_image_{_k}", f"Text → image R@{_k}")
    _declare_recall(f"recall_text_{_k}", f"Image → text R@{_k}")


@metric(
    "cosine_distance", needs=("features", "dense.features"), heading="1 - cosine", form=".4f", least=0, most=2,
    better="lower", tolerance=COSINE, fidelity="1 - cosine of the features to dense", plotted="fidelity",
)  # fmt: skip
def cosine_distance(features: Tensor, dense: Tensor) -> NDArray[np.float64]:
    """Return 1 - cosine of each image's unit features (n, D) with the dense model's, (n,).

    The difference of features is squared, so that nothing is cancelled and equal features are at exactly 0.
    """
    return np.asarray(((features.double() - dense.double()).square().sum(dim=1) / 2).numpy())


@metric(
    "cosine_distance_95", needs=("features", "dense.features"), heading="1 - cosine, 95 %", form=".4f", least=0, most=2,
    better="lower", tolerance=None, stored=False, interval=statistics.tail_over_images,
)  # fmt: skip
def _cosine_distance_95(features: Tensor, dense: Tensor) -> NDArray[np.float64]:
    """Return what `cosine_distance` does: the 95 % quantile over images is taken, which says how bad an image gets."""
    return cosine_distance(features, dense)


@metric(
    "patch_distance", needs=("patch_distance",), heading="1 - cosine per patch", form=".4f", least=0, most=2,
    better="lower", tolerance=COSINE, fidelity="1 - cosine to dense of the features per patch, mean over patches",
)  # fmt: skip
def _patch_distance(distance: NDArray[np.float32]) -> Value:
    """Compare `Tokens.unmerge` with the dense row's tokens, both normalised as at the end of the tower."""
    return distance[:, 0]


def _declare_foreground(name: str, column: int, heading: str) -> None:
    declare = metric(name, needs=("foreground",), heading=heading, tolerance=None, **SHARE)
    declare(lambda foreground: foreground[:, column])


_declare_foreground("foreground_iou", 0, "Foreground IoU by dense's probe, %")
_declare_foreground("foreground_iou_own", 1, "Foreground IoU by its own probe, %")


@metric(
    "dense_agreement", needs=("predicted", "dense.predicted"), heading="Dense's answer, %", **SHARE, tolerance=FLIPS,
    fidelity="same class as dense, %",
)  # fmt: skip
def _dense_agreement(predicted: NDArray[np.int64], dense: NDArray[np.int64]) -> Value:
    return predicted == dense


@metric(
    "kl_to_dense", needs=("scale", "features", "classifier", "dense.features", "dense.classifier"), heading="KL, nats",
    form=".3f", unit="nats", least=0, most=1e6, better="lower", tolerance=DIVERGENCE,
    fidelity="divergence of class probabilities from dense, nats",
)  # fmt: skip
def _kl_to_dense(
    scale: float, features: Tensor, classifier: Tensor, dense_features: Tensor, dense_classifier: Tensor
) -> Value:
    """Return KL(dense || row) of each image's class probabilities, by the softmax at the tower's own temperature.

    A linear probe has no temperature. Rows with learned prompts have classifiers of their own. Classes whose row is NaN
    are left out of both.
    """
    known = ~(classifier + dense_classifier).isnan().any(dim=1)
    classes, dense_classes = classifier[known].double().T, dense_classifier[known].double().T
    parts = []
    for part, dense_part in zip(features.split(_PART), dense_features.split(_PART), strict=True):
        p = (scale * (dense_part.double() @ dense_classes)).log_softmax(dim=1)
        q = (scale * (part.double() @ classes)).log_softmax(dim=1)
        parts.append((p.exp() * (p - q)).sum(dim=1).clamp(min=0))
    return np.asarray(torch.cat(parts).numpy())


@metric(
    "neighbour_overlap", needs=("features", "dense"), heading="Neighbours@10, %", **SHARE, tolerance=DIVERGENCE,
    fidelity="dense's 10 nearest images found, %",
)  # fmt: skip
def _neighbour_overlap(features: Tensor, dense: MetricInput) -> Value:
    """Return the share of dense's nearest images that a row's features find in the gallery of dense ones."""
    if len(features) < LEAST_GALLERY:
        return None
    return overlap(neighbours(features, dense.features), dense.neighbours)


@metric(
    "top1", needs=("hits",), heading="Top-1, %", **SHARE, tolerance=None, plotted="accuracy",
    interval=lambda values, _: statistics.wilson_interval(values),
)  # fmt: skip
def _top1(hits: NDArray[np.bool_]) -> Value:
    return hits


@metric(
    "diff_to_dense", needs=("hits", "dense.hits"), heading="To dense", **DIFFERENCE,
    interval=lambda values, _: statistics.paired_difference(values > 0, values < 0),
)  # fmt: skip
def _diff_to_dense(hits: NDArray[np.bool_], dense: NDArray[np.bool_]) -> Value:
    return hits.astype(np.int8) - dense.astype(np.int8)


@metric(
    "margin", needs=("features", "classifier", "labels", "scale"), least=-2, most=2, better="higher", tolerance=COSINE
)
def margin(features: Tensor, classifier: Tensor, labels: NDArray[np.int64], _scale: float) -> float | None:
    """Return the mean cosine with an image's own class minus that with the best other class.

    The margin moves with every feature, of images and of text, long before an answer flips. None for a single class.
    A linear probe, without scale, has no cosines.
    """
    cosines = (features @ classifier.T).nan_to_num(nan=-torch.inf)
    label = torch.from_numpy(labels).unsqueeze(1)
    rival = cosines.scatter(1, label, -torch.inf).amax(dim=1)
    mean = float((cosines.gather(1, label).squeeze(1) - rival).mean())
    return mean if math.isfinite(mean) else None


def _declare_cost(name: str, most: float, **fields: Any) -> None:
    declare = metric(name, needs=("costs",), least=0, most=most, better="lower", tolerance=COUNTED, **fields)
    declare(lambda costs: costs.get(name))


_declare_cost("gflops", 1e9, heading="GFLOPs")  # 1e9 multiply-adds per image
_declare_cost("params", 1e15, unit="count")


@metric(
    "tau", needs=("taus",), heading="Kendall τ", form="+.2f", least=-1, most=1,
    **RANKING | {"tolerance": Tolerance(setting="tau", in_interval=True)},
)  # fmt: skip
def _tau(taus: NDArray[np.float64]) -> Value:
    return taus


@metric(
    "weighted_tau", needs=("golden", "scores", "taus"), heading="Weighted τ", form="+.2f", least=-1, most=1, **RANKING
)
def _weighted_tau(golden: Importance, scores: Importance, _taus: NDArray[np.float64]) -> Value:
    return compare_rankings(golden, scores, statistics.weighted_tau)


@metric(
    "match_at_k", needs=("golden", "scores", "final_tokens", "taus"), heading="Match at k (chance), %",
    **SHARE | RANKING,
)  # fmt: skip
def _match_at_k(golden: Importance, scores: Importance, final_tokens: int, _taus: NDArray[np.float64]) -> Value:
    """Return the share of golden's k best patches that are among the row's, k being the number that the row keeps."""
    patches = golden.shape[1]
    k = min(final_tokens, patches)
    shares = compare_rankings(golden, scores, functools.partial(statistics.match_at_k, k=k))
    return PerImage(shares, chance=k / patches, at=k)


@metric("final_tokens", needs=("final_tokens",), heading="Final tokens", form="", least=0, most=1e9, tolerance=COUNTED)
def _final_tokens(final_tokens: int) -> Value:
    return final_tokens


@metric("detail", needs=("detail",), form=".1f", least=0, most=255, tolerance=None)
def _detail(detail: NDArray[np.float32]) -> Value:
    """Return how much detail the images have, of the dense row alone: `record.halves` splits tables by it."""
    return detail[:, 0]


def compare_rankings(
    golden: Importance, scores: Importance, compare: Callable[[Importance, Importance], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return (n,) values of ``compare`` on golden importance and scores (n, N), NaN for images without a ranking."""
    known = np.asarray(~np.isnan(golden).any(axis=1))
    values = np.full(len(known), np.nan)
    if known.any():
        values[known] = compare(golden[known], scores[known])
    return values


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


def neighbours(features: Tensor, gallery: Tensor) -> NDArray[np.int64]:
    """Return the `NEIGHBOURS` images whose ``gallery`` features are nearest each one's, (n, 10).

    Both are unit features (n, D) of the same images; an image is not its own neighbour.
    """
    parts = []
    for start in range(0, len(features), _PART):
        cosines = features[start : start + _PART] @ gallery.T
        cosines.diagonal(start).fill_(-torch.inf)
        parts.append(cosines.topk(NEIGHBOURS, dim=1).indices)
    return np.asarray(torch.cat(parts).numpy())


def overlap(neighbours: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each image's true neighbours (n, k) that are among ``neighbours`` (n, k), (n,)."""
    return np.asarray((neighbours[:, :, np.newaxis] == truth[:, np.newaxis]).any(axis=1).mean(axis=1))


def found_after(queries: Tensor, gallery: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of a gallery come before the first that is a query's own, (n,).

    Both are unit features, (n, D) and (m, D); ``pairs`` (p, 2) are a query and an entry of its own. Entries as near as
    the first own one come before it, so that features that are all alike find nothing.
    """
    places, counts = torch.from_numpy(pairs), []
    for start in range(0, len(queries), _PART):
        cosines = queries[start : start + _PART] @ gallery.T
        here = places[(places[:, 0] >= start) & (places[:, 0] < start + len(cosines))]
        own = torch.zeros_like(cosines, dtype=torch.bool)
        own[here[:, 0] - start, here[:, 1]] = True
        first = cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        counts.append((cosines.masked_fill(own, -torch.inf) >= first).sum(dim=1))
    return np.asarray(torch.cat(counts).numpy())


def recalls(features: Tensor, captions: Captions) -> dict[str, NDArray[Any]]:
    """Return the metrics ``recall_*`` of each image, (n,), by unit image features (n, D).

    ``recall_text_K`` tells whether a text of the image is among the K nearest of all texts; ``recall_image_K`` is the
    share of the image's texts that have one of their images among the K nearest.
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
