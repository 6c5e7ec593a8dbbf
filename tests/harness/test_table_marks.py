"""Marks in terminal tables: which differences stay clear with all of a table judged together."""

import io
from dataclasses import replace

import numpy as np
import pytest
from harness.table import comparison_table, floor_table, matched_table
from rich.console import Console
from rich.table import Table
from scipy import stats

from harness.averages import averages, judged
from harness.floor import Floor
from harness.match import matched
from harness.records import Record, pack_correct
from harness.statistics import (
    Interval,
    minimum_detectable_difference,
    paired_difference,
    sign_flip_exact,
)

DENSE = Record(
    created="2026-01-02T03:04:05+00:00",
    version="0.1.0",
    model="clip_vit_s14",
    method="dense",
    keep=1.0,
    method_config={},
    tag="imgfocus_lit",
    weights_sha256="ab",
    dataset="fashion",
    dataset_revision="12ab",
    split="test",
    shots=0,
    seed=0,
    image_count=8,
    correct_bits=pack_correct(np.array([1, 1, 1, 0, 1, 0, 1, 1], dtype=bool)),
    top1=0.75,
    top1_low=0.409,
    top1_high=0.929,
    device="cpu",
    device_name="a processor",
    dtype="float32",
    threads=2,
    torch="2.13.0",
    timm="1.0.31",
)
EVIT = replace(DENSE, model="clip_vit_s14_evit30", method="evit", keep=0.3)


def shown(table: Table) -> list[str]:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


def compared(losses: dict[int, tuple[int, int]], images: int = 400) -> list[Record]:
    """Return a dense row right on half the images, and by keep what others lose and gain of it."""
    truth = np.arange(images) < images // 2
    facts = {"image_count": images, "correct_bits": pack_correct(truth), "top1": truth.mean()}
    found = [replace(DENSE, **facts)]
    for keep, (lost, gained) in losses.items():
        right = truth.copy()
        right[:lost], right[images // 2 : images // 2 + gained] = False, True
        estimate, low, high = paired_difference(right, truth, seed=0)
        facts |= {"correct_bits": pack_correct(right), "top1": right.mean(), "top1_low": 0.0}
        facts |= {"diff_to_dense": estimate, "diff_low": low, "diff_high": high}
        found.append(replace(DENSE, **facts, method="evit", model=f"evit{keep}", keep=keep / 100))
    return found


def marked(records: list[Record], *, wide: bool = True) -> list[str]:
    """Return the keep rates whose row has a mark."""
    lines = [line.split() for line in shown(comparison_table(records, wide=wide))]
    at = 3 if wide else 1
    return [line[at] for line in lines if "evit" in line and any("*[" in word for word in line)]


@pytest.mark.parametrize("wide", [True, False])
def test_differences_that_stay_clear_among_all_rows_are_marked(wide: bool):
    losses = {90: (3, 2), 70: (14, 4), 50: (14, 3), 30: (60, 5), 10: (2, 19)}
    p = {keep: stats.binomtest(a, a + b).pvalue for keep, (a, b) in losses.items()}
    assert [keep for keep in losses if p[keep] <= 0.05] == [70, 50, 30, 10]
    clear, left = [], sorted(losses, key=lambda keep: p[keep])
    while left and p[left[0]] * len(left) <= 0.05:
        clear.append(str(left.pop(0)))
    assert sorted(clear) == ["10", "30", "50"]
    assert sorted(marked(compared(losses), wide=wide)) == sorted(clear)
    alone = {70: losses[70]}
    assert marked(compared(alone), wide=wide) == ["70"]


def caption(records: list[Record]) -> str:
    return " ".join(" ".join(shown(comparison_table(records))).split())


def test_the_caption_says_what_the_mark_is_and_what_the_rest_would_show():
    text = caption(compared({70: (9, 7), 50: (5, 6), 30: (90, 3)}))
    least = minimum_detectable_difference(400, 16 / 400)
    assert least is not None
    assert "* clear of zero, all rows judged together (exact McNemar test, Holm, 5 %)" in text
    assert (
        f"without *: 400 images show {100 * least:.1f} points with power 80 %, in one comparison, "
        "where just one of two models is right on 4.0 % of them (the most here)"
    ) in text


def test_the_caption_tells_when_no_difference_would_be_found():
    text = caption(compared({70: (1, 2), 50: (0, 0)}))
    assert "too few images that just one of two models gets right to show any difference" in text
    text = caption(compared({30: (90, 3)}))
    assert "Holm, 5 %)" in text
    assert "without *" not in text


def test_nothing_is_judged_without_a_dense_row_or_differences():
    dense, *others = compared({30: (90, 3)})
    assert judged(averages([dense])) is judged(averages(others)) is None
    unpaired = replace(others[0], diff_to_dense=None, diff_low=None, diff_high=None)
    assert judged(averages([dense, unpaired])) is None
    for records in ([dense], others, [dense, unpaired]):
        assert "*" not in caption(records)


def test_means_over_seeds_are_judged_by_sign_flips():
    records = [
        replace(record, shots=4, tuning="probe", seed=seed)
        for seed in (0, 1)
        for record in compared({90: (4, 3), 30: (90, 3)})
    ]
    dense, *rows = averages(records)
    found = judged([dense, *rows])
    assert found is not None
    alone = {row.identity: sign_flip_exact(row.hits - dense.hits) for row in rows}
    assert found.family.alone == alone
    assert [found.mark(row) for row in (dense, *rows)] == ["", "", "*"]
    assert marked(records) == ["30"]
    text = caption(records)
    assert "(exact sign-flip test over images of the mean over these seeds, Holm, 5 %)" in text
    assert "without *" not in text  # which figure is of one seed


def test_operators_that_nobody_can_count_are_told_where_gflops_are_shown():
    assert "GFLOPs lack" not in caption([DENSE, EVIT])
    lacking = replace(EVIT, uncounted_operators=("aten::linalg_inv", "aten::fft"))
    model = EVIT.model
    told = f"GFLOPs lack operators of unknown cost: aten::linalg_inv ({model}), aten::fft ({model})"
    assert told in caption([DENSE, lacking])
    assert "GFLOPs lack" not in caption([replace(DENSE, uncounted_operators=None)])


def floor_row(keep: float, p_value: float) -> Floor:
    facts = {"dataset": "fashion", "split": "test", "method": "evit", "image_count": 9}
    told = {"top1": 0.5, "random_top1": 0.4, "difference": Interval(0.1, 0.0, 0.2)}
    return Floor(keep=keep, p_value=p_value, **facts, **told)


def test_rows_against_random_pruning_are_judged_together():
    rows = [floor_row(0.7, 0.04), floor_row(0.5, 0.03), floor_row(0.3, 0.001)]
    lines = shown(floor_table(rows, 3))
    clear = [line for line in lines if "evit" in line and "*[" in line]
    assert [line.split()[3] for line in clear] == ["30"]
    text = " ".join(" ".join(lines).split())
    assert "all rows judged together (exact sign-flip test over images, Holm, 5 %)" in text
    # The only one that was asked.
    assert sum("*[" in line for line in shown(floor_table(rows[:1], 3))) == 1


def test_rows_at_equal_cost_are_judged_together_over_all_targets():
    records = compared({70: (14, 3), 50: (60, 5)})[1:]
    told = {"gflops": 2.0, "diff_to_dense": None, "diff_low": None, "diff_high": None}
    evit = [replace(r, **told | {"gflops": 4 * r.keep}) for r in records]
    target = [
        replace(r, method="tome", model=f"tome{100 * r.keep:.0f}",
                correct_bits=compared({})[0].correct_bits, top1=0.5)
        for r in evit
    ]  # fmt: skip
    rows = matched([*target, *evit], "tome")
    alone = {row.row.keep: row.p_value for row in rows if row.p_value is not None}
    assert alone[0.5] < 0.05 / 2 < alone[0.7] * 2 < 0.05  # both, of two
    lines = shown(matched_table(rows))
    assert sum("*[" in line for line in lines) == 2
    text = " ".join(" ".join(lines).split())
    assert "all differences of this table judged together (the same test, Holm, 5 %)" in text
