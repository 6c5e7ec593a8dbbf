"""Times for people: nothing concluded from noise, nothing cut off."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from harness.console.table import Forms, fitted
from harness.measure.times import LatencyRecord, latency_markdown, latency_tables, notes

WIDE = 200
EVIT = "clip_vit_b16_evit50"
Make = Callable[..., LatencyRecord]
DENSE = (10.0, 10.2, 10.1, 10.3, 10.2, 10.1)


@pytest.fixture
def records(latency_record: Make) -> list[LatencyRecord]:
    def row(method: str, factor: float, **facts: object) -> LatencyRecord:
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


def shown(records: list[LatencyRecord], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for part in latency_tables(records):
        laid = fitted(part.forms, width) if isinstance(part, Forms) else part
        console.print(laid, soft_wrap=isinstance(part, str), markup=False)
    return console.export_text()


def test_a_table_per_condition_with_batches_in_it(records: list[LatencyRecord]):
    text = shown(records, WIDE)
    title = "clip_vit_b16 (openai, 64x64 px), float32, {}, cpu: A CPU, threads: 1, by metronome"
    assert [text.count(title.format(way)) for way in ("eager", "compile")] == [1, 1]
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["1", "dense", "64", "2.00", "10.15", "[10.10,", "10.20]", "98.5"] in [
        line[:8] for line in lines
    ]
    [tome] = [line for line in lines if line[:2] == ["1", "tome50"]]
    assert tome[4:] == [
        "8.12", "[8.08,", "8.16]", "123.2", "0.800", "[0.800,", "0.800]", "faster", "!", "25", "%",
        "20", "%", "80", "%", "2", "+", "–",
    ]  # fmt: skip
    assert "…" not in text


def test_a_slower_and_a_failed_model_are_told(records: list[LatencyRecord]):
    lines = [line.replace("│", " ").split() for line in shown(records, WIDE).splitlines()]
    [slower] = [line for line in lines if line[:2] == ["8", "tome50"]]
    assert slower[slower.index("slower") :][:6] == ["slower", "25", "%", "-50", "%", "-200"]
    [failed] = [line for line in lines if line[:2] == ["8", "evit50"]]
    assert failed[4:9] == ["–", "–", "–", "not", "timed"]


def test_compiling_has_its_time_and_its_deviation(records: list[LatencyRecord]):
    eager, _, compiled = shown(records, WIDE).partition("float32, compile")
    assert "first, s" not in eager
    for text in ("first, s", "27.6", "2e-06"):
        assert text in compiled


def test_what_holds_for_all_models_of_a_batch_is_said_once(records: list[LatencyRecord]):
    assert notes(records[:6]) == [
        "batch 1: other processes kept 1.0 of 2 cores busy meanwhile",
        "batch 1, tome50: wide spread: quartiles 30 % apart",
        "batch 8, evit50: not timed: out of memory",
        "no difference to dense can be concluded, as the interval of the ratio includes 1: "
        "evit50 at batch 1",
    ]
    assert notes(records[3:5]) == []


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_gets_the_most_telling_columns_whole(
    records: list[LatencyRecord], width: int
):
    text = shown(records, width)
    assert "…" not in text
    assert "0.800 [0.800, 0.800]" in text
    assert "8.12 [8.08, 8.16]" in text
    assert "not shown !" in text
    assert "images/s" not in text
    assert "all columns: a wider terminal, or --json" in " ".join(text.split())
    table = text.partition("\nbatch 1: ")[0]  # warnings are lines that nobody breaks
    assert max(map(len, table.splitlines())) <= width


def test_names_in_brackets_are_no_markup(latency_record: Make):
    text = shown([latency_record(tag="[bold]x[/bold]")], WIDE)
    assert "[bold]x[/bold]" in text


def test_markdown_has_the_same_rows(records: list[LatencyRecord]):
    text = latency_markdown(records)
    assert text.count("\n## ") == 2
    assert text.endswith("|\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(records) + 2 * 2  # heads and rules
    assert "| 1 | tome50 | 32 | 1.50 | 8.12 [8.08, 8.16] | 123.2 | 0.800 [0.800, 0.800] |" in text
    assert "- batch 8, evit50: not timed: out of memory" in text
    assert {row.count("|") for row in rows} == {13, 15}


def test_random_weights_are_said_to_be(latency_record: Make):
    assert "(random weights, 64x64 px)" in shown([latency_record(random_weights=True)], WIDE)
