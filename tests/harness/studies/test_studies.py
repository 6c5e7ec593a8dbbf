"""One contract for every study, and what each of them promises."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.records.record import Record, utc_now
from harness.records.statistics import bootstrap_mean
from harness.studies.pruning import schedules
from harness.studies.run import Sheet, get_study, list_studies
from harness.studies.workshop import StudyConfig
from zoo.golden import SCORES
from zoo.reducer import METHODS, final_count

NOW = utc_now()
Made = Callable[..., dict[str, tuple[Sheet, list[Record]]]]


@pytest.fixture
def few(tiny: StudyConfig) -> StudyConfig:
    return replace(tiny, keeps=(0.5,), datasets=("plain",))


@pytest.mark.parametrize("name", list_studies())
def test_every_study_answers_and_answers_again_without_measuring(
    few: StudyConfig,
    name: str,
    studied: Made,
    predictor_file: Path,
    forbid: Callable[..., None],
):
    few = replace(few, split=get_study(name).split)
    found = studied(name, few)
    assert list(found) == ["plain"]
    for sheet, records in found.values():
        first = [entry for entry in sheet.entries if entry.to_first is None]
        begins = {entry.group: entry for entry in reversed(sheet.entries)}
        assert first == list(reversed(begins.values()))
        assert sheet.dense == records[0]
        assert sum(len(entry.records) for entry in sheet.entries) == len(records) - 1
        for entry in sheet.entries:
            assert {record.image_count for record in entry.records} == {7}
            assert all(record.split == few.split for record in entry.records)
            golden = "golden" in {record.method for record in entry.records}
            assert (entry.mean("gflops") is None) == golden
            if golden:
                assert entry.mean("tau") > 0.95  # in several steps, ties are broken otherwise
        heads, rows = sheet.cells()
        assert all(len(row) == len(heads) for row in rows)
        labels = [tuple(entry.labels.values()) for entry in sheet.entries]
        assert len(set(labels)) == len(labels)

    forbid()
    known = [record for _, records in found.values() for record in records]
    again = studied(name, few, known)
    # Two lines may stand for the same model: then the later record serves both.
    first, second = (
        [replace(r, created=NOW) for r in group["plain"][1]] for group in (found, again)
    )
    assert second == first


def test_differences_are_of_the_mean_over_seeds(few: StudyConfig, studied: Made):
    sheet, records = studied("losses", few)["plain"]
    right = [np.mean([r.correct for r in e.records], axis=0) for e in sheet.entries]
    for entry, hits in zip(sheet.entries, right, strict=True):
        assert len(entry.records) == 2
        assert entry.to_dense == bootstrap_mean(hits - records[0].correct, seed=0)
        if entry.to_first is not None:
            assert entry.to_first == bootstrap_mean(hits - right[0], seed=0)


def test_judging_on_all_of_test_leaves_the_predictors_alone(
    tiny: StudyConfig, studied: Made, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is judged by, fits are stopped by the same few val images."""
    monkeypatch.setattr("harness.studies.workshop.STOPPED_BY", 5)
    few = replace(tiny, keeps=(0.5,), datasets=("plain",))
    used = [
        {r.method_config["predictor"] for r in sheet.entries[0].records}
        for config in (few, replace(few, split="test", limit=None))
        for sheet, _ in studied("baselines", config).values()
    ]
    assert used[0] == used[1]


def test_half_precision_leaves_predictors_their_tower(tiny: StudyConfig, studied: Made):
    """The second dataset's predictors are loaded into the tower that the first was judged in."""
    found = studied("losses", replace(tiny, keeps=(0.5,), seeds=1, dtype="bfloat16"))
    assert {r.dtype for _, records in found.values() for r in records} == {"bfloat16"}
    assert len({r.weights_sha256 for _, records in found.values() for r in records}) == 1


def test_every_score_golden_and_predicted(tiny: StudyConfig, studied: Made):
    sheet, _ = studied("scores", replace(tiny, keeps=(0.7, 0.3)))["plain"]
    found = [(e.labels["score"], e.group, e.labels["ranking"]) for e in sheet.entries]
    assert found == [
        (score, keep, ranking)
        for score in SCORES
        for keep in (0.7, 0.3)
        for ranking in ("golden", "predicted")
    ]
    for entry in sheet.entries:
        assert entry.records[0].final_tokens == final_count(64, entry.group)


def test_transfer_fits_on_each_and_on_all(tiny: StudyConfig, studied: Made):
    found = studied("transfer", tiny)
    assert [e.labels["fitted on"] for e in found["other"][0].entries] == [
        "other",
        "plain",
        "plain + other",
        "(golden)",
    ]
    used = {
        label: {r.method_config["predictor"] for r in entry.records}
        for sheet, _ in found.values()
        for entry in sheet.entries[:3]
        for label in [entry.labels["fitted on"]]
    }
    assert len(set.union(*used.values())) == 6  # three training sets, two seeds


def test_schedules_begin_at_the_block_and_stay_in_the_tower():
    assert schedules(3, 9) == [(3,), (3, 5), (3, 5, 7), (3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]
    assert schedules(3, 12)[1:3] == [(3, 5), (3, 5, 7)]
    assert schedules(5, 6) == [(5,)]


@pytest.mark.parametrize("name", ["schedule", "baselines"])
def test_lines_of_one_keep_rate_cost_the_same(tiny: StudyConfig, name: str, studied: Made):
    """As nearly as whole tokens allow: one token more or less is the smallest step."""
    sheet, _ = studied(name, replace(tiny, keeps=(0.6, 0.5)))["plain"]
    for keep in (0.6, 0.5):
        costs = [e.mean("gflops") for e in sheet.entries if e.group == keep]
        known = [cost for cost in costs if cost is not None]
        assert known == pytest.approx([known[0]] * len(known), rel=0.04)


def test_baselines_are_every_method_without_a_predictor(few: StudyConfig, studied: Made):
    sheet, _ = studied("baselines", few)["plain"]
    others = sorted(name for name, cls in METHODS.items() if not cls.needs_predictor)
    assert [entry.labels["method"] for entry in sheet.entries] == ["patchrank", *others]
    assert [len(e.records) for e in sheet.entries if e.labels["method"] == "random"] == [2]


def test_shots_count_images_of_all_datasets_as_far_as_there_are_some(
    tiny: StudyConfig, studied: Made
):
    """Nine ranked images of three classes: three of each."""
    sheet, _ = studied("shots", replace(tiny, keeps=(0.5,), seeds=1))["plain"]
    assert [(e.labels["images per class"], e.labels["images"]) for e in sheet.entries] == [
        ("all", "18"),
        ("2", "12"),
        ("1", "6"),
    ]


def test_where_blocks_differ_their_rankings_do(few: StudyConfig, studied: Made):
    sheet, _ = studied("blocks", replace(few, seeds=1))["plain"]
    at_keep, at_cost = sheet.entries[:24], sheet.entries[24:]
    assert [e.labels["before block"] for e in at_keep[::4]] == list("012345")
    assert len({e.records[0].method_config.get("against") for e in at_keep[1::4]}) == 6
    assert {e.records[0].final_tokens for e in at_keep} == {32}
    costs = [e.mean("gflops") for e in at_cost]  # block 2 is the study's own
    assert costs[:4] == pytest.approx([costs[2]] * 4, rel=0.04)
    assert costs[2] < costs[4] < costs[5]  # where even one patch costs more
    kept = [e.records[0].final_tokens for e in at_cost]
    assert kept == sorted(kept, reverse=True)  # the later, the fewer may stay


def test_unknown_studies_and_numbers_are_refused(tiny: StudyConfig):
    with pytest.raises(ValueError, match="study 'scorse': did you mean 'scores'"):
        get_study("scorse")
    for field in ("limit", "train_limit", "seeds", "shots", "labelled"):
        with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} 0: expected a number"):
            replace(tiny, **{field: 0})
