"""Top-1 of every row at every number of shots, one table per dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from harness.averages import Average, row_p
from harness.columns import NOT_MEASURED, Cell, interval, keep_cell
from harness.conditions import DENSE
from harness.judging import MCNEMAR, SIGN_FLIP, Together, mark_note, together
from harness.labels import labels
from harness.protocol import learned, shots_of, tower_of
from harness.records import refuse_mixed

# What a column differs in from another, with what follows from it.
BY_COLUMN = ("shots", "tuning", "prompt_tokens", "seed", "image_count", "images_sha256")

_LABELS = 2  # columns that say which row it is


@dataclass(frozen=True, kw_only=True)
class ShotTable:
    """Rows by number of shots.

    Attributes:
        name: heading.
        about: how to read it.
        heads: of the columns.
        rows: cells, as many as heads.
        models: name of each row's model.
        family: p-values against the dense row at as many shots, by row and place of the shots.
        note: what marks say; empty if nothing was judged.
    """

    name: str
    about: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    models: Sequence[str]
    family: Together[tuple[int, int]]
    note: str

    @property
    def told(self) -> str:
        """How to read it with its marks."""
        return "; ".join(filter(None, (self.about, self.note)))

    @property
    def marked(self) -> list[list[Cell]]:
        """Rows whose clear differences to the dense one have a mark."""
        return [
            [*row[:_LABELS], *(self._marked(at, place, c) for place, c in enumerate(row[_LABELS:]))]
            for at, row in enumerate(self.rows)
        ]

    def _marked(self, at: int, place: int, cell: Cell) -> Cell:
        return Cell(cell.replace(" ", f"{self.family.mark((at, place))} ", 1), cell.value)

    def table(self) -> Table:
        """Lay it out for the terminal, with marks instead of spaces, so that it is no wider."""
        table = Table(title=self.name, caption=self.told)
        for head in self.heads:
            table.add_column(head, justify="left" if head == "Method" else "right", no_wrap=True)
        for row in self.marked:
            table.add_row(*row[:_LABELS], *(cell.replace("* ", "*", 1) for cell in row[_LABELS:]))
        return table


def shot_tables(groups: Sequence[Sequence[Average]]) -> list[ShotTable]:
    """Put numbers of shots side by side, one table for each kind of tuning.

    None where there is only one number of shots.

    Args:
        groups: of one dataset and tower, each of one number of shots and kind of tuning.

    Raises:
        ValueError: other conditions differ.
    """
    return [_shot_table(columns) for columns in by_shots(groups)]


def by_shots(groups: Sequence[Sequence[Average]]) -> list[list[Sequence[Average]]]:
    """Return the groups of each kind of tuning, shots rising, where there are at least two.

    Args:
        groups: as for `shot_tables`; what is by text begins every kind.

    Raises:
        ValueError: conditions that don't follow from the shots differ.
    """
    kinds = dict.fromkeys(_kind(group) for group in groups if group[0].first.shots)
    by_text = [group for group in groups if not group[0].first.shots]
    found = [[*by_text, *(group for group in groups if _kind(group) == kind)] for kind in kinds]
    found = [columns for columns in found if len(columns) > 1]
    for columns in found:
        records = (r for group in columns for row in group for r in row.records)
        refuse_mixed(records, varying=BY_COLUMN)
    return [sorted(columns, key=lambda group: group[0].first.shots) for columns in found]


def _kind(group: Sequence[Average]) -> tuple[str | None, int | None]:
    return group[0].first.tuning, group[0].first.prompt_tokens


def _shot_table(groups: Sequence[Sequence[Average]]) -> ShotTable:
    columns = [{row.identity: row for row in group} for group in groups]
    named = {key: name for group in groups for key, name in labels(group).items()}
    models = {key: row.first for column in columns for key, row in column.items()}
    first = groups[-1][0].first
    return ShotTable(
        name=f"{first.dataset} {first.split}, top-1 by shots, {learned(first)}, {tower_of(first)}",
        about=_about(groups),
        heads=["Method", "Keep", *(shots_of(group[0].first) for group in groups)],
        rows=[
            [
                Cell(named[key], named[key]),
                keep_cell(record.keep),
                *(_cell(column.get(key)) for column in columns),
            ]
            for key, record in models.items()
        ],
        models=[record.model for record in models.values()],
        **_judged(columns, list(models)),
    )


def _judged(columns: Sequence[Mapping[str, Average]], rows: Sequence[str]) -> dict[str, Any]:
    """Judge every row at every number of shots against the dense one there, all together."""
    found: dict[tuple[int, int], float | None] = {}
    for place, column in enumerate(columns):
        dense = next((row for row in column.values() if row.method == DENSE), None)
        for at, key in enumerate(rows):
            if dense is not None and key in column and column[key] is not dense:
                found[at, place] = row_p(column[key], dense)
    family = together(found)
    if not found:
        return {"family": family, "note": ""}
    several = any(len(row.records) > 1 for column in columns for row in column.values())
    test = SIGN_FLIP if several else MCNEMAR
    note = mark_note(test, "all of this table", of="the dense model's at as many shots")
    return {"family": family, "note": note}


def _cell(row: Average | None) -> Cell:
    return Cell(NOT_MEASURED, None) if row is None else interval(row.top1, 100, "{:.1f}")


def _about(groups: Sequence[Sequence[Average]]) -> str:
    """Say what the intervals are of, and on how many images."""
    first, last = groups[0][0], groups[-1][0]
    told = ["top-1 in % with 95 % intervals"]
    if not first.first.shots:
        told += ["0 shots: by text, Wilson"]
    count = len(last.records)
    told += [f"shots: mean of {count} seeds, t over seeds" if count > 1 else "shots: Wilson"]
    images = dict.fromkeys(group[0].first.image_count for group in groups)
    return f"{'; '.join(told)}; {' or '.join(map(str, images))} images"
