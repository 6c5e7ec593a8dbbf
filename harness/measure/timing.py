"""Time calls against each other: interleaved, so that a drifting clock hits all of them alike."""

import gc
import os
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from harness.records.times import Surroundings, Timing

LEAST_ROUNDS = 6  # from which on a median has a 95 % interval
MOST_ROUNDS = 200  # however short the calls are
SPREAD = 0.1  # of the interquartile range by the median, from which on to warn
OTHERS = 0.1  # of the cores, that other processes kept busy, likewise
STAT = Path("/proc/stat")

K = TypeVar("K", bound=Hashable)
Call = Callable[[Tensor], object]


class Stopwatch(NamedTuple):
    """What times a call: its name in records, and call and images to milliseconds."""

    name: str
    time_ms: Callable[[Call, Tensor], float]


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
    clock is the usual stopwatch; ``now`` gives seconds, ``tick`` takes finished rounds.
    """
    wait = synchronizer(images.device)
    watch = stopwatch or wall_clock(wait)
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
                wait()
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
    return {name: Timing(batch=len(images), samples_ms=tuple(values)) for name, values in samples.items()}


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
    """Return torch's benchmark timer, of ``clock``'s seconds: it calls a model twice before the call that counts."""

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


class Watch:
    """Measure how busy other processes keep the machine from now on."""

    def __init__(self) -> None:
        """Take the first look."""
        self._load, self._others, self._begun = load_1min(), others_s(), time.monotonic()

    def surroundings(self) -> Surroundings:
        """Take the second look."""
        others = others_s()
        if others is not None and self._others is not None:
            others = max(0.0, (others - self._others) / (time.monotonic() - self._begun))
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


def load_1min() -> float | None:
    """Return the load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def others_s() -> float | None:
    """Return the CPU seconds of all other processes since the machine started; None where the system doesn't say."""
    if not STAT.is_file():
        return None
    ticks = [int(count) for count in STAT.read_text("utf-8").splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    own = os.times()
    busy: float = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - (own.user + own.system + own.children_user + own.children_system)
