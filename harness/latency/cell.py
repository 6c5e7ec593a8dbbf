"""One condition, in which models are timed in turn: prepared, checked against eager, timed."""

import gc
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.latency.machine import Surroundings, Watch
from harness.latency.memory import is_out_of_memory, peak_mib
from harness.latency.nvml import Gpu
from harness.latency.stopwatch import Call, Stopwatch, waiting
from harness.latency.timing import Timing, interleaved
from harness.latency.ways import (
    CUDA_GRAPHS,
    REDUCE_OVERHEAD,
    deviations,
    prepared,
    skipped_graphs,
)
from zoo.vit import ReducedViT

OUT_OF_MEMORY = "out of memory"
# Of the features' length. Rounding may turn which of two equal tokens goes, in low precision in
# most images, so that features of compiled models differ by about as much as those of float32.
ALLOWED = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
CHECKED = 8  # images, at least
WARMUP, WARMUP_S = 3, 0.5
ENERGY_S = 2.0  # NVML counts about ten times a second


class SkippedGraphsError(RuntimeError):
    """The compiler left out CUDA graphs, so that a model would be timed in another way."""


@dataclass(kw_only=True)
class Found:
    """What was measured of one model; what is None wasn't.

    Attributes:
        failed: why it has no times.
        timing: its calls.
        first_call_s: preparing and the first call.
        deviation: of its features from eager's, largest over images.
        peak_mib: see ``memory.peak_mib``.
        energy_mj_per_image: of the whole GPU.
    """

    failed: str | None = None
    timing: Timing | None = None
    first_call_s: float | None = None
    deviation: float | None = None
    peak_mib: float | None = None
    energy_mj_per_image: float | None = None
    call: Call | None = field(default=None, repr=False)


def measure_cell(
    models: Mapping[str, ReducedViT],
    images: Tensor,
    way: str,
    *,
    rounds: int,
    seconds: float,
    watch: Stopwatch,
    gpu: Gpu | None,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, Found], Surroundings]:
    """Time models in turn on the same images.

    A model that runs out of memory, that can't be compiled, or whose features aren't the eager
    model's, says so, and the others go on.

    Args:
        models: in evaluation mode, on the images' device, in the way's memory format.
        images: (B, C, H, W) in the way's memory format.
        way: of ``ways.WAYS``.
        rounds: calls of each, at least.
        seconds: rounds go on for so long.
        watch: what times a call.
        gpu: for clock and energy.
        tick: told the number of rounds done.
    """
    found = {name: _first(vit, images, way) for name, vit in models.items()}
    calls = {name: one.call for name, one in found.items() if one.call is not None}
    around = Surroundings()
    if calls:
        interleaved(calls, images, 1, warmup=WARMUP, warmup_s=WARMUP_S)
        look = Watch(gpu)

        def after(done: int) -> None:
            look.note()
            tick(done)

        try:
            timings = interleaved(
                calls, images, rounds, seconds=seconds, warmup=0, stopwatch=watch, tick=after
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            for name in calls:
                found[name].failed = f"{OUT_OF_MEMORY}, with all of them prepared"
            timings = {}
        around = look.seen()
        for name, timing in timings.items():
            found[name].timing = timing
            found[name].energy_mj_per_image = _energy(calls[name], images, gpu)
    for one in found.values():
        one.call = None  # and with it what was compiled
    return found, around


def _first(vit: ReducedViT, images: Tensor, way: str) -> Found:
    """Prepare a model and compare its first features with the eager model's."""
    found = Found()
    try:
        with torch.inference_mode():
            _prepare(found, vit, images, way)
            assert found.call is not None
            apart = _apart(found.call, vit, images)
    except Exception as error:
        if not (is_out_of_memory(error) or _is_refusal(error)):
            raise
        found = Found(failed=_reason(error))
    if found.failed is not None:
        if images.is_cuda:  # else the pieces that it left would be in the way of the next model
            gc.collect()  # errors hold on to the frames that they came through, in circles
            torch.cuda.empty_cache()
        return found
    most, share = float(apart.max()), float(apart.median())
    found.deviation = most if math.isfinite(most) else None
    allowed = ALLOWED[images.dtype]
    # Judged by the middle: a token that ties may go in one image, a wrong model is wrong in most.
    if not math.isfinite(share):
        return Found(failed="features aren't finite, so they can't be compared with eager's")
    if share > allowed:
        text = f"features differ from eager's by {share:.2g} of their length, allowed {allowed:g}"
        return Found(failed=text, deviation=found.deviation)
    return found


def _apart(call: Call, vit: ReducedViT, images: Tensor) -> Tensor:
    """Return (n,) by how much features of at least ``CHECKED`` images differ from eager's.

    They come in two batches or more: a graph that is replayed might keep what it saw first.
    """
    parts = []
    for turn in range(max(2, -(-CHECKED // len(images)))):
        # Of the same shape, so that nothing is compiled again.
        other = images.roll(7 * turn, dims=-1)
        eager = vit(other).clone()
        features = call(other)
        assert isinstance(features, Tensor)
        parts.append(deviations(features, eager))
    return torch.cat(parts)


def _prepare(found: Found, vit: ReducedViT, images: Tensor, way: str) -> None:
    wait = waiting(images.device)
    skipped = skipped_graphs() if way == REDUCE_OVERHEAD else 0
    wait()
    begun = time.perf_counter()

    def prepare(batch: Tensor) -> None:
        found.call = prepared(vit, way, batch)
        found.call(batch)
        wait()

    with warnings.catch_warnings():
        # The compiler's advice on TF32; what precision products have is part of the record.
        warnings.filterwarnings(
            "ignore", message="TensorFloat32 tensor cores", category=UserWarning
        )
        if way == CUDA_GRAPHS:  # takes its memory when it is captured, none when replayed
            found.peak_mib = peak_mib(prepare, images)
        else:
            prepare(images)
    found.first_call_s = time.perf_counter() - begun
    if way == REDUCE_OVERHEAD and skipped_graphs() > skipped:
        raise SkippedGraphsError("the compiler left out CUDA graphs, so this would be compile")
    if way not in (CUDA_GRAPHS, REDUCE_OVERHEAD):
        assert found.call is not None
        found.peak_mib = peak_mib(found.call, images)


def _is_refusal(error: Exception) -> bool:
    """Tell whether the compiler, or CUDA when capturing, can't do it."""
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
    return compiler or isinstance(error, SkippedGraphsError) or "captur" in str(error)


def _cause(error: BaseException) -> BaseException:
    """Return what broke a capture: ending it fails, too, and says only that something did."""
    while "captur" in str(error) and isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _reason(error: BaseException) -> str:
    error = _cause(error)
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, SkippedGraphsError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _energy(call: Call, images: Tensor, gpu: Gpu | None) -> float | None:
    """Return millijoules per image of calls back to back."""
    before = gpu.energy_mj if gpu else None
    if gpu is None or before is None:
        return None
    wait, done, begun = waiting(images.device), 0, time.monotonic()
    with torch.inference_mode():
        while time.monotonic() - begun < ENERGY_S:
            call(images)
            wait()
            done += 1
    after = gpu.energy_mj
    return None if after is None else (after - before) / (done * len(images))
