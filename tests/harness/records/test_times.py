"""Lines of JSON and back, and which of them may be used again."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hand import replace
from rich.console import Console

from harness.base.table import Table, fit
from harness.records import times
from harness.records.times import FASTER, OPEN, SLOWER, Surroundings

Make = Callable[..., times.LatencyRecord]


def test_records_come_back_as_they_were(latency_record: Make, tmp_path: Path):
    path = tmp_path / "folder" / "latency.jsonl"
    around = Surroundings(others_cores=0.5)
    failed = latency_record(samples=(), failed="out of memory", surroundings=around)
    short = latency_record(
        dense=(20.0,) * 6, saved_gflops=0.25, method_config={"keep": 0.5, "points": [3]},
        warnings=("a", "b"), deviation=1e-6, peak_mib=3.25,
    )  # fmt: skip
    times.write_latencies(path, [latency_record(), failed])
    times.write_latencies(path, [short])
    assert times.read_latencies(path) == [latency_record(), failed, short]
    assert path.read_text("utf-8").startswith('{"schema_version": 2, ')


def test_what_follows_from_times(latency_record: Make):
    samples, dense = (6.0, 6.6, 6.0, 6.0, 6.0, 6.0), (10.0, 11.0) + (10.0,) * 4
    short = latency_record(samples, dense, saved_gflops=0.5)
    assert (short.times.ratio_to_dense, short.verdict) == (pytest.approx(0.6), FASTER)
    assert short.saved_time == pytest.approx(0.4)
    assert short.arrived == pytest.approx(0.8)
    assert short.times.images_per_s == pytest.approx(1000 / 6)


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
def test_a_verdict_needs_an_interval_on_one_side_of_one(latency_record: Make, factors: tuple[float, ...], verdict: str):
    noise = (1.0, 3.0, 1.5, 2.5, 1.2, 2.0)
    samples = tuple(a * b for a, b in zip(noise, factors, strict=True))
    assert latency_record(samples, noise).verdict == verdict


@pytest.mark.parametrize("saved", [None, 0.0, 0.009, -0.2])
def test_where_nothing_was_saved_nothing_could_arrive(latency_record: Make, saved: float | None):
    assert latency_record(dense=(20.0,) * 6, saved_gflops=saved).arrived is None


@pytest.mark.parametrize("facts", [{"samples": ()}, {"failed": "no"}, {"times": None}])
def test_a_record_has_times_or_says_why_not(latency_record: Make, facts: dict[str, Any]):
    with pytest.raises(ValueError, match="clip_vit_b16 must have times or say why it failed"):
        latency_record(**facts)


def test_nan_is_not_written(latency_record: Make, tmp_path: Path):
    path = tmp_path / "latency.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        times.write_latencies(path, [latency_record(), latency_record(peak_mib=float("nan"))])
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": 1}, r"line 2: unknown field 'batches', did you mean: batch"),
        ({"batch": "one"}, r"line 2: batch must be int, got 'one'"),
        ({"machine": {"cores": 2}}, r"line 2: missing field 'device_name'"),
        ({"schema_version": 9}, r"line 2: schema_version must be 2, got 9"),
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
    values = {str: "another", float: 0.5, int: 77, bool: True, dict: {"a": 1}, tuple: (8, 8)}
    old = getattr(known, name)
    new = replace(old, governor="powersave") if name == "machine" else values[type(old)]
    blank = latency_record(samples=(), failed="not timed", **{name: new})
    assert times.fitting(blank, [known], 6) is None


WIDE = 200
EVIT = "clip_vit_b16_evit50"
DENSE = (10.0, 10.2, 10.1, 10.3, 10.2, 10.1)


@pytest.fixture
def records(latency_record: Make) -> list[times.LatencyRecord]:
    def row(method: str, factor: float, **facts: object) -> times.LatencyRecord:
        samples = tuple(factor * time for time in DENSE)
        names = {"model": f"clip_vit_b16_{method}50", "method": method, "keep": 0.5}
        costs = {"gflops": 1.5, "saved_gflops": 0.25, "final_tokens": 32}
        return latency_record(samples, DENSE, **(names | costs | facts))

    busy = ("other processes kept 1.0 of 2 cores busy meanwhile",)
    tied = (9.0, 10.4, 10.1, 10.2, 10.3, 10.1)
    return [
        latency_record(DENSE, warnings=busy),
        row("tome", 0.8, warnings=(*busy, "wide spread: quartiles 30 % apart")),
        latency_record(
            tied, DENSE, model=EVIT, method="evit", warnings=busy,
            saved_gflops=0.2, peak_mib=3.25,
        ),
        latency_record(DENSE, batch=8),
        row("tome", 1.5, batch=8),
        latency_record((), batch=8, model=EVIT, method="evit", failed="out of memory"),
        latency_record(DENSE, way="compile", first_call_s=27.64, deviation=1.8e-6),
    ]  # fmt: skip


def shown(records: list[times.LatencyRecord], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for part in times.latency_tables(records):
        laid = fit(part.forms(), width) if isinstance(part, Table) else part
        console.print(laid, soft_wrap=isinstance(part, str), markup=False)
    return console.export_text()


def test_a_table_per_condition_with_batches_in_it(records: list[times.LatencyRecord]):
    text = shown(records, WIDE)
    title = "clip_vit_b16 (openai, 64x64 px), float32, {}, cpu: A CPU, threads: 1, by metronome"
    assert [text.count(title.format(way)) for way in ("eager", "compile")] == [1, 1]
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["1", "dense", "64", "2.00", "10.15", "[10.10,", "10.20]", "98.5"] in [line[:8] for line in lines]
    [tome] = [line for line in lines if line[:2] == ["1", "tome50"]]
    assert tome[4:] == [
        "8.12", "[8.08,", "8.16]", "123.2", "0.800", "[0.800,", "0.800]", "faster", "!", "25", "%",
        "20", "%", "80", "%", "2", "+", "–",
    ]  # fmt: skip
    [slower] = [line for line in lines if line[:2] == ["8", "tome50"]]
    assert slower[slower.index("slower") :][:6] == ["slower", "25", "%", "-50", "%", "-200"]
    [failed] = [line for line in lines if line[:2] == ["8", "evit50"]]
    assert failed[4:9] == ["–", "–", "–", "not", "timed"]
    eager, _, compiled = text.partition("float32, compile")
    assert "…" not in text
    assert "first, s" not in eager
    assert all(part in compiled for part in ("first, s", "27.6", "2e-06"))


def test_what_holds_for_all_models_of_a_batch_is_said_once(records: list[times.LatencyRecord]):
    assert times.notes(records[:6]) == [
        "batch 1: other processes kept 1.0 of 2 cores busy meanwhile",
        "batch 1, tome50: wide spread: quartiles 30 % apart",
        "batch 8, evit50: not timed: out of memory",
        "no difference to dense can be concluded, as the interval of the ratio includes 1: evit50 at batch 1",
    ]
    assert times.notes(records[3:5]) == []


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_gets_the_best_columns(records: list[times.LatencyRecord], width: int):
    text = shown(records, width)
    assert not any(part in text for part in ("…", "images/s"))
    for part in ("0.800 [0.800, 0.800]", "8.12 [8.08, 8.16]", "not shown !"):
        assert part in text
    assert "all columns: a wider terminal, or --json" in " ".join(text.split())
    table = text.partition("\nbatch 1: ")[0]  # warnings are lines that nobody breaks
    assert max(map(len, table.splitlines())) <= width


def test_markdown_has_the_same_rows(records: list[times.LatencyRecord]):
    text = times.latency_markdown(records)
    assert text.count("\n## ") == 2
    assert text.endswith("|\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(records) + 2 * 2  # heads and rules
    assert "| 1 | tome50 | 32 | 1.50 | 8.12 [8.08, 8.16] | 123.2 | 0.800 [0.800, 0.800] |" in text
    assert "- batch 8, evit50: not timed: out of memory" in text
    assert {row.count("|") for row in rows} == {13, 15}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"tag": "[bold]x[/bold]"}, "[bold]x[/bold]"),  # no markup
        ({"random_weights": True}, "(random weights, 64x64 px)"),
    ],
)
def test_titles_say_whose_weights_were_timed(latency_record: Make, facts: dict, said: str):
    assert said in shown([latency_record(**facts)], WIDE)
