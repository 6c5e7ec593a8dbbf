"""No table mixes conditions, and what differs is told."""

from typing import Any

import pytest
from by_hand import ANOTHER, replace

from harness.records.record import CONDITIONS, Record
from harness.report.groups import group_records, sections


@pytest.mark.parametrize("name", CONDITIONS)
def test_rows_of_other_conditions_have_a_table_of_their_own(name: str, dense: Record, patchrank: Record):
    known: dict[str, Any] = {"tuning": "t", "prompt_tokens": 16, "images_sha256": "ab" * 32, "image_size": (196, 196)}
    known |= dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high", "diff_to_dense"))
    if name == "seed":  # with shots it would be averaged over
        known |= {"shots": 0, "tuning": None, "prompt_tokens": None}
    ours = [replace(record, **known) for record in (dense, patchrank)]
    theirs = [replace(record, **(known | {name: ANOTHER[name]})) for record in (dense, patchrank)]
    first, second = group_records([ours[0], theirs[0], ours[1], theirs[1]])
    assert [row.first for row in first.rows] == ours
    assert [row.first for row in second.rows] == theirs
    assert first.name != second.name


def test_what_differs_between_tables_of_one_heading_is_told(dense: Record):
    other = replace(dense, device="cuda:0", threads=1, weights_sha256="cd" * 32)
    first, second = group_records([dense, other])
    assert second.name == f"{first.name.partition(';')[0]}; weights cdcdcdcd, device cuda:0, threads 1"


def test_the_newest_measurement_of_a_row_stands_wherever_it_is(row: Any):
    old = row("random", 0.6, 50)
    new = replace(row("random", 0.6, 60), created="2026-05-01T00:00:00+00:00")
    equal = row("random", 0.6, 70)
    for records, newest in (([old, new], new), ([new, old], new), ([old, equal], equal)):
        [group] = group_records(records)
        assert [each.first for each in group.rows] == [newest]


def test_rows_of_other_seeds_do_not_share_a_mean(row: Any):
    three = [row("evit", 0.6, 50 + seed, seed=seed) for seed in (0, 1, 2)]
    two = [row("tome", 0.6, 50, seed=seed) for seed in (0, 1)]
    first, second = group_records([*three, *two])
    assert (len(first.rows[0].records), len(second.rows[0].records)) == (3, 2)
    assert first.name.endswith("; seed 0, 1, 2")
    assert second.name.endswith("; seed 0, 1")


def test_rows_of_equal_time_stand_beside_the_method_whose_time_they_take(row: Any, timed: Any, dense: Record):
    """One that misses it by more than 5 % is named and left out."""
    setting = {"matched": {"time_of": "patchrank", "keeps": [0.6], "batch": 8, "dtype": "float32"}}
    target = row("patchrank", 0.6, 60, latency=(timed(8, 0.7),))
    plain = row("evit", 0.6, 60)
    rows = [row("evit", 0.45, 50, latency=(timed(8, 0.71),), method_config=setting)]
    rows.append(row("tome", 0.5, 50, latency=(timed(8, 0.75),), method_config=setting))
    every, equal = sections(group_records([dense, target, plain, *rows]))
    assert every.cells("Method") == ["dense", "patchrank", "evit"]
    assert equal.cells("Method") == ["dense", "patchrank", "evit"]
    assert equal.cells("Keep")[1:] == ["60 %", "45 %"]
    assert ["tome" in note for note in equal.notes] == [True]
    assert len(list(sections(group_records([target])))) == 1
