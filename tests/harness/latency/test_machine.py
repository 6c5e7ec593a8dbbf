"""Facts of the machine, and what makes its times hard to trust."""

from pathlib import Path

import pytest
import torch

from harness.measure import timing as machine
from harness.measure.timing import Machine, Surroundings, Timing, Watch, busy_s, cores, warnings_of

QUIET = Surroundings(load_1min=0.1, others_cores=0.1)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("GOVERNOR", "STAT"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    return tmp_path


def test_facts_of_this_machine(files: Path):
    facts = Machine.here(torch.device("cpu"))
    assert facts.torch_version == torch.__version__
    assert (facts.cuda, facts.cudnn, facts.governor) == (None,) * 3
    assert facts.cores == cores() >= 1
    assert facts == Machine.here(torch.device("cpu"))
    (files / "GOVERNOR").write_text("powersave\n")
    assert Machine.here(torch.device("cpu")).governor == "powersave"


def test_a_gpu_has_its_own_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "device_name", lambda device: f"named {device}")
    assert Machine.here(torch.device("cuda:0")).device_name == "named cuda:0"


def test_busy_is_all_but_idling_and_waiting(files: Path, monkeypatch: pytest.MonkeyPatch):
    assert busy_s() is None
    assert Watch().surroundings().others_cores is None
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    (files / "STAT").write_text("cpu  100 20 30 5000 600 7 8 9 0 0\ncpu0 1 2 3\n")
    assert busy_s() == pytest.approx((100 + 20 + 30 + 7 + 8 + 9) / 100)


def test_others_are_what_all_did_without_this_process(monkeypatch: pytest.MonkeyPatch):
    busy, own, now = iter([100.0, 118.0]), iter([5.0, 13.0]), iter([50.0, 60.0])
    monkeypatch.setattr(machine, "busy_s", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_s", lambda: next(own))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(now))
    assert Watch().surroundings().others_cores == pytest.approx((18 - 8) / 10)


@pytest.mark.parametrize(
    ("samples", "around", "warnings"),
    [
        ((100.0, 101.0) * 6, QUIET, []),
        ((100.0, 101.0) * 6, Surroundings(), []),  # what isn't known is no reason to warn
        ((100.0, 104.0) * 6, QUIET, []),
        ((100.0, 110.8) * 6, QUIET, []),  # that's 10.2 % of their median, printed as 10 %
        ((100.0, 130.0) * 6, QUIET, ["wide spread: quartiles 26 % of the median apart"]),
        ((100.0,) * 6, Surroundings(others_cores=0.2), []),
        (
            (100.0,) * 6,
            Surroundings(others_cores=0.7),
            ["other processes kept 0.7 of 2 cores busy"],
        ),
    ],
)
def test_warnings(samples: tuple[float, ...], around: Surroundings, warnings: list[str]):
    found = warnings_of(Timing(batch=1, samples_ms=samples), around, 2)
    assert len(found) == len(warnings)
    assert all(text.startswith(start) for text, start in zip(found, warnings, strict=True))
