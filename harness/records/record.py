"""Records: what is measured of a model, by field; reading, appending and using them again."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.base.lines import append_lines, can_resume, parse_lines
from harness.base.table import NOT_MEASURED
from harness.base.terminal import Progress
from harness.records.conditions import DENSE, GOLDEN, PROMPTS, RECOVERY, TUNINGS
from zoo.core.files import from_json, strict_json
from zoo.core.messages import expected

SCHEMA_VERSION = 7
RECORDS = "records.jsonl"  # in the folder of a run
SHA256 = re.compile(r"[0-9a-f]{64}")  # what `images_digest` gives
_ROUNDING = 1e-4  # by which a mean of rounded values may leave its range
_NAMED = 3  # owners named of each value that differs

T = TypeVar("T")
R = TypeVar("R", bound="Record")

Role = Literal["run", "setting", "condition", "measurement"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """Say what a field of a record is.

    Roles are run: when and by what code, equal in no two records. Setting: which row it is.
    Condition: equal in all records that stand in one column. Measurement: the rest.
    """

    role: Role = "measurement"
    unit: str = ""  # suffix of its column in CSV, where the field's name doesn't say it


@dataclass(frozen=True, kw_only=True)
class Metric(Field):
    """Describe a measured quantity for all that show, compare or check it."""

    name: str = ""  # of the field; known once it is declared, see `metrics`
    heading: str = ""  # of its column in reports, CSV apart; empty: it has none
    short: str = ""  # of its column in the terminal; empty: it has none
    form: str = ".2f"  # ``format`` of a value; if it ends in %, the column is in percent
    short_form: str = ""  # in the terminal, if it is another one
    low: str = ""  # field with the low end of its interval
    high: str = ""  # field with the high end
    loose: bool = False  # whether the interval may be missing where the value is there
    ends: Literal["", "wide", "roomy", "always"] = ""  # which forms in the terminal show the interval
    at: str = ""  # field with the number of patches that it is for
    chance: str = ""  # field with what unrelated rankings give
    # Field with its value of each image, packed: a name in "_bits" by `pack_correct`, else by
    # `pack_values`. Rows and runs are compared by these in pairs.
    values: str = ""
    # Narrowest form of a terminal's table that has the column; what the narrow one has, a report's
    # summary has, too.
    least: Literal["narrow", "middle", "wide"] = "wide"
    place: int = 0  # columns with a higher one stand further right; else they stand as declared
    better: Literal["", "higher", "lower"] = ""  # empty: neither
    # How far `check` lets it move: not at all, or an attribute of ``Bounds``; empty: unchecked.
    bound: Literal["", "exact", "cosine", "flips", "divergence", "probe", "tau"] = "exact"
    change: str = ""  # ``format`` of differences in ``compare RUN RUN``; empty: it has no column
    # Of one that says how near to the dense model a row is: what it is, for captions.
    fidelity: str = ""
    least_value: float = -math.inf  # that it can have; rounding may take it a little further
    most_value: float = math.inf

    def text(self, value: float | None, *, short: bool = False) -> str:
        """Format a value; a dash if it was not measured."""
        if value is None:
            return NOT_MEASURED
        return format(value, self.short_form or self.form if short else self.form).removesuffix("%")

    def require_value(self, value: Any) -> None:
        """Raise ValueError for a number that it can't have."""
        if not isinstance(value, (int, float)):
            return
        slack = _ROUNDING * max(1.0, abs(value))
        if not self.least_value - slack <= value <= self.most_value + slack or not math.isfinite(value):
            raise ValueError(f"{self.name} must lie in [{self.least_value:g}, {self.most_value:g}], got {value!r}")


RUN = Field(role="run")
SETTING = Field(role="setting")
CONDITION = Field(role="condition")
MEASURED = Field()  # what comes with a metric: the ends of its interval and the like
FRACTION = Field(unit="fraction")
End = Annotated[float | None, MEASURED]
FractionEnd = Annotated[float | None, FRACTION]
PerImage = Annotated[str | None, MEASURED]  # a value of each image, packed as `Metric.values` says


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Carry the time of one batch; ratios are None for the dense model and where it is missing."""

    batch: Annotated[int, MEASURED]
    median_ms: Annotated[float, Metric(
        least_value=0,
        heading="Batch {batch}, ms [IQR]", form=".1f", low="q1_ms", high="q3_ms",
        better="lower", bound="",
    )]  # fmt: skip
    q1_ms: Annotated[float, MEASURED]
    q3_ms: Annotated[float, MEASURED]
    ratio_to_dense: Annotated[float | None, Metric(
        least_value=0,
        heading="Batch {batch}, × dense", low="ratio_low", high="ratio_high", least="narrow",
        better="lower", bound="",
    )] = None  # fmt: skip
    ratio_low: End = None
    ratio_high: End = None
    images_per_s: Annotated[
        float, Metric(least_value=0, heading="Batch {batch}, images/s", form=".1f", better="higher", bound="")
    ]

    def __post_init__(self) -> None:
        _check_interval(self, "ratio_to_dense", "ratio_low", "ratio_high")
        for metric in metrics(type(self)).values():
            metric.require_value(getattr(self, metric.name))


@dataclass(frozen=True, kw_only=True)
class Record:
    """Carry one model on one dataset. None means not measured; nothing unmeasured is 0."""

    schema_version: Annotated[int, SETTING] = SCHEMA_VERSION
    created: Annotated[str, RUN]  # UTC, ISO 8601
    version: Annotated[str, SETTING]  # of this package
    git_commit: Annotated[str | None, RUN] = None
    model: Annotated[str, SETTING]  # timm id, such as clip_vit_s14_patchrank60
    method: Annotated[str, SETTING]  # "dense", "patchrank", "golden" and so on
    # Share of the patch tokens left at the end, in (0, 1].
    keep: Annotated[float, Field(role="setting", unit="fraction")]
    method_config: Annotated[dict[str, Any], SETTING]  # JSON values
    tag: Annotated[str, CONDITION]  # of the timm weights
    # Of the image tower that all methods share, a predictor not included.
    weights_sha256: Annotated[str, CONDITION]
    dataset: Annotated[str, CONDITION]
    dataset_revision: Annotated[str, CONDITION]  # hash of the shipped files, or of the split file
    split: Annotated[str, CONDITION]
    # Labelled training images per class; 0: by text.
    shots: Annotated[int, Field(role="condition", unit="per_class")]
    # What was learned from them, of plan.TUNINGS; None at 0 shots.
    tuning: Annotated[str | None, CONDITION] = None
    prompt_tokens: Annotated[int | None, CONDITION] = None  # learned, where the tuning has some
    seed: Annotated[int, CONDITION]  # of the choice of shots and of what is learned from them
    image_count: Annotated[int, CONDITION]
    # How many classes are judged, and of how many, where some have no name; see `--skip-unknown-classes`.
    classes_judged: Annotated[tuple[int, ...] | None, Field(role="condition", unit="classes")] = None
    images_sha256: Annotated[str | None, CONDITION] = None  # of ids in order: `images_digest`
    image_groups: PerImage = None  # number of each image's group; None where each is its own
    # Height and width in pixels, as the tower sees them.
    image_size: Annotated[tuple[int, ...] | None, Field(role="condition", unit="pixels")] = None
    # How near the features are to the dense model's on the same images; None of the dense model.
    # Mean over images of 1 - cosine, with a 95 % bootstrap interval, as all that is near dense.
    cosine_distance: Annotated[float | None, Metric(
        least_value=0, most_value=2,
        heading="1 - cosine", form=".4f", short="1 - cos", low="cosine_low", high="cosine_high",
        values="cosine_values", ends="roomy", least="narrow", better="lower", bound="cosine",
        change="+.4f", fidelity="1 - cosine of the features to dense",
    )] = None  # fmt: skip
    cosine_low: End = None
    cosine_high: End = None
    cosine_values: PerImage = None
    # Share of images with the dense model's answer, right or wrong.
    dense_agreement: Annotated[float | None, Metric(
        least_value=0, most_value=1,
        heading="Dense's answer, %", form=".1%", unit="fraction", short="agree", low="agreement_low",
        high="agreement_high", values="agreement_bits", least="middle", better="higher",
        bound="flips", change="+.1%", fidelity="same class as dense, %",
    )] = None  # fmt: skip
    agreement_low: FractionEnd = None
    agreement_high: FractionEnd = None
    agreement_bits: PerImage = None
    # Mean Kullback-Leibler divergence of class probabilities from the dense model's, at the tower's
    # own temperature; None of a linear probe, which has none.
    kl_to_dense: Annotated[float | None, Metric(
        least_value=0,
        heading="KL, nats", form=".3f", unit="nats", short="KL", low="kl_low", high="kl_high",
        values="kl_values", better="lower", bound="divergence", change="+.4f",
        fidelity="divergence of class probabilities from dense, nats",
    )] = None  # fmt: skip
    kl_low: End = None
    kl_high: End = None
    kl_values: PerImage = None
    # Mean share of the 10 images that are nearest by dense features found with a row's own; from
    # 500 images on.
    neighbour_overlap: Annotated[float | None, Metric(
        least_value=0, most_value=1,
        heading="Neighbours@10, %", form=".1%", unit="fraction", short="nn@10", low="overlap_low",
        high="overlap_high", values="overlap_values", better="higher", bound="divergence",
        change="+.1%", fidelity="dense's 10 nearest images found, %",
    )] = None  # fmt: skip
    overlap_low: FractionEnd = None
    overlap_high: FractionEnd = None
    overlap_values: PerImage = None
    # Mean feature of all images in a few directions, see `evaluate.feature_probe`.
    feature_probe: Annotated[tuple[float, ...] | None, Metric(bound="probe")] = None
    correct_bits: PerImage  # correctness in image order; None without labels, as what follows
    # 95 % Wilson interval; of several seeds another, see `averages.Average`.
    top1: Annotated[float | None, Metric(
        least_value=0, most_value=1,
        heading="Top-1, %", form=".1%", unit="fraction", short="top-1", low="top1_low",
        high="top1_high", values="correct_bits", ends="wide", least="narrow", better="higher",
        bound="",
    )]  # fmt: skip
    top1_low: FractionEnd
    top1_high: FractionEnd
    # On the same images, with a 95 % paired bootstrap interval.
    diff_to_dense: Annotated[float | None, Metric(
        least_value=-1, most_value=1,
        heading="To dense", form="+.1%", unit="fraction", short="to dense", low="diff_low",
        high="diff_high", ends="always", least="narrow", better="higher", bound="",
    )] = None  # fmt: skip
    diff_low: FractionEnd = None
    diff_high: FractionEnd = None
    # Mean cosine with the own class minus that with the best other.
    margin: Annotated[float | None, Metric(least_value=-2, most_value=2, better="higher", bound="cosine")] = None
    gflops: Annotated[  # 1e9 multiply-adds per image
        float | None, Metric(least_value=0, heading="GFLOPs", short="GFLOPs", least="narrow", better="lower")
    ] = None
    uncounted_operators: Annotated[tuple[str, ...] | None, Metric()] = None  # missing from gflops
    # Elements that products give per image, see cost.Cost.
    activations: Annotated[int | None, Metric(least_value=0, unit="per_image", better="lower")] = None
    params: Annotated[int | None, Metric(least_value=0, unit="count", better="lower")] = None
    tokens_per_block: Annotated[tuple[int, ...] | None, Metric()] = None  # prefix tokens, too
    final_tokens: Annotated[  # patch tokens left at the end
        int | None, Metric(least_value=0, heading="Final tokens", short="tokens", form="", least="middle", place=2)
    ] = None
    latency: Annotated[tuple[Latency, ...], MEASURED] = ()  # one entry per batch size
    # Mean Kendall tau-b against the golden ranking, as all that follows with a 95 % interval.
    tau: Annotated[float | None, Metric(
        least_value=-1, most_value=1,
        heading="Kendall τ", form="+.2f", short="tau", short_form=".2f", low="tau_low",
        high="tau_high", least="narrow", better="higher", bound="tau", change="+.3f",
    )] = None  # fmt: skip
    tau_low: End = None
    tau_high: End = None
    # Mean share of golden's match_k best that this method has, too.
    match_at_k: Annotated[float | None, Metric(
        least_value=0, most_value=1,
        heading="Match at k (chance), %", form=".1%", unit="fraction", short="match@k (chance)",
        short_form=".2f", low="match_low", high="match_high", loose=True, at="match_k",
        chance="match_chance", place=1, better="higher", bound="",
    )] = None  # fmt: skip
    match_low: FractionEnd = None
    match_high: FractionEnd = None
    match_k: Annotated[int | None, Field(unit="patches")] = None
    match_chance: FractionEnd = None  # what unrelated rankings give
    # Mean top-weighted tau against the golden ranking.
    weighted_tau: Annotated[float | None, Metric(
        least_value=-1, most_value=1,
        heading="Weighted τ", form="+.2f", short="w. tau", short_form=".2f",
        low="weighted_tau_low", high="weighted_tau_high", better="higher", bound="",
    )] = None  # fmt: skip
    weighted_tau_low: End = None
    weighted_tau_high: End = None
    # Mean share on golden's side of the border.
    border_overlap: Annotated[float | None, Metric(
        least_value=0, most_value=1,
        heading="Border overlap (chance), %", form=".1%", unit="fraction",
        short="border (chance)", short_form=".2f", low="border_low", high="border_high",
        chance="border_chance", place=1, better="higher", bound="",
    )] = None  # fmt: skip
    border_low: FractionEnd = None
    border_high: FractionEnd = None
    border_chance: FractionEnd = None  # what unrelated rankings give
    golden_images: Annotated[int | None, MEASURED] = None  # images behind the agreement
    # Golden images without a tau, as all patches scored alike.
    tau_undefined: Annotated[int | None, Field(unit="images")] = None
    device: Annotated[str, CONDITION]
    device_name: Annotated[str, CONDITION]
    dtype: Annotated[str, CONDITION]
    threads: Annotated[int, CONDITION]
    torch: Annotated[str, CONDITION]
    timm: Annotated[str, CONDITION]

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {self.schema_version}")
        if datetime.fromisoformat(self.created).utcoffset() != UTC.utcoffset(None):
            raise ValueError(f"created must be UTC in ISO 8601, got {self.created!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}")
        self._check_tuning()
        if self.images_sha256 is not None and not SHA256.fullmatch(self.images_sha256):
            raise ValueError(f"images_sha256 must be 64 hex digits, got {self.images_sha256!r}")
        for metric in metrics(type(self)).values():
            metric.require_value(getattr(self, metric.name))
            if metric.low and not (metric.loose and getattr(self, metric.low) is None):
                _check_interval(self, metric.name, metric.low, metric.high)
            if metric.values:
                self._check_values(metric)
        if self.image_groups is not None:
            unpack_groups(self.image_groups, self.image_count)

    def _check_values(self, metric: Metric) -> None:
        """Refuse a metric that isn't the mean of its values; they may be missing, save for top-1's."""
        mean, values = getattr(self, metric.name), self.per_image(metric)
        if values is None and (mean is None or metric.name != "top1"):
            return
        share = None if values is None else values.mean() if self.image_count else math.nan
        if mean is None or share is None or not math.isclose(share, mean, abs_tol=1e-6):
            raise ValueError(f"{metric.name} is {mean}, but {metric.values} says {share}")

    def _check_tuning(self) -> None:
        if (self.tuning is None) != (self.shots == 0):
            raise ValueError(f"tuning must be None at 0 shots and only there, got {self.tuning!r}")
        if self.tuning not in (None, *TUNINGS):
            raise ValueError(f"tuning {self.tuning!r}: {expected(str(self.tuning), TUNINGS)}")
        if (self.prompt_tokens is None) != (self.tuning not in PROMPTS):
            raise ValueError(f"prompt_tokens of tuning {self.tuning!r} is {self.prompt_tokens!r}")

    @property
    def recovered(self) -> bool:
        """Whether weights or tokens were trained for the reduction, without labels."""
        return RECOVERY in self.method_config

    @property
    def label(self) -> str:
        """The method, with what was added to it."""
        return f"{self.method} + recovery" if self.recovered else self.method

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return (image_count,) bool, whether each image was right; ValueError without labels."""
        if self.correct_bits is None:
            raise ValueError(f"{self.dataset} has no labels, so no image is right or wrong")
        return unpack_correct(self.correct_bits, self.image_count)

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Return (image_count,) numbers of the images' groups, see `bootstrap_mean`; None if all have their own."""
        return None if self.image_groups is None else unpack_groups(self.image_groups, self.image_count)

    def per_image(self, metric: Metric) -> NDArray[np.float64] | None:
        """Return (image_count,) values of a metric; None if there are none."""
        packed = getattr(self, metric.values) if metric.values else None
        if packed is None:
            return None
        unpack = unpack_correct if metric.values.endswith("_bits") else unpack_values
        return unpack(packed, self.image_count).astype(np.float64)


RECALL_AT = (1, 5, 10)
_RETRIEVAL = "caption_count"  # field that tells such records
_WAYS = {"image": ("Text → image", "t2i"), "text": ("Image → text", "i2t")}  # by what is found


def _recall(found: str, k: int) -> Metric:
    """Declare the recall at k of images by text or of texts by image; the former has a share for each image."""
    name, (way, short) = f"recall_{found}_{k}", _WAYS[found]
    first = k == RECALL_AT[0]
    return Metric(
        least_value=0, most_value=1, heading=f"{way} R@{k}, %", form=".1%", unit="fraction",
        short=f"{short} R@{k}", low=f"{name}_low", high=f"{name}_high",
        values=f"{name}_{'values' if found == 'image' else 'bits'}", ends="roomy" if first else "",
        least="narrow" if first else "wide", place=-1, better="higher", bound="flips", change="+.1%",
    )  # fmt: skip


def _recall_to_dense(found: str, k: int) -> Metric:
    """Declare the difference of a recall at k to the dense row's."""
    name, (way, short) = f"recall_{found}_{k}_diff", _WAYS[found]
    return Metric(
        least_value=-1, most_value=1, heading=f"{way} R@{k} to dense", form="+.1%", unit="fraction",
        short=f"{short} to dense" if k == RECALL_AT[0] else "", low=f"{name}_low", high=f"{name}_high",
        ends="roomy", least="narrow" if k == RECALL_AT[0] else "wide", place=-1, better="higher", bound="",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RetrievalRecord(Record):
    """Carry one model on one dataset with captions, by which images are retrieved and the other way round.

    Intervals are 95 % bootstraps over images, paired ones of the differences to dense.
    """

    # Distinct captions of the images: what is searched by, and in.
    caption_count: Annotated[int, Field(role="condition", unit="captions")]
    recall_image_1: Annotated[float | None, _recall("image", 1)] = None
    recall_image_1_low: FractionEnd = None
    recall_image_1_high: FractionEnd = None
    recall_image_1_values: PerImage = None
    recall_image_1_diff: Annotated[float | None, _recall_to_dense("image", 1)] = None
    recall_image_1_diff_low: FractionEnd = None
    recall_image_1_diff_high: FractionEnd = None
    recall_text_1: Annotated[float | None, _recall("text", 1)] = None
    recall_text_1_low: FractionEnd = None
    recall_text_1_high: FractionEnd = None
    recall_text_1_bits: PerImage = None
    recall_text_1_diff: Annotated[float | None, _recall_to_dense("text", 1)] = None
    recall_text_1_diff_low: FractionEnd = None
    recall_text_1_diff_high: FractionEnd = None
    recall_image_5: Annotated[float | None, _recall("image", 5)] = None
    recall_image_5_low: FractionEnd = None
    recall_image_5_high: FractionEnd = None
    recall_image_5_values: PerImage = None
    recall_image_5_diff: Annotated[float | None, _recall_to_dense("image", 5)] = None
    recall_image_5_diff_low: FractionEnd = None
    recall_image_5_diff_high: FractionEnd = None
    recall_text_5: Annotated[float | None, _recall("text", 5)] = None
    recall_text_5_low: FractionEnd = None
    recall_text_5_high: FractionEnd = None
    recall_text_5_bits: PerImage = None
    recall_text_5_diff: Annotated[float | None, _recall_to_dense("text", 5)] = None
    recall_text_5_diff_low: FractionEnd = None
    recall_text_5_diff_high: FractionEnd = None
    recall_image_10: Annotated[float | None, _recall("image", 10)] = None
    recall_image_10_low: FractionEnd = None
    recall_image_10_high: FractionEnd = None
    recall_image_10_values: PerImage = None
    recall_image_10_diff: Annotated[float | None, _recall_to_dense("image", 10)] = None
    recall_image_10_diff_low: FractionEnd = None
    recall_image_10_diff_high: FractionEnd = None
    recall_text_10: Annotated[float | None, _recall("text", 10)] = None
    recall_text_10_low: FractionEnd = None
    recall_text_10_high: FractionEnd = None
    recall_text_10_bits: PerImage = None
    recall_text_10_diff: Annotated[float | None, _recall_to_dense("text", 10)] = None
    recall_text_10_diff_low: FractionEnd = None
    recall_text_10_diff_high: FractionEnd = None


_DECLARED: dict[type, dict[str, Field]] = {}  # by kind of record
_SORTED: dict[type, dict[str, Metric]] = {}  # its metrics, as columns stand


def declared(kind: type) -> dict[str, Field]:
    """Return what the fields of `Latency`, `Record` or a subclass are, by name and in order.

    Raises:
        TypeError: a field doesn't say what it is.
    """
    if kind in _DECLARED:
        return _DECLARED[kind]
    hints = get_type_hints(kind, include_extras=True)
    by_name: dict[str, Field] = {}
    for name in (each.name for each in fields(kind)):
        own = next((own for own in get_args(hints[name])[1:] if isinstance(own, Field)), None)
        if own is None:
            raise TypeError(f"{kind.__name__}.{name} must be Annotated with a Field or a Metric")
        by_name[name] = replace(own, name=name) if isinstance(own, Metric) else own
    return _DECLARED.setdefault(kind, by_name)


def metrics(kind: type) -> dict[str, Metric]:
    """Return the measured quantities of a record by field, as columns of them stand."""
    if kind not in _SORTED:  # every record that is read asks
        named = [own for own in declared(kind).values() if isinstance(own, Metric)]
        _SORTED[kind] = {metric.name: metric for metric in sorted(named, key=lambda metric: metric.place)}
    return _SORTED[kind]


def names_of(kind: type, *roles: Role) -> tuple[str, ...]:
    """Return the fields of these roles, in order."""
    return tuple(name for name, own in declared(kind).items() if own.role in roles)


METRICS = metrics(Record)
FIDELITY = tuple(metric for metric in METRICS.values() if metric.fidelity)
CONDITIONS = names_of(Record, "condition")


def lacking(operators: Iterable[str]) -> str:
    """Say which operators multiply-adds and activations lack; nothing if there are none."""
    named = ", ".join(operators)
    return f"GFLOPs lack operators of unknown cost: {named}" if named else ""


def utc_now() -> str:
    """Return the present moment as `created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Append records as JSON lines, all or none, whoever else appends to the file meanwhile.

    Raises:
        ValueError: as `record_lines`; nothing is written.
        OSError: the file can't be written; nothing is added to it.
    """
    append_lines(Path(path), record_lines(records))


def record_lines(records: Iterable[Record]) -> bytes:
    """Return records as JSON lines, which `read_records` takes.

    Raises:
        ValueError: a value is no JSON (NaN included) or not of its field's type.
    """
    return "".join(_line(record) for record in records).encode()


def read_records(path: str | Path) -> list[Record]:
    """Read JSON lines, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no record of this schema; names the file and the line, and whether
            the last line is torn.
    """
    return parse_lines(Path(path), lambda line: _record(line, Record))


def read_run(path: Path) -> list[Record]:
    """Read a run: a file of records, or the folder of one.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: no records, or a line that is none.
    """
    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        what = f"it holds no {RECORDS}" if path.is_dir() else "there is no such file or folder"
        raise FileNotFoundError(
            f"run {str(path)!r}: {what}; expected a file of records, or the folder that "
            "patchrank compare --output wrote"
        )
    if records := read_records(file):
        return records
    raise ValueError(f"run {str(path)!r}: {file.name} holds no records")


def conditions(record: Record) -> tuple[object, ...]:
    """Return the values of `CONDITIONS`: equal in all records of one column."""
    return tuple(getattr(record, name) for name in CONDITIONS)


def refuse_mixed(records: Iterable[Record], varying: Collection[str] = ()) -> None:
    """Do nothing if all records may stand in one column.

    Conditions that are ``varying``, such as the seed of a mean over seeds, may differ.

    Raises:
        ValueError: names each condition that differs, with its values and the models they are of,
            and how such records can be seen apart.
    """
    names = [name for name in CONDITIONS if name not in varying]
    owners = ((record.model, {name: getattr(record, name) for name in names}) for record in records)
    if mixed := differing(owners):
        raise ValueError(
            f"records of different {', '.join(mixed)} cannot be compared: {in_words(mixed)}; "
            "measure them alike with patchrank compare --fresh, or keep each in a file of "
            "its own and see both by patchrank compare RUN_A RUN_B"
        )


def earlier(path: Path, progress: Progress, *, fresh: bool) -> list[Record]:
    """Return the records that a command wrote before, none if it is to measure afresh.

    A torn last line is dropped, so that a command that was killed goes on from there.

    Raises:
        ValueError: another line is no record.
    """
    return read_records(path) if can_resume(path, progress.say, fresh=fresh) else []


def fitting(blank: Record, known: Sequence[Record], batches: Sequence[int], *, ranked: bool = False) -> Record | None:
    """Find the newest known record made under the same conditions as ``blank``, an unmeasured one.

    Latency at these batch sizes must be there, too, and agreement with golden rankings if
    ``ranked``; it needs tokens that went.
    """
    same = measured_alike(blank)
    for record in reversed(known):
        timed = record.method == GOLDEN or {e.batch for e in record.latency} >= set(batches)
        compared = record.weighted_tau is not None or not ranked or record.keep == 1
        # A tuned row may stand alone; see Bench.judged.
        alone = record.method == DENSE or record.tuning is not None
        near = record.cosine_distance is not None or alone
        if timed and compared and near and measured_alike(record) == same:
            return record
    return None


def measured_alike(record: Record) -> str:
    """Return what is the same text for all records made under the same conditions."""
    names = names_of(type(record), "setting", "condition")
    return json.dumps([getattr(record, name) for name in names], sort_keys=True)


def _line(record: Record) -> str:
    values = asdict(record)
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} of {record.model}: {error}") from error
    line = json.dumps(values)
    _record(line, type(record))
    return line + "\n"


def _record(line: str | bytes, kind: type[R]) -> R:
    values = strict_json(line)
    if isinstance(values, dict):
        version = values.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
        if kind is Record and _RETRIEVAL in values:
            return cast(R, from_json(RetrievalRecord, values, "record", complete=True))
    return cast(R, from_json(kind, values, "record", complete=True))


def _check_interval(holder: object, value: str, low: str, high: str) -> None:
    ordered = {name: getattr(holder, name) for name in (low, value, high)}
    numbers = [number for number in ordered.values() if number is not None]
    whole = len(numbers) in {0, 3} and all(math.isfinite(number) for number in numbers)
    if not whole or numbers != sorted(numbers):
        raise ValueError(f"need {low} <= {value} <= {high}, or all three None, got {ordered}")


def images_digest(image_ids: Iterable[str]) -> str:
    """Return the SHA-256 of ids in their order, in hex: the same for the same images only.

    Each id is preceded by its length in bytes, so that no two lists read alike.
    """
    digest = hashlib.sha256()
    for image_id in image_ids:
        name = image_id.encode()
        digest.update(b"%d:%s" % (len(name), name))
    return digest.hexdigest()


def pack_correct(correct: ArrayLike) -> str:
    """Return the hex bitmap of (n,) bool, first image in the highest bit of the first byte.

    Raises:
        ValueError: not (n,) bool.
    """
    flags = np.asarray(correct)
    if flags.ndim != 1 or flags.dtype != np.bool_:
        raise ValueError(f"correctness must be (n,) bool, got {flags.shape} {flags.dtype}")
    return np.packbits(flags).tobytes().hex()


def unpack_correct(bits: str, image_count: int) -> NDArray[np.bool_]:
    """Return (image_count,) bool from a hex bitmap.

    Raises:
        ValueError: the bitmap is no hex, or not of that many images.
    """
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    flags = np.unpackbits(packed).astype(np.bool_)
    if len(packed) != math.ceil(image_count / 8) or flags[image_count:].any():
        raise ValueError(f"correct_bits of {len(packed)} bytes is not of {image_count} images")
    return flags[:image_count]


def pack_values(values: ArrayLike) -> str:
    """Return (n,) numbers as base64 of little-endian half floats, which keep 3 digits.

    Raises:
        ValueError: not (n,), or a number that isn't finite as such.
    """
    with np.errstate(over="ignore"):  # infinite then, which is refused
        halves = np.asarray(values).astype("<f2")
    if halves.ndim != 1 or not np.isfinite(halves).all():
        raise ValueError(f"values must be (n,) finite numbers, got {halves.shape}")
    return base64.b64encode(halves.tobytes()).decode()


def unpack_values(packed: str, image_count: int) -> NDArray[np.float64]:
    """Return (image_count,) numbers.

    Raises:
        ValueError: no base64, not of that many images, or a number that isn't finite.
    """
    raw = base64.b64decode(packed, validate=True)
    if len(raw) != 2 * image_count:
        raise ValueError(f"values of {len(raw)} bytes are not of {image_count} images")
    values = np.frombuffer(raw, dtype="<f2").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite numbers")
    return values


def pack_groups(names: Sequence[str]) -> str | None:
    """Return base64 of little-endian numbers of each image's group; None if none has two images.

    Numbers take 1, 2 or 4 bytes, as few as hold them all: every record of a dataset has them.
    """
    numbers = np.unique(names, return_inverse=True)[1]
    if not numbers.size or numbers.max() == numbers.size - 1:
        return None
    width = np.min_scalar_type(numbers.max()).itemsize
    return base64.b64encode(numbers.astype(f"<u{width}").tobytes()).decode()


def unpack_groups(packed: str, image_count: int) -> NDArray[np.int64]:
    """Return (image_count,) numbers, every one from 0 to the largest.

    Raises:
        ValueError: no base64, not of that many images, or a number is left out.
    """
    raw = base64.b64decode(packed, validate=True)
    width, rest = divmod(len(raw), max(image_count, 1))
    if width in (1, 2, 4) and not rest:
        numbers = np.frombuffer(raw, dtype=f"<u{width}").astype(np.int64)
        if len(np.unique(numbers)) == numbers.max() + 1:
            return numbers
    raise ValueError(f"image_groups of {len(raw)} bytes isn't of {image_count} images")


def differing(owners: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[Any, list[str]]]:
    """Return each name whose value isn't the same everywhere, with the owners of each value.

    Owners come with their values by name; names are the same for all.
    """
    values: dict[str, dict[Any, list[str]]] = {}
    for owner, own in owners:
        for name, value in own.items():
            alike = values.setdefault(name, {}).setdefault(value, [])
            if owner not in alike:
                alike.append(owner)
    return {name: several for name, several in values.items() if len(several) > 1}


def in_words(differences: Mapping[str, Mapping[Any, list[str]]]) -> str:
    """Say each name that differs, all its values, and a few owners of each."""

    def some(owners: list[str]) -> str:
        more = len(owners) - _NAMED
        return ", ".join(owners[:_NAMED]) + (f" and {more} more" if more > 0 else "")

    return "; ".join(
        f"{name} {' and '.join(f'{v!r} ({some(owners)})' for v, owners in values.items())}"
        for name, values in differences.items()
    )
