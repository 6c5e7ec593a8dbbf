"""Studies of learned tokens: who is compared with whom, from which images, at what cost."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.table import points
from harness.base.terminal import Progress
from harness.datasets.base import FINAL, Dataset
from harness.datasets.few_shot import draw, undrawn
from harness.measure.rows import variants
from harness.measure.tuning import Performance, Tuner, step_runs
from harness.models.towers import Tower
from harness.records.statistics import bootstrap_mean, mean_interval
from harness.studies.dry_run import DryShop, expected_runs
from harness.studies.run import get_study, lines
from harness.studies.tuning import KINDS, Trial, changed, four_points, trial_runs, trials, trials_table
from harness.studies.workshop import StudyConfig
from zoo.core.digests import fingerprint
from zoo.learning.prompt_learner import TuneConfig
from zoo.loading.clip import ClipParts

Studied = Callable[..., Any]


@pytest.fixture
def few(few: StudyConfig, predictor_file: Path) -> StudyConfig:
    assert predictor_file.is_file()
    return replace(few, split="test")


def test_pruned_models_are_compared_with_the_dense_one_tuned_alike(few: StudyConfig, studied):
    sheet, records = studied("tuning", few)["plain"]
    lines = [(e.labels["tuned"], e.labels["model"].split("_")[-1]) for e in sheet.entries]
    assert lines == list(product(("none", "T", "V+T"), ("b16", "patchrank50")))
    dense, pruned = sheet.entries[4:]
    for entry in (dense, pruned):
        assert [(r.tuning, r.shots, r.seed, r.prompt_tokens) for r in entry.records] == [
            ("vt", 1, seed, 2) for seed in (0, 1)
        ]
    pairs = zip(pruned.records, dense.records, strict=True)
    apart = [np.asarray(a.correct, float) - b.correct for a, b in pairs]
    assert pruned.to_first == bootstrap_mean(np.mean(apart, axis=0), seed=0)
    assert pruned.over_seeds == pytest.approx(mean_interval([float(a.mean()) for a in apart]))
    assert dense.over_seeds is None
    assert sheet.entries[1].over_seeds is None
    plain = sheet.entries[0].records[0]
    assert plain.mean("gflops") is not None
    assert dense.row.mean("gflops") > plain.mean("gflops")
    assert sheet.entries[2].row.mean("gflops") == plain.mean("gflops")
    assert "over seeds" in sheet.table().heads
    assert len({r.method_config["prompts"] for r in records if r.tuning}) == 8


def test_more_tokens_cost_more(few: StudyConfig, studied):
    sheet, _ = studied("count", few)["plain"]
    costs = {e.labels["tokens"]: e.row.mean("gflops") for e in sheet.entries}
    assert costs["0"] < costs["4"] < costs["16"] < costs["32"]
    assert [e.records[0].prompt_tokens for e in sheet.entries] == [16, 4, 32, None]


def test_moved_prompts_are_the_ones_of_the_other_tower(few: StudyConfig, studied):
    sheet, _ = studied("order", few)["plain"]
    by = {e.labels["order"].split(",")[0] + "/" + e.labels["model"]: e for e in sheet.entries}
    used = {key: [r.method_config["prompts"] for r in entry.records] for key, entry in by.items()}
    pruned, dense = "clip_vit_b16_patchrank50", "clip_vit_b16"
    assert used[f"rank/{pruned}"] == used[f"tune at keep 0.5/{dense}"]
    orders = [e.labels["order"] for e in sheet.entries]
    assert len(set(orders)) == 5
    moved, later = sheet.entries[1], sheet.entries[2]
    for entry in (moved, later):
        prompts = [r.method_config["prompts"] for r in entry.records]
        assert prompts == used[f"tune the dense tower/{dense}"]
    predictors = [{r.method_config["predictor"] for r in e.records} for e in (moved, later)]
    assert len(predictors[0]) == 1
    assert len(predictors[1]) == 2
    assert not predictors[0] & predictors[1]


def test_the_papers_four_points():
    assert four_points(12) == [(3, 5, 7, 9), (1, 2, 3, 4), (3, 4, 5, 6), (0, 2, 4, 6)]
    assert four_points(9)[0] == (2, 4, 6, 8)
    assert four_points(6) == [(1, 2, 3, 4)]
    with pytest.raises(ValueError, match="need 5 blocks, this tower has 4"):
        four_points(4)


def test_labelled_images_are_not_judged_by(few: StudyConfig, studied):
    with pytest.raises(ValueError, match=r"--split val: .*judge them by --split test"):
        studied("kinds", replace(few, split="val"))


def test_every_kind_is_another_and_the_first_is_compared_with(few: StudyConfig, studied):
    """Words that text tokens begin with don't hinder visual ones alone."""
    sheet, records = studied("kinds", replace(few, seeds=1, tune=replace(few.tune, init="a photo")))["plain"]
    assert [entry.labels["tokens"] for entry in sheet.entries] == list(KINDS)
    assert list(KINDS)[:3] == ["V+T, coupled", "V+T, coupled as printed", "V+T, independent"]
    assert len({record.method_config["prompts"] for record in records if record.tuning}) == len(KINDS)


@pytest.mark.parametrize(("changes", "fields"), [
    ("anchor=0", {"anchor": 0.0}),
    ("init=a photo of a,anchor=2, learning-rate=5e-4", {"init": "a photo of a", "anchor": 2.0, "learning_rate": 5e-4}),
    ("epochs=3", {"epochs": 3}),
    ("init=none,epochs=none", {"init": None, "epochs": None}),
    ("augment=false,count=4", {"augment": False, "count": 4}),
])  # fmt: skip
def test_a_changed_recipe(changes: str, fields: dict[str, Any]):
    assert changed(TuneConfig(init="a"), changes) == replace(TuneConfig(init="a"), **fields)


@pytest.mark.parametrize(("changes", "match"), [
    ("anchor", "--try 'anchor': expected FIELD=VALUE, or several with commas"),
    ("anchor=", "expected FIELD=VALUE"),
    ("ancor=2", "field 'ancor': did you mean 'anchor'"),
    ("seed=2", "field 'seed': "),
    ("count=2.5", "count=2.5: expected a whole number"),
    ("anchor=much", "anchor=much: expected a number"),
    ("augment=1", "augment=1: expected true or false"),
    ("count=none", "count=none: expected a whole number"),
    ("tokens=x", "tokens='x': expected one of t, v, vt"),
    ("anchor=-1", "anchor=-1.0: expected a number from 0"),
])  # fmt: skip
def test_changes_that_make_no_recipe(changes: str, match: str):
    with pytest.raises(ValueError, match=match):
        changed(TuneConfig(), changes)


def judged(*top1: float) -> tuple[Performance, ...]:
    return tuple(Performance(share, 2 - share) for share in top1)


def test_recipes_are_compared_over_seeds():
    about: dict[str, Any] = {"images": (4, 4), "untuned": judged(0.5, 0.7)}
    every = [
        Trial("as it is", "a", **about, tuned=judged(0.6, 0.7)),
        Trial("anchor=2", "a", **about, tuned=judged(0.8, 0.7)),
        Trial("as it is", "b", **about, tuned=judged(0.5, 0.5)),
        Trial("anchor=2", "b", **about, tuned=judged(0.5, 0.9)),
    ]
    table = trials_table(every, "title")
    assert [column.heading for column in table.columns] == ["recipe", "a", "b", "to untuned", "to first", "loss"]
    first, other = ([str(cell) for cell in row] for row in table.rows)
    gain, apart = mean_interval([0.05, -0.1]), mean_interval([0.1, 0.2])
    assert first == ["as it is", "65.0", "50.0", str(points(gain)), "–", f"{2 - 0.575:.4f}"]
    assert other == ["anchor=2", "75.0", "70.0", str(points(mean_interval([0.15, 0.1]))), str(points(apart)), "1.2750"]
    assert "(a 4 + 4, b 4 + 4)" in table.caption
    assert "untuned: a 60.0, b 60.0, loss 1.4000" in table.caption


def test_a_seed_alone_has_no_interval():
    one = Trial("as it is", "a", images=(4,), untuned=judged(0.5), tuned=judged(0.75))
    (row,) = trials_table([one], "title").rows
    assert [str(cell) for cell in row] == ["as it is", "75.0", "–", "–", "1.2500"]


@pytest.fixture
def tuner(parts: ClipParts, staged: dict[str, Dataset], predictor_file: Path) -> Tuner:
    about = {"model": "clip_vit_b16", "tag": "openai", "weights": fingerprint(parts.model.visual)}
    return Tuner(parts, staged["plain"], progress=Progress(), **about)


@pytest.mark.parametrize("tokens", ["t", "vt"])
def test_a_recipe_is_judged_by_what_it_never_saw(
    few: StudyConfig, tuner: Tuner, parts: ClipParts, tokens: str, monkeypatch: pytest.MonkeyPatch
):
    """Each seed is judged by what its own draw left; recipes by the same images."""
    (row,) = variants(parts.model.visual, "clip_vit_b16", "openai", ["patchrank"], [0.5])[-1:]
    seen: list[tuple[str, ...]] = []
    judge = tuner.judge
    monkeypatch.setattr(
        tuner, "judge", lambda row, tuned, split: seen.append(split.image_ids) or judge(row, tuned, split)
    )
    recipe = replace(few.tune, tokens=tokens)
    recipes = {"as it is": recipe, "count=3": replace(recipe, count=3)}
    first, other = trials(tuner, row, recipes, 1, range(2))
    drawn = [draw(tuner.dataset, 1, seed) for seed in range(2)]
    left = [undrawn(tuner.dataset, one).image_ids for one in drawn]
    assert seen == left * 2
    for ids, one in zip(left, drawn, strict=True):
        assert not set(ids) & {*one.train.image_ids, *one.val.image_ids}
    assert first.images == other.images == tuple(map(len, left))
    assert first.untuned == other.untuned
    assert first.tuned != other.tuned
    counts = [(2 * step_runs(one, 3) + len(left[0])) * 2 for one in recipes.values()]
    assert trial_runs(tuner, recipes, 1, range(2)) == sum(counts)


def test_a_study_of_tokens_on_the_final_split(
    few: StudyConfig, studied, staged: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
):
    Toy: Any = type(staged["plain"]).__mro__[1]  # which counts images
    monkeypatch.setattr(Toy, "has_final", True)
    monkeypatch.setitem(Toy._split.__globals__["COUNTS"], FINAL, 6)
    sheet, records = studied("count", replace(few, split=FINAL))["plain"]
    assert {record.split for record in records} == {FINAL}
    assert "plain (final" in sheet.title
    assert not staged["plain"]._released


def test_what_an_order_takes_is_told_from_an_empty_cache_and_from_a_full_one(
    few: StudyConfig, studied, staged: dict[str, Dataset], parts: ClipParts
):
    """Each tuned dense tower is ranked anew; place holders stand for prompts and predictors that aren't there."""
    few = replace(few, seeds=1)
    tower = Tower(parts.model.visual, parts.preprocess, few.model, parts)
    study, dataset = get_study("order"), staged["plain"]

    def told() -> dict[str, tuple[int, int]]:
        shop = DryShop(few, tower._replace(vit=copy.deepcopy(tower.vit)), {})
        lines(study, shop, dataset)
        return {f"{step.kind}, {step.of}": (step.total, step.cached) for step in shop.steps}

    before = told()
    ranked = [name for name in before if "by the tuned tower" in name]
    assert [name.split(",")[0] for name in ranked] == ["rank images", "rank images", "fit predictors"]
    assert {cached for _, cached in before.values()} == {0}
    runs = expected_runs(study, few, [], tower)
    studied("order", few)
    after = told()
    assert {total - cached for total, cached in after.values()} == {0}
    assert {name: total for name, (total, _) in after.items()} == {name: total for name, (total, _) in before.items()}
    assert 0 < expected_runs(study, few, [], tower) < runs
    few = replace(few, train_limit=8)  # another predictor of the same tower
    assert told()["fit predictors, mlp 8 on plain by the tuned tower"] == (1, 0)
