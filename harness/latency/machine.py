"""What was timed on: facts that stay, and what may change while a model is timed."""

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch

from harness.conditions import device_name
from harness.latency.nvml import SLOWED, Gpu

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
STAT = Path("/proc/stat")


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
    max_clock_mhz: float | None = None  # of the GPU
    driver: str | None = None  # of the GPU
    cuda: str | None = None
    cudnn: int | None = None
    matmul_precision: str  # of float32: highest, high (TF32) or medium
    cudnn_tf32: bool  # convolutions on the GPU may use TF32
    python_version: str
    torch_version: str
    timm_version: str

    @classmethod
    def here(cls, device: torch.device, gpu: Gpu | None) -> Self:
        """Return this machine's facts as they concern the device."""
        cuda = device.type == "cuda"
        return cls(
            device_name=device_name(str(device)),
            platform=platform.platform(),
            cores=cores(),
            interop_threads=torch.get_num_interop_threads(),
            governor=governor(),
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            mkldnn=torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
            max_clock_mhz=_float(gpu.max_clock_mhz) if gpu else None,
            driver=gpu.driver if gpu else None,
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
    """Carry what happened around the timing of some models. None means not known.

    Attributes:
        load_1min: load average of the last minute, before.
        clock_mhz_before: mean over CPUs, or the GPU's, after warming up.
        clock_mhz_after: the same at the end.
        others_cores: CPU time of all other processes by the wall's, so 1 is one core kept busy.
        slowed_by: why the GPU was slower than asked for, after any round.
    """

    load_1min: float | None = None
    clock_mhz_before: float | None = None
    clock_mhz_after: float | None = None
    others_cores: float | None = None
    slowed_by: tuple[str, ...] = ()


class Watch:
    """Look at the surroundings now, and again when asked.

    Args:
        gpu: whose clock to read; None for the CPU's.
    """

    def __init__(self, gpu: Gpu | None) -> None:
        """Take the first look."""
        self._gpu = gpu
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._clock = self._clock_mhz()
        self._slowed: set[str] = set()
        self._busy, self._own, self._begun = busy_s(), _own_s(), time.monotonic()

    def note(self) -> None:
        """Look at what slows the GPU: its driver says that only while it does."""
        if self._gpu is not None:
            self._slowed.update(self._gpu.slowed_by)

    def seen(self) -> Surroundings:
        """Take the second look."""
        busy, wall = busy_s(), time.monotonic() - self._begun
        self.note()
        others = None
        if busy is not None and self._busy is not None and wall > 0:
            others = max(0.0, (busy - self._busy - (_own_s() - self._own)) / wall)
        return Surroundings(
            load_1min=self._load,
            clock_mhz_before=self._clock,
            clock_mhz_after=self._clock_mhz(),
            others_cores=others,
            slowed_by=tuple(text for text in SLOWED.values() if text in self._slowed),
        )

    def _clock_mhz(self) -> float | None:
        return _float(self._gpu.clock_mhz) if self._gpu else cpu_mhz()


def cores() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def governor() -> str | None:
    """Return what governs the first CPU's clock; None where nothing says so, as in a guest."""
    path = CPUS / "cpu0" / "cpufreq" / "scaling_governor"
    return path.read_text("utf-8").strip() if path.is_file() else None


def cpu_mhz() -> float | None:
    """Return the mean clock of all CPUs; in a guest it may be a nominal one that never changes."""
    found = [int(p.read_text("utf-8")) / 1000 for p in CPUS.glob("cpu*/cpufreq/scaling_cur_freq")]
    if not found and CPUINFO.is_file():
        lines = CPUINFO.read_text("utf-8").splitlines()
        found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(found) / len(found) if found else None


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


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
