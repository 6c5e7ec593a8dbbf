"""Tables fit the terminal: no line is longer, no figure is cut."""

import io
import re

import pytest
from rich.console import Console, Group
from rich.table import Table

from harness.console.table import PIPE_WIDTH, fewer, fitted, least, whole

FIGURES = ("12.5 [10.1, 14.9]", "1,281,167", "-0.8 [-8.2, +6.4]", "0.944")
PROSE = "Predict a ranking at the first reduction point and drop the least important patches."


def table(columns: int, *, prose: bool = True, rows: int = 2) -> Table:
    made = Table(title="a title of some length", caption="a caption that says what columns mean")
    made.add_column("method", no_wrap=True)
    if prose:
        made.add_column("what it does")
    for at in range(columns):
        made.add_column(f"figure number {at}", justify="right")
    for _ in range(rows):
        figures = (FIGURES[at % len(FIGURES)] for at in range(columns))
        made.add_row("clip_vit_s14", *([PROSE] if prose else []), *figures)
    return made


def lines(shown: Table | Group, width: int) -> list[str]:
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
    full = table(8, prose=False)
    narrow = fewer(full, [f"figure number {at}" for at in range(2, 8)])
    shown = "\n".join(lines(fitted([full, narrow], 80), 80))
    assert "figure number 1" in shown
    assert "number 7" not in shown
    assert "all columns: a wider terminal, or --json" in " ".join(shown.split())
    assert [column.header for column in full.columns][-1] == "figure number 7"


@pytest.mark.parametrize(("caption", "said"), [(None, "all col"), ("It is.", "It is; all col")])
def test_a_caption_says_that_columns_are_left_out(caption: str | None, said: str):
    made = Table(caption=caption)
    assert str(fewer(made, ()).caption).startswith(said)


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
    made = Table()
    made.add_column("x", justify="right")
    made.add_row("\\[1, 2]")
    marked = Table()
    marked.add_column("x", justify="right")
    marked.add_row("[bold]\\[1, 2][/bold]")
    assert least(made) == least(marked) == len("│ [1, 2] │")
