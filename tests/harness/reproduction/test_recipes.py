"""One contract for every table and figure, and what each of them promises."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.progress import Progress
from harness.records import Record
from harness.reproduction import get_reproduction, list_reproductions
from harness.reproduction.measures import MATCH
from harness.reproduction.plan import rehearse
from harness.reproduction.run import under_its_conditions
from harness.reproduction.sheet import Comparison
from harness.studies.config import StudyConfig
from zoo.reducer import final_count

Reproduced = Callable[..., tuple[Comparison, list[Record]]]


def conditions(name: str, tiny: StudyConfig) -> StudyConfig:
    """Give the table its datasets, ImageNet where it wants it; one fit will do."""
    recipe = get_reproduction(name)
    datasets = ("caltech101", "imagenet") if name == "table4" else ("caltech101",)
    return under_its_conditions(recipe, replace(tiny, datasets=datasets, seeds=1))


@pytest.mark.parametrize("name", list_reproductions())
def test_a_second_run_measures_nothing_and_a_rehearsal_knows_before(
    name: str,
    tiny: StudyConfig,
    reproduced: Reproduced,
    staged: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = get_reproduction(name)
    monkeypatch.setattr("harness.reproduction.figure1.Figure1.keeps", (0.5,))  # costs are counted
    config = conditions(name, tiny)
    datasets = [staged[one] for one in config.datasets]
    before = rehearse(recipe, config, datasets, [], Progress())
    assert {step.done for step in before} == {0}
    assert all(step.seconds > 0 for step in before)

    comparison, records = reproduced(name, config)
    assert comparison.same
    for one in comparison.found:
        assert set(one.ours) == (set() if one.row.empty else set(config.datasets)), one.row.name
        assert set(one.to) == (set(one.ours) if one.row.against else set()), one.row.name
    heads, rows = comparison.cells()
    assert all(len(row) == len(heads) for row in rows)
    judged = {(r.dataset, r.model, str(r.method_config), r.seed, r.tuning) for r in records}
    told = [step for step in before if step.kind == "judge"]
    assert sum(step.total for step in told) == len(records) >= len(judged)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    for place in ("view.outcomes", "studies.workshop.fit", "studies.found.rank", "tuning.tune"):
        monkeypatch.setattr(f"harness.{place}", fail)
    again, same = reproduced(name, config, records)
    assert same == records
    assert again.cells() == comparison.cells()
    after = rehearse(recipe, config, datasets, records, Progress())
    assert [(s.kind, s.of, s.total) for s in after] == [(s.kind, s.of, s.total) for s in before]
    assert all(step.done == step.total and step.seconds == 0 for step in after)


def test_predictors_of_table_1_are_the_dataset_s_own_and_half_the_patches_are_matched(
    tiny: StudyConfig, reproduced: Reproduced
):
    comparison, records = reproduced("table1", replace(tiny, seeds=1))
    fits = {
        name: {r.method_config["predictor"] for r in records if r.dataset == name and r.keep < 1
               and r.method == "patchrank"}
        for name in ("caltech101", "dtd")
    }  # fmt: skip
    assert [len(own) for own in fits.values()] == [3, 3]  # one per score
    assert not set.intersection(*fits.values())
    # The matching rate is of half the patches.
    rows = [one for one in comparison.found if one.row.measure == MATCH]
    assert next(one.row.name for one in rows) == "match at 100, preservation"
    [record] = [
        r for r in records
        if (r.dataset, r.method, r.keep) == ("dtd", "patchrank", 0.51)
        and r.match_at_k == pytest.approx(rows[0].ours["dtd"].estimate / 100)
    ][:1]  # fmt: skip
    assert record.match_k == final_count(64, 0.51) == 33


def test_table_4_drops_the_same_at_the_same_blocks(tiny: StudyConfig, reproduced: Reproduced):
    comparison, records = reproduced("table4", conditions("table4", tiny))
    pruned = [r for r in records if r.keep < 1]
    assert {tuple(r.method_config["reduce_at"]) for r in pruned} == {(1, 2, 3, 4)}
    assert {r.final_tokens for r in pruned} == {final_count(64, 116 / 196)}
    rows = {one.row.name: one for one in comparison.found}
    assert rows["A-ViT"].ours == {}
    assert rows["A-ViT"].paper.mean == 63.8
    general = rows["Patch Ranking, ImageNet-trained"].ours
    assert general["imagenet"] == rows["Patch Ranking"].ours["imagenet"]
    text = comparison.markdown()
    assert "A-ViT (A-ViT is not built: as published it masks)" in text


def test_without_imagenet_its_row_says_so(tiny: StudyConfig, reproduced: Reproduced):
    comparison, _ = reproduced("table4", replace(tiny, datasets=("dtd",), seeds=1))
    assert "needs imagenet among --datasets" in comparison.markdown()


def test_table_2_has_the_target_s_own_on_its_diagonal(tiny: StudyConfig, reproduced: Reproduced):
    comparison, _ = reproduced("table2", replace(tiny, seeds=1))
    rows = {one.row.name: one for one in comparison.found}
    for name in ("caltech101", "dtd"):
        assert rows[f"fitted on {name}"].ours[name] == rows["fitted on the target"].ours[name]
        assert rows[f"fitted on {name}"].to[name] == (0, 0, 0)


def test_prompts_of_table_5_are_compared_with_prompts(tiny: StudyConfig, reproduced: Reproduced):
    comparison, records = reproduced("table5", replace(tiny, datasets=("dtd",)))
    row = next(one for one in comparison.found if one.row.name == "V+T, keep 60")
    assert row.row.against == "V+T, full"
    right = {
        method: np.mean([r.correct for r in records if (r.method, r.tuning) == (method, "vt")], 0)
        for method in ("dense", "patchrank")
    }
    lost = 100 * float(np.mean(right["patchrank"] - right["dense"]))
    assert row.to["dtd"].estimate == pytest.approx(lost)
    assert row.paper_to(("dtd",)) is None  # we know only the mean of all
    assert {r.method_config.get("predictor") is None for r in records if r.keep < 1} == {False}


def test_costs_are_compared_by_their_ratio(tiny: StudyConfig, reproduced: Reproduced):
    comparison, records = reproduced("table3", tiny)
    assert comparison.datasets == ("caltech101",)
    rows = {one.row.name: one for one in comparison.found}
    dense, pruned = (next(r for r in records if r.keep == keep) for keep in (1.0, 0.6))
    share = rows["keep 60, GFLOPs"].to["caltech101"].estimate
    assert share == pytest.approx(pruned.gflops / dense.gflops)
    assert rows["keep 60, GFLOPs"].paper_to(()) is None
    timed = max(pruned.latency, key=lambda entry: entry.batch)
    assert rows["keep 60, ms"].to["caltech101"].estimate == timed.ratio_to_dense
    assert rows["keep 60, ms"].ours["caltech101"].estimate == timed.median_ms / 32


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="reproduce 'tabel1': did you mean 'table1'"):
        get_reproduction("tabel1")
