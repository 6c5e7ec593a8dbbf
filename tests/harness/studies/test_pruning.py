"""Studies of pruning: who is compared with whom, at what cost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.measure.timing import Timing
from harness.studies.pruning import WITHOUT_PREDICTOR, schedules
from harness.studies.workshop import StudyConfig
from zoo.core.reducer import METHODS

Studied = Callable[..., Any]


def test_schedules_begin_at_the_block_and_stay_in_the_tower():
    assert schedules(3, 9) == [(3,), (3, 5), (3, 5, 7), (3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]
    assert schedules(3, 12)[1:3] == [(3, 5), (3, 5, 7)]
    assert schedules(5, 6) == [(5,)]


@pytest.mark.parametrize("name", ["schedule", "baselines"])
def test_lines_of_one_keep_rate_cost_the_same(tiny: StudyConfig, name: str, studied):
    """As nearly as whole tokens allow: one token more or less is the smallest step."""
    sheet, _ = studied(name, replace(tiny, keeps=(0.6, 0.5)))["plain"]
    for keep in (0.6, 0.5):
        costs = [e.row.mean("gflops") for e in sheet.entries if e.group == keep]
        known = [cost for cost in costs if cost is not None]
        assert known == pytest.approx([known[0]] * len(known), rel=0.04)


def test_baselines_are_every_usual_method_without_a_predictor(few: StudyConfig, studied):
    sheet, _ = studied("baselines", few)["plain"]
    others = sorted(name for name, cls in METHODS.items() if cls.by_default and name != "patchrank")
    assert [entry.labels["method"] for entry in sheet.entries] == ["patchrank", *others]
    assert [len(e.records) for e in sheet.entries if e.labels["method"] == "random"] == [2]


def test_keep_rates_of_equal_time_are_remembered(few: StudyConfig, studied, monkeypatch: pytest.MonkeyPatch):
    """Models take as long as patches that stay, and half as long again where they aren't patchrank."""
    dtypes = []

    def time_models(models: dict[str, Any], batch: int, rounds: int, **_: Any) -> dict[str, Timing]:
        dtypes.append(next(next(iter(models.values())).parameters()).dtype)
        reducers = {name: vit.reducer for name, vit in models.items()}
        keeps = {
            n: 1.0 if r is None else r.config.keep * (1 if r.method == "patchrank" else 1.5)
            for n, r in reducers.items()
        }
        return {name: Timing(batch=8, samples_ms=(keep,) * rounds) for name, keep in keeps.items()}

    monkeypatch.setattr("harness.measure.match.time_models", time_models)
    timed = replace(few, time_dtypes=("float32", "bfloat16"))
    sheet, records = studied("baselines", timed)["plain"]
    assert set(dtypes) == {torch.float32, torch.bfloat16}
    others = sheet.entries[1:]
    for dtype in timed.time_dtypes:
        lines = [entry for entry in others if entry.labels["equal"] == f"time, {dtype}"]
        assert [entry.labels["method"] for entry in lines] == WITHOUT_PREDICTOR
        assert {entry.records[0].mean("final_tokens") for entry in lines} == {21}  # of 64, where patchrank has 32
        assert {entry.labels["off"] for entry in lines} == {"-1.6 %"}
        assert all(entry.records[0].method_config["matched"]["dtype"] == dtype for entry in lines)
    monkeypatch.setattr("harness.measure.match.time_models", None)
    assert studied("baselines", timed, records)["plain"][1] == records


def test_where_blocks_differ_their_rankings_do(few: StudyConfig, studied):
    sheet, _ = studied("blocks", replace(few, seeds=1))["plain"]
    at_keep, at_cost = sheet.entries[:24], sheet.entries[24:]
    assert [e.labels["before block"] for e in at_keep[::4]] == list("012345")
    assert len({e.records[0].method_config.get("against") for e in at_keep[1::4]}) == 6
    assert {e.records[0].mean("final_tokens") for e in at_keep} == {32}
    costs = [e.row.mean("gflops") for e in at_cost]  # block 2 is the study's own
    assert costs[:4] == pytest.approx([costs[2]] * 4, rel=0.04)
    assert costs[2] < costs[4] < costs[5]  # where even one patch costs more
    kept = [e.records[0].mean("final_tokens") for e in at_cost]
    assert kept == sorted(kept, reverse=True)  # the later, the fewer may stay
