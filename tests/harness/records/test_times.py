"""Lines of JSON and back, and which of them may be used again."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hand import replace
from rich.console import Console

from harness.base.table import fit
from harness.records import times
from harness.records.times import FASTER, OPEN, SLOWER

Make = Callable[..., times.LatencyRecord]


def test_records_come_back_as_they_were(latency_record: Make, tmp_path: Path):
    path = tmp_path / "folder" / "latency.jsonl"
    failed = latency_record(samples=(), failed="out of memory", others_cores=0.5)
    short = latency_record(
        dense=(20.0,) * 6, saved_gflops=0.25, method_config={"keep": 0.5, "points": [3]},
        deviation=1e-6, peak_mib=3.25,
    )  # fmt: skip
    times.write_latencies(path, [latency_record(), failed])
    times.write_latencies(path, [short])
    assert times.read_latencies(path) == [latency_record(), failed, short]
    with pytest.raises(ValueError, match="not JSON compliant"):
        times.write_latencies(path, [latency_record(), latency_record(method_config={"x": float("nan")})])
    assert len(times.read_latencies(path)) == 3


def test_what_follows_from_times(latency_record: Make):
    samples, dense = (6.0, 6.6, 6.0, 6.0, 6.0, 6.0), (10.0, 11.0) + (10.0,) * 4
    short = latency_record(samples, dense, saved_gflops=0.5)
    assert (short.times.ratio_to_dense, short.verdict) == (pytest.approx(0.6), FASTER)
    assert short.times.images_per_s == pytest.approx(1000 / 6)


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ((0.9, 0.99) * 3, FASTER),
        ((1.01, 1.3) * 3, SLOWER),
        ((0.9, 1.0) * 3, OPEN),
        ((0.5, 1.4) * 3, OPEN),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_one(latency_record: Make, factors: tuple[float, ...], verdict: str):
    noise = (1.0, 3.0, 1.5, 2.5, 1.2, 2.0)
    samples = tuple(a * b for a, b in zip(noise, factors, strict=True))
    assert latency_record(samples, noise).verdict == verdict


@pytest.mark.parametrize("facts", [{"samples": ()}, {"failed": "no"}, {"times": None}])
def test_a_record_has_times_or_says_why_not(latency_record: Make, facts: dict[str, Any]):
    with pytest.raises(ValueError, match="clip_vit_b16 must have times or say why it failed"):
        latency_record(**facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": 1}, r"line 2: unknown field 'batches', did you mean: batch"),
        ({"machine": {"cores": 2}}, r"line 2: missing field 'device_name'"),
        ({"schema_version": 9}, r"line 2: schema_version is 9, this version reads 3: move the file away"),
    ],
)
def test_a_line_that_is_no_record(latency_record: Make, tmp_path: Path, change: dict[str, Any], said: str):
    path = tmp_path / "latency.jsonl"
    times.write_latencies(path, [latency_record()])
    line = path.read_text("utf-8")
    path.write_text(line + json.dumps(json.loads(line) | change) + "\n", "utf-8")
    with pytest.raises(ValueError, match=said):
        times.read_latencies(path)


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
    old = getattr(known, name)
    new = replace(old, governor="powersave") if name == "machine" else values[type(old)]
    blank = latency_record(samples=(), failed="not timed", **{name: new})
    assert times.fitting(blank, [known], 6) is None


def test_a_table_has_the_times_of_each_batch_and_says_once_what_holds_for_all(latency_record: Make):
    dense = (10.0, 10.2, 10.1, 10.3, 10.2, 10.1)

    def row(method: str, factor: float, **facts: Any) -> times.LatencyRecord:
        names = {"model": f"clip_vit_b16_{method}50", "method": method, "keep": 0.5}
        costs = {"gflops": 1.5, "saved_gflops": 0.25, "final_tokens": 32}
        samples = () if facts.get("failed") else tuple(factor * time for time in dense)
        return latency_record(samples, dense, **(names | costs | facts))

    table = times.latency_table(
        [
            latency_record(dense, tag="[bold]x[/bold]"),
            row("tome", 0.8),
            row("evit", 1.0),
            row("evit", 1.0, batch=8, failed="out of memory"),
        ]
    )
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(fit(table.forms(), 200))
    text = console.export_text()
    assert "[bold]x[/bold]" in text  # no markup
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    [tome] = [line for line in lines if line[:2] == ["1", "tome50"]]
    assert tome[4:] == [
        *("8.12", "[8.08,", "8.16]", "123.2", "0.800", "[0.800,", "0.800]", "faster", "25", "%"),
        *("2", "+", "–"),
    ]
    [failed] = [line for line in lines if line[:2] == ["8", "evit50"]]
    assert failed[4:9] == ["–", "–", "–", "not", "timed"]
    assert table.notes == [
        "batch 8: out of memory",
        "no difference to dense can be concluded, as the interval of the ratio includes 1: evit50 at batch 1",
    ]
