"""Rows come back from records with the settings that they were asked with."""

from typing import Any

import pytest

from harness.apps.check.cases import (
    BATCHES,
    LIMIT,
    Case,
    MethodChoice,
    cases_of,
    complete,
    own_methods,
    read_expectation,
    shipped_case,
    shipped_files,
)
from harness.records.record import Record
from zoo.core.reducer import METHODS


def test_the_first_row_of_a_name_says_the_defaults(record, dense: Record):
    keywords = {"method_config": {"keep": 0.3, "reduce_at": [2, 4], "predictor": "abc"}}
    [case] = cases_of([record(), dense, record(**keywords)], "mine.jsonl")
    names = ["dense", "tome30", "tome30 reduce_at=[2,4]"]
    assert [row.name for row in case.rows["fashion"]] == names
    assert (case.tower, case.image_count) == ("clip_vit_s14.imgfocus_lit", 40)


@pytest.mark.parametrize(("changed", "complaint"), [
    ({}, r"mine\.jsonl: no dense row of clip_vit_s14\.imgfocus_lit"),
    ({"shots": 16, "tuning": "probe"}, "is 16 shots, linear probe; check measures by text"),
])  # fmt: skip
def test_rows_that_check_could_not_measure_are_refused(record, changed: Any, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        cases_of([record(**changed)], "mine.jsonl")


@pytest.mark.parametrize(("text", "complaint"), [
    *((f"evit:{rest}", "expected METHOD:OPTION=VALUE") for rest in ("fuse", "fuse=yes", "")),
    ("tome:reduce_at=[2,4", "expected METHOD:OPTION=VALUE"),
    ("evitt:fuse=true", "method 'evitt': did you mean 'evit'"),
    *((f"{name}:keep=0.5", f"{name} has no options") for name in ("dense", "golden")),
])  # fmt: skip
def test_what_is_no_choice_is_refused(text: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        MethodChoice.of(text)


@pytest.fixture(scope="module")
def shipped() -> Case:
    records = [one for file in shipped_files() for one in read_expectation(file)]
    [case] = cases_of(records, "harness/expected")
    return case


def test_the_shipped_expectation_has_every_row_and_nothing_more(shipped: Case):
    """A method without rows fails here: patchrank check --update enters them."""
    assert shipped == complete(shipped)
    there, anew = (
        {name: sorted(row.name for row in rows) for name, rows in case.rows.items()}
        for case in (shipped, shipped_case(shipped.tower))
    )
    assert there == anew
    assert (shipped.image_count, shipped.batches) == (LIMIT, BATCHES)
    records = [row.record for rows in shipped.rows.values() for row in rows if row.record]
    assert all(record.git_commit for record in records)


def test_a_method_of_ours_must_be_expected_and_a_strangers_need_not(shipped: Case, monkeypatch):
    ours = type("Ours", (METHODS["random"],), {"__module__": "baselines.ours"})
    theirs = type("Theirs", (METHODS["random"],), {"__module__": "elsewhere.theirs"})
    monkeypatch.setitem(METHODS, "ours", ours)
    monkeypatch.setitem(METHODS, "theirs", theirs)
    assert {"ours", "golden", "dense"} < set(own_methods())
    new = [row for row in complete(shipped).rows["emoji"] if row.record is None]
    assert [row.name for row in new] == ["ours60", "ours30"]
