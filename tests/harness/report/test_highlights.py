"""A group in short: claims no more than the tests on its images, and names what it is of."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.records import Record, pack_correct
from harness.report.groups import grouped
from harness.report.highlights import Highlights, highlights


def short(records: list[Record]) -> Highlights:
    [group] = grouped(records).groups
    return highlights(group)


@pytest.fixture
def rows(dense: Record, patchrank: Record, row: Any) -> list[Record]:
    lost = {"diff_to_dense": -0.3, "diff_low": -0.39, "diff_high": -0.21}
    return [dense, patchrank, row("random", 0.3, 40, 1.7, **lost)]


def test_the_cheapest_row_without_a_clear_loss_is_named_with_what_it_saves(rows: list[Record]):
    found = short(rows)
    assert found.least is not None
    assert found.least.method == "patchrank"  # random is cheaper and clearly worse
    assert found.saving.startswith(
        "Fewest GFLOPs without a clear loss to dense (70.0 %): patchrank 60 %, -2.0 points "
        "[-5.1, +1.2], 2.45 GFLOPs, 28 % fewer; 0.71 of dense's time at batch 1 [0.70, 0.73]; 0.70 "
        "of dense's time at batch 32 [0.69, 0.72]."
    )
    assert found.conditions == "100 images; a processor, cpu, float32, 2 threads"
    assert "Clearly beaten: random 30 %" not in " ".join(found.fronts)


def test_few_discordant_images_show_no_loss_and_that_is_said(rows: list[Record]):
    assert "right on 2 images, too few to show a loss" in short(rows).saving


def test_what_so_many_images_would_show_is_said(dense: Record, row: Any):
    correct = np.arange(100) < 70
    other = correct.copy()
    other[np.arange(0, 100, 5)] ^= True
    bits = {"correct_bits": pack_correct(other), "top1": float(other.mean())}
    told = {"diff_to_dense": float(other.mean()) - 0.7, "diff_low": -0.15, "diff_high": 0.02}
    found = short([dense, replace(row("evit", 0.6, 62, 2.0), **bits, **told)])
    assert "No clear loss isn't no loss: 100 images show one of " in found.saving
    assert found.saving.endswith(" points in four of five cases.")


def test_costs_within_a_percent_are_one_and_the_more_accurate_row_is_named(rows: list[Record]):
    near = replace(rows[1], method="tome", top1=0.67, gflops=2.44, correct_bits=pack_correct(
        np.arange(100) < 67))  # fmt: skip
    found = short([*rows, near])
    assert found.least is not None
    assert found.least.method == "patchrank"
    far = short([*rows, replace(near, gflops=2.3)])
    assert far.least is not None
    assert far.least.method == "tome"


def test_a_loss_by_the_interval_alone_is_no_saving(dense: Record, patchrank: Record):
    """The exact test finds nothing in two images; the interval that stands beside it does."""
    found = short([dense, replace(patchrank, diff_low=-0.051, diff_high=-0.001)])
    assert found.least is None
    assert found.saving.startswith("Every row with fewer GFLOPs is less accurate")
    assert short([dense, patchrank]).least is not None


def test_fronts_are_told_by_each_cost(rows: list[Record], row: Any):
    beaten = row("evit", 0.6, 30, 2.6)
    found = short([*rows, beaten]).fronts
    assert found[0].startswith("By GFLOPs: On the front: random 30 %, patchrank 60 %, dense.")
    assert found[0].endswith("Clearly beaten: evit 60 % (by patchrank 60 %).")
    assert found[1].startswith("By time at batch 1: On the front: patchrank 60 %, dense.")
    assert found[1].endswith("None is clearly beaten.")
    assert len(found) == 3


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (["random"], "There is no dense row, so no loss to it can be told."),
        (["dense"], "No row has both a difference to dense and counted GFLOPs."),
        (
            ["dense", "random"],
            "Every row with fewer GFLOPs is less accurate than dense by its interval or the test.",
        ),
    ],
)
def test_what_cannot_be_said_is_said(keep: list[str], told: str, rows: list[Record]):
    found = short([record for record in rows if record.method in keep])
    assert (found.saving, found.least) == (told, None)


def test_a_row_that_costs_more_saves_nothing(dense: Record, patchrank: Record):
    found = short([dense, replace(patchrank, gflops=3.5)])
    assert found.saving == "No row with a difference to dense has fewer GFLOPs."


def test_seeds_are_told(dense: Record, patchrank: Record):
    twice = [replace(record, seed=seed) for record in (dense, patchrank) for seed in (0, 1)]
    assert "100 images, mean of 2 seeds; " in short(twice).conditions


def test_the_page_has_it_before_the_contents_with_a_link_to_the_table(made: Any, rows):
    text, _ = made(rows)
    assert text.index("In short</h2>") < text.index('<nav aria-label="Contents">')
    assert '<li><p><a href="#table-1">fashion test' in text
    assert text.index("Fewest GFLOPs without") < text.index("<table")
