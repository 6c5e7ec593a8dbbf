"""Time calls against each other, interleaved; making a model ready to be timed by a runtime."""

import gc
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from harness.records.times import AGAIN, TOO_BUSY, Timing, cores
from zoo.core.errors import is_out_of_memory
from zoo.core.host import Host
from zoo.deploy.export import load_exported
from zoo.deploy.runtime import CUDA_GRAPHS, Prepared, Runtime, find_runtime

MOST_ROUNDS = 200  # however short the calls are
SPREAD = 0.25  # between dense's quartiles, by its median, over which times are of no use
PER_THREAD = 0.75  # of a core, that each of torch's threads needs
WAIT_S = 30.0  # for other processes, in one search or one table
LOOK_S, POLL_S = 0.2, 1.0  # that other processes are watched: before a timing, and again while they are waited for
STAT = Path("/proc/stat")
OUT_OF_MEMORY = "out of memory"
CHECKED = 8  # images, at least
MIB = 2**20

K = TypeVar("K", bound=Hashable)
Call = Callable[[Tensor], object]


class Stopwatch(NamedTuple):
    """What times a call: its name in records, and call and images to milliseconds."""

    name: str
    time_ms: Callable[[Call, Tensor], float]


class BusyError(OSError):
    """Other processes disturb every timing; ``why`` says how."""

    def __init__(self, why: str) -> None:
        self.why = f"{TOO_BUSY}: {why}"
        super().__init__(f"{self.why}; {AGAIN}")


def watch_others(seconds: float) -> float | None:
    """Wait, and return how many cores other processes kept busy; None where the system doesn't say."""
    others_cores = count_others()
    time.sleep(seconds)
    return others_cores()


@dataclass(kw_only=True)
class Patience:
    """Waits for other processes before models are timed; ``left_s`` seconds are for one search or one table."""

    say: Callable[[str], object]
    left_s: float = WAIT_S
    told: bool = False  # that it waits

    def time(self, run: Callable[[], dict[K, Timing]], device: torch.device) -> dict[K, Timing]:
        """Return the timings of ``run``, the reference first; repeat disturbed ones once, and while time is left.

        Seconds of later repeats count as waiting. Raises BusyError if all were disturbed, or other processes stayed.
        """
        repeated = False
        while True:
            self.wait(device)
            began = time.monotonic()
            timings = run()
            why = why_busy(next(iter(timings.values())))
            if not why:
                return timings
            if repeated:
                self.left_s -= max(time.monotonic() - began, POLL_S)
            if repeated and self.left_s <= 0:
                raise BusyError(why)
            repeated = True

    def wait(self, device: torch.device) -> None:
        """Wait until other processes leave enough cores; raise BusyError if they don't in time."""
        seconds = LOOK_S
        while device.type == "cpu" and (why := why_crowded(watch_others(seconds))):
            if self.left_s <= 0:
                raise BusyError(why)
            if not self.told:
                self.say(f"{why}: waiting for them, up to {self.left_s:.0f} s")
            self.told = True
            seconds = POLL_S
            self.left_s -= seconds


def why_crowded(others_cores: float | None) -> str:
    """Say that other processes leave fewer cores than torch's threads need; nothing where they don't."""
    usable = cores()
    if others_cores is None or others_cores <= usable - PER_THREAD * min(torch.get_num_threads(), usable):
        return ""
    return f"other processes keep {min(others_cores, usable):.1f} of {usable} cores busy"


def why_busy(dense: Timing) -> str:
    """Say why models timed in turn with a dense one can't be compared; nothing where they can."""
    median, first, third = dense.spread_ms
    spread = (third - first) / median
    return why_crowded(dense.others_cores) or (f"spread of dense {100 * spread:.0f} %" if spread > SPREAD else "")


def time_models(
    models: Mapping[K, Host | Prepared],
    batch: int,
    rounds: int,
    *,
    patience: Patience,
    images: Tensor | None = None,
    **options: Any,
) -> dict[K, Timing]:
    """Time models in turn, the dense one first, on images of its size, device and precision; others cast them.

    Without ``images`` (batch, 3, H, W) they are random; an adaptive model takes other budgets for these.
    ``options`` are those of `interleave`. Raises BusyError if the machine is too busy.
    """

    def call(model: Host | Prepared) -> Call:
        if isinstance(model, Prepared):
            return lambda images: model.call(images.to(model.dtype))
        dtype = next(model.parameters()).dtype
        return lambda images: model(images.to(dtype))

    first = next(iter(models.values()))
    assert isinstance(first, Host)
    like = next(first.parameters())
    if images is None:
        images = random_images(batch, first.input_size, like.device, like.dtype)
    images = images.to(like)
    calls = {key: call(model) for key, model in models.items()}
    return patience.time(lambda: interleave(calls, images, rounds, **options), images.device)


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
    wait, others_cores = synchronizer(images.device), count_others()
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
    # A GPU is shared in other ways, of which /proc/stat knows nothing.
    busy = others_cores() if images.device.type == "cpu" else None
    return {
        name: Timing(batch=len(images), samples_ms=tuple(values), others_cores=busy) for name, values in samples.items()
    }


def random_images(batch: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random images (batch, 3, *size), the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *size, generator=generator).to(device, dtype)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return what blocks until the device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def wall_clock(
    wait: Callable[[], object] = lambda: None, clock: Callable[[], int] = time.perf_counter_ns, warm: int = 0
) -> Stopwatch:
    """Return a stopwatch that times a call, in ``clock``'s nanoseconds, between two waits, after ``warm`` calls."""

    def time_ms(call: Call, images: Tensor) -> float:
        for _ in range(warm):
            call(images)
        wait()
        begin = clock()
        call(images)
        wait()
        return (clock() - begin) / 1e6

    return Stopwatch(f"wall clock after {warm} calls" if warm else "wall clock", time_ms)


def count_others() -> Callable[[], float | None]:
    """Return what tells how many cores other processes kept busy from now on."""
    before, begun = others_s(), time.monotonic()

    def others_cores() -> float | None:
        after = others_s()
        if after is None or before is None:
            return None
        return max(0.0, (after - before) / (time.monotonic() - begun))

    return others_cores


def others_s() -> float | None:
    """Return the seconds that others had of this process's CPUs since the start; None where the system doesn't say."""
    try:
        names = {f"cpu{at}" for at in os.sched_getaffinity(0)}
        rows = [line.split() for line in STAT.read_text("utf-8").splitlines()]
        # user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [sum(map(int, row[1:4])) + sum(map(int, row[6:9])) for row in rows if row and row[0] in names]
    except (AttributeError, OSError, ValueError):  # not there, not for us, or of another form
        return None
    if not ticks:
        return None
    busy: float = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])  # user and system, of this process and of its children


@dataclass(frozen=True, kw_only=True)
class ReadyModel:
    """A model as a runtime runs it. None means not measured."""

    prepared: Prepared | None = field(default=None, repr=False)  # None if it failed
    failed: str | None = None  # why it can't be timed
    first_call_s: float | None = None  # preparing and the first call
    deviation: float | None = None  # of its features from eager's, largest over images
    peak_mib: float | None = None  # most that a call holds beside weights and images
    attention: tuple[str, ...] | None = None  # kernels of fused attention that it runs; None of files

    def call(self, images: Tensor) -> Tensor:
        """Return the features of images on the device, in the precision that the model takes."""
        assert self.prepared is not None
        return self.prepared.call(images)


def require_runtimes(runtimes: Sequence[str], precisions: Sequence[str], device: torch.device) -> None:
    """Raise ValueError for runtimes that the device or the packages can't run in any precision that is asked for."""
    for name in runtimes:
        runtime = find_runtime(name)
        able = [precision for precision in precisions if precision in runtime.precisions]
        if why := runtime.refusal(able[0] if able else runtime.precisions[0], str(device)):
            raise ValueError(f"--runtimes {name} on --device {str(device)!r}: {why}")


def weights_precision(runtime: str, precision: str) -> str:
    """Return the precision of a model as it is handed to a runtime that is to run it in ``precision``."""
    return precision if find_runtime(runtime).rounds_weights else "float32"


def prepare(
    vit: Host,
    runtime: str,
    images: Tensor,
    precision: str = "float32",
    file: Path | None = None,
    calibration: Tensor | None = None,
) -> ReadyModel:
    """Prepare a model, or load the file that it was exported to, call it, and compare its features with eager's.

    A model that runs out of memory, that can't be compiled, captured or exported, or whose features aren't the eager
    model's, has a reason instead of a call. ``vit`` is in evaluation mode on the device of ``images`` (B, C, H, W), in
    its `weights_precision`.
    """
    engine = find_runtime(runtime)
    if why := engine.refusal(precision, str(images.device)):
        return ReadyModel(failed=why)
    reason = ""
    try:
        with torch.inference_mode():
            ready = _first_call(vit, engine, images, precision, file, calibration)
            assert ready.prepared is not None
            differences = _compare_with_eager(ready.prepared, vit, images)
    except Exception as error:
        if not (is_out_of_memory(error) or engine.is_refusal(error)):
            raise
        reason = _reason(error)
    if reason:
        if images.is_cuda:  # else the pieces that it left would be in the way of the next model
            gc.collect()  # errors hold on to the frames that they came through, in circles
            torch.cuda.empty_cache()
        return ReadyModel(failed=reason)
    most, typical = float(differences.max()), float(differences.median())
    ready = replace(ready, deviation=most if math.isfinite(most) else None)
    # Judged by the middle: a token that ties may go in one image, a wrong model is wrong in most.
    if not math.isfinite(typical):
        return replace(ready, prepared=None, failed="features aren't finite, so they can't be compared with eager's")
    if typical > (allowed := engine.tolerance(precision).deviation):
        size = f"{typical:.2g} of their length, allowed {allowed:g}"
        return replace(ready, prepared=None, failed=f"features differ from eager's by {size}")
    return ready


def _first_call(
    vit: Host, runtime: Runtime, images: Tensor, precision: str, file: Path | None, calibration: Tensor | None
) -> ReadyModel:
    """Prepare and call once, which is timed; take the memory and kernels of a call."""
    wait, made, peak = synchronizer(images.device), list[Prepared](), None

    def first(batch: Tensor) -> None:
        made.append(load_exported(file).prepared if file else runtime.prepare(vit, batch, precision, calibration))
        made[0].call(batch.to(made[0].dtype))
        wait()

    wait()
    begun = time.perf_counter()
    with warnings.catch_warnings():
        # The compiler's advice on TF32; what precision products have is part of the record.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        if runtime.name == CUDA_GRAPHS:  # takes its memory when it is captured, none when replayed
            peak = peak_mib(first, images)
        else:
            first(images)
    first_call_s = time.perf_counter() - begun
    [prepared] = made
    if runtime.suffix:
        return ReadyModel(prepared=prepared, first_call_s=first_call_s)
    images = images.to(prepared.dtype)
    if runtime.name != CUDA_GRAPHS:
        peak = peak_mib(prepared.call, images)
    kernels = attention_kernels(prepared.call if isinstance(prepared.call, nn.Module) else vit, images)
    return ReadyModel(prepared=prepared, first_call_s=first_call_s, peak_mib=peak, attention=kernels)


def _compare_with_eager(prepared: Prepared, vit: Host, images: Tensor) -> Tensor:
    """Return (n,) by how much features of at least ``CHECKED`` images differ from eager's.

    There are two batches or more, as a graph might keep its first images.
    """
    parts, like = [], next(vit.parameters())
    for turn in range(max(2, -(-CHECKED // len(images)))):
        shifted = images.roll(7 * turn, dims=-1)  # of the same shape, so that nothing is compiled again
        eager = vit(shifted.to(like)).clone()
        parts.append(deviations(prepared.call(shifted.to(prepared.dtype)), eager))
    return torch.cat(parts)


def deviations(features: Tensor, eager: Tensor) -> Tensor:
    """Return (B,) by how much features differ from the eager model's, in lengths of the latter."""
    ours, theirs = features.detach().double(), eager.detach().double()
    result: Tensor = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return result.cpu()


def _reason(error: BaseException) -> str:
    # What broke a capture: ending it fails, too, and says only that something did.
    while "captur" in str(error) and isinstance(error.__context__, RuntimeError):
        error = error.__context__
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0].strip()}"


def peak_mib(call: Call, images: Tensor) -> float | None:
    """Return the most that torch's allocators give a call at a time; None on devices other than a CPU and CUDA."""
    device = images.device
    if device.type == "cpu":
        return _cpu_peak(call, images)
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(images)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _cpu_peak(call: Call, images: Tensor) -> float:
    profiler = _profile(call, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    moves = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    most: int = max(accumulate((count for _, count in moves), initial=0))
    return most / MIB


def attention_kernels(call: Call, images: Tensor) -> tuple[str, ...]:
    """Return the kernels that fused attention takes in a call, by aten's names; none if it isn't called."""
    prefix, names = "aten::_scaled_dot_product_", {event.key for event in _profile(call, images).key_averages()}
    return tuple(sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix)))


def _profile(call: Call, images: Tensor) -> Any:
    # Else the profiler tells the terminal when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call(images)
    return profiler
