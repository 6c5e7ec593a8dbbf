"""Terminal tables: every number where it belongs, and a dash for what wasn't measured."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from harness.cli.measure import both
from harness.correctness import pack_correct
from harness.records import Latency, Record
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


def test_the_narrow_form_explains_what_it_shows_and_says_that_there_is_more():
    text = " ".join(" ".join(shown(comparison_table([DENSE, FULL], wide=False))).split())
    assert "x b32: time at batch 32 by the dense model's" in text
    assert "all columns: a wider terminal, or --json" in text
    assert "quartiles" not in text
    assert "all columns" not in " ".join(shown(comparison_table([DENSE, FULL])))


def test_between_wide_and_narrow_intervals_and_times_stay():
    wide, middle, _ = both([DENSE, FULL]).forms
    heads = [str(column.header) for column in middle.columns]
    assert heads == [
        "method",
        "keep",
        "top-1",
        "to dense",
        "GFLOPs",
        "batch 1, ms",
        "batch 32, ms",
        "tau",
        "tokens",
    ]
    assert set(heads) < {column.header for column in wide.columns}
    assert "all columns: a wider terminal, or --json" in f"{middle.caption}"


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
