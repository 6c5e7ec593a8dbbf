"""What times one call: the wall clock, torch's benchmark timer, or events on a CUDA stream."""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

Call = Callable[[Tensor], object]


class Stopwatch(Protocol):
    """Times calls; ``name`` says what with."""

    name: str

    def time_ms(self, call: Call, images: Tensor) -> float:
        """Return the milliseconds of one call."""
        ...


class WallClock:
    """Time a single call between two waits for the device.

    Args:
        wait: waits for the device.
        clock: nanoseconds; tests bring their own.
    """

    name = "wall clock"

    def __init__(
        self,
        wait: Callable[[], object] = lambda: None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Remember both."""
        self._wait, self._clock = wait, clock

    def time_ms(self, call: Call, images: Tensor) -> float:
        """Return the milliseconds of one call."""
        self._wait()
        begin = self._clock()
        call(images)
        self._wait()
        return (self._clock() - begin) / 1e6


class TorchTimer:
    """Time with ``torch.utils.benchmark.Timer``, which sets the threads and calls twice before.

    So a sample is of a model that has the caches to itself, as when it is served.

    Args:
        threads: of torch.
        clock: seconds; tests bring their own.
    """

    name = "torch.utils.benchmark.Timer"

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Remember both."""
        self._threads, self._clock = threads, clock

    def time_ms(self, call: Call, images: Tensor) -> float:
        """Return the milliseconds of one call, after two untimed ones."""
        timer = Timer(
            "call(images)",
            timer=self._clock,
            globals={"call": call, "images": images},
            num_threads=self._threads,
        )
        return 1000 * timer.timeit(1).median


class Events:
    """Time one call by two events on the device's stream.

    Args:
        device: a CUDA device.
    """

    name = "CUDA events"

    def __init__(self, device: torch.device) -> None:
        """Remember the device."""
        self._device = device

    def time_ms(self, call: Call, images: Tensor) -> float:
        """Return the milliseconds from one event to the other, waits for their launch included."""
        with torch.cuda.device(self._device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call(images)
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end))


def waiting(device: torch.device) -> Callable[[], object]:
    """Return what blocks until the device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def stopwatch(device: torch.device, threads: int) -> Stopwatch:
    """Return what a stand-alone figure is measured with on this device."""
    if device.type == "cuda":
        return Events(device)
    if device.type == "cpu":
        return TorchTimer(threads)
    return WallClock(waiting(device))
