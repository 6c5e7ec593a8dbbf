"""Records of a model on a dataset and of the conditions of its measurement; how they are read and used again."""

import base64
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.lines import append_lines, parse_lines
from harness.records.metrics import METRICS, MetricValue, require_order, unpack
from harness.records.statistics import Interval
from zoo.core.files import kind_of
from zoo.core.json_reader import from_json, strict_json
from zoo.deploy.runtime import OPTIMIZED, RUNTIMES

DENSE, GOLDEN = "dense", "golden"  # methods that no reducer is registered for
RESIZE = "resize"  # the control that anyone tries first: the dense model on smaller images; no reducer, either
UNREDUCED = (DENSE, *RUNTIMES)  # a runtime is the dense tower by it, in the precision of its settings
RANDOM = "random"  # the control: a method that is no better chooses by chance
SHORT_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # in labels of rows
PROBE = "probe"
RECOVERY = "recovery"  # setting of a row whose weights or tokens were trained: the digest of their file
FITTED_TO = "fitted to"  # setting of an adaptive row: the images that its budgets learned from
DEALT = "dealt"  # setting of an adaptive row: what pictures take their keep rates by, of `ADAPTIVE`
ADAPTIVE = {"signal": "adaptive", "random": "adaptive random", "errors": "adaptive known"}  # with words for rows
CONTROLS = ("random", "errors")  # that deal at random, and by what is only known afterwards
MATCHED = "matched"  # setting of a row: whose time its keep rate meets, and at which batch size
PROMPTS = {  # learned tokens, by the letters that --tokens takes
    "t": "learned text tokens",
    "v": "learned visual tokens",
    "vt": "learned visual and text tokens",
}
TUNINGS = (*PROMPTS, PROBE)
SCHEMA_VERSION = 9
RECORDS = "records.jsonl"  # in the folder of a run
UNFINISHED = ".unfinished"  # suffix of a folder beside `RECORDS`: outputs whose records aren't written yet
SHA256 = re.compile(r"[0-9a-f]{64}")  # of `images_digest`


@dataclass(frozen=True, kw_only=True)
class Times:
    """Carry the time of one batch; ratios are None for the dense model and without one."""

    batch: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    ratio_to_dense: float | None = None  # median over rounds with a 95 % interval
    ratio_low: float | None = None
    ratio_high: float | None = None
    images_per_s: float  # at the median

    def __post_init__(self) -> None:
        require_order(self, "q1_ms", "median_ms", "q3_ms")
        require_order(self, "ratio_low", "ratio_to_dense", "ratio_high")
        if (self.ratio_to_dense is None) != (self.ratio_low is None):
            raise ValueError(f"ratio_to_dense needs ratio_low and ratio_high, got {self.ratio_to_dense!r} alone")

    @property
    def ratio(self) -> Interval | None:
        """The ratio to dense with its interval; None if not measured."""
        ends = (self.ratio_to_dense, self.ratio_low, self.ratio_high)
        return None if None in ends else Interval(*ends)  # type: ignore[arg-type]  # none is None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Say how images are classified: by the captions of classes, or by something learned from shots."""

    shots: int = 0  # labelled training images per class; 0 takes the captions
    seed: int = 0  # of the choice of shots and of what is learned from them
    kind: str | None = None  # of ``TUNINGS``; None at 0 shots
    prompt_tokens: int | None = None  # number of learned tokens; None without

    @property
    def prompted(self) -> bool:
        """Whether tokens are learned, each row's its own."""
        return self.kind in PROMPTS

    @property
    def visual(self) -> bool:
        """Whether learned tokens go through the image tower, whose features they change."""
        return self.kind in ("v", "vt")


def device_name(device: str) -> str:
    """Return the name that a device has from its maker."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:(.*)$", info.read_text() if info.is_file() else "", re.M)
    return model[1].strip() if model else platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """Carry the fields of every record that say which row it is of. None means not measured, never 0."""

    schema_version: int
    created: str  # UTC, ISO 8601
    version: str  # of this package
    git_commit: str | None = None
    model: str  # timm id, such as clip_vit_s14_patchrank60
    method: str  # "dense", "patchrank", "golden" and so on
    keep: float  # of the patch tokens left at the end, in (0, 1]
    method_config: dict[str, Any]  # JSON values
    tag: str  # of the timm weights
    weights_sha256: str  # of the image tower that all methods share, without a predictor


@dataclass(frozen=True, kw_only=True)
class Record(RowRecord):
    """Carry one model on one dataset."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    dataset_revision: str  # hash of the shipped files, or of the split file
    split: str
    shots: int  # labelled training images; 0: by text
    tuning: str | None = None  # learned from them, of TUNINGS; None at 0 shots
    prompt_tokens: int | None = None  # learned, where the tuning has some
    seed: int  # of the choice of shots and of what is learned from them
    image_count: int
    # How many classes are judged, and of how many, if some are left out by `--skip-unknown-classes`.
    classes_judged: tuple[int, ...] | None = None
    images_sha256: str | None = None  # of ids in order: `images_digest`
    image_groups: str | None = None  # of `pack_groups`; None if every image is its own group
    image_size: tuple[int, ...] | None = None  # height and width
    caption_count: int | None = None  # distinct captions for retrieval in both directions; None without
    metrics: dict[str, MetricValue] = field(default_factory=dict)  # by name, of `metrics.METRICS`
    feature_probe: tuple[float, ...] | None = None  # see `rows.feature_probe`
    uncounted_operators: tuple[str, ...] | None = None  # missing from gflops
    tokens_per_block: tuple[int, ...] | None = None  # prefix tokens, too
    latency: tuple[Times, ...] = ()  # one entry per batch size
    golden_images: int | None = None  # images behind the agreement
    tau_undefined: int | None = None  # without a tau, as all patches scored alike
    device: str
    device_name: str
    precision: str
    threads: int
    torch: str
    timm: str

    def __post_init__(self) -> None:
        for name, valid, bounds in (
            ("created", datetime.fromisoformat(self.created).utcoffset() == timedelta(0), "be UTC in ISO 8601"),
            ("tuning", (self.tuning is None) == (self.shots == 0), "be None at 0 shots and only there"),
            ("tuning", self.tuning is None or self.tuning in TUNINGS, f"be one of {', '.join(TUNINGS)}"),
            ("prompt_tokens", (self.prompt_tokens is None) != (self.tuning in PROMPTS), f"suit tuning {self.tuning!r}"),
            ("images_sha256", self.images_sha256 is None or SHA256.fullmatch(self.images_sha256), "be 64 hex digits"),
        ):
            if not valid:
                raise ValueError(f"{name} must {bounds}, got {getattr(self, name)!r}")
        for name, measured in self.metrics.items():
            for number in (measured.mean, measured.low, measured.high) if name in METRICS else ():
                if number is not None:
                    METRICS[name].require_value(number)
            values = measured.per_image(self.image_count)
            mean = None if values is None else float(values.mean())
            if (mean is None and name == "top1") or (mean is not None and abs(mean - measured.mean) > 1e-6):
                raise ValueError(f"{name} is {measured.mean}, but its values say {mean}")
        if self.image_groups is not None:
            unpack_groups(self.image_groups, self.image_count)

    @property
    def recovered(self) -> bool:
        """Whether weights or tokens were trained for the reduction, without labels."""
        return RECOVERY in self.method_config

    @property
    def label(self) -> str:
        """The method, with a faster dense model's runtime and precision, with budgets, and with recovery."""
        if self.method in RUNTIMES:
            precision = self.method_config["precision"]
            short = SHORT_PRECISIONS.get(precision, precision)
            return f"{DENSE}, {short}" if self.method == OPTIMIZED else f"{DENSE}, {self.method} {short}"
        if self.adaptive:
            return f"{self.method}, {ADAPTIVE[self.method_config[DEALT]]}"
        return f"{self.method} + recovery" if self.recovered else self.method

    @property
    def adaptive(self) -> bool:
        """Whether each image took a keep rate of its own; ``keep`` is the fixed one of equal cost then."""
        return DEALT in self.method_config

    @property
    def control(self) -> bool:
        """Whether it is an adaptive row that no model could be."""
        return self.method_config.get(DEALT) in CONTROLS

    @property
    def labelled(self) -> bool:
        """Whether the images have labels, so that each is right or wrong."""
        return "top1" in self.metrics

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return (image_count,) bool, whether each image was right; ValueError without labels."""
        if not self.labelled:
            raise ValueError(f"{self.dataset} has no labels, so no image is right or wrong")
        packed = self.metrics["top1"].values
        assert packed is not None
        return unpack(packed, self.image_count)

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Return (image_count,) numbers of the images' groups, see `bootstrap_mean`; None if all have their own."""
        return None if self.image_groups is None else unpack_groups(self.image_groups, self.image_count)

    def mean(self, name: str) -> int | float | None:
        """Return the mean of a metric; None if not measured."""
        return self.metrics[name].mean if name in self.metrics else None

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """Return (image_count,) values of a metric; None without."""
        return self.metrics[name].per_image(self.image_count) if name in self.metrics else None


_RUN = ("created", "git_commit")  # fields that are equal in no two records
_SETTINGS = ("schema_version", "version", "model", "method", "keep", "method_config")  # which row it is
MEASURED = (
    "image_groups", "metrics", "feature_probe", "uncounted_operators", "tokens_per_block", "latency", "golden_images",
    "tau_undefined",
)  # fmt: skip
# Fields that are equal in all records of a column.
CONDITIONS = tuple(each.name for each in fields(Record) if each.name not in (*_RUN, *_SETTINGS, *MEASURED))
UNITS = {  # suffixes of columns in CSV, for fields whose name doesn't say the unit
    **{"keep": "fraction", "shots": "per_class", "classes_judged": "classes", "image_size": "pixels"},
    **{"caption_count": "captions", "tau_undefined": "images"},
}


def lacking(operators: Iterable[str]) -> str:
    """Say which operators multiply-adds lack; an empty string for none."""
    names = ", ".join(operators)
    return f"GFLOPs lack operators of unknown cost: {names}" if names else ""


def utc_now() -> str:
    """Return the present moment as `created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_values(record: Record) -> dict[str, Any]:
    """Return the values of a line of JSON; metrics are without fields that are None."""
    values = asdict(record)
    for name, metric in values["metrics"].items():
        values["metrics"][name] = {field: value for field, value in metric.items() if value is not None}
    return values


def record_lines(records: Iterable[Record]) -> bytes:
    """Return records as JSON lines, which `read_records` takes; ValueError for what it wouldn't."""
    lines = []
    for record in records:
        try:
            lines.append(json.dumps(record_values(record), allow_nan=False))
            _read_record(lines[-1])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{record.model}: {error}") from error
    return "".join(f"{line}\n" for line in lines).encode()


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Append records as JSON lines, all or none, whoever else appends to the file meanwhile."""
    append_lines(Path(path), record_lines(records))


def keep_new(path: Path, records: Sequence[Record], known: Sequence[Record]) -> None:
    """Append the records that earlier runs haven't written."""
    if fresh := [record for record in records if record not in known]:
        write_records(path, fresh)


def read_records(path: str | Path) -> list[Record]:
    """Read JSON lines, in file order; ValueError names the file and the line that is no record of this schema."""
    return parse_lines(Path(path), _read_record)


def parse_line(line: str | bytes, schema_version: int) -> dict[str, Any]:
    """Return the fields of a JSON line; ValueError for those of another version."""
    values: dict[str, Any] = from_json(dict[str, Any], strict_json(line), "record")
    if (known := values.get("schema_version")) != schema_version:
        mend = "move the file away, or name another --output"
        raise ValueError(f"schema_version is {known!r}, this version reads {schema_version}: {mend}")
    return values


def _read_record(line: str | bytes) -> Record:
    values = parse_line(line, SCHEMA_VERSION)
    metrics = from_json(dict[str, Any], values.pop("metrics", None), "metrics")
    for name, fields_of_metric in metrics.items():
        try:
            metrics[name] = from_json(MetricValue, fields_of_metric, "it")
        except ValueError as error:
            raise ValueError(f"metric {name!r}: {error}") from error
    return from_json(Record, values, "record", complete=True, metrics=metrics)


def earlier(path: Path, *, fresh: bool) -> list[Record]:
    """Return the records that a command wrote before; none if ``fresh``, when outputs of a stopped run go, too."""
    if fresh:
        shutil.rmtree(path.with_suffix(UNFINISHED), ignore_errors=True)
    return read_records(path) if path.is_file() and not fresh else []


def read_run(path: Path) -> list[Record]:
    """Read a run: a file of records, or the folder of one; raise ValueError if it has no records."""
    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        reason = f"it holds no {RECORDS}" if path.is_dir() else "there is no such file or folder"
        if kind := kind_of(file):
            reason = f"{str(file)!r} is {kind}"
        wanted = "expected a file of records, or the folder that patchrank compare --output wrote"
        raise FileNotFoundError(f"run {str(path)!r}: {reason}; {wanted}")
    if records := read_records(file):
        return records
    raise ValueError(f"run {str(path)!r}: {file.name} holds no records")


def lacks_times(record: Record, batches: Iterable[int]) -> bool:
    """Tell whether a record lacks the latency at one of these batch sizes; golden and adaptive rows have none."""
    return (
        record.method != GOLDEN
        and not record.adaptive
        and not {times.batch for times in record.latency} >= set(batches)
    )


def fitting(blank: Record, known: Sequence[Record], batches: Iterable[int], *, ranked: bool = False) -> Record | None:
    """Find the newest known record of the same conditions as ``blank``, if possible with times at these batch sizes.

    If ``ranked``, the record must have its agreement with golden rankings, unless it keeps all tokens.
    """
    same, untimed = measured_alike(blank), None
    for record in reversed(known):
        compared = "tau" in record.metrics or not ranked or record.keep == 1
        alone = record.method == DENSE or record.tuning is not None  # a tuned row may have no dense one beside it
        near = "cosine_distance" in record.metrics or alone
        if compared and near and measured_alike(record) == same:
            if not lacks_times(record, batches):
                return record
            untimed = untimed or record
    return untimed


def measured_alike(record: Record) -> str:
    """Return a text that is equal for records of the same row and conditions."""
    return json.dumps([getattr(record, name) for name in (*_SETTINGS, *CONDITIONS)], sort_keys=True)


def refuse_mixed(records: Iterable[Record], varying: Collection[str] = ()) -> None:
    """Raise ValueError unless all records may stand in one column, where the conditions ``varying`` may differ."""
    names = [name for name in CONDITIONS if name not in varying]
    if mixed := differing({name: getattr(record, name) for name in names} for record in records):
        words = "; ".join(f"{name} {' and '.join(map(repr, values))}" for name, values in mixed.items())
        raise ValueError(
            f"records of different {', '.join(mixed)} cannot be compared: {words}; "
            "measure them alike with patchrank compare --fresh, or keep each in a file of "
            "its own and see both by patchrank compare RUN_A RUN_B"
        )


def differing(mappings: Iterable[Mapping[str, Hashable]]) -> dict[str, list[Hashable]]:
    """Return the distinct values of each name whose value isn't the same in all mappings, which have equal names."""
    values: dict[str, dict[Hashable, None]] = {}
    for name, value in chain.from_iterable(mapping.items() for mapping in mappings):
        values.setdefault(name, {})[value] = None
    return {name: list(several) for name, several in values.items() if len(several) > 1}


def images_digest(image_ids: Iterable[str]) -> str:
    """Return the SHA-256 in hex of ids in their order, each behind its length, so that no two lists agree."""
    names = [image_id.encode() for image_id in image_ids]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(name), name) for name in names)).hexdigest()


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Restrict records to the half of the images of less detail, and to the half of more, as two datasets.

    Of metrics without a value per image only counted ones, such as GFLOPs, stay. Raises ValueError if no dense record
    tells the detail of a record's images.
    """

    def key(record: Record) -> tuple[Hashable, ...]:
        return record.dataset, record.dataset_revision, record.split, record.images_sha256, record.image_size

    known = {key(record): detail for record in records if (detail := record.per_image("detail")) is not None}
    smooth, detailed = list[Record](), list[Record]()
    for record in records:
        if key(record) not in known:
            raise ValueError(
                f"--halves: no record of the dense model tells the detail of the images of {record.dataset!r} that "
                f"{record.model} was measured on; measure both anew with patchrank compare --fresh"
            )
        low, high = np.array_split(np.argsort(known[key(record)], kind="stable"), 2)  # the first may have one more
        smooth.append(_on_images(record, np.sort(low), "smooth half"))
        detailed.append(_on_images(record, np.sort(high), "detailed half"))
    return smooth, detailed


def _on_images(record: Record, places: NDArray[np.int64], name: str) -> Record:
    """Return a record on some of its images as of a dataset called after their part, ``name``."""
    groups = None if record.groups is None else record.groups[places]
    metrics = dict[str, MetricValue]()
    for metric, whole in record.metrics.items():
        if metric in METRICS and whole.values is not None:
            values = unpack(whole.values, record.image_count)[places]
            if (part := METRICS[metric].summarise(values, groups, whole.chance, whole.at)) is not None:
                metrics[metric] = part
        elif metric in METRICS and METRICS[metric].counted and whole.interval is None:
            metrics[metric] = whole
    return replace(
        record,
        dataset=f"{record.dataset}, {name}",
        image_count=len(places),
        images_sha256=None,
        image_groups=None if groups is None else pack_groups(groups.astype(str).tolist()),
        caption_count=None,
        metrics=metrics,
        feature_probe=None,
        golden_images=None,
        tau_undefined=None,
    )


def pack_groups(names: Sequence[str]) -> str | None:
    """Return base64 of little-endian numbers of each image's group; None if no group has two images.

    Numbers take 1, 2 or 4 bytes, as few as possible, since every record of a dataset has them.
    """
    numbers = np.unique(names, return_inverse=True)[1]
    if not numbers.size or numbers.max() == numbers.size - 1:
        return None
    width = np.min_scalar_type(numbers.max()).itemsize
    return base64.b64encode(numbers.astype(f"<u{width}").tobytes()).decode()


def unpack_groups(packed: str, image_count: int) -> NDArray[np.int64]:
    """Return (image_count,) numbers of `pack_groups`, all from 0 to the largest; ValueError for other texts."""
    raw = base64.b64decode(packed, validate=True)
    width, rest = divmod(len(raw), max(image_count, 1))
    if width in (1, 2, 4) and not rest:
        numbers = np.frombuffer(raw, dtype=f"<u{width}").astype(np.int64)
        if len(np.unique(numbers)) == numbers.max() + 1:
            return numbers
    raise ValueError(f"image_groups of {len(raw)} bytes isn't of {image_count} images")
