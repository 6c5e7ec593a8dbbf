"""One timed model, its JSON line, and when a line of an earlier run may be used again."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.console import Progress
from harness.latency.machine import Machine, Surroundings
from harness.latency.timing import Timing
from harness.records import append, parsed, parsed_lines, to_go_on_from

LATENCIES = "latency.jsonl"  # file of a run's records
SCHEMA_VERSION = 1
CONDITIONS = (
    "version", "model", "method", "keep", "method_config", "tag", "weights_sha256",
    "random_weights", "image_size", "device", "dtype", "way", "batch", "threads", "stopwatch",
    "machine",
)  # fmt: skip
LEAST_SAVED = 0.01  # of the multiply-adds, below which no share of them says anything
FASTER, SLOWER, OPEN = "faster", "slower", "not shown"
VERDICTS = {
    FASTER: "the interval of the ratio to dense lies below 1",
    SLOWER: "it lies above 1",
    OPEN: "it includes 1: no difference can be concluded",
}


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Carry one model timed under one condition. None means not measured, never 0."""

    schema_version: int = SCHEMA_VERSION
    created: str  # UTC, ISO 8601
    version: str  # of this package
    git_commit: str | None = None
    model: str
    method: str
    keep: float  # share of the patch tokens left at the end, in (0, 1]
    method_config: dict[str, Any]  # JSON values
    tag: str  # of the tower's weights
    weights_sha256: str  # of the dense tower
    random_weights: bool
    image_size: tuple[int, ...]  # height and width
    device: str
    dtype: str
    way: str  # of ways.WAYS
    batch: int
    threads: int
    stopwatch: str
    machine: Machine
    failed: str | None = None  # why there are no times
    samples_ms: tuple[float, ...] = ()  # of whole calls; those of a cell share rounds
    # As `records.Latency` has them, under the same names.
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    images_per_s: float | None = None  # at the median
    ratio_to_dense: float | None = None  # median over rounds, 95 % interval
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: str | None = None  # of VERDICTS; None for the dense model
    warnings: tuple[str, ...] = ()
    gflops: float  # 1e9 multiply-adds per image
    uncounted_operators: tuple[str, ...] = ()  # whose cost is unknown and missing from it
    params: int
    tokens_per_block: tuple[int, ...]  # leaving each block, prefix tokens included
    final_tokens: int  # patch tokens left at the end
    saved_gflops: float | None = None  # share of the dense model's that isn't done
    saved_time: float | None = None  # share of the dense model's time, 1 - ratio
    arrived: float | None = None  # saved_time by saved_gflops
    first_call_s: float | None = None  # preparing, compiling and the first call
    deviation: float | None = None  # of features from eager's, largest over images
    weights_mib: float
    peak_mib: float | None = None  # most that a call holds beside weights and images
    surroundings: Surroundings

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {self.schema_version}")
        times = (self.median_ms, self.q1_ms, self.q3_ms, self.images_per_s, *self.samples_ms)
        if (self.failed is None) != (bool(self.samples_ms) and None not in times):
            raise ValueError(
                f"{self.model} must have times or say why it failed, and not both: "
                f"failed={self.failed!r}, {len(self.samples_ms)} samples"
            )


def time_fields(timing: Timing, dense: Timing | None, saved: float | None) -> dict[str, Any]:
    """Return the fields of a record that follow from timed calls.

    Args:
        timing: a model's.
        dense: the dense model's, of the same rounds; None if this is it, or if it has none.
        saved: share of the dense model's multiply-adds that isn't done.
    """
    latency = timing.latency(dense)
    fields = {"samples_ms": timing.samples_ms, **vars(latency)}
    ratio, low, high = latency.ratio_to_dense, latency.ratio_low, latency.ratio_high
    if ratio is None or low is None or high is None:
        return fields
    saves = saved is not None and saved >= LEAST_SAVED
    return fields | {
        "verdict": FASTER if high < 1 else SLOWER if low > 1 else OPEN,
        "saved_time": 1 - ratio,
        "arrived": (1 - ratio) / saved if saves and saved is not None else None,
    }


def write_latencies(path: Path, records: Iterable[LatencyRecord]) -> None:
    """Append records as JSON lines, all or none.

    Raises:
        ValueError: a value is no JSON (NaN included); nothing is written.
        OSError: the file can't be written to; nothing is added to it.
    """
    lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in records]
    append(path, "".join(lines).encode())


def read_latencies(path: Path) -> list[LatencyRecord]:
    """Read JSON lines, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names the file, the line and what is wrong with it, or the last line is torn.
    """
    return parsed_lines(path, _record)


def _record(line: bytes) -> LatencyRecord:
    record: LatencyRecord = parsed(LatencyRecord, json.loads(line), "record")
    return record


def earlier(path: Path, progress: Progress, *, fresh: bool) -> list[LatencyRecord]:
    """Return what an earlier run wrote, none if it is to be timed afresh.

    A torn last line is dropped, so that a command that was killed goes on from there.

    Raises:
        ValueError: another line is no record.
    """
    return read_latencies(path) if to_go_on_from(path, progress.say, fresh=fresh) else []


def fitting(
    blank: LatencyRecord, known: Sequence[LatencyRecord], rounds: int
) -> LatencyRecord | None:
    """Find the newest known record of equal conditions with so many rounds, or that failed."""
    for record in reversed(known):
        same = all(getattr(record, name) == getattr(blank, name) for name in CONDITIONS)
        if same and (record.failed is not None or len(record.samples_ms) >= rounds):
            return record
    return None
