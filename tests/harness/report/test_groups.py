"""No table mixes conditions, and what differs is told."""

from dataclasses import replace
from typing import Any

import pytest

from harness.records import CONDITIONS, Record
from harness.report.groups import grouped
from harness.report.sections import markdown_table

# Of each condition another value, and what a heading says of it.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "dataset": ({"dataset": "emoji"}, "emoji test"),
    "dataset_revision": ({"dataset_revision": "00ff"}, "; revision 00ff"),
    "split": ({"split": "val"}, "fashion val"),
    "shots": ({"shots": 4}, "4 shots"),
    "tuning": ({"tuning": "t", "prompt_tokens": 16}, "learned text tokens (16)"),
    "prompt_tokens": ({"tuning": "t", "prompt_tokens": 8}, "learned text tokens (8)"),
    "seed": ({"seed": 7}, "; seed 7"),
    "image_count": (
        {"image_count": 50, "correct_bits": "ff" * 6 + "c0", "top1": 1.0, "top1_high": 1.0},
        "; 50 images",
    ),
    "images_sha256": ({"images_sha256": "cd" * 32}, "; images cdcdcdcd"),
    "image_size": ({"image_size": (14, 14)}, "; image size (14, 14)"),
    "tag": ({"tag": "openai"}, "clip_vit_s14.openai"),
    "weights_sha256": ({"weights_sha256": "cd" * 32}, "; weights cdcdcdcd"),
    "device": ({"device": "cuda:0"}, "; device cuda:0"),
    "device_name": ({"device_name": "a GPU"}, "; on a GPU"),
    "dtype": ({"dtype": "bfloat16"}, "; bfloat16"),
    "threads": ({"threads": 1}, "; 1 thread"),
    "torch": ({"torch": "2.9"}, "; torch 2.9"),
    "timm": ({"timm": "1.0.99"}, "; timm 1.0.99"),
    "version": ({"version": "0.2.0"}, "; clip-patchrank 0.2.0"),
}


def test_the_table_of_conditions_is_whole():
    assert {*OTHERS, "version"} == {*CONDITIONS, "version"}


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_other_conditions_have_a_table_of_their_own_that_tells_them(
    name: str, dense: Record, patchrank: Record
):
    known: dict[str, Any] = {"images_sha256": "ab" * 32, "image_size": (196, 196)}
    change, told = OTHERS[name]
    if name == "seed":  # with shots it would be averaged over
        known |= {"shots": 0, "tuning": None}
    ours = [replace(record, **known) for record in (dense, patchrank)]
    theirs = [replace(record, **(known | change)) for record in (dense, patchrank)]
    found = grouped([ours[0], theirs[0], ours[1], theirs[1]])
    first, second = found.groups
    assert [row.first for row in first.rows] == ours
    assert [row.first for row in second.rows] == theirs
    assert first.name != second.name
    assert told in second.name
    assert told not in first.name
    assert markdown_table([*ours, *theirs]).count("### ") >= 2


def test_one_condition_needs_no_words(records: list[Record]):
    assert [group.name for group in grouped(records).groups] == [
        "fashion test, 16 shots, linear probe, clip_vit_s14.saliency",
        "emoji test, by text, clip_vit_s14.saliency",
    ]


def test_the_newest_measurement_of_a_row_stands_wherever_it_is(row: Any):
    old = row("random", 0.6, 50)
    new = replace(row("random", 0.6, 60), created="2026-05-01T00:00:00+00:00")
    for given in ([old, new], [new, old]):
        found = grouped(given)
        assert [each.first for each in found.groups[0].rows] == [new]
        assert found.replaced == 1
    assert grouped([new]).replaced == 0


def test_of_equally_old_ones_the_later_line_stands(row: Any):
    one, other = row("random", 0.6, 50), row("random", 0.6, 60)
    assert grouped([one, other]).groups[0].rows[0].first == other


def test_other_settings_are_another_row(row: Any):
    one = row("evit", 0.6, 50)
    other = replace(one, method_config={"reduce_at": [4]})
    assert len(grouped([one, other]).groups[0].rows) == 2


def test_unknown_images_are_a_group_of_their_own(dense: Record, patchrank: Record):
    sizes = [replace(dense, images_sha256="ab" * 32, image_size=(n, n)) for n in (196, 224)]
    found = grouped([*sizes, patchrank]).groups
    assert [[row.method for row in group.rows] for group in found] == [
        ["dense"],
        ["dense"],
        ["patchrank"],
    ]
    assert [group.name.partition("; ")[2] for group in found] == [
        "images abababab, image size (196, 196)",
        "images abababab, image size (224, 224)",
        "images unknown, image size unknown",
    ]


def test_which_images_they_are_is_not_told_where_more_differs(dense: Record):
    known = replace(dense, images_sha256="ab" * 32, image_size=(196, 196), threads=1)
    names = [group.name for group in grouped([dense, known]).groups]
    assert [name.partition("; ")[2] for name in names] == ["2 threads", "1 thread"]


def test_rows_of_other_seeds_do_not_share_a_mean(row: Any):
    three = [row("evit", 0.6, 50 + seed, seed=seed) for seed in (0, 1, 2)]
    two = [row("tome", 0.6, 50, seed=seed) for seed in (0, 1)]
    first, second = grouped([*three, *two]).groups
    assert (len(first.rows[0].records), len(second.rows[0].records)) == (3, 2)
    assert first.name.endswith("; seeds 0, 1, 2")
    assert second.name.endswith("; seeds 0, 1")


def test_nothing_to_report_is_refused():
    with pytest.raises(ValueError, match="there are no records to report"):
        grouped([])
