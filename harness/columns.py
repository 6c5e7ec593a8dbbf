"""The columns of the report and of the Markdown tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.averages import Average
from harness.labels import labels
from harness.records import Latency
from harness.statistics import Interval

NOT_MEASURED = "–"


class Cell(str):
    """What stands in a cell.

    Attributes:
        value: what sorting goes by; None, not measured, comes last.
    """

    __slots__ = ("value",)
    value: float | str | None

    def __new__(cls, text: str, value: float | str | None) -> "Cell":
        """Return the text with its value."""
        cell = super().__new__(cls, text)
        cell.value = value
        return cell


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its heading, and what fills it."""

    heading: str
    cell: Callable[[Average], Cell]


def columns_of(rows: Sequence[Average]) -> list[Column]:
    """Return the columns of rows, with three for each batch size timed."""
    named = labels(rows)
    columns = [
        Column(heading="Method", cell=lambda row: Cell(named[row.identity], named[row.identity])),
        Column(heading="Keep", cell=lambda row: keep_cell(row.keep)),
        Column(heading="Top-1, %", cell=lambda row: interval(row.top1, 100, "{:.1f}")),
        Column(heading="To dense", cell=lambda row: interval(row.to_dense, 100, "{:+.1f}")),
        Column(heading="GFLOPs", cell=lambda row: _number(row.mean("gflops"), "{:.2f}")),
    ]
    for batch in sorted({latency.batch for row in rows for latency in row.latency}):
        columns += [
            Column(heading=f"Batch {batch}, ms [IQR]", cell=_timed(batch, _milliseconds)),
            Column(heading=f"Batch {batch}, × dense", cell=_timed(batch, _ratio)),
            Column(heading=f"Batch {batch}, images/s", cell=_timed(batch, _speed)),
        ]
    return [
        *columns,
        Column(heading="Kendall τ", cell=_tau("tau")),
        Column(heading="Weighted τ", cell=_tau("weighted_tau")),
        Column(heading="Match at k (chance), %", cell=_match),
        Column(heading="Border overlap (chance), %", cell=_border),
        Column(heading="Final tokens", cell=lambda row: _number(row.mean("final_tokens"), "{}")),
    ]


def keep_cell(keep: float) -> Cell:
    """Show a keep rate."""
    return Cell(f"{100 * keep:.3g} %", keep)


def interval(found: Interval | None, scale: int, form: str) -> Cell:
    """Show an estimate with its ends."""
    if found is None:
        return Cell(NOT_MEASURED, None)
    text = "{} [{}, {}]".format(*(form.format(scale * number) for number in found))
    return Cell(text, found.estimate)


def _number(value: float | None, form: str) -> Cell:
    return Cell(NOT_MEASURED if value is None else form.format(value), value)


def _tau(field: str) -> Callable[[Average], Cell]:
    return lambda row: interval(row.interval(field, f"{field}_low", f"{field}_high"), 1, "{:+.2f}")


def _timed(batch: int, render: Callable[[Latency], Cell]) -> Callable[[Average], Cell]:
    def cell(row: Average) -> Cell:
        found = (render(timed) for timed in row.latency if timed.batch == batch)
        return next(found, Cell(NOT_MEASURED, None))

    return cell


def _milliseconds(timed: Latency) -> Cell:
    text = f"{timed.median_ms:.1f} [{timed.q1_ms:.1f}, {timed.q3_ms:.1f}]"
    return Cell(text, timed.median_ms)


def _speed(timed: Latency) -> Cell:
    return Cell(f"{timed.images_per_s:.1f}", timed.images_per_s)


def _ratio(timed: Latency) -> Cell:
    if timed.ratio_to_dense is None or timed.ratio_low is None or timed.ratio_high is None:
        return Cell(NOT_MEASURED, None)
    return interval(Interval(timed.ratio_to_dense, timed.ratio_low, timed.ratio_high), 1, "{:.2f}")


def _match(row: Average) -> Cell:
    value, k, chance = (row.mean(name) for name in ("match_at_k", "match_k", "match_chance"))
    if value is None or k is None or chance is None:
        return Cell(NOT_MEASURED, None)
    found = row.interval("match_at_k", "match_low", "match_high")
    shown = f"{100 * value:.1f}" if found is None else interval(found, 100, "{:.1f}")
    return Cell(f"{shown} at {k} ({100 * chance:.1f})", value)


def _border(row: Average) -> Cell:
    found = row.interval("border_overlap", "border_low", "border_high")
    shown, chance = interval(found, 100, "{:.1f}"), row.mean("border_chance")
    return shown if chance is None else Cell(f"{shown} ({100 * chance:.1f})", shown.value)
