"""What was timed on: facts that stay, and what else the machine did meanwhile."""

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch

from harness.conditions import device_name
from harness.latency.timing import Timing

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
    """Carry how busy the machine was while models were timed. None means not known.

    Attributes:
        load_1min: load average of the minute before.
        others_cores: CPU time of all other processes by the wall's, so 1 is one core kept busy.
    """

    load_1min: float | None = None
    others_cores: float | None = None


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
    """Return what makes times hard to trust, nothing if nothing does.

    Args:
        timing: of a model.
        around: what happened meanwhile.
        cores: that the process may use.
    """
    warnings = []
    median, first, third = timing.spread_ms
    share = round((third - first) / median, 2)  # as it is printed
    if share > SPREAD:
        warnings.append(
            f"wide spread: quartiles {100 * share:.0f} % of the median apart, more than "
            f"{100 * SPREAD:.0f} %"
        )
    if around.others_cores is not None and around.others_cores > OTHERS * cores:
        warnings.append(
            f"other processes kept {around.others_cores:.1f} of {cores} cores busy meanwhile"
        )
    return tuple(warnings)


def cores() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
