"""Tables that fit: as they are, else closer together, with fewer columns, or stacked."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

PIPE_WIDTH = 200  # columns that prose is wrapped to where there is no terminal
ALL_COLUMNS = "all columns: a wider terminal, or --json"
PROSE = 24  # columns that prose needs to be read
_ENDLESS = 100_000


def fitted(forms: Sequence[Table], width: int) -> Table | Group:
    """Lay a table out so that no line is longer than a terminal and no figure is cut.

    Args:
        forms: of the table, the fullest first.
        width: columns of the terminal.

    Returns:
        The first form that fits as it is, or with heads and prose wrapped; else the first that does
        without lines between columns; else the fullest one with its rows stacked, a line per cell.
    """
    for change in (_wrapped, _tight):
        for form in forms:
            if change is _wrapped and _natural(form) <= width:
                return form
            if least(narrow := change(form)) <= width:
                return narrow
    return _stacked(forms[0])


def fewer(table: Table, heads: Collection[str]) -> Table:
    """Return a copy without these columns, whose caption says so."""
    narrow = copy.copy(table)
    narrow.columns = [column for column in table.columns if column.header not in heads]
    said = f"{table.caption}".removesuffix(".") + "; " if table.caption else ""
    narrow.caption = f"{said}{ALL_COLUMNS}"
    return narrow


def whole(table: Table) -> tuple[Table, int]:
    """Lay a table out for a pipe or a file, which have no width: every figure on its row's line.

    Returns:
        The table, and the columns that it takes: `PIPE_WIDTH`, or more where figures need more.
    """
    if _natural(table) <= PIPE_WIDTH:
        return table, PIPE_WIDTH
    plain = _wrapped(table, heads=False)
    return plain, max(PIPE_WIDTH, least(plain))


def least(table: Table) -> int:
    """Return the fewest columns that a table needs: figures whole, prose wrapped at `PROSE`."""
    spare = _natural(table) - sum(_longest(column) for column in table.columns)
    return spare + sum(
        column.min_width if _is_prose(column) and column.min_width else _longest(column)
        for column in table.columns
    )


def _is_prose(column: Column) -> bool:
    return column.justify == "left" and not column.no_wrap


def _natural(table: Table) -> int:
    console = Console(width=_ENDLESS)
    return Measurement.get(console, console.options, table).maximum


def _longest(column: Column) -> int:
    texts = [column.header, *column.cells] if column.header else column.cells
    return max((cell_len(line) for text in texts for line in _plain(text).split("\n")), default=0)


def _plain(cell: object) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def _wrapped(table: Table, *, heads: bool = True) -> Table:
    """Return a copy whose heads break between words, whose prose wraps, and whose figures don't."""
    narrow = copy.copy(table)
    narrow.columns = [_narrowed(column, heads=heads) for column in table.columns]
    return narrow


def _tight(table: Table) -> Table:
    """Return the same with nothing but a space between columns."""
    narrow = _wrapped(table)
    narrow.box, narrow.show_edge, narrow.padding = box.SIMPLE, False, (0, 0)
    return narrow


def _narrowed(column: Column, *, heads: bool) -> Column:
    if _is_prose(column):
        words = _plain(column.header).split()
        most = max(PROSE, *map(cell_len, words), 0)
        return replace(column, overflow="fold", min_width=min(_longest(column), most))
    body = _longest(replace(column, header=""))
    head = _broken(str(column.header), body) if heads else column.header
    return replace(column, header=head, no_wrap=True)


def _broken(head: str, width: int) -> str:
    """Break a head between words into lines no longer than its column, or than a word."""
    lines: list[str] = []
    for word in head.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _stacked(table: Table) -> Group:
    """Lay rows out one below the other, a line per cell that holds something."""
    tall = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    tall.add_column("head", no_wrap=True)
    tall.add_column("cell", overflow="fold")
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if cell != "":
                tall.add_row(column.header, cell)
        tall.add_section()
    about = ((table.title, "table.title"), (table.caption, "table.caption"))
    title, caption = (
        Text.from_markup(text, style=style) if isinstance(text, str) else ""
        for text, style in about
    )
    return Group(title, tall, caption)
