"""What NVIDIA's management library says about a GPU; nothing where it isn't installed."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch

T = TypeVar("T")
# Bits of "clocks throttle reasons" that mean slower than the load asks for.
SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class Gpu:
    """One GPU; each answer is None where the driver or the card has none.

    Args:
        library: pynvml, initialised.
        handle: the GPU's.
    """

    def __init__(self, library: ModuleType, handle: Any) -> None:
        """Remember both."""
        self._library, self._handle = library, handle

    @property
    def driver(self) -> str | None:
        """The driver's version."""
        told = self._asked(self._library.nvmlSystemGetDriverVersion)
        return told.decode() if isinstance(told, bytes) else told

    @property
    def clock_mhz(self) -> float | None:
        """The present clock of the multiprocessors."""
        kind = self._library.NVML_CLOCK_SM
        return self._asked(lambda: self._library.nvmlDeviceGetClockInfo(self._handle, kind))

    @property
    def max_clock_mhz(self) -> float | None:
        """The highest clock of the multiprocessors."""
        kind = self._library.NVML_CLOCK_SM
        return self._asked(lambda: self._library.nvmlDeviceGetMaxClockInfo(self._handle, kind))

    @property
    def energy_mj(self) -> int | None:
        """Energy in millijoules since the driver was loaded; Volta and later count it."""
        return self._asked(lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    @property
    def slowed_by(self) -> tuple[str, ...]:
        """Why the clock is lower than the load asks for, of ``SLOWED``."""
        reasons = self._asked(
            lambda: self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        )
        return tuple(text for bit, text in SLOWED.items() if (reasons or 0) & bit)

    def _asked(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self._library.NVMLError:  # not supported by this card
            return None


def find_gpu(device: torch.device) -> Gpu | None:
    """Return NVML's view of a CUDA device, None without one or without the library."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    # By UUID, as NVML numbers all GPUs and CUDA_VISIBLE_DEVICES may hide some.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
