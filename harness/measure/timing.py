"""Time calls against each other: interleaved, so that a drifting clock hits all of them alike."""

import gc
import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from harness.records.conditions import device_name
from harness.records.record import Times
from harness.records.statistics import Interval, median_interval

LEAST_ROUNDS = 6  # from which on a median has a 95 % interval
MOST_ROUNDS = 200  # however short the calls are

FASTER, SLOWER, OPEN = "faster", "slower", "not shown"
VERDICTS = (FASTER, SLOWER, OPEN)  # the ratio's interval lies below 1, above it, includes it
K = TypeVar("K", bound=Hashable)
Call = Callable[[Tensor], object]


class Stopwatch(NamedTuple):
    """Carry what times a call: its name in records, and call and images to milliseconds."""

    name: str
    time_ms: Callable[[Call, Tensor], float]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Carry every sample of one model: sample i of all models comes from the same round."""

    batch: int  # images per call
    samples_ms: tuple[float, ...]  # one whole call per round

    @property
    def spread_ms(self) -> Interval:
        """Return the median with the first and third quartile, milliseconds per batch."""
        first, median, third = np.quantile(self.samples_ms, [0.25, 0.5, 0.75])
        return Interval(float(median), float(first), float(third))

    def ratio_to(self, reference: Self) -> Interval:
        """Return the median over rounds of this time by the reference's time in the same round.

        The interval lies between order statistics; see `statistics.median_interval` for what fewer than 6 rounds can
        promise.

        Raises:
            ValueError: The two were not timed together (rounds or batch differ).
        """
        ours, theirs = ((len(timing.samples_ms), timing.batch) for timing in (self, reference))
        if ours != theirs:
            raise ValueError(f"not timed together: (rounds, batch) is {ours} and {theirs}")
        pairs = zip(self.samples_ms, reference.samples_ms, strict=True)
        return median_interval([sample / other for sample, other in pairs])

    def latency(self, dense: Self | None = None) -> Times:
        """Summarise the samples as records do; ``dense`` is of the same rounds, if there is one."""
        median, first, third = self.spread_ms
        ratio = (None, None, None) if dense is None else self.ratio_to(dense)
        times: dict[str, Any] = {"median_ms": median, "q1_ms": first, "q3_ms": third}
        names = ("ratio_to_dense", "ratio_low", "ratio_high")
        times |= dict(zip(names, ratio, strict=True))
        return Times(batch=self.batch, images_per_s=1000 * self.batch / median, **times)


def verdict(ratio: Interval) -> str:
    """Return what a ratio of times shows, of `VERDICTS`."""
    return FASTER if ratio.high < 1 else SLOWER if ratio.low > 1 else OPEN


def time_models(models: Mapping[K, nn.Module], batch: int, rounds: int, **options: Any) -> dict[K, Timing]:
    """Time models in turn on random images of the first one's size, device and precision; others cast them.

    Models know their ``input_size``; ``options`` are those of `interleave`.
    """

    def call(model: nn.Module) -> Call:
        dtype = next(model.parameters()).dtype
        return lambda images: model(images.to(dtype))

    first: Any = next(iter(models.values()))
    like = next(first.parameters())
    images = random_images(batch, first.input_size, like.device, like.dtype)
    return interleave({key: call(model) for key, model in models.items()}, images, rounds, **options)


def interleave(
    callables: Mapping[K, Call],
    images: Tensor,
    rounds: int,
    *,
    seconds: float = 0.0,
    warmup: int = 2,
    warmup_s: float = 0.0,
    stopwatch: Stopwatch | None = None,
    now: Callable[[], float] = time.monotonic,
    tick: Callable[[int], object] = lambda _: None,
) -> dict[K, Timing]:
    """Time every callable once per round, the order rotating by one from round to round.

    Runs in inference mode with garbage collection off. Models must be in eval mode and on the device of ``images``
    (batch, ...) already. Each is called ``warmup`` times untimed and for ``warmup_s`` seconds, at least, then for
    ``rounds`` rounds and ``seconds`` seconds, at least, but after the former in no more than ``MOST_ROUNDS``. The wall
    clock, which waits for the images' device, is the usual stopwatch; ``now`` gives seconds, ``tick`` takes finished
    rounds.

    Raises:
        ValueError: No callables, rounds below 1, or warmup or seconds below 0.
    """
    if not callables or rounds < 1 or min(warmup, seconds, warmup_s) < 0:
        raise ValueError(
            f"need callables, rounds >= 1 and warmup >= 0, got {len(callables)} callables, "
            f"rounds={rounds}, warmup={warmup}, seconds={seconds:g}, warmup_s={warmup_s:g}"
        )
    watch = stopwatch or wall_clock(synchronizer(images.device))
    names = list(callables)
    samples: dict[K, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            begun, done = now(), 0
            while done < warmup or (warmup_s > 0 and now() - begun < warmup_s):
                for name in names:
                    callables[name](images)
                synchronizer(images.device)()
                done += 1
            begun, done = now(), 0
            while done < rounds or (done < MOST_ROUNDS and now() - begun < seconds):
                first = done % len(names)
                for name in names[first:] + names[:first]:
                    samples[name].append(watch.time_ms(callables[name], images))
                done += 1
                tick(done)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(batch=len(images), samples_ms=tuple(samples[name])) for name in names}


def random_images(batch: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random images (batch, 3, *size), the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *size, generator=generator).to(device, dtype)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return what blocks until the device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def stopwatch(device: torch.device, threads: int) -> Stopwatch:
    """Return what times a model by itself on this device, as when it is served."""
    if device.type == "cuda":
        return cuda_events(device)
    return torch_timer(threads) if device.type == "cpu" else wall_clock(synchronizer(device))


def wall_clock(wait: Callable[[], object] = lambda: None, clock: Callable[[], int] = time.perf_counter_ns) -> Stopwatch:
    """Return a stopwatch that times a call, in ``clock``'s nanoseconds, between two waits."""

    def time_ms(call: Call, images: Tensor) -> float:
        wait()
        begin = clock()
        call(images)
        wait()
        return (clock() - begin) / 1e6

    return Stopwatch("wall clock", time_ms)


def torch_timer(threads: int, clock: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """Return a stopwatch, of ``clock``'s seconds, that leaves the caches to the model.

    Torch's benchmark timer calls it twice before the call that counts.
    """

    def time_ms(call: Call, images: Tensor) -> float:
        names = {"call": call, "images": images}
        timer = Timer("call(images)", timer=clock, globals=names, num_threads=threads)
        return 1000 * timer.timeit(1).median

    return Stopwatch("torch.utils.benchmark.Timer", time_ms)


def cuda_events(device: torch.device) -> Stopwatch:
    """Return a stopwatch of two events on the device's stream, waits for launches included."""

    def time_ms(call: Call, images: Tensor) -> float:
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call(images)
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end))

    return Stopwatch("CUDA events", time_ms)


GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STAT = Path("/proc/stat")
SPREAD = 0.1  # of the interquartile range by the median, from which on to warn
OTHERS = 0.1  # of the cores, that other processes kept busy, likewise


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Carry what must be equal before two times may be compared. None means not known."""

    device_name: str
    platform: str
    cores: int  # that this process may use
    interop_threads: int  # of torch
    governor: str | None = None  # of the CPU's clock
    cpu_capability: str  # widest vector instructions that torch uses
    mkldnn: bool  # oneDNN is there and on
    cuda: str | None = None
    cudnn: int | None = None
    matmul_precision: str  # of float32: highest, high (TF32) or medium
    cudnn_tf32: bool  # convolutions on the GPU may use TF32
    python_version: str
    torch_version: str
    timm_version: str

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """Return this machine's facts as they concern the device."""
        cuda = device.type == "cuda"
        return cls(
            device_name=device_name(str(device)),
            platform=platform.platform(),
            cores=cores(),
            interop_threads=torch.get_num_interop_threads(),
            # A virtual machine has none.
            governor=GOVERNOR.read_text("utf-8").strip() if GOVERNOR.is_file() else None,
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            mkldnn=torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
            cuda=torch.version.cuda if cuda else None,
            cudnn=torch.backends.cudnn.version() if cuda else None,
            matmul_precision=torch.get_float32_matmul_precision(),
            cudnn_tf32=bool(torch.backends.cudnn.allow_tf32),
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            timm_version=version("timm"),
        )


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Carry how busy the machine was while models were timed. None means not known."""

    load_1min: float | None = None  # of the minute before
    others_cores: float | None = None  # CPU time of all other processes by the wall's


class Watch:
    """Measure how busy other processes keep the machine from now on."""

    def __init__(self) -> None:
        """Take the first look."""
        self._load = load_1min()
        self._busy, self._own, self._begun = busy_s(), _own_s(), time.monotonic()

    def surroundings(self) -> Surroundings:
        """Take the second look."""
        busy, wall = busy_s(), time.monotonic() - self._begun
        others = None
        if busy is not None and self._busy is not None and wall > 0:
            others = max(0.0, (busy - self._busy - (_own_s() - self._own)) / wall)
        return Surroundings(load_1min=self._load, others_cores=others)


def warnings_of(timing: Timing, around: Surroundings, cores: int) -> tuple[str, ...]:
    """Return what makes times hard to trust; ``cores`` is how many the process may use."""
    warnings = []
    median, first, third = timing.spread_ms
    share = round((third - first) / median, 2)  # as it is printed
    if share > SPREAD:
        apart = f"quartiles {100 * share:.0f} % of the median apart"
        warnings.append(f"wide spread: {apart}, more than {100 * SPREAD:.0f} %")
    others = around.others_cores
    if others is not None and others > OTHERS * cores:
        warnings.append(f"other processes kept {others:.1f} of {cores} cores busy meanwhile")
    return tuple(warnings)


def cores() -> int:
    """Return how many CPUs this process may use."""
    affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1


def load_1min() -> float | None:
    """Return the load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_s() -> float | None:
    """Return the seconds for which CPUs were busy since the machine started, over all of them."""
    if not STAT.is_file():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(count) for count in STAT.read_text("utf-8").splitlines()[0].split()[1:9]
    )
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) / ticks


def _own_s() -> float:
    """Return the CPU time of this process, its threads and the children that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
