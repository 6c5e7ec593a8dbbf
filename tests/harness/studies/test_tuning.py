"""Studies of learned tokens: who is compared with whom, from which images, at what cost."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.records.statistics import bootstrap_mean, mean_interval
from harness.studies.tuning import KINDS, four_points
from harness.studies.workshop import StudyConfig

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
    assert plain.gflops is not None
    assert dense.row.mean("gflops") > plain.gflops
    assert sheet.entries[2].row.mean("gflops") == plain.gflops
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
