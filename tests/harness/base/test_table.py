"""Tables fit the terminal: no line is longer, no figure is cut; results are JSON values."""

import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, Group
from rich.table import Table as RichTable

from harness.base.table import PIPE_WIDTH, Cell, Table, fitted, json_values, least, whole
from harness.records.statistics import Interval

FIGURES = ("12.5 [10.1, 14.9]", "1,281,167", "-0.8 [-8.2, +6.4]", "0.944")
PROSE = "Predict a ranking at the first reduction point and drop the least important patches."


def table(columns: int, *, prose: bool = True, rows: int = 2) -> RichTable:
    made = RichTable(title="a title of some length", caption="a caption that says what columns mean")
    made.add_column("method", no_wrap=True)
    if prose:
        made.add_column("what it does")
    for at in range(columns):
        made.add_column(f"figure number {at}", justify="right")
    for _ in range(rows):
        figures = (FIGURES[at % len(FIGURES)] for at in range(columns))
        made.add_row("clip_vit_s14", *([PROSE] if prose else []), *figures)
    return made


def lines(shown: RichTable | Table | Group, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(shown)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160, 240])
@pytest.mark.parametrize("columns", [1, 3, 6, 12])
@pytest.mark.parametrize("prose", [True, False])
def test_no_line_is_too_long_and_no_figure_cut(width: int, columns: int, prose: bool):
    shown = lines(fitted([table(columns, prose=prose)], width), width)
    text = "\n".join(shown)
    assert max(map(len, shown)) <= width
    assert "…" not in text
    for figure in FIGURES[:columns]:
        assert text.count(figure) >= 2
    words = re.sub(r"[^\w.]+", " ", text)
    assert all(word in words for word in (PROSE.split() if prose else ["method"]))


def test_what_fits_is_left_as_it_is():
    made = table(2)
    assert fitted([made], 200) is made
    assert fitted([table(12), made], 200) is made


def test_heads_wrap_before_lines_between_columns_go():
    roomy, close = (lines(fitted([table(3, prose=False)], width), width) for width in (80, 62))
    assert any("┃" in line for line in roomy)
    assert not any("┃" in line or "│" in line for line in close)
    assert max(map(len, close)) <= 62


def test_rows_are_stacked_at_last():
    shown = lines(fitted([table(12, prose=False)], 60), 60)
    assert sum(line.split()[:1] == ["method"] for line in shown) == 2
    assert any(re.search(r"figure number 11 +0\.944$", line.rstrip()) for line in shown)
    assert shown[0].startswith("a title")


def test_an_empty_cell_has_no_line_when_rows_are_stacked():
    made = table(12, prose=False, rows=0)
    made.add_row("tome", "", *["1.5 [1.0, 2.0]"] * 11)
    shown = lines(fitted([made], 40), 40)
    assert not any("figure number 0" in line for line in shown)


def test_fewer_columns_come_before_closer_ones():
    heads = [f"figure number {at}" for at in range(8)]
    made = Table.of("a title", heads, [FIGURES * 2], wide=heads[2:], caption="It is.")
    shown = "\n".join(lines(fitted(made.forms(), 80), 80))
    assert "figure number 1" in shown
    assert "number 7" not in shown
    assert "It is; all columns: a wider terminal, or --json" in " ".join(shown.split())
    assert made.heads[-1] == "figure number 7"


@pytest.mark.parametrize("columns", [2, 12, 30])
def test_in_a_pipe_a_row_s_figures_stand_on_one_line(columns: int):
    made, width = whole(table(columns))
    shown = lines(made, width)
    assert max(map(len, shown)) <= width
    rows = [line for line in shown if "clip_vit_s14" in line]
    assert len(rows) == 2
    for figure in FIGURES[:columns]:
        assert all(figure in row for row in rows)
    assert (width == PIPE_WIDTH) == (least(made) <= PIPE_WIDTH)


def test_markup_counts_for_nothing():
    made = RichTable()
    made.add_column("x", justify="right")
    made.add_row("\\[1, 2]")
    marked = RichTable()
    marked.add_column("x", justify="right")
    marked.add_row("[bold]\\[1, 2][/bold]")
    assert least(made) == least(marked) == len("│ [1, 2] │")


def test_a_table_is_made_of_texts_and_cells():
    made = Table.of(
        "t",
        ("what", "a", "b", "c"),
        [("[red]", "1", Cell("2", 2.0), "3"), ("y", "4", "5", "6")],
        words=("what",),
        wide=("b",),
        roomy=("c",),
        caption="as [it] is.",
        sections=frozenset({1}),
    )
    assert (made.heads, made.cells("b")[0].value) == (["what", "a", "b", "c"], 2.0)
    forms = made.forms()
    heads = [[str(column.header) for column in form.columns] for form in forms]
    assert heads == [["what", "a", "b", "c"], ["what", "a", "c"], ["what", "a"]]
    assert [column.justify for column in forms[0].columns] == ["left", *["right"] * 3]
    assert "[red]" in "".join(lines(made, 80))  # no markup
    assert "as [it] is; all columns" in " ".join(" ".join(lines(forms[2], 80)).split())


@dataclass(frozen=True)
class Row:
    name: str
    share: Interval
    ways: tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Interval(0.5, 0.25, 0.75), {"estimate": 0.5, "low": 0.25, "high": 0.75}),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.0, np.nan]), [1.0, None]),
        (math.nan, None),
        (math.inf, None),
        (Path("a/b"), str(Path("a/b"))),
        ({1: (True, None, "x")}, {"1": [True, None, "x"]}),
        ({}.keys(), []),
    ],
)
def test_values_become_plain_ones(value: object, expected: object):
    found = json_values(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def test_a_dataclass_becomes_an_object_by_field():
    found = json_values([Row("a", Interval(1.0, 0.0, 2.0), (1.0, math.nan))])
    share = {"estimate": 1.0, "low": 0.0, "high": 2.0}
    assert found == [{"name": "a", "share": share, "ways": [1.0, None]}]


@pytest.mark.parametrize("value", [object(), b"raw", Row, 1j, RichTable()])
def test_what_is_no_value_is_refused(value: object):
    with pytest.raises(TypeError, match="is no JSON value"):
        json_values(value)
