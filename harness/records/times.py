"""One timed model, its JSON line, and when a line of an earlier run may be used again."""

import importlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from harness.base.lines import append_lines, parse_lines
from harness.records.record import RowRecord, Times, device_name, parse_line
from harness.records.statistics import Interval, median_interval
from zoo.core.json_reader import from_json

FASTER, SLOWER, OPEN = "faster", "slower", "not shown"  # the ratio's interval lies below 1, above it, includes it
LEAST_QUERIES = 200  # of a run, so that two of them take longer than its p99
MET, MISSED = "met", "missed"  # the interval of a server's p99 lies within the bound, or above it
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
LATENCIES = "latency.jsonl"  # file of a run's records
SCHEMA_VERSION = 6
CONDITIONS = (
    "version", "model", "method", "keep", "method_config", "tag", "weights_sha256",
    "random_weights", "image_size", "device", "precision", "runtime", "batch", "threads", "stopwatch",
    "bound_ms", "rate", "machine",
)  # fmt: skip
TOO_BUSY = "too busy to time"  # begins a reason that isn't kept
AGAIN = "the same command times again when the machine is idle, or with a smaller OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Carry every sample of one model: sample i of all models comes from the same round."""

    batch: int  # images per call
    samples_ms: tuple[float, ...]  # one whole call per round
    others_cores: float | None = None  # that other processes kept busy meanwhile; None where it isn't known

    @property
    def spread_ms(self) -> Interval:
        """Return the median with the first and third quartile, milliseconds per batch."""
        first, median, third = np.quantile(self.samples_ms, [0.25, 0.5, 0.75])
        return Interval(float(median), float(first), float(third))

    def ratio_to(self, reference: Self) -> Interval:
        """Return the median over rounds of this time by the reference's; ValueError for times of other rounds."""
        sizes = [(len(timing.samples_ms), timing.batch) for timing in (self, reference)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"not timed together: (rounds, batch) is {sizes[0]} and {sizes[1]}")
        pairs = zip(self.samples_ms, reference.samples_ms, strict=True)
        return median_interval([sample / other for sample, other in pairs])

    def latency(self, dense: Self | None = None) -> Times:
        """Summarise the samples as records do; ``dense`` is of the same rounds, if there is one."""
        median, first, third = self.spread_ms
        ratio, low, high = (None, None, None) if dense is None else self.ratio_to(dense)
        return Times(
            batch=self.batch,
            median_ms=median,
            q1_ms=first,
            q3_ms=third,
            ratio_to_dense=ratio,
            ratio_low=low,
            ratio_high=high,
            images_per_s=1000 * self.batch / median,
        )


def percentile(values: ArrayLike, percent: int) -> float:
    """Return the least value that ``percent`` of the values do not exceed, by the nearest rank."""
    ordered = np.sort(np.asarray(values))
    return float(ordered[-(-percent * len(ordered) // 100) - 1])


class Percentiles(NamedTuple):
    """Carry the latencies that 50, 90 and 99 % of queries did not exceed, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, latencies_ms: ArrayLike) -> Self:
        """Return the percentiles of queries' latencies, see `percentile`."""
        return cls(*(percentile(latencies_ms, percent) for percent in (50, 90, 99)))


@dataclass(frozen=True, kw_only=True)
class Load:
    """Carry how a server fared while queries of one image arrived at random."""

    rate: float  # queries a second that arrive, on average
    queries: int  # of each run
    runs: tuple[Percentiles, ...]  # of latencies, from the scheduled arrival to the end of the call
    batch_mean: float  # queries that shared a call

    def summary(self, name: str) -> Interval:
        """Return the median over runs of one of `Percentiles`, see `median_interval`."""
        return median_interval([getattr(run, name) for run in self.runs])

    def verdict(self, bound_ms: float) -> str:
        """Return what the runs show of a bound on p99: `MET`, `MISSED` or `OPEN`."""
        p99 = self.summary("p99_ms")
        return MET if p99.high <= bound_ms else MISSED if p99.low > bound_ms else OPEN


def read_gpu(device: torch.device) -> dict[str, float] | None:
    """Say how a GPU runs; None on other devices, or where pynvml is not installed or the driver refuses."""
    if device.type != "cuda":
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return {
            "performance_state": nvml.nvmlDeviceGetPerformanceState(gpu),  # 0 is the fastest, 15 the slowest
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "power_w": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
            "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        }
    except nvml.NVMLError:
        return None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the facts, as JSON values, that are equal on two machines whose times may be compared."""
    backends = torch.backends.cuda
    kernels = {"flash": backends.flash_sdp_enabled(), "math": backends.math_sdp_enabled()}  # a CPU's, too
    machine: dict[str, Any] = {
        "device_name": device_name(str(device)),
        "platform": platform.platform(),
        "cores": cores(),
        "interop_threads": torch.get_num_interop_threads(),
        # Of the CPU's clock; a virtual machine has none.
        "governor": GOVERNOR.read_text("utf-8").strip() if GOVERNOR.is_file() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the widest vector instructions that torch uses
        "mkldnn": torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
        "matmul_precision": torch.get_float32_matmul_precision(),  # of float32: highest, high (TF32) or medium
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "timm_version": version("timm"),
    }
    if device.type == "cuda":
        kernels |= {"efficient": backends.mem_efficient_sdp_enabled(), "cudnn": backends.cudnn_sdp_enabled()}
        benchmark = bool(torch.backends.cudnn.benchmark)  # convolutions take the algorithm that was fastest in a trial
        machine |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "cudnn_benchmark": benchmark}
    return machine | {"sdpa": [name for name, enabled in kernels.items() if enabled]}


def cores() -> int:
    """Return how many CPUs this process may use."""
    affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class LatencyRecord(RowRecord):
    """Carry one model timed under one condition."""

    schema_version: int = SCHEMA_VERSION
    random_weights: bool
    image_size: tuple[int, ...]  # height and width
    device: str
    precision: str
    runtime: str  # of zoo's RUNTIMES
    batch: int
    threads: int
    stopwatch: str
    bound_ms: float | None = None  # on p99 of queries that arrive at random; None where calls follow each other
    rate: float | None = None  # queries a second that were asked for; None for the highest within the bound
    machine: dict[str, Any]  # see `describe_machine`
    failed: str | None = None  # why there are no times
    samples_ms: tuple[float, ...] = ()  # of whole calls; those of a cell share rounds
    times: Times | None = None  # of the samples, as records of accuracy have them
    load: Load | None = None  # instead, where queries arrive at random
    verdict: str | None = None  # see `time_fields` and `Load`; None for a dense model whose calls follow each other
    gflops: float  # 1e9 multiply-adds per image
    uncounted_operators: tuple[str, ...] = ()  # whose cost is unknown and missing from it
    params: int
    tokens_per_block: tuple[int, ...]  # leaving each block, prefix tokens included
    final_tokens: int  # patch tokens left at the end
    first_call_s: float | None = None  # preparing, compiling and the first call
    deviation: float | None = None  # of features from eager's, largest over images
    peak_mib: float | None = None  # most that a call holds beside weights and images
    others_cores: float | None = None  # that other processes kept busy meanwhile
    attention: tuple[str, ...] | None = None  # kernels of fused attention that an eager call ran
    gpu: dict[str, float] | None = None  # right after the timing, see `read_gpu`

    @property
    def cell(self) -> str:
        """The batch, and the rate of a server: equal in rows of a table that were timed together."""
        return f"batch {self.batch}" + ("" if self.rate is None else f", {self.rate:g} queries a second")

    @property
    def condition(self) -> str:
        """How models were run that were timed together."""
        return f"{self.precision}, {self.runtime}, threads {self.threads}, {self.cell}"

    @property
    def rounds(self) -> int:
        """Number of calls or runs that were timed."""
        return len(self.samples_ms) if self.load is None else len(self.load.runs)

    def percentile_ms(self, percent: int) -> float | None:
        """Return the time that ``percent`` of the calls did not exceed; None where no sample lies beyond it."""
        beyond = len(self.samples_ms) * (100 - percent) >= 100
        return percentile(self.samples_ms, percent) if beyond else None

    @property
    def ratio(self) -> Interval | None:
        """The time over the dense model's, with its interval."""
        return None if self.times is None else self.times.ratio

    def __post_init__(self) -> None:
        if (self.failed is None) != bool(self.rounds) or (self.times is None) == bool(self.samples_ms):
            raise ValueError(
                f"{self.model} must have times or say why it failed, and not both: "
                f"failed={self.failed!r}, {self.rounds} rounds"
            )


def time_fields(timing: Timing, dense: Timing | None) -> dict[str, Any]:
    """Return the fields of a record that follow from timed calls; ``dense`` is None where that has no time."""
    times, verdict = timing.latency(dense), None
    if (ratio := times.ratio) is not None:
        verdict = FASTER if ratio.high < 1 else SLOWER if ratio.low > 1 else OPEN
    return {"samples_ms": timing.samples_ms, "others_cores": timing.others_cores, "times": times, "verdict": verdict}


def write_latencies(path: Path, records: Iterable[LatencyRecord]) -> None:
    """Append records as JSON lines, all or none; ValueError for what is no JSON (NaN included)."""
    lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in records]
    append_lines(path, "".join(lines).encode())


def read_latencies(path: Path) -> list[LatencyRecord]:
    """Read JSON lines, in file order; ValueError names file, line and what is wrong."""
    return parse_lines(
        path, lambda line: from_json(LatencyRecord, parse_line(line, SCHEMA_VERSION), "record", complete=True)
    )


def fitting(blank: LatencyRecord, known: Sequence[LatencyRecord], rounds: int) -> LatencyRecord | None:
    """Find the newest known record of equal conditions that failed, or has as many ``rounds``."""
    for record in reversed(known):
        same = all(getattr(record, name) == getattr(blank, name) for name in CONDITIONS)
        if same and (record.failed is not None or record.rounds >= rounds):
            return record
    return None
