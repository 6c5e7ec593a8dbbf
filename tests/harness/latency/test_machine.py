"""Facts of the machine, read from files and from a library that are laid out here."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.latency import machine
from harness.latency.machine import Machine, Watch, busy_s, cores, cpu_mhz, governor
from harness.latency.nvml import Gpu, find_gpu


class NVMLError(Exception):
    pass


def library(**answers: Any) -> ModuleType:
    """Make a pynvml that knows these answers and refuses the others."""

    def ask(name: str) -> Any:
        def answer(*_: Any) -> Any:
            if name not in answers:
                raise NVMLError("not supported")
            return answers[name]

        return answer

    found = ModuleType("pynvml")
    found.NVMLError, found.NVML_CLOCK_SM = NVMLError, 1
    for name in (
        "nvmlInit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo",
        "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetCurrentClocksThrottleReasons",
    ):  # fmt: skip
        setattr(found, name, ask(name))
    return found


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("CPUS", "CPUINFO", "STAT"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    return tmp_path


def test_facts_of_this_machine():
    found = Machine.here(torch.device("cpu"), None)
    assert found.torch_version == torch.__version__
    assert (found.cuda, found.cudnn, found.driver, found.max_clock_mhz) == (None,) * 4
    assert found.cores == cores() >= 1
    assert found == Machine.here(torch.device("cpu"), None)


def test_a_gpu_has_facts_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "device_name", lambda device: f"named {device}")
    gpu = Gpu(library(nvmlSystemGetDriverVersion=b"580.1", nvmlDeviceGetMaxClockInfo=1980), 0)
    found = Machine.here(torch.device("cuda:0"), gpu)
    assert (found.device_name, found.driver) == ("named cuda:0", "580.1")
    assert found.max_clock_mhz == 1980.0


def test_where_nothing_says_so_nothing_is_known(files: Path):
    assert (governor(), cpu_mhz(), busy_s()) == (None, None, None)
    found = Watch(None).seen()
    assert (found.clock_mhz_before, found.clock_mhz_after, found.others_cores) == (None,) * 3


def test_the_clock_is_the_mean_over_cpus(files: Path):
    (files / "CPUINFO").write_text("cpu MHz : 1000.5\nmodel name : x\ncpu MHz : 2000.5\n")
    assert cpu_mhz() == 1500.5
    for index, khz in enumerate((3_000_000, 2_000_000)):  # what it is now, before what it is said
        folder = files / "CPUS" / f"cpu{index}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    assert cpu_mhz() == 2500
    (files / "CPUS" / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    assert governor() == "powersave"


def test_busy_is_all_but_idling_and_waiting(files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    (files / "STAT").write_text("cpu  100 20 30 5000 600 7 8 9 0 0\ncpu0 1 2 3\n")
    assert busy_s() == pytest.approx((100 + 20 + 30 + 7 + 8 + 9) / 100)


def test_others_are_what_all_did_without_this_process(monkeypatch: pytest.MonkeyPatch):
    busy, own, now = iter([100.0, 118.0]), iter([5.0, 13.0]), iter([50.0, 60.0])
    monkeypatch.setattr(machine, "busy_s", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_s", lambda: next(own))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(now))
    assert Watch(None).seen().others_cores == pytest.approx((18 - 8) / 10)


def test_a_gpus_clock_is_watched_instead_of_the_cpus():
    facts = {"nvmlDeviceGetClockInfo": 1410, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x1}
    found = Watch(Gpu(library(**facts), 0)).seen()
    assert (found.clock_mhz_before, found.clock_mhz_after) == (1410, 1410)
    assert found.slowed_by == ("power cap",)  # that it idled before is no slowing


def test_what_a_card_does_not_count_is_not_known():
    gpu = Gpu(library(), 0)
    assert (gpu.clock_mhz, gpu.max_clock_mhz, gpu.energy_mj, gpu.driver) == (None,) * 4
    assert gpu.slowed_by == ()


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_only_a_cuda_device_is_looked_for(device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpu(torch.device(device)) is None


def test_a_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch):
    asked = []
    found = library(nvmlInit=None, nvmlDeviceGetTotalEnergyConsumption=77)
    monkeypatch.setattr(found, "nvmlDeviceGetHandleByUUID", asked.append)
    monkeypatch.setitem(sys.modules, "pynvml", found)
    facts = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    gpu = find_gpu(torch.device("cuda:1"))
    assert asked == ["GPU-12-34"]
    assert gpu is not None
    assert gpu.energy_mj == 77


@pytest.mark.parametrize("there", [False, True])
def test_without_library_or_driver_there_is_none(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", library() if there else None)
    facts = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    assert find_gpu(torch.device("cuda:0")) is None
