"""The tables of a page: every figure, what sorting goes by, and what was not measured."""

import dataclasses
from typing import Any

from harness.records import Record
from harness.report.sections import markdown_table


def test_a_table_per_dataset_with_every_figure(drawn: Any) -> None:
    text, parsed = drawn
    assert text.count("<table data-sortable") == 2
    fashion = parsed.tables[:5]
    assert [cells[:2] for cells in fashion[1:]] == [
        ["dense", "100 %"],
        ["random", "60 %"],
        ["patchrank", "60 %"],
        ["random", "30 %"],
    ]
    assert dict(zip(fashion[0], fashion[3], strict=True)) == {
        "Method": "patchrank",
        "Keep": "60 %",
        "Top-1, %": "68.0 [60.0, 75.0]",
        "To dense": "-2.0 [-5.1, +1.2]",
        "GFLOPs": "2.45",
        "Batch 1, ms [IQR]": "28.4 [27.7, 29.8]",
        "Batch 1, × dense": "0.71 [0.70, 0.73]",
        "Batch 1, images/s": "35.2",
        "Batch 32, ms [IQR]": "896.9 [873.6, 940.8]",
        "Batch 32, × dense": "0.70 [0.69, 0.72]",
        "Batch 32, images/s": "35.7",
        "Kendall τ": "+0.31 [+0.29, +0.33]",
        "Weighted τ": "+0.41 [+0.39, +0.43]",
        "Match at k (chance), %": "72.3 at 118 (60.2)",
        "Border overlap (chance), %": "61.4 [59.9, 63.1] (51.1)",
        "Final tokens": "118",
    }
    for heading in ("fashion test, 16 shots, linear probe, clip_vit_s14", "emoji test, by text"):
        assert heading in text
    for condition in ("100 images", "12ab34cd", "a processor", "float32", "2 threads", "60 images"):
        assert condition in text


def test_what_sorting_goes_by_are_the_figures_unrounded(
    made: Any, patchrank: Record, dense: Record
) -> None:
    _, parsed = made([patchrank, dense])
    at = next(n for n, cells in enumerate(parsed.rows) if cells[0] == "patchrank")
    told = dict(zip(parsed.tables[0], parsed.values[at], strict=True))
    latency = patchrank.latency[0]
    assert told["Method"] == "patchrank"
    assert told["Keep"] == "0.6"
    assert told["Top-1, %"] == str(patchrank.top1)
    assert told["To dense"] == str(patchrank.diff_to_dense)
    assert told["Batch 1, ms [IQR]"] == str(latency.median_ms)
    assert told["Batch 1, × dense"] == str(latency.ratio_to_dense)
    assert told["Match at k (chance), %"] == str(patchrank.match_at_k)
    assert parsed.values[at - 1][parsed.tables[0].index("To dense")] is None


def test_not_measured_is_a_dash_and_never_zero(made: Any, row: Any) -> None:
    text, parsed = made([row("random", 0.6, 50)])
    heading, cells = parsed.tables
    assert cells[:3] == ["random", "60 %", "50.0 [42.0, 57.0]"]
    assert set(cells[3:]) == {"–"}
    assert len(cells) == len(heading)
    for lacking in ("Multiply-adds weren&#x27;t counted", "Nothing was timed"):
        assert lacking in text
    assert "<svg" not in text


def test_markdown_has_the_same_cells_as_the_page(drawn: Any, records: list[Record]) -> None:
    _, parsed = drawn
    lines = [line for line in markdown_table(records).splitlines() if line.startswith("|")]
    cells = [line.strip("| ").split(" | ") for line in lines if "---" not in line]
    assert cells == parsed.tables


def test_the_page_marks_what_is_clear_and_says_so(
    made: Any, dense: Record, patchrank: Record, row: Any
) -> None:
    lost = row("random", 0.3, 40, diff_to_dense=-0.3, diff_low=-0.39, diff_high=-0.21)
    text, parsed = made([dense, patchrank, lost])
    cells = [line[3] for line in parsed.tables]
    assert cells == ["To dense", "–", "-2.0 [-5.1, +1.2]", "-30.0* [-39.0, -21.0]"]
    assert "agreement on 60 images. * clear of zero, all rows judged together" in text
    assert "*" not in markdown_table([dense, patchrank, lost])


def test_settings_are_told_below_each_table(made: Any, patchrank: Record, dense: Record) -> None:
    text, parsed = made([patchrank, dense])
    assert text.count("<details>") == 1
    assert ["clip_vit_s14_patchrank60", '"reduce_at": [3]'] in parsed.rows


def test_a_row_that_comes_twice_is_told_apart_by_its_settings(made: Any, patchrank: Record) -> None:
    other = dataclasses.replace(patchrank, method_config={"reduce_at": [4], "arch": "mlp"})
    _, parsed = made([patchrank, other])
    assert [cells[0] for cells in parsed.tables] == [
        "Method",
        "patchrank (reduce_at [3])",
        "patchrank (reduce_at [4], arch mlp)",
    ]


def test_what_was_not_counted_is_told(made: Any, dense: Record) -> None:
    text, _ = made([dataclasses.replace(dense, uncounted_operators=("aten::cdist",))])
    assert "GFLOPs lack operators of unknown cost: aten::cdist" in text
    assert "GFLOPs lack" not in made([dense])[0]
