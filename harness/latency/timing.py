"""Time models against each other: interleaved, so that a drifting clock hits all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from harness.latency.stopwatch import Call, Stopwatch, WallClock, waiting
from harness.statistics import Interval, median_interval

MOST_ROUNDS = 200  # however short the calls are


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Carry every sample of one model: sample i of all models comes from the same round.

    Attributes:
        batch: Images per call.
        samples_ms: One whole call per round, in milliseconds.
    """

    batch: int
    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Return the median over rounds, milliseconds per batch."""
        return float(np.median(self.samples_ms))

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """Return the first and third quartile over rounds, milliseconds per batch."""
        first, third = np.quantile(self.samples_ms, [0.25, 0.75])
        return float(first), float(third)

    @property
    def images_per_s(self) -> float:
        """Return the throughput at the median."""
        return 1000 * self.batch / self.median_ms

    @property
    def summary(self) -> dict[str, float]:
        """Return median, quartiles and throughput under the names that records give them."""
        first, third = self.quartiles_ms
        told = {"median_ms": self.median_ms, "q1_ms": first, "q3_ms": third}
        return told | {"images_per_s": self.images_per_s}

    def ratio_to(self, reference: Self) -> Interval:
        """Return the median over rounds of this time by the reference's time in the same round.

        The interval lies between order statistics; see `statistics.median_interval` for what
        fewer than 6 rounds can promise.

        Raises:
            ValueError: The two were not timed together (rounds or batch differ).
        """
        ours, theirs = ((len(timing.samples_ms), timing.batch) for timing in (self, reference))
        if ours != theirs:
            raise ValueError(f"not timed together: (rounds, batch) is {ours} and {theirs}")
        pairs = zip(self.samples_ms, reference.samples_ms, strict=True)
        return median_interval([sample / other for sample, other in pairs])


def interleaved(
    callables: Mapping[str, Call],
    images: Tensor,
    rounds: int,
    *,
    seconds: float = 0.0,
    warmup: int = 2,
    warmup_s: float = 0.0,
    stopwatch: Stopwatch | None = None,
    now: Callable[[], float] = time.monotonic,
    tick: Callable[[int], object] = lambda _: None,
) -> dict[str, Timing]:
    """Time every callable once per round, the order rotating by one from round to round.

    Runs in inference mode with garbage collection off. Models must be in eval mode and on the
    images' device already.

    Args:
        callables: Name to function of the images.
        images: (batch, ...) the one input of all.
        rounds: Samples per callable, at least.
        seconds: Rounds go on until so much time has gone since the first, up to ``MOST_ROUNDS``.
        warmup: Untimed calls of each callable before the first round, at least.
        warmup_s: Untimed calls in turn go on until so much time has gone.
        stopwatch: What times a call; by default the wall clock, which waits for the images' device.
        now: Seconds, for ``seconds`` and ``warmup_s``; tests bring their own.
        tick: Told the number of rounds done.

    Returns:
        Name to timing, in the order given.

    Raises:
        ValueError: No callables, rounds below 1, or warmup or seconds below 0.
    """
    if not callables or rounds < 1 or min(warmup, seconds, warmup_s) < 0:
        raise ValueError(
            f"need callables, rounds >= 1 and warmup >= 0, got {len(callables)} callables, "
            f"rounds={rounds}, warmup={warmup}, seconds={seconds:g}, warmup_s={warmup_s:g}"
        )
    watch = stopwatch or WallClock(waiting(images.device))
    names = list(callables)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            begun, done = now(), 0
            while done < warmup or (warmup_s > 0 and now() - begun < warmup_s):
                for name in names:
                    callables[name](images)
                waiting(images.device)()
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
