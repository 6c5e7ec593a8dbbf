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

from harness.base.table import PIPE_WIDTH, Cell, Table, fit, fit_pipe, json_values, least
from harness.records.statistics import Interval

FIGURES = ("12.5 [10.1, 14.9]", "1,281,167", "-0.8 [-8.2, +6.4]", "0.944")
PROSE = "Predict a ranking at the first reduction point and drop the least important patches."


def table(columns: int, *, prose: bool = True) -> Table:
    heads = ["method", *(["what it does"] if prose else []), *(f"figure number {at}" for at in range(columns))]
    row = ["clip_vit_s14", *([PROSE] if prose else []), *(FIGURES[at % len(FIGURES)] for at in range(columns))]
    words = ["what it does"]
    return Table.of("a title of some length", heads, [row, row], words=words, caption="a caption that says something")


def lines(shown: RichTable | Table | Group, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(shown)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 160, 240])
@pytest.mark.parametrize("columns", [1, 3, 12])
@pytest.mark.parametrize("prose", [True, False])
def test_no_line_is_too_long_and_no_figure_cut(width: int, columns: int, prose: bool):
    shown = lines(fit(table(columns, prose=prose).forms(), width), width)
    text = "\n".join(shown)
    assert max(map(len, shown)) <= width
    assert "…" not in text
    for figure in FIGURES[:columns]:
        assert text.count(figure) >= 2
    words = re.sub(r"[^\w.]+", " ", text)
    assert all(word in words for word in (PROSE.split() if prose else ["method"]))


def test_heads_wrap_before_lines_between_columns_go():
    roomy, close = (lines(fit(table(3, prose=False).forms(), width), width) for width in (80, 62))
    assert any("┃" in line for line in roomy)
    assert not any("┃" in line or "│" in line for line in close)
    assert max(map(len, close)) <= 62


def test_rows_are_stacked_at_last_and_an_empty_cell_has_no_line():
    made = Table.of("a title", [f"figure {at}" for at in range(12)], [["", *["1.5 [1.0, 2.0]"] * 11]] * 2)
    shown = lines(fit(made.forms(), 40), 40)
    assert sum(line.split()[:2] == ["figure", "1"] for line in shown) == 2
    assert not any("figure 0" in line for line in shown)
    assert shown[0].startswith("a title")


def test_fewer_columns_come_before_closer_ones():
    heads = [f"figure number {at}" for at in range(8)]
    made = Table.of("a title", heads, [FIGURES * 2], wide=heads[2:], caption="It is.")
    shown = "\n".join(lines(fit(made.forms(), 80), 80))
    assert "figure number 1" in shown
    assert "number 7" not in shown
    assert "It is; all columns: a wider terminal, or --json" in " ".join(shown.split())
    assert made.heads[-1] == "figure number 7"


@pytest.mark.parametrize("columns", [2, 30])
def test_in_a_pipe_a_row_s_figures_stand_on_one_line(columns: int):
    made, width = fit_pipe(table(columns).form())
    shown = lines(made, width)
    assert max(map(len, shown)) <= width
    rows = [line for line in shown if "clip_vit_s14" in line]
    assert len(rows) == 2
    assert all(figure in row for figure in FIGURES[:columns] for row in rows)
    assert (width == PIPE_WIDTH) == (least(made) <= PIPE_WIDTH)


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
