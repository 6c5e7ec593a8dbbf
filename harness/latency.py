"""Time models against each other: interleaved, so that a drifting clock hits all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from harness.statistics import Interval, median_interval


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
    callables: Mapping[str, Callable[[Tensor], object]],
    images: Tensor,
    rounds: int,
    *,
    warmup: int = 2,
    sync: Callable[[], object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Timing]:
    """Time every callable once per round, the order rotating by one from round to round.

    Runs in inference mode with garbage collection off. Models must be in eval mode and on the
    images' device already.

    Args:
        callables: Name to function of the images.
        images: (batch, ...) the one input of all.
        rounds: Samples per callable.
        warmup: Untimed calls of each callable before the first round.
        sync: Waits for the device; by default what the images' device needs.
        clock: Nanoseconds; tests bring their own.

    Returns:
        Name to timing, in the order given.

    Raises:
        ValueError: No callables, rounds below 1 or warmup below 0.
    """
    if not callables or rounds < 1 or warmup < 0:
        raise ValueError(
            f"need callables, rounds >= 1 and warmup >= 0, got {len(callables)} callables, "
            f"rounds={rounds}, warmup={warmup}"
        )
    wait = sync or waiting(images.device)
    names = list(callables)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            for name in names * warmup:
                callables[name](images)
            for start in range(rounds):
                first = start % len(names)
                for name in names[first:] + names[:first]:
                    wait()
                    begin = clock()
                    callables[name](images)
                    wait()
                    samples[name].append((clock() - begin) / 1e6)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(batch=len(images), samples_ms=tuple(samples[name])) for name in names}


def waiting(device: torch.device) -> Callable[[], object]:
    """Return what blocks until the device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
