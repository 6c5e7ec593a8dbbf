"""From a plan to records: whose dense tower is whose, what shares a round, what isn't redone; and the command."""

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import timm
import torch
from timm.models import save_for_hf

import zoo
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.measure import latency, timing
from harness.measure.cost import count_costs
from harness.measure.latency import Family, LatencyPlan, load_family, measure_latency, time_in_turn
from harness.measure.rows import variants
from harness.measure.timing import ReadyModel, Stopwatch
from harness.records.times import LatencyRecord, Timing, read_latencies, write_latencies
from zoo.core.digests import fingerprint
from zoo.core.settings import torch_dtype
from zoo.deploy.export import export_model
from zoo.deploy.runtime import AOTI, EXPORTED_PROGRAM, ONNXRUNTIME, OPENVINO, OPTIMIZED, RUNTIMES, TOLERANCES, Prepared
from zoo.loading import towers
from zoo.loading.towers import Tower

PLAN = LatencyPlan(models=("x",), batches=(1, 2), threads=(1,), rounds=6, seconds=0.0)


def families(*models: str, **options: Any) -> list[Family]:
    plan = LatencyPlan(models=models, threads=(1,), **options)
    return [
        load_family(dense, pairs, random_weights=plan.random_weights, progress=Progress())
        for dense, pairs in plan.groups.items()
    ]


def test_names_of_one_tower_are_one_family_with_the_dense_one_first(tower, monkeypatch):
    loaded: list[str] = []
    monkeypatch.setattr(towers, "load_tower", lambda name: loaded.append(name) or tower._replace(name=name))
    [family] = families("clip_vit_b16_tome50", "clip_vit_b16_random50.openai", "clip_vit_b16")
    assert (loaded, family.tag) == (["clip_vit_b16.openai"], "openai")
    assert [row.method for row in family.rows] == ["dense", "tome", "random"]
    dense, tome, _ = family.rows
    assert tome.vit.blocks[0].mlp.fc1.weight is dense.vit.blocks[0].mlp.fc1.weight
    assert family.counts[tome.key]["final_tokens"] == 32
    several = families("clip_vit_b16_tome50", "clip_vit_b16_tome50.laion2b", "clip_vit_b32_evit60")
    assert loaded[1:] == ["clip_vit_b16.openai", "clip_vit_b16.laion2b", "clip_vit_b32.openai"]
    assert [len(family.rows) for family in several] == [2, 2, 2]


def test_a_model_that_was_saved_with_its_method_is_timed_as_it_was_saved(tmp_path):
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 32}
    model = timm.create_model("clip_vit_b16_tome50", keep=None, r=1, **small)
    save_for_hf(model, tmp_path / "mine")
    [family] = families(f"local-dir:{tmp_path / 'mine'}", methods=("random",), keeps=(0.5,))
    assert [row.method for row in family.rows] == ["dense", "random", "tome"]
    saved = family.rows[-1]
    assert (str(tmp_path) in saved.model, saved.config["r"]) == (False, 1)
    assert saved.keep == family.counts[saved.key]["final_tokens"] / 4
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(saved.vit(images), model.eval()(images))


def in_a_cell(dense: zoo.ReducedViT, time_ms: Any = None, **options: Any) -> Any:
    """Time two models; by itself the first takes 10 ms and the second 5, whatever they do."""
    vits = (dense, zoo.reduce(dense, method="random", keep=0.5).eval())
    models = dict(enumerate(vits))
    times: dict[Any, float] = {}
    watch = Stopwatch("metronome", time_ms or (lambda call, images: times.setdefault(call, 10 / (1 + len(times)))))
    blank = Mock(precision="float32", runtime=PLAN.runtimes[0], batch=2)
    with patch.object(timing, "wall_clock", lambda *_, **__: watch):
        return time_in_turn(models, blank, PLAN, timing.Patience(say=print), **options)


def test_all_models_of_a_cell_are_timed_and_those_without_memory_left_out(dense, monkeypatch):
    ticks: list[int] = []
    ready, timings = in_a_cell(dense, tick=ticks.append)
    assert [one.failed for one in ready.values()] == [None, None]
    assert {name: timing.samples_ms for name, timing in timings.items()} == {0: (10,) * 6, 1: (5,) * 6}
    assert ticks == list(range(1, 9))  # two models, six rounds
    ready, timings = in_a_cell(dense, Mock(side_effect=RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    assert timings == {}
    assert {one.failed for one in ready.values()} == {"out of memory, with all of them ready"}
    real, failed = timing.prepare, ReadyModel(failed="out of memory")
    monkeypatch.setattr(timing, "prepare", lambda v, *how: failed if v is dense else real(v, *how))
    ready, timings = in_a_cell(dense)
    assert (ready[0], list(timings)) == (failed, [1])
    monkeypatch.setattr(timing, "prepare", lambda *_: failed)
    assert in_a_cell(dense)[1] == {}
    monkeypatch.setattr(timing, "random_images", Mock(side_effect=RuntimeError("can't allocate memory")))
    assert {one.failed for one in in_a_cell(dense)[0].values()} == {"out of memory, for the images alone"}


class Runs:
    """Run plans on the tiny tower with a stand-in for ``time_in_turn``; models whose index is ``failing`` fail."""

    def __init__(self, tower: Tower, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.tower, self.path, self.patch = tower, path, patch
        self.calls: list[tuple[list[int], int, str, int]] = []
        self.failing = -1
        patch.setattr(LatencyPlan, "groups", {"clip_vit_b16.openai": []})
        patch.setattr(latency, "time_in_turn", self.time)

    def family(self, *methods: str) -> None:
        """Let a plan's models be the tiny tower with these methods at keep 50."""
        rows = variants(self.tower, ["dense", *methods], [0.5])
        counts = count_costs(rows, Progress())
        family = Family(rows=rows, counts=counts, tag="openai", weights=fingerprint(self.tower.vit))
        self.patch.setattr(latency, "load_family", lambda *_, **__: family)

    def time(self, models: Any, blank: LatencyRecord, plan: LatencyPlan, *_: Any, **__: Any) -> Any:
        self.calls.append((list(models), blank.batch, blank.precision, torch.get_num_threads()))
        ready, timings = {}, {}
        for index, name in enumerate(models):
            assert next(models[name].parameters()).dtype == torch_dtype(blank.precision)
            if name == self.failing:
                ready[name] = ReadyModel(failed="out of memory")
                continue
            times = tuple(10.0 - 2 * index + 0.01 * turn for turn in range(plan.rounds))
            timings[name] = Timing(batch=blank.batch, samples_ms=times)
            ready[name] = ReadyModel(deviation=0.0, first_call_s=0.1)
        return ready, timings

    def go(self, plan: LatencyPlan = PLAN) -> list[LatencyRecord]:
        """Do what the command does."""
        known = read_latencies(self.path) if self.path.exists() else []
        records = []
        for cell, new in measure_latency(plan, known, Progress()):
            if new:
                write_latencies(self.path, new)
            records += cell
        return records


@pytest.fixture
def runs(tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tower, tmp_path / "latency.jsonl", monkeypatch)


def test_every_condition_is_a_cell_of_all_models(runs):
    runs.family("random", "tome")
    before = torch.get_num_threads()
    records = runs.go(replace(PLAN, precisions=("float32", "bfloat16"), threads=(1, 2)))
    conditions = product(("float32", "bfloat16"), (1, 2), (1, 2))
    assert runs.calls == [([0, 1, 2], batch, precision, threads) for precision, threads, batch in conditions]
    assert torch.get_num_threads() == before
    assert read_latencies(runs.path) == records
    dense, random, _ = records[:3]
    assert (dense.ratio, dense.verdict) == (None, None)
    assert random.times.ratio_to_dense == pytest.approx(0.8, abs=0.01)


def test_a_stopped_run_goes_on_and_another_times_nothing_and_changes_no_byte(runs):
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
    runs.family("random", "tome")
    again = runs.go(replace(PLAN, rounds=8, batches=(1,)))
    assert runs.calls[-1][0] == [0, 2]  # a new model is timed with the dense one and no other
    assert again[1] == records[1]
    assert [record.method for record in again] == ["dense", "random", "tome"]


def test_a_model_without_memory_has_a_row_and_is_not_tried_again(runs):
    runs.family("random", "tome")
    runs.failing = 1
    _, random, tome = runs.go()[:3]
    assert (random.failed, random.times, random.verdict) == ("out of memory", None, None)
    assert tome.ratio is not None
    runs.go()
    assert len(runs.calls) == 2


def test_optimised_models_and_exported_files(runs, monkeypatch):
    """Whether files compute what the model does is a question to `zoo.export`'s own tests."""
    runs.family("rankmerge")
    for name in (ONNXRUNTIME, OPENVINO, AOTI):
        monkeypatch.setattr(RUNTIMES[name], "packages", ())
        monkeypatch.setattr(RUNTIMES[name], "prepare", lambda vit, *_: Prepared(call=vit, dtype=torch.float32))
    monkeypatch.setattr(RUNTIMES[OPENVINO], "refusal", lambda *_: "")
    monkeypatch.setattr(latency, "time_in_turn", time_in_turn)
    plan = replace(PLAN, batches=(2,), precisions=("bfloat16",), runtimes=(OPTIMIZED, ONNXRUNTIME, OPENVINO))
    records = runs.go(plan)
    assert [one.runtime for one in records[::2]] == [*plan.runtimes]
    for one in records[:2] + records[4:]:
        assert (one.precision, one.failed, len(one.samples_ms)) == ("bfloat16", None, 6)
        assert one.deviation < TOLERANCES["bfloat16"].deviation
    assert all("onnxruntime has no precision 'bfloat16'" in one.failed for one in records[2:4])
    assert runs.go(plan) == records == read_latencies(runs.path)
    monkeypatch.setattr(RUNTIMES[AOTI], "prepare", Mock(side_effect=RuntimeError("node 7 isn't known")))
    records = runs.go(replace(plan, runtimes=(AOTI,)))
    assert [one.failed for one in records] == ["RuntimeError: node 7 isn't known"] * 2


# --- the command

RANDOM = "latency --model clip_vit_b16_random60 --batches 1 --rounds 6 --seconds 0"


@pytest.mark.parametrize(("flags", "said"), [
    ("clip_vit_s14_tomme60", "did you mean 'clip_vit_s14_tome60'"),
    ("clip_vit_b16_tome50.openay", "weight tag 'openay' of clip_vit_b16: did you mean 'openai'"),
    ("open_clip:ViT-B-32/openai --random-weights", "--random-weights with model 'open_clip:ViT-B-32/openai'"),
    ("clip_vit_s14 --batches 0", "--batches 0: expected a number from 1"),
    ("clip_vit_s14 --threads 1025", "--threads 1025: expected a number from 1 to 1024"),
    ("clip_vit_s14 --rounds 5", "rounds=5: expected an integer in [6, inf)"),
    ("clip_vit_s14 --seconds nan", "seconds=nan"),
    ("clip_vit_s14 --precisions float23", "did you mean 'float32'"),
    ("clip_vit_s14 --methods golden", "--methods 'golden'"),
    ("clip_vit_s14 --rate 30", "--rate 30 with --scenario calls: give --scenario server"),
    ("clip_vit_s14 --scenario server --rate 0", "--rate 0: expected queries a second, above 0"),
    ("clip_vit_s14 --scenario server --bound-ms -5", "bound_ms=-5.0: expected a number in (0, inf)"),
])  # fmt: skip
def test_wrong_use_is_refused(flags, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(towers, "load_tower", None)
    assert main(["latency", "--output", str(tmp_path), "--model", *flags.split()]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.command("latency")
@pytest.mark.usefixtures("benchmark", "busy_machine")
def test_a_busy_machine_leaves_times_out_and_the_next_run_times_them(tmp_path, monkeypatch, capsys):
    argv, file = [*RANDOM.split(), "--output", str(tmp_path)], tmp_path / "latency.jsonl"
    assert main(argv) == 0
    text = capsys.readouterr()
    assert "batch 1: too busy to time: spread of dense 40 %" in text.out
    assert "the same command times again" in text.err.splitlines()[-1]
    assert not file.exists()
    monkeypatch.setattr(timing, "why_busy", lambda dense: "")
    assert main(argv) == 0
    assert len(read_latencies(file)) == 2


@pytest.mark.usefixtures("benchmark")
def test_an_exported_file_is_timed_beside_its_tower_in_its_own_runtime(tower, tmp_path, capsys):
    path, images = tmp_path / "my_model.pt2", torch.randn(2, 3, 64, 64)
    half = zoo.reduce(tower.vit, method="random", keep=0.5).eval()
    export_model(half, path, images, runtime=EXPORTED_PROGRAM, facts={"tower": "clip_vit_b16"})
    argv = ["latency", "--model", str(path), *RANDOM.split()[3:], "--output", str(tmp_path)]
    assert main(argv) == 0
    dense, file = read_latencies(tmp_path / "latency.jsonl")
    assert (dense.method, file.method, file.final_tokens) == ("dense", "random", 32)
    assert (dense.runtime, file.runtime, file.method_config["file"]) == (*[EXPORTED_PROGRAM] * 2, "my_model.pt2")
    assert file.ratio is not None
    assert file.deviation < 1e-5
    assert "my_model.pt2" in capsys.readouterr().out
    other = copy.deepcopy(half)
    other.blocks[0].mlp.fc1.bias.data += 1
    export_model(other, path, images, runtime=EXPORTED_PROGRAM, facts={"tower": "clip_vit_b16"})
    assert main(argv) == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.usefixtures("benchmark")
def test_a_server_is_run_at_a_rate_or_has_none_within_the_bound(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "why_crowded", lambda _: "")
    argv = [*RANDOM.replace("--batches 1", "--scenario server --batches 4").split(), "--output", str(tmp_path)]
    assert main([*argv, "--rate", "900", "1800"]) == 0
    out, file = capsys.readouterr().out, tmp_path / "latency.jsonl"
    records, before = read_latencies(file), file.read_bytes()
    assert [(one.rate, one.method) for one in records] == [
        (rate, method) for rate in (900, 1800) for method in ("dense", "random")
    ]
    for one in records:
        assert (one.batch, one.bound_ms, one.stopwatch, one.samples_ms) == (4, 50, "wall clock", ())
        assert (len(one.load.runs), one.load.rate, one.verdict) == (6, one.rate, one.load.verdict(50))
        assert 1 <= one.load.batch_mean <= 4
    assert f"{records[1].load.summary('p99_ms').estimate:.1f} [" in out
    assert main([*argv, "--rate", "1800"]) == 0
    assert file.read_bytes() == before
    capsys.readouterr()
    assert main([*argv, "--bound-ms", "0.001"]) == 0
    assert "batch 4: p99 isn't within 0.001 ms even where" in capsys.readouterr().out
