"""Recipes of learned tokens: changed, and judged by what they never saw."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.table import points
from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.datasets.few_shot import draw, undrawn
from harness.measure.rows import variants
from harness.measure.tuning import Performance, Tuner
from harness.records.statistics import mean_interval
from harness.studies.recipes import Trial, change_recipe, trials, trials_table
from harness.studies.spec import StudyConfig
from zoo.core.files import fingerprint
from zoo.learning.tuning import TuneConfig
from zoo.loading.clip import ClipParts


@pytest.mark.parametrize(("changes", "fields"), [
    ("init=a photo of a,anchor=2, learning-rate=5e-4", {"init": "a photo of a", "anchor": 2.0, "learning_rate": 5e-4}),
    ("init=none,epochs=none", {"init": None, "epochs": None}),
    ("augment=false,count=4", {"augment": False, "count": 4}),
])  # fmt: skip
def test_a_changed_recipe(changes: str, fields: dict[str, Any]):
    assert change_recipe(TuneConfig(init="a"), changes) == replace(TuneConfig(init="a"), **fields)


@pytest.mark.parametrize(("changes", "match"), [
    ("anchor", "--try 'anchor': expected FIELD=VALUE"),
    ("anchor=", "expected FIELD=VALUE"),
    ("ancor=2", "'ancor': did you mean 'anchor'"),
    ("seed=2", "'seed'"),
    ("count=2.5", "count=2.5: expected a whole number"),
    ("anchor=much", "anchor=much: expected a number"),
    ("augment=1", "augment=1: expected true or false"),
    ("count=none", "count=none"),
    ("tokens=x", "'x': expected one of t, v, vt"),
    ("anchor=-1", "anchor=-1.0"),
])  # fmt: skip
def test_changes_that_make_no_recipe(changes: str, match: str):
    with pytest.raises(ValueError, match=match):
        change_recipe(TuneConfig(), changes)


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
    first, other = ([str(cell) for cell in row] for row in trials_table(every, "title").rows)
    gain, apart = mean_interval([0.05, -0.1]), mean_interval([0.1, 0.2])
    assert first == ["as it is", "65.0", "50.0", str(points(gain)), "–", f"{2 - 0.575:.4f}"]
    assert other == ["anchor=2", "75.0", "70.0", str(points(mean_interval([0.15, 0.1]))), str(points(apart)), "1.2750"]
    alone = Trial("as it is", "a", images=(4,), untuned=judged(0.5), tuned=judged(0.75))
    (row,) = trials_table([alone], "title").rows  # a seed alone has no interval
    assert [str(cell) for cell in row] == ["as it is", "75.0", "–", "–", "1.2500"]


@pytest.mark.parametrize("tokens", ["t", "vt"])
def test_a_recipe_is_judged_by_what_it_never_saw(
    tiny: StudyConfig, parts: ClipParts, staged: dict[str, Dataset], predictor_file: Path, tokens: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Each seed is judged by what its own draw left; recipes by the same images."""
    about = {"model": "clip_vit_b16", "tag": "openai", "weights": fingerprint(parts.model.visual)}
    tuner = Tuner(parts, staged["plain"], progress=Progress(), **about)
    (row,) = variants(parts.model.visual, "clip_vit_b16", "openai", ["patchrank"], [0.5])[-1:]
    seen: list[tuple[str, ...]] = []
    judge = tuner.judge
    monkeypatch.setattr(
        tuner, "judge", lambda row, tuned, split: seen.append(split.image_ids) or judge(row, tuned, split)
    )
    recipe = replace(tiny.tune, tokens=tokens)
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
