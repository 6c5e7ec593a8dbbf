"""Studies of predictors: what they are fitted to, and on which images."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

from harness.studies.workshop import StudyConfig
from zoo.core.reducer import final_count
from zoo.ranking.golden import SCORES

Studied = Callable[..., Any]


def test_judging_on_all_of_test_leaves_the_predictors_alone(few: StudyConfig, studied, monkeypatch):
    """Whatever is judged by, fits are stopped by the same few val images."""
    monkeypatch.setattr("harness.studies.workshop.STOPPED_BY", 5)
    used = [
        {r.method_config["predictor"] for r in sheet.entries[0].records}
        for config in (few, replace(few, split="test", limit=None))
        for sheet, _ in studied("baselines", config).values()
    ]
    assert used[0] == used[1]


def test_half_precision_leaves_predictors_their_tower(tiny: StudyConfig, studied):
    """The second dataset's predictors are loaded into the tower that the first was judged in."""
    results = studied("losses", replace(tiny, keeps=(0.5,), seeds=1, dtype="bfloat16"))
    assert {r.dtype for _, records in results.values() for r in records} == {"bfloat16"}
    assert len({r.weights_sha256 for _, records in results.values() for r in records}) == 1


def test_every_score_golden_and_predicted(tiny: StudyConfig, studied):
    sheet, _ = studied("scores", replace(tiny, keeps=(0.7, 0.3)))["plain"]
    lines = [(e.labels["score"], e.group, e.labels["ranking"]) for e in sheet.entries]
    assert lines == list(product(SCORES, (0.7, 0.3), ("golden", "predicted")))
    for entry in sheet.entries:
        assert entry.records[0].mean("final_tokens") == final_count(64, entry.group)


def test_targets_of_merging_serve_the_method_that_merges(tiny: StudyConfig, studied, monkeypatch):
    monkeypatch.setattr("harness.studies.predictors.TARGETS", ())
    sheet, _ = studied("targets", replace(tiny, keeps=(0.5,), seeds=1))["plain"]
    lines = [(e.labels["target"], e.labels["ranking"], e.records[0].method) for e in sheet.entries]
    pruned, merged = lines[:2], lines[2:]
    assert [ranking for _, ranking, _ in pruned] == ["predicted", "golden"]
    way = "1 x 1 by 1, merged"
    assert merged == [
        ("(merged)", "none", "rankmerge"),
        ("(merged)", "cls", "rankmerge"),
        (f"{way}, follow:0", "predicted", "rankmerge"),
        (f"{way}, greedy by 49, follow:0", "predicted", "rankmerge"),
    ]
    assert {e.records[0].mean("final_tokens") for e in sheet.entries} == {final_count(64, 0.5)}


def test_transfer_fits_on_each_and_on_all(tiny: StudyConfig, studied):
    results = studied("transfer", tiny)
    sources = [e.labels["fitted on"] for e in results["other"][0].entries]
    assert sources == ["other", "plain", "plain + other", "(golden)"]
    used = {
        label: {r.method_config["predictor"] for r in entry.records}
        for sheet, _ in results.values()
        for entry in sheet.entries[:3]
        for label in [entry.labels["fitted on"]]
    }
    assert len(set.union(*used.values())) == 6  # three training sets, two seeds


def test_shots_count_images_of_all_datasets_as_far_as_there_are_some(tiny: StudyConfig, studied):
    """Nine ranked images of three classes: three of each."""
    sheet, _ = studied("shots", replace(tiny, keeps=(0.5,), seeds=1))["plain"]
    images = [(e.labels["images per class"], e.labels["images"]) for e in sheet.entries]
    assert images == [("all", "18"), ("2", "12"), ("1", "6")]
