"""From a plan to records: whose dense tower is whose, what shares a round, what isn't redone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from timm.models import save_for_hf
from torch import Tensor

import zoo
from harness.base.terminal import Progress
from harness.measure import latency, ways
from harness.measure.cost import count_costs
from harness.measure.latency import Family, LatencyPlan, Runnable, load_family, measure_latency, time_runnables
from harness.measure.rows import variants
from harness.measure.timing import Stopwatch
from harness.measure.ways import ReadyModel
from harness.models import towers
from harness.models.towers import Tower
from harness.records.times import EAGER, LatencyRecord, Surroundings, Timing, read_latencies, write_latencies
from zoo.core.files import fingerprint

PLAN = LatencyPlan(models=("x",), batches=(1, 2), threads=(1,), rounds=6, seconds=0.0)


def families(*models: str, **options: Any) -> list[Family]:
    plan = LatencyPlan(models=models, threads=(1,), **options)
    return [
        load_family(dense, pairs, random_weights=plan.random_weights, progress=Progress())
        for dense, pairs in plan.groups.items()
    ]


@pytest.fixture
def loaded(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Load the tiny tower, whatever the name; return the names that were loaded."""
    names: list[str] = []

    def load(name: str) -> Tower:
        names.append(name)
        return tower._replace(name=name)

    monkeypatch.setattr(towers, "load_tower", load)
    return names


def test_names_of_one_tower_are_one_family_with_the_dense_one_first(loaded: list[str]):
    [family] = families("clip_vit_b16_tome50", "clip_vit_b16_random50.openai", "clip_vit_b16")
    assert loaded == ["clip_vit_b16.openai"]
    assert [row.method for row in family.rows] == ["dense", "tome", "random"]
    assert family.tag == "openai"
    dense, tome, _ = family.rows
    assert tome.vit.blocks[0].mlp.fc1.weight is dense.vit.blocks[0].mlp.fc1.weight
    assert not dense.vit.training
    assert family.counts[tome.key].gflops < family.counts[dense.key].gflops
    assert family.counts[dense.key].tokens_per_block == (65,) * 6
    assert family.counts[tome.key].final_tokens == 32
    several = families("clip_vit_b16_tome50", "clip_vit_b16_tome50.laion2b", "clip_vit_b32_evit60")
    assert loaded[1:] == ["clip_vit_b16.openai", "clip_vit_b16.laion2b", "clip_vit_b32.openai"]
    assert [len(family.rows) for family in several] == [2, 2, 2]


def test_a_model_that_was_saved_with_its_method_is_timed_as_it_was_saved(tmp_path: Path):
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 32}
    model = timm.create_model("clip_vit_b16_tome50", keep=None, r=1, **small)
    save_for_hf(model, tmp_path / "mine")
    [family] = families(f"local-dir:{tmp_path / 'mine'}", methods=("random",), keeps=(0.5,))
    assert [row.method for row in family.rows] == ["dense", "random", "tome"]
    dense, _, saved = family.rows
    assert (str(tmp_path) in saved.model, saved.config["r"]) == (False, 1)
    assert saved.keep == family.counts[saved.key].final_tokens / 4
    assert family.counts[saved.key].gflops < family.counts[dense.key].gflops
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(saved.vit(images), model.eval()(images))


def test_without_weights_predictors_are_random(monkeypatch: pytest.MonkeyPatch, tower: Tower):
    monkeypatch.setattr(towers, "random_tower", lambda name: tower._replace(name=name))
    models = ("clip_vit_b16_patchrank50", "clip_vit_b16_evit50")
    first, second = (families(*models, random_weights=True)[0] for _ in range(2))
    assert [row.model for row in first.rows] == ["clip_vit_b16", *models]
    assert first.counts == second.counts
    states = [family.rows[1].vit.reducer.state_dict() for family in (first, second)]
    assert states[0].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip_vit_b16_tomme50", {}, "did you mean 'clip_vit_b16_tome50'"),
        ("clip_vit_b16_tome50.openay", {}, "weight tag 'openay'.*did you mean 'openai'"),
        ("no_such_vit", {}, "model 'no_such_vit'"),
        *(
            (name, {"random_weights": True}, f"--random-weights with model '{name}': .*leave the")
            for name in ("deit_small_patch16_224", "open_clip:ViT-B-32/openai", "local-dir:here")
        ),
    ],
)
def test_unknown_names_are_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        families(name, **options)


def metronome() -> Callable[[Any, Tensor], float]:
    """Take 10 ms for the first model, 5 for the second and so on, whatever they do."""
    times: dict[Any, float] = {}
    return lambda call, images: times.setdefault(call, 10 / (1 + len(times)))


def in_a_cell(dense: zoo.ReducedViT, time_ms: Any, **options: Any) -> Any:
    vits = (dense, zoo.reduce(dense, method="random", keep=0.5).eval())
    models = {at: Runnable(vit, EAGER) for at, vit in enumerate(vits)}
    watch, images = Stopwatch("metronome", time_ms), torch.randn(2, 3, 64, 64)
    return time_runnables(models, images, rounds=6, seconds=0.0, watch=watch, **options)


def test_all_models_of_a_cell_are_timed(dense: zoo.ReducedViT):
    ticks: list[int] = []
    ready, timings, around = in_a_cell(dense, metronome(), tick=ticks.append)
    assert [one.failed for one in ready.values()] == [None, None]
    samples = {name: timing.samples_ms for name, timing in timings.items()}
    assert samples == {0: (10,) * 6, 1: (5,) * 6}
    assert around != Surroundings()
    assert ticks == list(range(1, 9))  # two models, six rounds


def test_a_model_that_fails_is_left_out(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch):
    real, failed = ways.prepare, ReadyModel(failed="out of memory")
    monkeypatch.setattr(ways, "prepare", lambda v, *how: failed if v is dense else real(v, *how))
    ready, timings, _ = in_a_cell(dense, metronome())
    assert ready[0] == failed
    assert list(timings) == [1]
    monkeypatch.setattr(ways, "prepare", lambda *_: failed)
    assert in_a_cell(dense, None)[1] == {}


def test_memory_that_ends_in_a_round_ends_the_cell(dense: zoo.ReducedViT):
    def full(call: Any, images: Tensor) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    ready, timings, _ = in_a_cell(dense, full)
    assert timings == {}
    assert {one.failed for one in ready.values()} == {"out of memory, with all of them ready"}


class Runs:
    """Run plans on the tiny tower with a stand-in for ``time_runnables``; remember its calls.

    Times are by the order of names; models whose index is ``failing`` fail.
    """

    def __init__(self, dense: zoo.ReducedViT, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.dense, self.path, self.patch = dense, path, patch
        self.calls: list[tuple[list[int], int, torch.dtype, int]] = []
        self.failing = -1
        patch.setattr(LatencyPlan, "groups", {"clip_vit_b16.openai": []})
        patch.setattr(latency, "time_runnables", self.time)
        self.family()

    def family(self, *methods: str) -> None:
        """Let a plan's models be the tiny tower with these methods at keep 50."""
        rows = variants(self.dense, "clip_vit_b16", "openai", ["dense", *methods], [0.5])
        facts = {"tag": "openai", "weights": fingerprint(self.dense)}
        family = Family(rows=rows, counts=count_costs(rows, Progress()), **facts)
        self.patch.setattr(latency, "load_family", lambda *_, **__: family)

    def time(self, models: Any, images: Tensor, **how: Any) -> Any:
        self.calls.append((list(models), len(images), images.dtype, torch.get_num_threads()))
        ready, timings = {}, {}
        for index, name in enumerate(models):
            assert next(models[name].vit.parameters()).dtype == images.dtype
            if name == self.failing:
                ready[name] = ReadyModel(failed="out of memory")
                continue
            times = tuple(10.0 - 2 * index + 0.01 * turn for turn in range(how["rounds"]))
            timings[name] = Timing(batch=len(images), samples_ms=times)
            ready[name] = ReadyModel(deviation=0.0, first_call_s=0.1, peak_mib=1.0)
        return ready, timings, Surroundings(others_cores=0.0)

    def go(self, plan: LatencyPlan = PLAN, progress: Progress | None = None) -> list[LatencyRecord]:
        """Do what the command does."""
        known = read_latencies(self.path) if self.path.exists() else []
        records = []
        for cell, new in measure_latency(plan, known, progress or Progress()):
            if new:
                write_latencies(self.path, new)
            records += cell
        return records


@pytest.fixture
def runs(dense: zoo.ReducedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(dense, tmp_path / "latency.jsonl", monkeypatch)


def test_every_condition_is_a_cell_of_all_models(runs: Runs):
    runs.family("random", "tome")
    before = torch.get_num_threads()
    records = runs.go(replace(PLAN, dtypes=("float32", "bfloat16"), threads=(1, 2)))
    assert runs.calls == [
        ([0, 1, 2], batch, dtype, threads)
        for dtype in (torch.float32, torch.bfloat16)
        for threads in (1, 2)
        for batch in (1, 2)
    ]
    assert torch.get_num_threads() == before
    assert len(records) == 3 * len(runs.calls)
    assert read_latencies(runs.path) == records
    dense, random, tome = records[:3]
    assert (dense.ratio, dense.verdict, dense.saved_gflops) == (None, None, None)
    assert random.times.ratio_to_dense == pytest.approx(0.8, abs=0.01)
    assert (random.verdict, tome.verdict) == ("faster", "faster")
    assert random.arrived == pytest.approx(random.saved_time / random.saved_gflops)
    assert random.saved_gflops == pytest.approx(1 - random.gflops / dense.gflops)


def test_a_stopped_run_goes_on_and_another_times_nothing_and_changes_no_byte(runs: Runs):
    runs.family("random")
    write_latencies(runs.path, next(measure_latency(PLAN, [], Progress()))[1])
    first = runs.go()
    before = runs.path.read_bytes()
    assert runs.go() == first
    assert runs.path.read_bytes() == before
    assert [call[1] for call in runs.calls] == [1, 2]
    records = runs.go(replace(PLAN, rounds=8))  # more rounds are timed again
    assert {len(record.samples_ms) for record in records} == {8}
    assert len(runs.calls) == 4


def test_a_new_model_is_timed_with_the_dense_one_and_no_other(runs: Runs):
    plan = replace(PLAN, batches=(1,))
    runs.family("random")
    old = runs.go(plan)
    runs.family("random", "tome")
    records = runs.go(plan)
    assert runs.calls[-1][0] == [0, 2]
    assert records[1] == old[1]
    assert [record.method for record in records] == ["dense", "random", "tome"]
    assert len(read_latencies(runs.path)) == 4


def test_a_model_without_memory_has_a_row_and_is_not_tried_again(runs: Runs):
    runs.family("random", "tome")
    runs.failing = 1
    _, random, tome = runs.go()[:3]
    assert (random.failed, random.times, random.verdict) == ("out of memory", None, None)
    assert tome.ratio is not None
    console = Console(record=True, width=200)
    runs.go(progress=Progress(console))
    assert len(runs.calls) == 2
    said = "batch 1: out of memory in an earlier run, so it isn't tried again; --fresh does"
    assert said in console.export_text()


def test_images_that_take_more_memory_than_there_is_leave_rows_that_say_so(runs: Runs):
    records = runs.go(replace(PLAN, batches=(10**12, 1)))
    assert [record.failed for record in records] == ["out of memory, for the images alone", None]
    assert [call[1] for call in runs.calls] == [1]


def test_the_tiny_tower_is_timed_for_real(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    runs.family("random", "tome")
    monkeypatch.setattr(latency, "time_runnables", time_runnables)
    records = runs.go(replace(PLAN, batches=(2,), ways=("eager", "optimized")))
    assert [record.failed for record in records] == [None] * 6
    for record in records:
        assert len(record.samples_ms) == 6
        assert record.deviation < 1e-5
        assert record.stopwatch == "torch.utils.benchmark.Timer"
    assert read_latencies(runs.path) == records
