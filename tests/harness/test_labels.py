"""Rows are called by their method, and by settings only where that doesn't tell them apart."""

from dataclasses import replace
from pathlib import Path

import pytest
from harness.columns import Cell, columns_of

from harness.averages import averages, labels
from harness.records import Record, read_run

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def evit() -> list[Record]:
    return [r for r in read_run(RESULTS) if r.method == "evit" and r.dataset == "emoji"]


def names(records: list[Record]) -> list[str]:
    rows = averages(records)
    told = labels(rows)
    return [told[row.identity] for row in rows]


def test_a_method_at_several_keep_rates_is_one_name(evit: list[Record]):
    assert names(evit) == ["evit", "evit"]


def test_settings_that_differ_at_one_keep_rate_are_told_at_all(evit: list[Record]):
    other = replace(evit[0], method_config=evit[0].method_config | {"fuse": True})
    assert names([*evit, other]) == ["evit (fuse false)", "evit (fuse false)", "evit (fuse true)"]


def test_a_setting_that_one_row_lacks_is_told_of_the_other(evit: list[Record]):
    other = replace(evit[0], method_config=evit[0].method_config | {"predictor": "ab12"})
    assert names([evit[0], other]) == ["evit", "evit (predictor ab12)"]


def test_a_cell_is_its_text_and_sorts_by_its_value(evit: list[Record]):
    cells = {column.heading: column.cell for column in columns_of(averages(evit))}
    cell = cells["GFLOPs"](averages(evit)[0])
    assert (cell, cell.value) == (f"{evit[0].gflops:.2f}", evit[0].gflops)
    lost = cells["Kendall τ"](
        averages([replace(evit[0], tau=None, tau_low=None, tau_high=None)])[0]
    )
    assert (lost, lost.value) == ("–", None)
    assert Cell("a", 1.0) == "a"
