"""What moved as a table for people, as Markdown for a pull request, and as JSON values."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from harness.check.bounds import SHOWN_DIGITS
from harness.check.moved import Moved
from harness.check.suspects import Suspects
from harness.report.markdown import markdown_cell
from harness.shown import Shown

# Without the last where nothing is judged.
_HEADS = ("row", "quantity", "expected", "now", "moved by", "allowed")
_ABSENT = "–"
_DIGITS = 12  # of a hash


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found.

    Attributes:
        rows: how many were compared.
        moved: what isn't as expected, in the rows' order.
        notes: conditions that differ and may, and what wasn't compared.
        suspects: commits that may have done it; None where nothing moved or nothing is known.
        update: whether the expectation is written anew, so that nothing is judged.
    """

    rows: int
    moved: tuple[Moved, ...]
    notes: tuple[str, ...] = ()
    suspects: Suspects | None = None
    update: bool = False

    @property
    def summary(self) -> str:
        """Say in one line what came out."""
        rows = f"{self.rows} {'row' if self.rows == 1 else 'rows'}"
        hit = len({(one.tower, one.dataset, one.row) for one in self.moved})
        what = "quantity" if len(self.moved) == 1 else "quantities"
        if self.update:
            return f"expectation written: {len(self.moved)} {what} changed in {hit} of {rows}"
        if not self.moved:
            return f"check passed: nothing moved in {rows}"
        return f"check failed: {len(self.moved)} {what} moved in {hit} of {rows}"

    def shown(self) -> Shown:
        """Lay it out for the terminal, 80 characters wide or more."""
        tables = [self._table(tower, list(part)) for tower, part in self._by_tower()]
        lines = [*self.notes, *(self.suspects.lines() if self.suspects else ())]
        code = 1 if self.moved and not self.update else 0
        return Shown(parts=(*tables, *lines, self.summary), data=self.data(), code=code)

    def data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "passed": self.update or not self.moved,
            "updated": self.update,
            "rows": self.rows,
            "moved": [asdict(one) for one in self.moved],
            "notes": list(self.notes),
            "suspects": None if self.suspects is None else asdict(self.suspects),
        }

    def markdown(self) -> str:
        """Lay it out for a comment or a job's summary."""
        lines = [f"### {markdown_cell(self.summary)}", ""]
        for tower, part in self._by_tower():
            lines += [f"`{markdown_cell(tower)}`", ""]
            marks = ("---", "---", *("---:" for _ in _HEADS[2:]))
            for cells in (_HEADS, marks, *map(_cells, part)):
                shown = map(markdown_cell, cells[: self._columns])
                lines.append(f"| {' | '.join(shown)} |")
            lines.append("")
        lines += [f"- {markdown_cell(note)}" for note in self.notes]
        if self.suspects is not None:
            head, *rest = self.suspects.lines()
            lines.append(f"- {markdown_cell(head)}")
            lines += [f"  - {markdown_cell(one.strip())}" for one in rest]
        return "\n".join([*lines, ""])

    @property
    def _columns(self) -> int:
        return len(_HEADS) - self.update

    def _by_tower(self) -> Sequence[tuple[str, Sequence[Moved]]]:
        return [(name, list(part)) for name, part in groupby(self.moved, lambda one: one.tower)]

    def _table(self, tower: str, part: Sequence[Moved]) -> Table:
        what = "changed" if self.update else "moved"
        table = Table(title=escape(f"{what}: {tower}"), box=box.SIMPLE)
        for head in _HEADS[: self._columns]:
            side: Any = "left" if head in _HEADS[:2] else "right"
            table.add_column(head, justify=side, overflow="fold")
        for one in part:
            table.add_row(*(escape(cell) for cell in _cells(one)[: self._columns]))
        return table


def _cells(one: Moved) -> tuple[str, ...]:
    by = _ABSENT if one.by is None else _signed(one.by)
    name = f"{one.dataset} {one.row}"
    return (name, one.quantity, _text(one, one.expected), _text(one, one.now), by, one.allowed)


def _text(one: Moved, value: object) -> str:
    """Show a value: runs of equal numbers of tokens once, hashes by their first digits."""
    if value is None:
        return "absent" if one.quantity == "row" else _ABSENT
    if one.quantity == "tokens_per_block" and isinstance(value, (tuple, list)):
        runs = ((count, len(list(run))) for count, run in groupby(value))
        return " ".join(f"{count}×{times}" if times > 1 else f"{count}" for count, times in runs)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, str):
        plain = "".join(letter if letter.isprintable() else "?" for letter in value)
        return plain[:_DIGITS] if one.quantity in ("weights_sha256", "predictor") else plain
    return json.dumps(value)


def _signed(number: float) -> str:
    """Show a difference, with more digits where it is small."""
    if isinstance(number, int):
        return f"{number:+d}"
    return f"{number:+.4f}" if abs(number) >= SHOWN_DIGITS else f"{number:+.1e}"
