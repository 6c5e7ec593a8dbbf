"""What is said of two runs: conditions in words, then figures."""

from typing import Any

import numpy as np
import pytest
from harness.changes_table import changes_markdown, notes, sheets
from rich.console import Console

from harness.changes import changes
from harness.records import Latency, Record, pack_correct

A = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
B = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)
NAME = "clip_vit_s14_patchrank60.imgfocus_lit"
HOW = "16 shots, learned visual and text tokens (8)"


def record(
    correct: Any = A, median: float = 30.0, ratio: float | None = None, **changed: Any
) -> Record:
    to_dense = {"ratio_to_dense": ratio}
    if ratio is not None:
        to_dense |= {"ratio_low": 0.9 * ratio, "ratio_high": 1.2 * ratio}
    told = {"q1_ms": 1.0, "q3_ms": 99.0, "images_per_s": 9.0, **to_dense}
    time = Latency(batch=1, median_ms=median, **told)
    facts: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "model": "clip_vit_s14_patchrank60",
        "method": "patchrank",
        "keep": 0.6,
        "method_config": {"predictor": "12ab"},
        "tag": "imgfocus_lit",
        "weights_sha256": "ab" * 32,
        "dataset": "birds",
        "dataset_revision": "12ab34cd",
        "split": "test",
        "shots": 16,
        "tuning": "vt",
        "prompt_tokens": 8,
        "seed": 0,
        "image_count": len(correct),
        "images_sha256": "cd" * 32,
        "image_size": (196, 196),
        "correct_bits": pack_correct(correct),
        "top1": float(correct.mean()),
        "top1_low": 0.0,
        "top1_high": 1.0,
        "gflops": 2.5,
        "params": 22_000_000,
        "latency": (time,),
        "tau": 0.3,
        "tau_low": 0.2,
        "tau_high": 0.4,
        "golden_images": 10,
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "threads": 2,
        "torch": "2.13.0",
        "timm": "1.0.31",
    }
    return Record(**{**facts, **changed})


def shown(a: list[Record], b: list[Record], width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        for sheet in sheets(changes(a, b)):
            console.print(sheet.table(wide=width >= 175))
    return captured.get()


def test_a_row_shows_what_changed():
    b = record(B, 15.0, gflops=2.75, tau=0.35)
    [sheet] = sheets(changes([record()], [b]))
    row = dict(zip(sheet.heads, sheet.rows[0], strict=True))
    assert (row["method"], row["keep"]) == ("patchrank", "60")
    assert (row["top-1 A"], row["top-1 B"]) == ("50.0", "60.0")
    assert row["B - A"].startswith("+10.0 [-")
    assert (row["only A, only B"], row["p"]) == ("1, 2", "1.000")
    assert (row["GFLOPs"], row["batch 1, B / A"]) == ("2.500 → 2.750", "0.50x")
    assert row["tau"] == "+0.050"
    assert sheet.title == (f"birds (test, 10 images; {HOW}), clip_vit_s14.imgfocus_lit")


def test_times_beside_dense_have_an_interval_and_others_none():
    rows = [record(ratio=0.8), record(seed=1)], [record(B, 15.0, ratio=0.6), record(seed=1)]
    [sheet] = sheets(changes(*rows))
    told = [dict(zip(sheet.heads, row, strict=True)) for row in sheet.rows]
    assert [row["batch 1, B / A"] for row in told] == ["0.50x", "1.00x"]
    # 0.6 / 0.8, 0.54 / 0.96, 0.72 / 0.72
    assert [row["batch 1, to dense"] for row in told] == ["0.75x [0.56, 1.00]", "–"]
    assert "batch 1, to dense" not in sheets(changes(rows[0][1:], rows[1][1:]))[0].heads


def test_operators_that_gflops_lack_are_told_once():
    lacking = record(uncounted_operators=("aten::linalg_inv",))
    told = "GFLOPs lack operators of unknown cost: aten::linalg_inv (clip_vit_s14_patchrank60)"
    assert notes(changes([lacking], [lacking])).count(told) == 1
    assert not any("lack" in line for line in notes(changes([record()], [record()])))


def test_images_are_proven_the_same_or_said_to_be_taken_for_it():
    assert not any("taken for" in line for line in notes(changes([record()], [record(B)])))
    lines = notes(changes([record(images_sha256=None)], [record(B)]))
    assert any(line.startswith("images taken for the same by revision") for line in lines)
    found = changes([record()], [record(B, images_sha256="ef" * 32)])
    assert found.pairs[0].top1 is found.pairs[0].p_value is None
    [line] = [line for line in notes(found) if "accuracy not compared" in line]
    assert "images_sha256" in line
    assert not any("taken for" in line for line in notes(found))


def test_equal_costs_are_shown_once_and_seeds_where_there_are_several():
    rows = [record(), record(seed=1)]
    [sheet] = sheets(changes(rows, rows))
    told = [dict(zip(sheet.heads, row, strict=True)) for row in sheet.rows]
    assert [row["seed"] for row in told] == ["0", "1"]
    assert {row["GFLOPs"] for row in told} == {"2.500"}
    assert "seed" not in sheets(changes(rows[:1], rows))[0].heads


def test_a_narrow_terminal_shows_the_most_telling_columns_whole():
    rows = [record(), record(seed=1)]
    narrow = shown(rows, [record(B), record(B, seed=1)], width=80)
    [heads] = [" ".join(line.split()) for line in narrow.splitlines() if "method" in line]
    assert heads == "method keep seed top-1 A top-1 B B - A p GFLOPs"
    assert "+10.0 [" in narrow
    assert "…" not in narrow
    wide = shown(rows, rows)
    assert "batch 1, B / A" in wide
    assert "a wider terminal" in narrow
    assert "a wider terminal" not in wide


def test_what_is_not_compared_is_a_dash_and_says_why():
    a, b = record(), record(B[:5], device="cuda:0", gflops=None)
    found = changes([a], [b])
    [sheet] = sheets(found)
    row = dict(zip(sheet.heads, sheet.rows[0], strict=True))
    for head in ("B - A", "only A, only B", "p", "tau"):
        assert row[head] == "–"
    assert row["GFLOPs"] == "2.500 → –"
    assert "batch 1, B / A" not in row
    assert "(test, 5 or 10 images;" in sheet.title
    assert notes(found) == [
        "1 row is in both runs",
        'conditions differ: device "cpu" in A, "cuda:0" in B (every row)',
        f"{NAME} on birds test, {HOW}, seed 0: accuracy not compared, images or prompts "
        "differ: image_count 10 in A, 5 in B",
        "latency not compared (every row): it takes the same device, device_name, dtype, threads "
        "and batch",
    ]


def test_rows_that_are_not_compared_for_one_reason_share_a_line():
    a = [record(), record(seed=1), record(seed=2)]
    b = [record(B[:5]), record(B[:5], seed=1), record(B[:4], seed=2)]
    found = [line for line in notes(changes(a, b)) if "not compared" in line]
    why = "accuracy not compared, images or prompts differ: image_count 10 in A"
    assert found == [
        f"2 rows on birds test: {why}, 5 in B",
        f"{NAME} on birds test, {HOW}, seed 2: {why}, 4 in B",
    ]


def test_conditions_costs_and_rows_of_one_run_are_told_in_words():
    evit = record(method="evit", model="clip_vit_s14_evit60")
    newer = [
        record(params=22_000_001, torch="2.14.0", weights_sha256="cd" * 32),
        record(seed=1, torch="2.14.0", method_config={"predictor": "34cd", "fuse": True}),
    ]
    lines = notes(changes([record(), record(), record(seed=1), evit], newer))
    name = f"{NAME} on birds test"
    how = f"{HOW}, seed 0"
    assert lines == [
        "2 rows are in both runs",
        "in A 1 record gives way to newer ones of the same row and conditions",
        'conditions differ: torch "2.13.0" in A, "2.14.0" in B (every row)',
        f'conditions differ: weights_sha256 "{"ab" * 8}" in A, "{"cd" * 8}" in B (1 of 2 rows)',
        'conditions differ: method_config.predictor "12ab" in A, "34cd" in B (1 of 2 rows)',
        "conditions differ: method_config.fuse (absent) in A, true in B (1 of 2 rows)",
        f"{name}, {how}: cost differs: params 22000000 in A, 22000001 in B",
        f"only in A: clip_vit_s14_evit60.imgfocus_lit on birds test, {how}",
    ]


def test_runs_without_a_common_row_have_no_table():
    a, b = record(), record(dataset="fish", shots=0, tuning=None, prompt_tokens=None)
    found = changes([a], [b])
    assert sheets(found) == []
    assert notes(found) == [
        "0 rows are in both runs",
        f"only in A: {NAME} on birds test, {HOW}, seed 0",
        f"only in B: {NAME} on fish test",
    ]
    assert "|" not in changes_markdown(found, "a", "b")


def test_the_same_conditions_are_said_to_be_the_same():
    said = notes(changes([record()], [record(B)]))
    assert said == ["1 row is in both runs", "conditions are the same in every row"]


def test_markdown_holds_the_notes_and_the_tables():
    rows = [record(), record(dataset="fish")]
    text = changes_markdown(changes(rows, [record(B), rows[1]]), "old", "new")
    assert text.startswith(
        "# Changes from A to B\n\n- A: old\n- B: new\n- 2 rows are in both runs\n"
    )
    assert text.count("\n## ") == 2
    cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert cells == cells[:1] * 6
    assert text.rstrip().endswith("of B minus A's.")
    assert text.count("clear of zero") == 2


@pytest.mark.parametrize("hostile", ["x\x1b[2J", "[red]x[/red]", "a|b", "<img src=x>", "[/]"])
def test_names_in_somebody_else_s_file_are_text_and_nothing_more(hostile: str):
    rows = [record(dataset=hostile, method=hostile, method_config={hostile: hostile})]
    found = changes(rows, [record(B, dataset=hostile, method=hostile, method_config={})])
    text = changes_markdown(found, "a", "b")
    assert "<img" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    everything = "".join([text, *notes(found), shown(rows, rows)])
    assert "\x1b" not in everything
    if "\x1b" not in hostile:
        assert hostile in shown(rows, rows)
