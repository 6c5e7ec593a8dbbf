"""Rows of two runs judged together, and what so many images can show of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness.changes_data import changes_data
from harness.changes_table import changes_markdown, sheets
from rich.console import Console

from harness.changes import changes
from harness.records import Record, pack_correct, read_records
from harness.statistics import holm, minimum_detectable_difference

[KNOWN] = read_records(Path(__file__).parent / "schema" / "v6.jsonl")


def record(correct: Any, **changed: Any) -> Record:
    facts = {"image_count": len(correct), "correct_bits": pack_correct(correct), "shots": 4}
    facts |= {"top1": correct.mean(), "top1_low": 0.0, "top1_high": 1.0, "tuning": "probe"}
    return replace(KNOWN, **facts | changed)


def shown(a: list[Record], b: list[Record]) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        for sheet in sheets(changes(a, b)):
            console.print(sheet.table())
    return captured.get()


def flipped(lost: int, won: int, **changed: Any) -> tuple[Record, Record]:
    truth = np.arange(400) < 200
    right = truth.copy()
    right[:lost], right[200 : 200 + won] = False, True
    return record(truth, **changed), record(right, **changed)


def test_rows_of_a_table_are_judged_together():
    pairs = [flipped(14, 3, seed=0), flipped(14, 4, seed=1), flipped(60, 5, seed=2)]
    found = changes(*map(list, zip(*pairs, strict=True)))
    alone = [pair.p_value for pair in found.pairs]
    assert alone[2] < alone[0] < 0.05 / 2 < alone[1] < 0.05
    assert [pair.p_value for pair in found.pairs if pair.p_value <= 0.05 / 3] == alone[::2]
    [sheet] = sheets(found)
    marks = [row[sheet.heads.index("B - A")].count("*[") for row in sheet.rows]
    assert marks == [int(p <= 0.05) for p in holm(alone)] == [1, 1, 1]
    [weak] = sheets(changes(*map(list, zip(pairs[1], flipped(14, 4, seed=3), strict=True))))
    assert "*[" not in " ".join(cell for row in weak.rows for cell in row)


def test_the_note_says_what_so_many_images_can_show():
    pair = flipped(9, 7)
    least = minimum_detectable_difference(400, 16 / 400)
    assert least is not None
    told = (
        "* clear of zero, all rows of this table judged together (exact McNemar test, Holm, 5 %); "
        f"without *: 400 images show {100 * least:.1f} points with power 80 %"
    )
    assert told in " ".join(shown([pair[0]], [pair[1]]).split())
    assert told in changes_markdown(changes([pair[0]], [pair[1]]), "a", "b")
    [other] = sheets(changes([pair[0]], [replace(pair[1], images_sha256="ef" * 32)]))
    assert other.note == ""


def test_programs_are_given_what_the_marks_come_from():
    pairs = [flipped(14, 3, seed=0), flipped(14, 4, seed=1), flipped(60, 5, seed=2)]
    data = changes_data(changes(*map(list, zip(*pairs, strict=True))))["pairs"]
    assert [pair["seed"] for pair in data] == [0, 1, 2]
    alone = [pair["p_value"] for pair in data]
    assert [pair["p_value_holm"] for pair in data] == list(holm(alone))
    assert all(pair["images_proven_the_same"] for pair in data)
    [same] = data[0]["latency_ratio_to_dense_by_batch"].values()
    assert same["low"] <= same["estimate"] == 1 <= same["high"]
    [other] = changes_data(changes([pairs[0][0]], [replace(pairs[0][1], images_sha256=None)]))[
        "pairs"
    ]
    assert (other["p_value_holm"], other["images_proven_the_same"]) == (other["p_value"], False)
