"""One measured row, its JSON line, and what must be equal before two rows are compared."""

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.appending import append, parsed_lines
from harness.conditions import PROMPTS, TUNINGS
from harness.correctness import SHA256, unpack_correct
from harness.differing import differing, in_words
from harness.schema import SCHEMA_VERSION, upgraded
from harness.typed_json import parsed
from zoo.reducer import expected

CONDITIONS = (
    "dataset", "dataset_revision", "split", "shots", "tuning", "prompt_tokens", "seed",
    "image_count", "images_sha256", "image_size", "tag", "weights_sha256", "device", "device_name",
    "dtype", "threads", "torch", "timm",
)  # fmt: skip
LATER_CONDITIONS = ("images_sha256", "image_size")  # None, so unknown, before version 6


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Carry the time of one batch; ratios are None for the dense model and where it is missing."""

    batch: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    ratio_to_dense: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    images_per_s: float

    def __post_init__(self) -> None:
        _check_interval(self, "ratio_to_dense", "ratio_low", "ratio_high")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Carry one model on one dataset. None means not measured; nothing unmeasured is 0."""

    schema_version: int = SCHEMA_VERSION
    created: str  # UTC, ISO 8601
    version: str  # of this package
    git_commit: str | None = None
    model: str  # timm id, such as clip_vit_s14_patchrank60
    method: str  # "dense", "patchrank", "golden" and so on
    keep: float  # share of the patch tokens left at the end, in (0, 1]
    method_config: dict[str, Any]  # JSON values
    tag: str  # of the timm weights
    weights_sha256: str  # of the image tower all methods share, a predictor not included
    dataset: str
    dataset_revision: str  # hash of the shipped files, or of the split file
    split: str
    shots: int  # labelled training images per class; 0 = by text
    tuning: str | None = None  # what was learned from them, of plan.TUNINGS; None at 0 shots
    prompt_tokens: int | None = None  # learned tokens, where the tuning has some
    seed: int  # of the choice of shots and of what is learned from them
    image_count: int
    images_sha256: str | None = None  # of their ids in order, see correctness.images_digest
    image_size: tuple[int, ...] | None = None  # height and width in pixels, as the tower sees them
    correct_bits: str  # correctness in image order, see correctness.pack_correct
    top1: float  # fraction, with its 95 % Wilson interval
    top1_low: float
    top1_high: float
    diff_to_dense: float | None = None  # fraction, same images, 95 % paired bootstrap interval
    diff_low: float | None = None
    diff_high: float | None = None
    margin: float | None = None  # mean cosine with the own class minus that with the best other
    cosine_to_dense: float | None = None  # mean over images of features', 95 % bootstrap interval
    cosine_low: float | None = None
    cosine_high: float | None = None
    gflops: float | None = None  # 1e9 multiply-adds per image
    uncounted_operators: tuple[str, ...] | None = None  # missing from gflops; empty: none is
    activations: int | None = None  # elements that products give per image, see cost.Cost
    params: int | None = None
    tokens_per_block: tuple[int, ...] | None = None  # leaving each block, prefix tokens included
    final_tokens: int | None = None  # patch tokens left at the end
    latency: tuple[Latency, ...] = ()  # one entry per batch size
    tau: float | None = None  # mean Kendall tau-b against the golden ranking, 95 % interval
    tau_low: float | None = None
    tau_high: float | None = None
    match_at_k: float | None = None  # mean share of golden's match_k best that this method has too
    match_low: float | None = None
    match_high: float | None = None
    match_k: int | None = None
    match_chance: float | None = None  # what unrelated rankings give
    weighted_tau: float | None = None  # mean top-weighted tau against the golden ranking, likewise
    weighted_tau_low: float | None = None
    weighted_tau_high: float | None = None
    border_overlap: float | None = None  # mean share on golden's side of the border, likewise
    border_low: float | None = None
    border_high: float | None = None
    border_chance: float | None = None  # what unrelated rankings give
    golden_images: int | None = None  # images behind the agreement
    tau_undefined: int | None = None  # golden images without a tau, as all patches scored alike
    device: str
    device_name: str
    dtype: str
    threads: int
    torch: str
    timm: str

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
        _check_interval(self, "top1", "top1_low", "top1_high")
        _check_interval(self, "diff_to_dense", "diff_low", "diff_high")
        _check_interval(self, "cosine_to_dense", "cosine_low", "cosine_high")
        _check_interval(self, "tau", "tau_low", "tau_high")
        if self.match_low is not None:  # before version 4 there was no interval
            _check_interval(self, "match_at_k", "match_low", "match_high")
        _check_interval(self, "weighted_tau", "weighted_tau_low", "weighted_tau_high")
        _check_interval(self, "border_overlap", "border_low", "border_high")
        share = self.correct.mean() if self.image_count else math.nan
        if not math.isclose(share, self.top1, abs_tol=1e-6):
            raise ValueError(f"top1 is {self.top1}, but correct_bits says {share}")

    def _check_tuning(self) -> None:
        if (self.tuning is None) != (self.shots == 0):
            raise ValueError(f"tuning must be None at 0 shots and only there, got {self.tuning!r}")
        if self.tuning not in (None, *TUNINGS):
            raise ValueError(f"tuning {self.tuning!r}: {expected(str(self.tuning), TUNINGS)}")
        if (self.prompt_tokens is None) != (self.tuning not in PROMPTS):
            raise ValueError(f"prompt_tokens of tuning {self.tuning!r} is {self.prompt_tokens!r}")

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return (image_count,) bool, whether each image was right."""
        return unpack_correct(self.correct_bits, self.image_count)


def utc_now() -> str:
    """Return the present moment as `created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Append records as JSON lines, all or none, whoever else appends to the file meanwhile.

    Raises:
        ValueError: A value is no JSON (NaN included) or not of its field's type; nothing is
            written.
        OSError: The file can't be written; nothing is added to it.
    """
    append(Path(path), "".join(_line(record) for record in records).encode())


def read_records(path: str | Path) -> list[Record]:
    """Read JSON lines, in file order.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Names the file, the line and the field that is unknown, missing or wrong; or
            the last line is torn.
    """
    return parsed_lines(Path(path), _record)


def conditions(record: Record) -> tuple[object, ...]:
    """Return the values of `CONDITIONS`: equal in all records of one column."""
    return tuple(getattr(record, name) for name in CONDITIONS)


def refuse_mixed(records: Iterable[Record], varying: Collection[str] = ()) -> None:
    """Do nothing if all records may stand in one column.

    Args:
        records: to be compared.
        varying: conditions that may differ all the same, such as the seed of a mean over seeds.

    Raises:
        ValueError: Names each condition that differs, with its values and the models they are of,
            and how such records can be seen apart.
    """
    names = [name for name in CONDITIONS if name not in varying]
    told = ((record.model, {name: getattr(record, name) for name in names}) for record in records)
    if mixed := differing(told, unknown=LATER_CONDITIONS):
        raise ValueError(
            f"records of different {', '.join(mixed)} cannot be compared: {in_words(mixed)}; "
            "measure them alike with python -m harness compare --fresh, or keep each in a file of "
            "its own and see both by python -m harness compare RUN_A RUN_B"
        )


def _line(record: Record) -> str:
    values = asdict(record)
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} of {record.model}: {error}") from error
    line = json.dumps(values)
    _record(line)
    return line + "\n"


def _record(line: str | bytes) -> Record:
    values = json.loads(line)
    if isinstance(values, dict):
        values = upgraded(values)
    record: Record = parsed(Record, values, "record")
    return record


def _check_interval(holder: object, value: str, low: str, high: str) -> None:
    found = {name: getattr(holder, name) for name in (low, value, high)}
    numbers = [number for number in found.values() if number is not None]
    whole = len(numbers) in {0, 3} and all(math.isfinite(number) for number in numbers)
    if not whole or numbers != sorted(numbers):
        raise ValueError(f"need {low} <= {value} <= {high}, or all three None, got {found}")
