"""Tables of measured models. Their columns are `metrics.METRICS`."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Form, Table, estimate_cell, figure
from harness.records.averages import (
    CLOSE,
    Average,
    Judgement,
    averages,
    describe_uncounted,
    judge_rows,
    judged_on,
    labels,
    levels,
    nearness,
    protocol,
    tower_of,
    with_recovery,
)
from harness.records.metrics import METRICS, Metric
from harness.records.record import DENSE, MATCHED, OPTIMIZED, UNREDUCED, Record, Times
from harness.records.statistics import Interval

_OVER_SEEDS = (
    "top-1: mean over seeds with 95 % t interval over seeds, the difference to dense with 95 % paired bootstrap "
    "interval over images"
)
_ABOUT = {
    "top1": "top-1 with 95 % Wilson interval",
    "diff_to_dense": "to dense: points on the same images, with 95 % paired bootstrap interval",
    "gflops": "GFLOPs: 1e9 multiply-adds per image",
}
_AFTER_TIMES = "tau"  # the first metric whose column stands behind those of times
Filled = tuple[Column, Callable[[Average], Cell]]  # a column, and what fills it of each row


class Layout(NamedTuple):
    """In which forms of a terminal's table a metric's column stands; a report has all columns of the wide form."""

    least: Form = "wide"  # narrowest form with the column; what the narrow one has, a report's summary has, too
    ends: Form = "wide"  # narrowest form that shows the interval


_LAYOUTS = {
    **{name: Layout("narrow") for name in ("top1", "gflops")},
    **{name: Layout("middle") for name in ("tau", "dense_agreement", "final_tokens")},
    "cosine_distance": Layout("narrow", ends="middle"),
    "diff_to_dense": Layout("narrow", ends="narrow"),
    **{
        f"recall_{found}_1{end}": Layout("narrow", ends="middle")
        for found in ("image", "text")
        for end in ("", "_diff")
    },
}


def rows_table(
    every: Sequence[Average],
    title: str,
    about: str,
    *,
    reference: str | None = None,
    batches: Collection[int] = (),
    settings: bool = False,
) -> Table:
    """Lay rows out, a section per cost or keep rate; ``about`` ends the caption.

    Fidelity is compared with that of the method ``reference`` at equal cost, see `averages.levels`. A row that misses
    the time that it was searched for is left out. ``batches`` have a column of times even where none could be taken.
    """
    rows, starts, missing = in_sections(every, reference)
    family = judge_rows(rows, reference)
    columns = columns_of(rows, family, batches)
    return Table(
        title=title,
        columns=[column for column, _ in columns],
        rows=[[cell(row) for _, cell in columns] for row in rows],
        models=[row.first.model for row in rows],
        settings=[row.config for row in rows] if settings else None,
        legend=family.legend if family else "",
        caption="; ".join(filter(None, [describe_note(rows, family), about])),
        sections=starts,
        notes=missing,
    )


def comparison_table(records: Sequence[Record], reference: str | None = None, batches: Collection[int] = ()) -> Table:
    """Lay out for the terminal what `averages` makes of records, one row per model, see `rows_table`."""
    rows, record = averages(records), records[0]
    seeds = f"; mean of {count} seeds" if (count := len(rows[0].records)) > 1 else ""
    title = (
        f"{record.dataset} ({judged_on(record)}, {record.image_count} images; {protocol(record)}"
        f"{seeds}{with_recovery(rows)}), {tower_of(record)}, {record.dtype}, {record.device_name}, "
        f"{record.threads} thread{'s' if record.threads > 1 else ''}"
    )
    uncounted = describe_uncounted(*(row.first for row in rows))
    return rows_table(rows, title, uncounted, reference=reference, batches=batches)


def describe_note(rows: Sequence[Average], family: Judgement | None) -> str:
    """Say what marks mean, and what an optimised row is."""
    fast = next((row for row in rows if row.method == OPTIMIZED), None)
    notes = [] if family is None else [family.note]
    if fast is not None:
        notes.insert(0, f"{fast.label}: the dense model by zoo.optimize in {fast.config['dtype']}, nothing reduced")
    return "; ".join(notes)


def in_sections(
    rows: Sequence[Average], reference: str | None = None
) -> tuple[list[Average], frozenset[int], list[str]]:
    """Sort rows: unreduced ones, then costs falling, at each the nearest to dense first.

    Returns:
        The rows without those that miss their time, where sections begin, and which methods miss a time.
    """
    at, missing = dict[str, float](), list[str]()
    for level in levels(rows, reference):
        at |= {row.identity: level.target.keep for row in level.rows}
        if level.missing and level.batch is not None:
            goal = f"the time of {level.target.method} at keep {100 * level.target.keep:.3g} %"
            missing.append(f"more than {100 * CLOSE:.0f} % off {goal}: {', '.join(level.missing)}")
    shown = [row for row in rows if row.identity in at or MATCHED not in row.first.method_config]
    keeps = [2.0 if row.method in UNREDUCED else at.get(row.identity, row.keep) for row in shown]
    order = sorted(range(len(shown)), key=lambda i: (-keeps[i], shown[i].method != DENSE, *nearness(shown[i])))
    starts = frozenset(n for n, (i, j) in enumerate(pairwise(order), 1) if keeps[i] != keeps[j])
    return [shown[i] for i in order], starts, missing


def columns_of(rows: Sequence[Average], family: Judgement | None = None, batches: Collection[int] = ()) -> list[Filled]:
    """Return the columns of a terminal's table; where narrower forms are without interval there are two of a heading.

    What no row has, such as top-1 without labels, has no column.
    """
    names = labels(rows)
    columns: list[Filled] = [
        (Column(heading="Method", left=True), lambda row: Cell(names[row.identity], names[row.identity])),
        (Column(heading="Keep"), lambda row: Cell(f"{100 * row.keep:.3g} %", row.keep)),
    ]
    for metric in METRICS.values():
        if metric.name == _AFTER_TIMES:
            columns += _time_columns(rows, batches)
        if metric.heading and any(row.measured(metric.name) is not None for row in rows):
            own = _LAYOUTS.get(metric.name, Layout())
            forms = FORMS[: FORMS.index(own.least) + 1]
            whole = FORMS.index(own.ends) + 1
            about = f"{metric.title}: {metric.fidelity}" if metric.fidelity else _ABOUT.get(metric.name, "")
            if metric.name == "top1" and len(rows[0].records) > 1:
                about = _OVER_SEEDS
            for some, ends in ((forms[:whole], True), (forms[whole:], False)):
                cell = functools.partial(_cell, metric=metric, family=family, ends=ends)
                columns += [(Column(heading=metric.heading, forms=some, about=about), cell)] if some else []
    return columns


def _time_columns(rows: Sequence[Average], asked: Collection[int]) -> Iterator[Filled]:
    one, two = "{:.1f}".format, "{:.2f}".format
    entries = [entry for row in rows for entry in row.latency]
    batches = sorted({entry.batch for entry in entries}.union(asked))
    about = "× dense: time by the dense model's, median over rounds with its 95 % interval"
    for batch in batches:
        kinds: list[tuple[str, Sequence[Form], Callable[[Times], Cell], str]] = [
            (
                "ms [IQR]",
                FORMS[:1],
                lambda own: estimate_cell(Interval(own.median_ms, own.q1_ms, own.q3_ms), one),
                "ms: median and quartiles",
            ),
            ("× dense", FORMS if batch == batches[-1] else FORMS[:2], lambda own: estimate_cell(own.ratio, two), about),
            ("images/s", FORMS[:1], lambda own: figure(own.images_per_s, ".1f"), ""),
        ]
        own = [entry for entry in entries if entry.batch == batch]
        if not own:
            kinds = kinds[1:2]
        elif all(entry.ratio is None for entry in own):
            del kinds[1]
        for heading, forms, show, text in kinds:
            column = Column(heading=f"Batch {batch}, {heading}", forms=forms, about=text)
            yield column, _of_batch(batch, show)


def _of_batch(batch: int, show: Callable[[Times], Cell]) -> Callable[[Average], Cell]:
    return lambda row: next((show(entry) for entry in row.latency if entry.batch == batch), UNMEASURED)


def _cell(row: Average, metric: Metric, family: Judgement | None, *, ends: bool) -> Cell:
    """Show a row's metric, with the number of patches it is for and what chance gives."""
    cell, own = estimate_cell(row.estimate(metric), metric.text, ends=ends), row.measured(metric.name)
    if own is None:
        return cell
    words = str(cell)
    if own.at is not None:
        words += f" at {own.at}"
    if own.chance is not None:
        words += f" ({metric.text(own.chance)})"
    return Cell(words, cell.value, "" if family is None else family.mark(row, metric.name))
