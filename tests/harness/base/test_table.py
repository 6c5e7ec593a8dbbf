"""Tables fit the terminal: no line is longer, no figure is cut; results are JSON values."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness.base.table import Table, fit, json_values
from harness.records.statistics import Interval

FIGURES = ("12.5 [10.1, 14.9]", "1,281,167", "-0.8 [-8.2, +6.4]", "0.944")
PROSE = "Predict a ranking at the first reduction point and drop the least important patches."


@pytest.mark.parametrize("width", [40, 160])
@pytest.mark.parametrize("columns", [3, 12])
def test_no_line_is_too_long_and_no_figure_cut(width: int, columns: int):
    heads = ["method", "what it does", *(f"figure number {at}" for at in range(columns))]
    row = ["clip_vit_s14", PROSE, *(FIGURES[at % len(FIGURES)] for at in range(columns))]
    table = Table.of("a title of some length", heads, [row, row], words=["what it does"], caption="a caption")
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(fit(table.forms(), width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in FIGURES[:columns]:
        assert text.count(figure) >= 2
    words = re.sub(r"[^\w.]+", " ", text)
    assert all(word in words for word in PROSE.split())


@pytest.mark.parametrize(("value", "expected"), [
    (Interval(0.5, 0.25, math.nan), {"estimate": 0.5, "low": 0.25, "high": None}),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.array([1.0, np.nan]), [1.0, None]),
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
