"""Tables: columns and cells, whatever they are written as.

What makes a table returns a `Table`; the terminal's form is here, other formats are in
`report.writers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from harness.layout import ALL_COLUMNS

NOT_MEASURED = "–"
Form = Literal["wide", "middle", "narrow"]
FORMS: tuple[Form, ...] = ("wide", "middle", "narrow")


class Cell(str):
    """What stands in a cell.

    Attributes:
        value: what sorting goes by; None, not measured, comes last.
        mark: what stands behind the figure, such as that a difference is clear.
    """

    __slots__ = ("mark", "value")
    value: float | str | None
    mark: str

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
        """The same, with the mark instead of a space, so that a column of marks is no wider."""
        figure, space, rest = self.partition(" ")
        return f"{figure}{self.mark or space}{rest}"


UNMEASURED = Cell(NOT_MEASURED)


def points(difference: tuple[float, float, float] | None, mark: str = "") -> Cell:
    """Show a difference of two fractions in points, with the ends of its interval."""
    if difference is None:
        return UNMEASURED
    estimate, low, high = (100 * number for number in difference)
    return Cell(f"{estimate:+.1f} [{low:+.1f}, {high:+.1f}]", difference[0], mark)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's heading, and how it stands.

    Attributes:
        heading: above it.
        left: whether it holds words, which stand on the left; else figures.
        forms: of the terminal's table that have it.
        fold: whether its cells may be broken where a terminal is too narrow; else never.
    """

    heading: str
    left: bool = False
    forms: Sequence[Form] = FORMS
    fold: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under headings.

    Attributes:
        title: what it is of.
        caption: how to read it.
        columns: at least one.
        rows: cells, as many as columns.
        sections: rows before which a line is drawn.
        notes: lines below.
        models: name of each row's model, for a page that tells their settings.
        settings: of each row's model; None where they are told elsewhere.
        narrow_caption: of the narrow form, if it is another one.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    sections: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    models: Sequence[str] = ()
    settings: Sequence[dict[str, Any]] | None = None
    narrow_caption: str | None = None

    @property
    def heads(self) -> list[str]:
        """Headings of all columns."""
        return [column.heading for column in self.columns]

    def cells(self, heading: str) -> list[Cell]:
        """Return a column's cells."""
        at = self.heads.index(heading)
        return [row[at] for row in self.rows]

    def __rich__(self) -> RichTable:
        return self.form()

    def forms(self) -> tuple[RichTable, ...]:
        """Return what a terminal may show, the fullest first; forms alike are there once."""
        every = {tuple(self._places(form)): form for form in reversed(FORMS)}
        return tuple(self.form(form) for form in FORMS if form in every.values())

    def form(self, form: Form = "wide") -> RichTable:
        """Return one form for the terminal. Text is escaped: files of others can't steer it."""
        places = self._places(form)
        own = self.narrow_caption if form == "narrow" else None
        caption = self.caption if own is None else own
        if len(places) < len(self._places("wide")):
            caption = "; ".join(filter(None, (caption.removesuffix("."), ALL_COLUMNS)))
        table = RichTable(
            title=escape(self.title),
            caption=escape(caption) or None,
            box=box.SIMPLE if form == "narrow" else box.HEAVY_HEAD,
        )
        for column in (self.columns[at] for at in places):
            table.add_column(
                escape(column.heading),
                justify="left" if column.left else "right",
                no_wrap=not column.fold,
                overflow="fold" if column.fold else "ellipsis",
            )
        for at, row in enumerate(self.rows):
            if at in self.sections:
                table.add_section()
            table.add_row(*(escape(row[place].tight) for place in places))
        return table

    def _places(self, form: Form) -> list[int]:
        return [at for at, column in enumerate(self.columns) if form in column.forms]
