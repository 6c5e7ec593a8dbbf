"""Rows at equal cost: as near as a whole token allows, paired with the target, told when far."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import replace
from rich.console import Console

from harness.apps.compare import compare
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.measure.cost import gflops
from harness.measure.plan import TOLERANCE, KeepSolver, keep_near_rows, matched_rows
from harness.measure.rows import rows_of
from harness.measure.settings import Plan
from harness.measure.timing import BusyError
from harness.records.averages import CLOSE, averages, cost_of, levels
from harness.records.record import MATCHED, read_records, write_records
from harness.records.times import Timing
from zoo.loading.towers import Tower

WHERE = {"models": ("clip_vit_b16",), "datasets": ("toy",), "limit": None, "batches": ()}
METHODS = ("random", "evit", "patchrank", "tome", "clsattn")
PLAN = Plan(**WHERE, methods=METHODS, keeps=(0.7, 0.4), match="gflops")
pytestmark = pytest.mark.usefixtures("benchmark", "predictor_file")


def solved(tower: Tower, plan: Plan, said: Console | None = None) -> dict[str, list]:
    """Return the counts of patch tokens kept, by method."""
    found: dict[str, list] = {}
    for row in matched_rows(tower, plan, Progress(said)):
        found.setdefault(row.method, []).append(round(64 * row.keep))
        assert found[row.method][-1] == pytest.approx(64 * row.keep) or row.method == plan.match_to
    return found


def cost(tower: Tower, method: str, count: int) -> float:
    [row] = rows_of(tower, [(method, count / 64)])
    return gflops(row.vit, 64).gflops


def test_many_counts_tried_give_the_same_answer(tower):
    """The slow way for two methods and many counts, with another target."""
    plan = replace(PLAN, methods=("tome", "random", "evit"), keeps=(0.5,), match_to="tome")
    goal, found = cost(tower, "tome", 32), solved(tower, plan)
    assert (found.pop("dense"), found.pop("tome")) == ([64], [32])
    for method, [nearest] in found.items():
        off = {count: abs(cost(tower, method, count) - goal) for count in range(nearest - 4, nearest + 5)}
        assert min(off, key=off.get) == nearest
        assert off[nearest] < 0.01 * goal
    assert found["evit"] < found["random"]  # its tokens go later, so fewer may be left
    plan = replace(PLAN, methods=("random", "clsattn", "patchrank"), keeps=(1.0,))
    assert solved(tower, plan) == {method: [64] for method in ("dense", *plan.methods)}
    # ToMe halves at most: with fewer tokens left, its six blocks would have to do more.
    least = KeepSolver(tower.vit, lambda keep: rows_of(tower, [("tome", keep)])[0].vit).least
    assert cost(tower, "tome", least)
    with pytest.raises(ValueError, match="at most half can"):
        cost(tower, "tome", least - 1)


def test_what_can_not_be_met_is_told_and_left_out(tower):
    """Random pruning has all tokens in blocks 0 to 2: it can't be as cheap as rankmerge, which merges in block 0."""
    console = Console(record=True, width=300)
    plan = replace(PLAN, methods=("random", "rankmerge"), keeps=(0.06, 0.03), match_to="rankmerge")
    assert solved(tower, plan, console) == {"dense": [64], "rankmerge": [4, 2]}
    first, second = (x for x in console.export_text().splitlines() if "can't" in x)
    goal, spent = cost(tower, "rankmerge", 4), cost(tower, "random", 1)
    line = f"random can't meet the {goal:.3f} GFLOPs of rankmerge at keep 6 %: the nearest is {spent:.3f}"
    assert first.startswith(line)
    assert first.endswith("; left out")
    assert "at keep 3 %" in second
    assert solved(tower, replace(plan, far=True), console) == {"dense": [64], "random": [1], "rankmerge": [4, 2]}


Clock = Callable[..., None]
SMOOTH: dict[str, Callable[[int], float]] = {  # milliseconds by patch tokens left of 64
    "dense": lambda count: 100, "patchrank": lambda count: 36 + count, "evit": lambda count: 20 + 1.2 * count,
    "random": lambda count: 40 + 8 * math.ceil((count + 1) / 8),  # the class token goes along
    "clsattn": lambda count: 30 if count <= 20 else 90, "tome": lambda count: 80 + count / 2,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let models take the time of a method with so many patch tokens, give or take some noise."""

    def call(noise: float = 0.0, seed: int = 0, disturbed: int | None = None) -> None:
        generator, calls = np.random.default_rng(seed), itertools.count()

        def time_models(models: Mapping[str, Any], batch: int, rounds: int, **_: Any) -> dict[str, Timing]:
            slow = 1.2 if next(calls) == disturbed else 1.0  # of evit in all rounds of one call
            drift = generator.uniform(0.5, 2, rounds)  # of the machine: equal in all models of a round
            timings = {}
            for name, vit in models.items():
                plain = vit.reducer is None
                method, count = ("dense", 64) if plain else (vit.reducer.method, round(64 * vit.reducer.config.keep))
                samples = SMOOTH[method](count) * drift * (1 + noise * generator.standard_normal(rounds))
                samples *= slow if method == "evit" else 1.0
                timings[name] = Timing(batch=batch, samples_ms=tuple(samples))
            return timings

        monkeypatch.setattr("harness.measure.plan.time_models", time_models)

    return call


def test_equal_time_is_met_or_the_nearest(tower, clock):
    """Every count tried in turn; where none takes that time, no other is nearer."""
    clock()
    plan = replace(PLAN, match="time", precision="bfloat16")
    rows = matched_rows(tower, plan, Progress())
    assert rows[0].vit is tower.vit
    assert {value.dtype for value in tower.vit.parameters()} == {torch.float32}
    for method in ("random", "evit", "clsattn", "tome"):
        least = 9 if method == "tome" else 1  # which halves the tokens of a block at most
        ours = [row for row in rows if row.method == method]
        found = {rate: round(64 * row.keep) for row in ours for rate in row.config[MATCHED]["keeps"]}
        for rate, goal in ((0.7, SMOOTH["patchrank"](45)), (0.4, SMOOTH["patchrank"](26))):
            off = {count: abs(SMOOTH[method](count) / goal - 1) for count in range(least, 64)}
            assert (rate in found) == (min(off.values()) <= CLOSE)
            most = max(TOLERANCE["time"] / 2, min(off.values()) + 1e-9)
            assert rate not in found or off[found[rate]] <= most, (method, rate)


@pytest.mark.parametrize("call", [0, 2, 4])
def test_a_disturbed_measurement_changes_no_keep_rate(tower, clock, call):
    clock(disturbed=call)
    plan = replace(PLAN, match="time", methods=("patchrank", "evit"), keeps=(0.4,))
    *_, row = matched_rows(tower, plan, Progress())
    assert SMOOTH["evit"](round(64 * row.keep)) == pytest.approx(SMOOTH["patchrank"](26), rel=TOLERANCE["time"])


def test_matched_rows_are_records_like_any(tmp_path, monkeypatch, clock):
    clock(noise=0.001)
    plan = replace(PLAN, methods=("random", "patchrank", "evit", "tome"), match="time")
    console = Console(record=True, width=300)
    [group] = compare(plan, [], Progress(console))
    *others, tome = group
    assert [r.method for r in others] == ["dense", *(m for m in plan.methods[:-1] for _ in "ab")]
    assert re.search("tome misses the time of patchrank at keep 40 %.*; left out", console.export_text(clear=False))
    goal, spent = SMOOTH["patchrank"](45) / 100, SMOOTH["tome"](tome.mean("final_tokens")) / 100
    pattern = r"tome misses the time of patchrank at keep 70 %, (\S+) of dense's at batch 8: it takes (\S+) "
    told = re.search(pattern, console.export_text())
    assert [float(one) for one in told.groups()] == pytest.approx([goal, spent], abs=2e-3)
    for record in group[1:]:
        assert record.mean("final_tokens") == round(64 * record.keep)
        assert record.method_config["keep"] == record.keep
    for level in levels(averages(group)):
        assert level.batch == 8
        goal, evit = (cost_of(row, 8) for row in (level.target, next(r for r in level.rows if r.method == "evit")))
        assert evit == pytest.approx(goal, rel=0.02)
    write_records(tmp_path / "records.jsonl", group)
    met = replace(plan, methods=plan.methods[:-1])
    with monkeypatch.context() as patch:
        patch.setattr("harness.measure.plan.time_models", None)  # keep rates aren't searched again
        [again] = compare(replace(met, limit=4), group, Progress())
    assert [record.keep for record in again] == [record.keep for record in group[:-1]]
    for name in ("rows.run_split", "bench.costs"):
        monkeypatch.setattr(f"harness.measure.{name}", None)  # nothing but the keep rate that missed is measured again
    assert list(compare(plan, read_records(tmp_path / "records.jsonl"), Progress())) == [group]


def test_a_row_is_left_out_if_it_misses_the_time_in_the_end(tower, clock):
    clock()
    plan = replace(PLAN, match="time", methods=("golden", "patchrank", "evit"))
    rows, said = matched_rows(tower, plan, Progress()), list[str]()
    full, near, late = (Timing(batch=8, samples_ms=(ms,) * 6) for ms in (100.0, 80.0, 85.0))
    costs = {row.key: {"latency": (near.latency(full),)} for row in rows if row.method != "golden"}
    costs[rows[-1].key] = {"latency": (late.latency(full),)}
    assert keep_near_rows(rows, costs, plan, said.append) == rows[:-1]
    miss = "evit misses the time of patchrank at keep 40 %, 0.800 of dense's at batch 8: it takes 0.850"
    assert said[0].startswith(miss)
    with pytest.raises(BusyError):
        keep_near_rows(rows, costs | {rows[-1].key: {"latency": ()}}, plan, said.append)


@pytest.mark.usefixtures("busy_machine")
def test_a_busy_machine_has_no_rows_at_equal_time():
    with pytest.raises(BusyError, match="too busy to time: spread of dense 40 %"):
        next(compare(replace(PLAN, match="time"), [], Progress()))


@pytest.mark.parametrize(("change", "match"), [
    ({"match": "glfops"}, "match='glfops': did you mean 'gflops'?"),
    ({"match_to": "patchrnk"}, "match_to='patchrnk' is not measured: did you mean 'patchrank'"),
    ({"match_to": "dense"}, "match_to='dense' has no cost that others could meet"),
])  # fmt: skip
def test_refusals(change, match):
    with pytest.raises(ValueError, match=re.escape(match)):
        next(compare(replace(PLAN, **change), [], Progress()))


def test_the_main_job_names_equal_time_as_the_next_step(tmp_path, capsys, clock):
    clock()
    command = "compare --model clip_vit_b16 --dataset toy --keeps 0.5 --batches 8 --limit 8 --no-gallery --output"
    command += f" {tmp_path} --methods evit"  # no patchrank, so evit is what others meet
    assert main([*command.split(), "random"]) == 0
    [_, *again] = re.search("next, at equal time: (patchrank .*)", capsys.readouterr().err)[1].split()
    assert main(again) == 0
    records = read_records(tmp_path / "records.jsonl")
    assert [r.method for r in records] == ["dense", "evit", "random"] * 2
