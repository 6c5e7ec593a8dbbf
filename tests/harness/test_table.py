"""Terminal tables: every number where it belongs, and a dash for what wasn't measured."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from scipy import stats

from harness.averages import averages, judged
from harness.correctness import pack_correct
from harness.records import Latency, Record
from harness.statistics import minimum_detectable_difference, paired_difference
from harness.table import comparison_table, title

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
FULL = replace(
    DENSE,
    model="clip_vit_s14_evit30",
    method="evit",
    keep=0.3,
    diff_to_dense=-0.125,
    diff_low=-0.25,
    diff_high=0.0,
    cosine_to_dense=0.9876,
    cosine_low=0.98,
    cosine_high=0.99,
    gflops=1.234,
    final_tokens=59,
    latency=tuple(
        Latency(
            batch=batch,
            median_ms=10.0 * batch,
            q1_ms=9.0 * batch,
            q3_ms=12.0 * batch,
            ratio_to_dense=0.55,
            ratio_low=0.5,
            ratio_high=0.6,
            images_per_s=100.0 + batch,
        )
        for batch in (1, 32)
    ),
    tau=0.4321,
    tau_low=0.4,
    tau_high=0.45,
    match_at_k=0.613,
    match_k=59,
    match_chance=59 / 196,
    golden_images=8,
    weighted_tau=0.5678,
    weighted_tau_low=0.5,
    weighted_tau_high=0.6,
    border_overlap=0.644,
    border_low=0.6,
    border_high=0.7,
    border_chance=0.503,
)


def shown(table: Table) -> list[str]:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


def cells(lines: list[str], start: str) -> list[str]:
    [line] = [line for line in lines if line.startswith(f"│ {start} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_row_with_everything():
    lines = shown(comparison_table([DENSE, FULL]))
    assert cells(lines, "evit") == [
        "evit",
        "30",
        "75.0 [40.9, 92.9]",
        "-12.5 [-25.0, 0.0]",
        "0.988",
        "1.23",
        "10 [9, 12] 0.55x",
        "320 [288, 384] 0.55x",
        "132",
        "0.43",
        "0.57",
        "0.61 (0.30)",
        "0.64 (0.50)",
        "59",
    ]


def test_what_was_not_measured_is_a_dash_not_a_zero():
    lines = shown(comparison_table([DENSE, FULL]))
    assert cells(lines, "dense")[:3] == ["dense", "100", "75.0 [40.9, 92.9]"]
    assert cells(lines, "dense")[3:] == ["–"] * 11


def test_the_caption_loses_nothing_to_markup():
    text = " ".join(" ".join(shown(comparison_table([FULL]))).split())
    assert "median [quartiles], ratio to dense; GFLOPs: 1e9 multiply-adds per image" in text


@pytest.mark.parametrize(
    ("shots", "tuning", "said"),
    [
        (0, None, "text classifier: all class captions seen in text training"),
        (1, "probe", "1 shot, linear probe"),
        (16, "probe", "16 shots, linear probe"),
        (16, "t", "16 shots, learned text tokens (4)"),
        (16, "vt", "16 shots, learned visual and text tokens (4)"),
    ],
)
def test_the_title_names_the_conditions(shots: int, tuning: str | None, said: str):
    count = None if tuning in (None, "probe") else 4
    assert title(replace(FULL, shots=shots, tuning=tuning, prompt_tokens=count)) == (
        f"fashion (test, 8 images; {said}), clip_vit_s14.imgfocus_lit, float32, a processor, "
        "2 threads"
    )


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


def test_means_over_seeds_are_not_judged():
    records = [
        replace(record, shots=4, tuning="probe", seed=seed)
        for seed in (0, 1)
        for record in compared({30: (90, 3)})
    ]
    rows = averages(records)
    assert rows[1].to_dense is not None
    assert judged(rows) is None
    assert "*" not in caption(records)
    assert judged(averages(records[:2])) is not None
