"""Lines of JSON and back, and which of them may be used again."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch

from harness.records import times
from harness.records.times import FASTER, OPEN, SLOWER

Make = Callable[..., times.LatencyRecord]


def test_records_come_back_as_they_were(latency_record: Make, tmp_path: Path):
    path = tmp_path / "folder" / "latency.jsonl"
    failed = latency_record(samples=(), failed="out of memory", others_cores=0.5)
    load = times.Load(rate=30.0, queries=200, runs=(times.Percentiles(9.0, 20.0, 45.5),) * 6, batch_mean=1.5)
    server = latency_record(samples=(), bound_ms=50.0, load=load, verdict=times.MET)
    short = latency_record(
        dense=(20.0,) * 6, method_config={"keep": 0.5, "points": [3]},
        deviation=1e-6,
    )  # fmt: skip
    times.write_latencies(path, [latency_record(), failed])
    times.write_latencies(path, [short, server])
    assert times.read_latencies(path) == [latency_record(), failed, short, server]
    with pytest.raises(ValueError, match="not JSON compliant"):
        times.write_latencies(path, [latency_record(), latency_record(method_config={"x": float("nan")})])
    assert len(times.read_latencies(path)) == 4
    times.write_latencies(path, [latency_record(schema_version=9)])
    with pytest.raises(ValueError, match=r"line 5: schema_version is 9, this version reads 6: move the file away"):
        times.read_latencies(path)


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [((0.9, 0.99) * 3, FASTER), ((1.01, 1.3) * 3, SLOWER), ((0.9, 1.0) * 3, OPEN), ((0.5, 1.4) * 3, OPEN)],
)
def test_a_verdict_needs_an_interval_on_one_side_of_one(latency_record: Make, factors: tuple[float, ...], verdict: str):
    noise = (1.0, 3.0, 1.5, 2.5, 1.2, 2.0)
    samples = tuple(a * b for a, b in zip(noise, factors, strict=True))
    assert latency_record(samples, noise).verdict == verdict


def test_percentiles_have_the_nearest_rank_and_need_a_sample_beyond(latency_record: Make):
    values = list(np.random.default_rng(0).permutation(np.arange(1.0, 201.0)))

    def slowly(percent: int) -> float:
        return next(v for v in sorted(values) if 100 * sum(one <= v for one in values) >= percent * len(values))

    assert times.Percentiles.of(values) == (slowly(50), slowly(90), slowly(99)) == (100, 180, 198)
    for percent, least in ((90, 10), (99, 100)):
        samples = [latency_record(tuple(values[:count])).percentile_ms(percent) for count in (least - 1, least)]
        assert samples == [None, sorted(values[:least])[-2]]


@pytest.mark.parametrize(("p99s", "verdict"), [
    ((40,) * 8 + (90,), times.MET), ((60,) * 8 + (10,), times.MISSED), ((40,) * 5 + (60,) * 4, OPEN),
])  # fmt: skip
def test_a_server_meets_a_bound_if_the_interval_over_runs_is_within(p99s: Sequence[float], verdict: str):
    runs = tuple(times.Percentiles(1.0, 2.0, float(p99)) for p99 in p99s)
    assert times.Load(rate=5.0, queries=200, runs=runs, batch_mean=1.5).verdict(50) == verdict


def test_a_gpu_says_its_clocks_and_power_where_nvml_can_be_asked(monkeypatch: pytest.MonkeyPatch):
    cuda, nvml = torch.device("cuda:0"), MagicMock()
    nvml.nvmlDeviceGetClockInfo = lambda gpu, clock: 1980 if clock is nvml.NVML_CLOCK_SM else 2619
    nvml.nvmlDeviceGetPowerUsage.return_value = nvml.nvmlDeviceGetEnforcedPowerLimit.return_value = 350_000
    nvml.nvmlDeviceGetPerformanceState.return_value, nvml.nvmlDeviceGetTemperature.return_value = 0, 41
    nvml.NVMLError = OSError
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Mock(uuid="1-2"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    state = times.read_gpu(cuda)
    assert (state["performance_state"], state["sm_mhz"], state["memory_mhz"], state["power_w"]) == (0, 1980, 2619, 350)
    nvml.nvmlDeviceGetHandleByUUID.assert_called_with("GPU-1-2")
    nvml.nvmlDeviceGetTemperature.side_effect = OSError("not supported")
    assert times.read_gpu(cuda) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert times.read_gpu(cuda) is times.read_gpu(torch.device("cpu")) is None


@pytest.mark.parametrize("facts", [{"samples": ()}, {"failed": "no"}, {"times": None}])
def test_a_record_has_times_or_says_why_not(latency_record: Make, facts: dict[str, Any]):
    with pytest.raises(ValueError, match="clip_vit_b16 must have times or say why it failed"):
        latency_record(**facts)


def test_the_newest_of_equal_conditions_with_enough_rounds_or_a_failure_fits(latency_record: Make):
    blank = latency_record(samples=(), failed="not timed")
    old, new = latency_record(created="2026-01-01T00:00:00+00:00"), latency_record(gflops=2.5)
    assert times.fitting(blank, [old, new, latency_record(batch=8)], 6) is new
    assert times.fitting(blank, [], 6) is None
    assert times.fitting(blank, [latency_record()], 7) is None  # too few rounds
    failed = latency_record(samples=(), failed="out of memory")
    assert times.fitting(blank, [failed], 7) is failed


@pytest.mark.parametrize("name", times.CONDITIONS)
def test_another_condition_does_not_fit(latency_record: Make, name: str):
    known = latency_record()
    values: dict[type, Any] = {str: "another", float: 0.5, int: 77, bool: True, dict: {"a": 1}, tuple: (8, 8)}
    old = 50.0 if name in ("bound_ms", "rate") else getattr(known, name)
    new = values[type(old)]
    blank = latency_record(samples=(), failed="not timed", **{name: new})
    assert times.fitting(blank, [known], 6) is None
