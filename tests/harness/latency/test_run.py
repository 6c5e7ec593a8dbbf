"""From a plan to records: what is known isn't timed again, the dense model shares each round."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import zoo
from harness.latency import run
from harness.latency.cell import Found
from harness.latency.machine import Surroundings
from harness.latency.plan import LatencyPlan
from harness.latency.record import LatencyRecord, read_latencies, write_latencies
from harness.latency.rows import Family
from harness.latency.run import measure_latency
from harness.latency.timing import Timing
from harness.measure.cost import counts
from harness.measure.rows import variants
from harness.progress import Progress
from zoo.weights import fingerprint

PLAN = LatencyPlan(models=("x",), batches=(1, 2), threads=(1,), rounds=6, seconds=0.0)


@pytest.fixture
def family(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a plan's models be the tiny tower with these methods at keep 50."""

    def use(*methods: str) -> None:
        rows = variants(dense, "clip_vit_b16", "openai", ["dense", *methods], [0.5])
        found = Family(
            tag="openai",
            weights=fingerprint(dense),
            rows=rows,
            counts=counts(rows, Progress()),
        )
        monkeypatch.setattr(run, "families", lambda plan, progress: iter([found]))

    return use


class Cells:
    """Stand in for ``measure_cell``: times by the order of names; remember what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int, torch.dtype, int]] = []
        self.failing = ""

    def __call__(self, models: Any, images: torch.Tensor, way: str, **told: Any) -> Any:
        self.asked.append((list(models), len(images), images.dtype, torch.get_num_threads()))
        found = {}
        for index, name in enumerate(models):
            times = tuple(10.0 - 2 * index + 0.01 * turn for turn in range(told["rounds"]))
            timing = Timing(batch=len(images), samples_ms=times)
            found[name] = Found(timing=timing, deviation=0.0, first_call_s=0.1, peak_mib=1.0)
            if self.failing and name.endswith(self.failing):
                found[name] = Found(failed="out of memory")
            assert next(models[name].parameters()).dtype == images.dtype
        return found, Surroundings(others_cores=0.0)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Cells:
    cells = Cells()
    monkeypatch.setattr(run, "measure_cell", cells)
    return cells


def go(plan: LatencyPlan, path: Path) -> list[LatencyRecord]:
    """Do what the command does."""
    known = read_latencies(path) if path.exists() else []
    records = []
    for cell, new in measure_latency(plan, known, Progress()):
        if new:
            write_latencies(path, new)
        records += cell
    return records


def test_every_condition_is_a_cell_of_all_models(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random", "tome")
    before = torch.get_num_threads()
    plan = replace(PLAN, dtypes=("float32", "bfloat16"), threads=(1, 2), ways=("eager",))
    records = go(plan, tmp_path / "x")
    names = ["clip_vit_b16", "clip_vit_b16_random50", "clip_vit_b16_tome50"]
    assert cells.asked == [
        (names, batch, dtype, threads)
        for dtype in (torch.float32, torch.bfloat16)
        for threads in (1, 2)
        for batch in (1, 2)
    ]
    assert torch.get_num_threads() == before
    assert len(records) == 3 * len(cells.asked)
    assert read_latencies(tmp_path / "x") == records
    dense, random, tome = records[:3]
    assert (dense.ratio_to_dense, dense.verdict, dense.saved_gflops) == (None, None, None)
    assert random.ratio_to_dense == pytest.approx(0.8, abs=0.01)
    assert (random.verdict, tome.verdict) == ("faster", "faster")
    assert random.arrived == pytest.approx(random.saved_time / random.saved_gflops)
    assert random.saved_gflops == pytest.approx(1 - random.gflops / dense.gflops)


def test_weights_take_half_in_half_precision(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family()
    single, half = go(replace(PLAN, batches=(1,), dtypes=("float32", "float16")), tmp_path / "x")
    assert half.weights_mib == single.weights_mib / 2 > 0


def test_a_second_run_times_nothing_and_changes_no_byte(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random")
    first = go(PLAN, tmp_path / "x")
    before, asked = (tmp_path / "x").read_bytes(), len(cells.asked)
    assert go(PLAN, tmp_path / "x") == first
    assert (tmp_path / "x").read_bytes() == before
    assert len(cells.asked) == asked == 2


def test_a_run_that_was_stopped_goes_on_at_its_cell(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random")
    for _, new in measure_latency(PLAN, [], Progress()):
        write_latencies(tmp_path / "x", new)
        break
    go(PLAN, tmp_path / "x")
    assert [asked[1] for asked in cells.asked] == [1, 2]


def test_a_new_model_is_timed_with_the_dense_one_and_no_other(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    plan = replace(PLAN, batches=(1,))
    family("random")
    old = go(plan, tmp_path / "x")
    family("random", "tome")
    records = go(plan, tmp_path / "x")
    assert cells.asked[-1][0] == ["clip_vit_b16", "clip_vit_b16_tome50"]
    assert records[1] == old[1]
    assert [record.method for record in records] == ["dense", "random", "tome"]
    assert len(read_latencies(tmp_path / "x")) == 4


def test_more_rounds_are_timed_again(family: Callable[..., None], cells: Cells, tmp_path: Path):
    family("random")
    go(PLAN, tmp_path / "x")
    records = go(replace(PLAN, rounds=8), tmp_path / "x")
    assert {len(record.samples_ms) for record in records} == {8}
    assert len(cells.asked) == 4


def test_a_model_without_memory_has_a_row_and_is_not_tried_again(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random", "tome")
    cells.failing = "random50"
    records = go(PLAN, tmp_path / "x")
    _, random, tome = records[:3]
    assert (random.failed, random.median_ms, random.verdict) == ("out of memory", None, None)
    assert tome.ratio_to_dense is not None
    console = Console(file=io.StringIO(), width=200)
    known = read_latencies(tmp_path / "x")
    assert all(not new for _, new in measure_latency(PLAN, known, Progress(console)))
    assert len(cells.asked) == 2
    told = "batch 1: out of memory in an earlier run, so it isn't tried again; --fresh does"
    assert told in console.file.getvalue()


def test_images_that_take_more_memory_than_there_is_leave_rows_that_say_so(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random")
    records = go(replace(PLAN, batches=(10**12, 1)), tmp_path / "x")
    assert [record.batch for record in records] == [10**12] * 2 + [1] * 2
    assert [record.failed for record in records] == [
        "out of memory, for the images alone",
        "out of memory, for the images alone",
        None,
        None,
    ]
    assert [asked[1] for asked in cells.asked] == [1]


def test_without_the_dense_models_time_there_is_no_ratio(
    family: Callable[..., None], cells: Cells, tmp_path: Path
):
    family("random")
    cells.failing = "b16"
    dense, random = go(replace(PLAN, batches=(1,)), tmp_path / "x")
    assert dense.failed == "out of memory"
    assert random.median_ms is not None
    assert (random.ratio_to_dense, random.verdict, random.arrived) == (None, None, None)


def test_rows_of_a_family_stay_as_they_are(
    family: Callable[..., None], cells: Cells, tmp_path: Path, dense: zoo.ReducedViT
):
    family("random")
    before = fingerprint(dense)
    go(replace(PLAN, dtypes=("bfloat16",)), tmp_path / "x")
    assert next(dense.parameters()).dtype == torch.float32
    assert fingerprint(dense) == before


def test_the_tiny_tower_is_timed_for_real(family: Callable[..., None], tmp_path: Path):
    family("random", "tome")
    plan = replace(PLAN, batches=(2,), ways=("eager", "channels-last"), dtypes=("float32",))
    records = go(plan, tmp_path / "x")
    assert [record.failed for record in records] == [None] * 6
    for record in records:
        assert len(record.samples_ms) == 6
        assert record.deviation < 1e-5
        assert record.stopwatch == "torch.utils.benchmark.Timer"
    assert read_latencies(tmp_path / "x") == records
