"""Tables that fit a terminal with fewer columns, closer together or stacked, and the results of subcommands."""

import math
import textwrap
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from harness.base.terminal import printable

NOT_MEASURED = "–"
PIPE_WIDTH = 200  # columns that prose is wrapped to where there is no terminal
ALL_COLUMNS = "a wider terminal has more columns, --json all"
PROSE = 24  # columns that prose needs to be read
Form = Literal["wide", "middle", "narrow"]
FORMS: tuple[Form, ...] = ("wide", "middle", "narrow")


def fit(forms: Sequence[RichTable], width: int) -> RichTable:
    """Lay a table out so that no line is longer than a terminal and no figure is cut.

    Of its forms, the fullest first, take the first that fits, heads and prose wrapped; else the first that fits without
    lines between columns; else the fullest form with its rows stacked, a line per cell.
    """
    for form in forms:
        if least(form) <= width:
            return _break_heads(form, width)
    for form in forms:
        form.box, form.show_edge, form.padding = box.SIMPLE, False, (0, 0)
        if least(form) <= width:
            return _break_heads(form, width)
    table = forms[0]
    tall = RichTable(title=table.title, caption=table.caption, box=box.SIMPLE, show_header=False, pad_edge=False)
    tall.add_column(no_wrap=True)
    tall.add_column(overflow="fold")
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if cell != "":
                tall.add_row(column.header, cell)
        tall.add_section()
    return tall


def _break_heads(table: RichTable, width: int) -> RichTable:
    """Break heads between words if a table is too wide; rich would narrow columns of figures first."""
    if _measure(table).maximum > width:
        for column in table.columns:
            column.header = textwrap.fill(str(column.header), column.min_width or 1, break_long_words=False)
    return table


def least(table: RichTable) -> int:
    """Return the fewest columns that a table needs."""
    return _measure(table).minimum


def _measure(table: RichTable) -> Measurement:
    console = Console(width=100_000)
    return Measurement.get(console, console.options, table)


class Cell(str):
    """The text of a cell, and the value that sorts it."""

    __slots__ = ("mark", "value")
    value: float | str | None  # that sorts the cell; None, not measured, comes last
    mark: str  # behind the figure, such as the mark of a clear difference

    def __new__(cls, text: str, value: float | str | None = None, mark: str = "") -> "Cell":
        """Return the text with its value and mark."""
        cell = super().__new__(cls, text)
        cell.value, cell.mark = value, mark
        return cell

    @property
    def marked(self) -> str:
        """Text with the mark behind its figure, which is its first word."""
        figure, space, rest = self.partition(" ")
        return f"{figure}{self.mark}{space}{rest}"

    @property
    def tight(self) -> str:
        """Text with the mark instead of the space, so that a column of marks is no wider."""
        figure, space, rest = self.partition(" ")
        return f"{figure}{self.mark or space}{rest}"


UNMEASURED = Cell(NOT_MEASURED)


def figure(value: float | None, form: str) -> Cell:
    """Show a number by its ``format``, in percent without the sign; a dash for None."""
    return UNMEASURED if value is None else Cell(format(value, form).removesuffix("%"), value)


def count_of(count: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def estimate_cell(
    estimate: tuple[float, float, float] | float | None, text: Callable[[float], str], *, ends: bool = True
) -> Cell:
    """Show an estimate, with the ends of its interval if it has one."""
    if estimate is None:
        return UNMEASURED
    if not isinstance(estimate, tuple):
        return Cell(text(estimate), estimate)
    value, low, high = map(text, estimate)
    return Cell(f"{value} [{low}, {high}]" if ends else value, estimate[0])


def points(difference: tuple[float, float, float] | None) -> Cell:
    """Show a difference of two fractions in points, with the ends of its interval."""
    return estimate_cell(difference, lambda number: f"{100 * number:+.1f}")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's heading, and how it stands."""

    heading: str
    left: bool = False  # whether it holds words, which stand on the left; else figures
    forms: Sequence[Form] = FORMS  # of the terminal's table that have the column
    breakable: bool = False  # whether its cells may be broken if a terminal is too narrow
    about: str = ""  # meaning, for a caption


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under headings."""

    title: str
    columns: Sequence[Column]  # at least one
    rows: Sequence[Sequence[Cell]]  # as many cells as columns
    legend: str = ""  # a line below that a first look needs, such as the meaning of a mark
    caption: str = ""  # how to read the table, beside its columns' ``about``
    sections: frozenset[int] = frozenset()  # rows before which a line is drawn
    notes: Sequence[str] = ()  # lines below
    models: Sequence[str] = ()  # of each row, for a page that tells their settings
    settings: Sequence[Mapping[str, object]] | None = None  # of each model; None if told elsewhere

    @staticmethod
    def of(
        title: str,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        words: Collection[str] = (),
        wide: Collection[str] = (),
        roomy: Collection[str] = (),
        **more: Any,
    ) -> "Table":
        """Return a table of texts or cells below heads; ``more`` are its other fields.

        Columns of ``words`` may be broken. Only the wide form has those of ``wide``; the narrow one lacks ``roomy``.
        """
        columns = []
        for head in heads:
            forms = FORMS[:1] if head in wide else FORMS[:2] if head in roomy else FORMS
            columns.append(Column(heading=head, left=head in words, breakable=head in words, forms=forms))
        cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
        return Table(title=title, columns=columns, rows=cells, **more)

    def explain(self, form: Form = "wide") -> str:
        """Say how to read a form, without columns that it lacks."""
        columns = (self.columns[at].about for at in self.places(form))
        return "; ".join(dict.fromkeys(filter(None, (*columns, self.caption))))

    @property
    def heads(self) -> list[str]:
        """Headings of all columns."""
        return [column.heading for column in self.columns]

    def cells(self, heading: str) -> list[Cell]:
        """Return a column's cells."""
        at = self.heads.index(heading)
        return [row[at] for row in self.rows]

    def places(self, form: Form = "wide") -> list[int]:
        """Return the positions of a form's columns."""
        return [at for at, column in enumerate(self.columns) if form in column.forms]

    def wide(self, *, summary: bool = False) -> "Table":
        """Return the columns of the wide form, those of the narrow form first; a summary has only the latter."""
        first = {self.heads[at] for at in self.places("narrow")}
        places = sorted(self.places(), key=lambda at: self.heads[at] not in first)
        places = [at for at in places if not summary or self.heads[at] in first]
        rows = [[row[at] for at in places] for row in self.rows]
        return replace(self, columns=[self.columns[at] for at in places], rows=rows)

    def forms(self, *, explained: bool = False) -> tuple[RichTable, ...]:
        """Return the forms for a terminal, the fullest first; of forms with equal columns only the fullest."""
        every = {tuple(self.places(form)): form for form in reversed(FORMS)}
        return tuple(self.form(form, explained=explained) for form in FORMS if form in every.values())

    def form(self, form: Form = "wide", *, explained: bool = False) -> RichTable:
        """Return one form for the terminal, with its legend, or with its caption."""
        places = self.places(form)
        caption = self.explain(form) if explained else self.legend
        if explained and len(places) < len(self.places("wide")):
            caption = "; ".join(filter(None, (caption.removesuffix("."), ALL_COLUMNS)))
        lines = box.SIMPLE if form == "narrow" else box.HEAVY_HEAD
        table = RichTable(title=_plain(self.title), caption=_plain(caption) or None, box=lines)
        for column, texts in ((self.columns[at], [row[at].tight for row in self.rows]) for at in places):
            longest = max(map(cell_len, texts), default=0)
            # Heads break between words; figures don't break, prose does.
            narrow = min(longest, PROSE) if column.breakable else longest
            width = max(narrow, *map(cell_len, column.heading.split()), 1)
            justify: Literal["left", "right"] = "left" if column.left else "right"
            table.add_column(_plain(column.heading), justify=justify, overflow="fold", min_width=width)
        for at, row in enumerate(self.rows):
            if at in self.sections:
                table.add_section()
            table.add_row(*(_plain(row[place].tight) for place in places))
        return table


def _plain(text: str) -> str:
    return escape(printable(text, ""))


Part = Table | str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The result of a subcommand: tables and lines, and the same as JSON values, with units in the names.

    The exit code is 0, or 1 for a regression or a problem.
    """

    parts: tuple[Part, ...]
    data: Any
    code: int = 0


# Long work: parts as they come, and at the end the remaining parts, with all of the data.
Work = Generator[Part, None, Shown]


def json_values(value: Any) -> Any:
    """Return a result as JSON values; numbers that aren't finite were not measured and become null.

    Dataclasses and named tuples become objects by field; numpy's numbers and arrays become plain ones, paths text.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): json_values(entry) for name, entry in value.items()}
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, str | bytes):
        return [json_values(entry) for entry in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int | str):
        return value
    raise TypeError(f"{type(value).__name__} is no JSON value: {value!r}")
