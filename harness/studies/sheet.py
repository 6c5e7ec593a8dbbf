"""A study's table: what came out per line, and how it is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from harness.averages import uncounted
from harness.records import Record, refuse_mixed
from harness.shown import json_values
from harness.statistics import (
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    bootstrap_mean,
    mark_note,
    mean_interval,
    paired_p,
    together,
)

NOT_MEASURED = "–"
_LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # lines may differ in
NOTES = (
    "Top-1 in %, mean over seeds (least to most); differences in points on the same images, with "
    "95 % paired bootstrap intervals over images of the mean over seeds, one comparison at a time. "
    "Cosine to dense features. Tau and match at k: agreement with the golden ranking that the line "
    "aims at, k being the patches kept."
)
SEED_NOTES = (
    "Over seeds: the difference to first with Student's 95 % t interval over seeds instead."
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a study with what was measured on one dataset.

    Attributes:
        labels: what distinguishes it, by column.
        asked: what the line stands for; it is compared with the first of the same.
        records: one per seed.
        to_dense: top-1, mean over seeds, minus that of the dense model.
        to_first: the same against the first line; None for the first itself.
        p_dense: exact p-value that it is as often right as the dense model, see
            `judging.paired_p`.
        p_first: the same against the first line; None for the first itself.
        over_seeds: the difference to first with Student's t interval over seeds, where both lines
            were tuned from the same seeds.
    """

    labels: dict[str, str]
    asked: float | str
    records: Sequence[Record]
    to_dense: Interval
    to_first: Interval | None
    p_dense: float
    p_first: float | None
    over_seeds: Interval | None = None

    def mean(self, field: str) -> float | None:
        """Return the mean over seeds of a field of ``Record``, None where one lacks it."""
        values = [getattr(record, field) for record in self.records]
        return None if None in values else float(np.mean(values))


def entries(
    lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record
) -> list[Entry]:
    """Compare lines with the dense model and with the first line of their keep rate.

    Args:
        lines: labels, what they stand for and records, each in the order of its seeds.
        dense: the dense model's record.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    begun: dict[float | str, Sequence[Record]] = {}
    found = []
    for labels, asked, records in lines:
        begins = asked not in begun
        beginner = begun.setdefault(asked, records)
        right, reference = _hits(records) / len(records), _hits(beginner) / len(beginner)
        found.append(
            Entry(
                labels=labels,
                asked=asked,
                records=records,
                to_dense=bootstrap_mean(right - dense.correct, seed=0),
                to_first=None if begins else bootstrap_mean(right - reference, seed=0),
                p_dense=_p(records, [dense]),
                p_first=None if begins else _p(records, beginner),
                over_seeds=None if begins else _over_seeds(records, beginner),
            )
        )
    return found


def _hits(records: Sequence[Record]) -> NDArray[np.int64]:
    """(image_count,) for how many seeds each image was right."""
    counts: NDArray[np.int64] = np.sum([record.correct for record in records], axis=0)
    return counts


def _p(records: Sequence[Record], others: Sequence[Record]) -> float:
    return paired_p(_hits(records), _hits(others), len(records), len(others))


def _over_seeds(records: Sequence[Record], first: Sequence[Record]) -> Interval | None:
    seeds = [[r.seed for r in group if r.tuning is not None] for group in (records, first)]
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        return None
    return mean_interval([a.top1 - b.top1 for a, b in zip(records, first, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The table of one study on one dataset.

    Attributes:
        study: name of the study.
        title: what it is about, and on what.
        dense: the dense model's record.
        entries: its lines.
    """

    study: str
    title: str
    dense: Record
    entries: Sequence[Entry]

    def cells(self, *, marked: bool = False) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows as text, columns that nothing was measured for left out.

        ``marked``: differences that are clear with all of their column judged together are.
        """
        labels = list(dict.fromkeys(name for entry in self.entries for name in entry.labels))
        columns: dict[str, Callable[[Entry], str]] = {
            name: lambda entry, name=name: entry.labels.get(name, "")  # type: ignore[misc]
            for name in labels
        }
        columns |= _COLUMNS
        rows = [[show(entry) for show in columns.values()] for entry in self.entries]
        for head, family in self.judged().items() if marked else ():
            at = list(columns).index(head)
            for number, row in enumerate(rows):
                row[at] = row[at].replace(" ", family.mark(number) or " ", 1)
        kept = [i for i in range(len(columns)) if any(row[i] != NOT_MEASURED for row in rows)]
        heads = list(columns)
        return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]

    def judged(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by line."""
        lines = list(enumerate(self.entries))
        return {
            "to dense": together({at: entry.p_dense for at, entry in lines}),
            "to first": together({at: entry.p_first for at, entry in lines}),
        }

    def table(self) -> Table:
        """Lay it out for the terminal, with marks."""
        several = any(len(entry.records) > 1 for entry in self.entries)
        note = mark_note(SIGN_FLIP if several else MCNEMAR, "all of a column")
        table = Table(title=self.title, caption=f"{NOTES} {note}.{self._uncounted()}")
        heads, rows = self.cells(marked=True)
        for head in heads:
            table.add_column(head, justify="right" if head in _COLUMNS else "left", no_wrap=True)
        for entry, row in zip(self.entries, rows, strict=True):
            if entry.to_first is None:
                table.add_section()
            table.add_row(*row)
        return table

    def _uncounted(self) -> str:
        """Say which operators the multiply-adds lack."""
        told = uncounted(self.dense, *(entry.records[0] for entry in self.entries))
        return f" {told}." if told else ""

    def data(self) -> dict[str, Any]:
        """Return it as JSON values: what was measured, whether or not the table has a column."""
        place = {"dataset": self.dense.dataset, "split": self.dense.split, "title": self.title}
        families = self.judged()
        lines = [
            {
                "labels": entry.labels,
                "asked": entry.asked,
                "seeds": len(entry.records),
                "top1_to_dense": entry.to_dense,
                "top1_to_first": entry.to_first,
                "top1_to_first_over_seeds": entry.over_seeds,
                "p_to_dense": entry.p_dense,
                "p_to_dense_holm": families["to dense"].adjusted[at],
                "p_to_first": entry.p_first,
                "p_to_first_holm": families["to first"].adjusted.get(at),
                **{name: entry.mean(name) for name in _MEANS},
            }
            for at, entry in enumerate(self.entries)
        ]
        dense = {name: getattr(self.dense, name) for name in _MEANS}
        told = {"images": self.dense.image_count, "dense": dense, "lines": lines}
        found: dict[str, Any] = json_values(place | told)
        return found

    def markdown(self) -> str:
        """Return it as a Markdown section, without marks."""
        heads, rows = self.cells()
        line = ["---:" if head in _COLUMNS else "---" for head in heads]
        body = ["| " + " | ".join(cells) + " |" for cells in (heads, line, *rows)]
        return "\n".join([f"### {self.title}", "", *body, ""])


_MEANS = ("keep", "top1", "gflops", "cosine_to_dense", "tau", "match_at_k", "match_chance")


def _top1(entry: Entry) -> str:
    values = [100 * record.top1 for record in entry.records]
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _points(difference: Interval | None) -> str:
    if difference is None:
        return NOT_MEASURED
    estimate, low, high = (100 * number for number in difference)
    return f"{estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


def _number(field: str, form: str) -> Callable[[Entry], str]:
    def show(entry: Entry) -> str:
        value = entry.mean(field)
        return NOT_MEASURED if value is None else format(value, form)

    return show


def _match(entry: Entry) -> str:
    value, chance = entry.mean("match_at_k"), entry.mean("match_chance")
    return NOT_MEASURED if value is None or chance is None else f"{value:.2f} ({chance:.2f})"


_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "keep": lambda entry: f"{100 * entry.records[0].keep:.3g}",
    "GFLOPs": _number("gflops", ".3f"),
    "top-1": _top1,
    "to dense": lambda entry: _points(entry.to_dense),
    "to first": lambda entry: _points(entry.to_first),
    "over seeds": lambda entry: _points(entry.over_seeds),
    "cosine": _number("cosine_to_dense", ".4f"),
    "tau": _number("tau", ".3f"),
    "match@k (chance)": _match,
}
