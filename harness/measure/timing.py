"""Time calls against each other, interleaved; the ways to run a model, and making one ready to be timed."""

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

from harness.records.times import AGAIN, EAGER, TOO_BUSY, Timing, cores
from zoo.core.errors import is_out_of_memory
from zoo.core.host import Host
from zoo.deploy.export import AOTI, FORMATS, ONNX, OPENVINO, as_runtime, require_format
from zoo.deploy.optimized import optimize

MOST_ROUNDS = 200  # however short the calls are
SPREAD = 0.25  # between dense's quartiles, by its median, over which times are of no use
PER_THREAD = 0.75  # of a core, that each of torch's threads needs
WAIT_S = 30.0  # for other processes, in one search or one table
LOOK_S, POLL_S = 0.2, 1.0  # that other processes are watched: before a timing, and again while they are waited for
STAT = Path("/proc/stat")
COMPILE, CUDA_GRAPHS, OPTIMIZED = "compile", "cuda-graphs", "optimized"
EXPORTED = (AOTI, ONNX, OPENVINO)
# As it is; torch.compile; the eager model's launches captured once and replayed; what zoo.optimize makes of it; files.
WAYS = (EAGER, COMPILE, CUDA_GRAPHS, OPTIMIZED, *EXPORTED)
OUT_OF_MEMORY = "out of memory"
# Of the features' length. Rounding may turn which of two equal tokens goes, in low precision in
# most images, so that features of compiled models differ by about as much as those of float32.
ALLOWED = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
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
    """Wait, and return how many cores other processes kept busy meanwhile; None where the system doesn't say."""
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
        """Return what ``run`` times, the reference first; a disturbed timing is repeated once, and while time is left.

        Seconds of later repeats count as waiting. Raises BusyError if it was disturbed again, or others didn't end.
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
    models: Mapping[K, nn.Module], batch: int, rounds: int, *, patience: Patience, **options: Any
) -> dict[K, Timing]:
    """Time models in turn on random images of the first one's size, device and precision; others cast them.

    Models know their ``input_size``; the first is the dense one. ``options`` are those of `interleave`. Raises
    BusyError if the machine is too busy.
    """

    def call(model: nn.Module) -> Call:
        dtype = next(model.parameters()).dtype
        return lambda images: model(images.to(dtype))

    first: Any = next(iter(models.values()))
    like = next(first.parameters())
    images = random_images(batch, first.input_size, like.device, like.dtype)
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
    others = others_cores() if images.device.type == "cpu" else None
    return {
        name: Timing(batch=len(images), samples_ms=tuple(values), others_cores=others)
        for name, values in samples.items()
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
    own = os.times()
    busy: float = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return busy - (own.user + own.system + own.children_user + own.children_system)


@dataclass(frozen=True, kw_only=True)
class ReadyModel:
    """A model as a way runs it. None means not measured."""

    call: Call | None = field(default=None, repr=False)  # None if it failed
    failed: str | None = None  # why it can't be timed
    first_call_s: float | None = None  # preparing and the first call
    deviation: float | None = None  # of its features from eager's, largest over images
    peak_mib: float | None = None  # most that a call holds beside weights and images
    attention: tuple[str, ...] | None = None  # kernels of fused attention that it runs; None of exported files


def check_ways(ways: Sequence[str], dtypes: Sequence[str], device: torch.device) -> None:
    """Raise ValueError for ways that the device or the packages can't run."""
    for way in ways:
        there = f"--ways {way} on --device {str(device)!r}"
        if way == CUDA_GRAPHS and device.type != "cuda":
            raise ValueError(f"{there}: CUDA graphs need a CUDA device; leave it out, or add --device cuda")
        if way in EXPORTED and device.type != "cpu":
            raise ValueError(f"{there}: exported files are timed on a CPU alone")
        if way in EXPORTED:
            for dtype in {"float32", *dtypes} & set(FORMATS[way].dtypes):
                require_format(way, dtype)


def model_dtype(way: str, dtype: str) -> str:
    """Return the precision of a model and its images as a way runs it in ``dtype``; exported files take float32."""
    return "float32" if way in EXPORTED else dtype


def prepare(vit: Host, way: str, images: Tensor, dtype: str = "float32") -> ReadyModel:
    """Prepare a model, call it, and compare its features with the eager model's.

    A model that runs out of memory, that can't be compiled, captured or exported, or whose features aren't the eager
    model's, has a reason instead of a call. ``vit`` is in evaluation mode on the device of ``images`` (B, C, H, W);
    for the precision of both see `model_dtype`.
    """
    if way in EXPORTED and dtype not in FORMATS[way].dtypes:
        return ReadyModel(failed=f"{way} computes no {dtype}")
    reason = ""
    try:
        with torch.inference_mode():
            ready = _first_call(vit, way, images, dtype)
            assert ready.call is not None
            apart = _apart(ready.call, vit, images)
    except Exception as error:
        # Exporters and runtimes of others raise whatever they like; `optimize` refuses towers and precisions.
        refused = way in EXPORTED or (way == OPTIMIZED and isinstance(error, ValueError))
        if not (is_out_of_memory(error) or is_refusal(error) or refused):
            raise
        reason = _reason(error)
    if reason:
        if images.is_cuda:  # else the pieces that it left would be in the way of the next model
            gc.collect()  # errors hold on to the frames that they came through, in circles
            torch.cuda.empty_cache()
        return ReadyModel(failed=reason)
    most, typical = float(apart.max()), float(apart.median())
    ready = replace(ready, deviation=most if math.isfinite(most) else None)
    # Judged by the middle: a token that ties may go in one image, a wrong model is wrong in most.
    if not math.isfinite(typical):
        return replace(ready, call=None, failed="features aren't finite, so they can't be compared with eager's")
    if typical > (allowed := ALLOWED[dtype]):
        size = f"{typical:.2g} of their length, allowed {allowed:g}"
        return replace(ready, call=None, failed=f"features differ from eager's by {size}")
    return ready


def _first_call(vit: Host, way: str, images: Tensor, dtype: str) -> ReadyModel:
    """Prepare and call once, which is timed; take the memory and kernels of a call."""
    wait, calls, peak = synchronizer(images.device), list[Call](), None

    def first(batch: Tensor) -> None:
        calls.append(as_run(vit, way, batch, dtype))
        calls[0](batch)
        wait()

    wait()
    begun = time.perf_counter()
    with warnings.catch_warnings():
        # The compiler's advice on TF32; what precision products have is part of the record.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        if way == CUDA_GRAPHS:  # takes its memory when it is captured, none when replayed
            peak = peak_mib(first, images)
        else:
            first(images)
    first_call_s = time.perf_counter() - begun
    [call] = calls
    if way in EXPORTED:
        return ReadyModel(call=call, first_call_s=first_call_s)
    if way != CUDA_GRAPHS:
        peak = peak_mib(call, images)
    kernels = attention_kernels(call if way == OPTIMIZED else vit, images)
    return ReadyModel(call=call, first_call_s=first_call_s, peak_mib=peak, attention=kernels)


def _apart(call: Call, vit: Host, images: Tensor) -> Tensor:
    """Return (n,) by how much features of at least ``CHECKED`` images differ from eager's.

    There are two batches or more, as a graph might keep its first images.
    """
    parts = []
    for turn in range(max(2, -(-CHECKED // len(images)))):
        other = images.roll(7 * turn, dims=-1)  # of the same shape, so that nothing is compiled again
        eager = vit(other).clone()
        features = call(other)
        assert isinstance(features, Tensor)
        parts.append(deviations(features, eager))
    return torch.cat(parts)


def as_run(model: nn.Module, way: str, images: Tensor, dtype: str = "float32") -> Call:
    """Return a model as the way runs it on images like these, (B, C, H, W); ``dtype`` is an exported file's.

    Compiling and capturing may wait for the first call.
    """
    if way in EXPORTED:
        others = random_images(CHECKED, (images.shape[2], images.shape[3]), images.device, torch.float32)
        return as_runtime(model, others, format=way, dtype=dtype)
    if way == OPTIMIZED:
        optimized: Call = optimize(model, dtype=images.dtype)
        return optimized
    if way == CUDA_GRAPHS:
        return capture(model, images)
    if way != COMPILE:
        return model
    compiled: Call = torch.compile(_own_code(model), dynamic=False, fullgraph=True)
    return compiled


def _own_code(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function that calls the model, with a code object of its own.

    Dynamo keeps what it compiled by code object: models of one class would share one list, each call would look through
    it, and the ninth model would be refused.
    """

    def forward(images: Tensor) -> Any:
        return model(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return forward


def capture(model: Call, images: Tensor) -> Call:
    """Capture one call; what is returned copies images to the graph's and replays it."""
    inside = images.clone()
    graph = torch.cuda.CUDAGraph()
    # The images' device needn't be the current one, on which streams would be made. Nothing can be copied to it, so
    # what libraries make without a device, such as timm the grid of DINOv3, is made there.
    with torch.cuda.device(images.device), torch.device(images.device), torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that libraries have set up what can't be captured
                model(inside)
        torch.cuda.current_stream().wait_stream(stream)
        # On the same stream: libraries keep handles and workspaces for each.
        with torch.cuda.graph(graph, stream=stream):
            features = model(inside)

    @torch.inference_mode()
    def replay(batch: Tensor) -> object:
        inside.copy_(batch)
        graph.replay()
        return features

    return replay


def deviations(features: Tensor, eager: Tensor) -> Tensor:
    """Return (B,) by how much features differ from the eager model's, in lengths of the latter."""
    ours, theirs = features.detach().double(), eager.detach().double()
    result: Tensor = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return result.cpu()


def is_refusal(error: Exception) -> bool:
    """Tell whether the compiler, or CUDA when capturing, can't do it."""
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
    return compiler or "captur" in str(error)


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
