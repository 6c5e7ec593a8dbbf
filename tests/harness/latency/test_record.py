"""Lines of JSON and back, and which of them may be used again."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.console.terminal import Progress
from harness.measure.times import (
    CONDITIONS,
    FASTER,
    OPEN,
    SLOWER,
    LatencyRecord,
    earlier_times,
    fitting,
    read_latencies,
    write_latencies,
)
from harness.measure.timing import Surroundings
from harness.records.record import Latency

Make = Callable[..., LatencyRecord]


def test_records_come_back_as_they_were(latency_record: Make, tmp_path: Path):
    path = tmp_path / "folder" / "latency.jsonl"
    around = Surroundings(others_cores=0.5)
    failed = latency_record(samples=(), failed="out of memory", surroundings=around)
    short = latency_record(
        dense=(20.0,) * 6, saved_gflops=0.25, method_config={"keep": 0.5, "points": [3]},
        warnings=("a", "b"), deviation=1e-6, peak_mib=3.25,
    )  # fmt: skip
    write_latencies(path, [latency_record(), failed])
    write_latencies(path, [short])
    assert read_latencies(path) == [latency_record(), failed, short]


def test_the_schema_version_is_first_in_a_line(latency_record: Make, tmp_path: Path):
    write_latencies(tmp_path / "x", [latency_record()])
    assert (tmp_path / "x").read_text("utf-8").startswith('{"schema_version": 1, ')


def test_a_record_has_all_that_the_latency_of_a_record_of_accuracy_has():
    names = [field.name for field in fields(LatencyRecord)]
    assert [field.name for field in fields(Latency) if field.name not in names] == []


def test_what_follows_from_times(latency_record: Make):
    samples, dense = (6.0, 6.6, 6.0, 6.0, 6.0, 6.0), (10.0, 11.0) + (10.0,) * 4
    short = latency_record(samples, dense, saved_gflops=0.5)
    assert (short.ratio_to_dense, short.verdict) == (pytest.approx(0.6), FASTER)
    assert short.saved_time == pytest.approx(0.4)
    assert short.arrived == pytest.approx(0.8)
    assert short.images_per_s == pytest.approx(1000 / 6)


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ((0.9, 0.99) * 3, FASTER),
        ((1.01, 1.3) * 3, SLOWER),
        ((0.9, 1.0) * 3, OPEN),
        ((1.0, 1.3) * 3, OPEN),
        ((0.5, 1.4) * 3, OPEN),
        ((1.0,) * 6, OPEN),
    ],
)
def test_a_verdict_needs_an_interval_of_paired_rounds_on_one_side_of_one(
    latency_record: Make, factors: tuple[float, ...], verdict: str
):
    noise = (1.0, 3.0, 1.5, 2.5, 1.2, 2.0)
    samples = tuple(a * b for a, b in zip(noise, factors, strict=True))
    assert latency_record(samples, noise).verdict == verdict


@pytest.mark.parametrize("saved", [None, 0.0, 0.009, -0.2])
def test_where_nothing_was_saved_nothing_could_arrive(latency_record: Make, saved: float | None):
    assert latency_record(dense=(20.0,) * 6, saved_gflops=saved).arrived is None


@pytest.mark.parametrize(
    "facts",
    [
        {"samples": ()},
        {"failed": "out of memory"},
        {"median_ms": None},
        {"samples": (), "failed": None, "median_ms": 3.0},
    ],
)
def test_a_record_has_times_or_says_why_not(latency_record: Make, facts: dict[str, Any]):
    with pytest.raises(ValueError, match="clip_vit_b16 must have times or say why it failed"):
        latency_record(**facts)


def test_nan_is_not_written(latency_record: Make, tmp_path: Path):
    path = tmp_path / "latency.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_latencies(path, [latency_record(), latency_record(peak_mib=float("nan"))])
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": 1}, r"line 2: unknown field 'batches', did you mean: batch"),
        ({"batch": "one"}, r"line 2: batch must be int, got 'one'"),
        ({"machine": {"cores": 2}}, r"line 2: missing field 'device_name'"),
        ({"schema_version": 9}, r"line 2: schema_version must be 1, got 9"),
    ],
)
def test_a_line_that_is_no_record_is_named(
    latency_record: Make, tmp_path: Path, change: dict[str, Any], said: str
):
    path = tmp_path / "latency.jsonl"
    write_latencies(path, [latency_record()])
    line = path.read_text("utf-8")
    path.write_text(line + json.dumps(json.loads(line) | change) + "\n", "utf-8")
    with pytest.raises(ValueError, match=said):
        read_latencies(path)


def test_a_torn_line_is_dropped_by_the_command_that_goes_on(latency_record: Make, tmp_path: Path):
    path = tmp_path / "latency.jsonl"
    write_latencies(path, [latency_record(), latency_record(batch=8)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"line 2: torn, .*mend"):
        read_latencies(path)
    assert earlier_times(path, Progress(), fresh=False) == [latency_record()]
    assert path.read_bytes() == whole.splitlines(keepends=True)[0]
    assert earlier_times(path, Progress(), fresh=True) == []
    assert earlier_times(tmp_path / "none", Progress(), fresh=False) == []


def test_the_newest_of_equal_conditions_fits(latency_record: Make):
    blank = latency_record(samples=(), failed="not timed")
    old, new = latency_record(created="2026-01-01T00:00:00+00:00"), latency_record(gflops=2.5)
    assert fitting(blank, [old, new, latency_record(batch=8)], 6) is new
    assert fitting(blank, [], 6) is None


def test_too_few_rounds_do_not_fit_and_a_failure_does(latency_record: Make):
    blank = latency_record(samples=(), failed="not timed")
    assert fitting(blank, [latency_record()], 7) is None
    failed = latency_record(samples=(), failed="out of memory")
    assert fitting(blank, [failed], 7) is failed


@pytest.mark.parametrize("name", CONDITIONS)
def test_another_condition_does_not_fit(latency_record: Make, name: str):
    known = latency_record()
    values = {str: "another", float: 0.5, int: 77, bool: True, dict: {"a": 1}, tuple: (8, 8)}
    old = getattr(known, name)
    new = replace(old, governor="powersave") if name == "machine" else values[type(old)]
    assert (
        fitting(latency_record(samples=(), failed="not timed", **{name: new}), [known], 6) is None
    )
