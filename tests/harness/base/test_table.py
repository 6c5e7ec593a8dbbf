"""Tables fit the terminal: no line is longer, no figure is cut; results are JSON values."""

import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table as RichTable

from harness.base.table import Table, fit, json_values
from harness.records.statistics import Interval

FIGURES = ("12.5 [10.1, 14.9]", "1,281,167", "-0.8 [-8.2, +6.4]", "0.944")
PROSE = "Predict a ranking at the first reduction point and drop the least important patches."


def table(columns: int, *, prose: bool = True) -> Table:
    heads = ["method", *(["what it does"] if prose else []), *(f"figure number {at}" for at in range(columns))]
    row = ["clip_vit_s14", *([PROSE] if prose else []), *(FIGURES[at % len(FIGURES)] for at in range(columns))]
    words = ["what it does"]
    return Table.of("a title of some length", heads, [row, row], words=words, caption="a caption that says something")


def lines(shown: RichTable | Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(shown)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 160])
@pytest.mark.parametrize("columns", [3, 12])
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


@dataclass(frozen=True)
class Row:
    name: str
    share: Interval
    ways: tuple[float, ...]


@pytest.mark.parametrize(("value", "expected"), [
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
])  # fmt: skip
def test_values_become_plain_ones(value: object, expected: object):
    found = json_values(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def test_a_dataclass_becomes_an_object_by_field():
    found = json_values([Row("a", Interval(1.0, 0.0, 2.0), (1.0, math.nan))])
    share = {"estimate": 1.0, "low": 0.0, "high": 2.0}
    assert found == [{"name": "a", "share": share, "ways": [1.0, None]}]
