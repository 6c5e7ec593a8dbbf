"""Tables of measured models. Their columns are `metrics.METRICS`."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Form, Table, figure, points
from harness.records.averages import (
    REFERENCE,
    Average,
    Judgement,
    Matched,
    averages,
    describe_uncounted,
    exact_test,
    judge_rows,
    judged_on,
    labels,
    protocol,
    seeds,
    tower_of,
    with_recovery,
)
from harness.records.metrics import METRICS, Metric, fidelity_metrics
from harness.records.record import Record, Times
from harness.records.statistics import FLIPPED, Interval, mark_note, together

OVER_SEEDS = (
    "mean over seeds: top-1 in % with 95 % t interval over seeds, the difference to dense with "
    "95 % paired bootstrap interval over images"
)
_AFTER_TIMES = "tau"  # the first metric whose column stands behind those of times
Filled = tuple[Column, Callable[[Average], Cell]]  # a column, and what fills it of each row


class Layout(NamedTuple):
    """In which forms of a terminal's table a metric's column stands; a report has all columns of the wide form."""

    least: Form = "wide"  # narrowest form with the column; what the narrow one has, a report's summary has, too
    ends: Form = "wide"  # narrowest form that shows the interval


_LAYOUTS = {
    **{name: Layout("narrow") for name in ("top1", "gflops", "tau")},
    **{name: Layout("middle") for name in ("dense_agreement", "final_tokens")},
    "cosine_distance": Layout("narrow", ends="middle"),
    "diff_to_dense": Layout("narrow", ends="narrow"),
    **{
        f"recall_{found}_1{end}": Layout("narrow", ends="middle")
        for found in ("image", "text")
        for end in ("", "_diff")
    },
}


def table_of(
    rows: Sequence[Average],
    columns: Sequence[Filled],
    *,
    title: str,
    caption: str,
    settings: Sequence[dict[str, Any]] | None = None,
) -> Table:
    """Return a table of rows and columns."""
    return Table(
        title=title,
        caption=caption,
        columns=[column for column, _ in columns],
        rows=[[cell(row) for _, cell in columns] for row in rows],
        models=[row.first.model for row in rows],
        settings=settings,
    )


def title(record: Record, more: str = "") -> str:
    """Say what the records of a table have in common; ``more`` goes with the protocol."""
    return (
        f"{record.dataset} ({judged_on(record)}, {record.image_count} images; {protocol(record)}"
        f"{more}), {tower_of(record)}, {record.dtype}, {record.device_name}, "
        f"{record.threads} threads"
    )


def comparison_table(records: Sequence[Record], reference: str = REFERENCE) -> Table:
    """Lay out for the terminal what `averages` makes of records, one row per model.

    Fidelity is compared with that of the method ``reference`` at the same keep rate.
    """
    rows = averages(records)
    family = judge_rows(rows, reference)
    about = [f"{m.title}: {m.fidelity}" for m in fidelity_metrics() if any(row.has(m) for row in rows)]
    if rows[0].top1 is not None and len(rows[0].records) > 1:
        about.append(OVER_SEEDS)
    about.append("in brackets 95 % intervals")
    if any(row.latency for row in rows):
        about[-1] += ", of ms quartiles; × dense: time by the dense model's"
    about += ["GFLOPs: 1e9 multiply-adds per image", "" if family is None else family.note]
    return table_of(
        rows,
        columns_of(rows, family),
        title=title(records[0], seeds(rows[0].records) + with_recovery(rows)),
        caption="; ".join(filter(None, [*about, describe_uncounted(*(row.first for row in rows))])),
    )


def columns_of(rows: Sequence[Average], family: Judgement | None = None) -> list[Filled]:
    """Return the columns of a terminal's table; where narrower forms are without interval there are two of a heading.

    What no row has, such as top-1 without labels, has no column.
    """
    names = labels(rows)
    columns: list[Filled] = [
        (Column(heading="Method", left=True), lambda row: Cell(names[row.identity], names[row.identity])),
        (Column(heading="Keep"), lambda row: keep_cell(row.keep)),
    ]
    for metric in METRICS.values():
        if metric.name == _AFTER_TIMES:
            columns += _time_columns(rows)
        if metric.heading and any(row.has(metric) for row in rows):
            own = _LAYOUTS.get(metric.name, Layout())
            forms = FORMS[: FORMS.index(own.least) + 1]
            whole = FORMS.index(own.ends) + 1
            for some, ends in ((forms[:whole], True), (forms[whole:], False)):
                cell = functools.partial(_cell, metric=metric, family=family, ends=ends)
                columns += [(Column(heading=metric.heading, forms=some), cell)] if some else []
    return columns


def _time_columns(rows: Sequence[Average]) -> Iterator[Filled]:
    def milliseconds(entry: Times) -> Cell:
        return estimate_cell(Interval(entry.median_ms, entry.q1_ms, entry.q3_ms), "{:.1f}".format)

    def to_dense(entry: Times, ends: bool = True) -> Cell:
        return estimate_cell(entry.ratio, "{:.2f}".format, ends=ends)

    def per_second(entry: Times) -> Cell:
        return figure(entry.images_per_s, ".1f")

    entries = [entry for row in rows for entry in row.latency]
    batches = sorted({entry.batch for entry in entries})
    for batch in batches:
        kinds = [("ms [IQR]", FORMS[:2], milliseconds)]
        if any(entry.ratio is not None for entry in entries if entry.batch == batch):
            bare = FORMS[1:] if batch == batches[-1] else FORMS[1:2]
            kinds += [("× dense", FORMS[:1], to_dense), ("× dense", bare, functools.partial(to_dense, ends=False))]
        for heading, forms, show in (*kinds, ("images/s", FORMS[:1], per_second)):
            yield Column(heading=f"Batch {batch}, {heading}", forms=forms), _of_batch(batch, show)


def report_columns(rows: Sequence[Average], *, family: Judgement | None = None, summary: bool = False) -> list[Filled]:
    """Return the columns of a report; a summary leaves out what a first look doesn't need."""
    every = columns_of(rows, family)
    first = {column.heading for column, _ in every if "narrow" in column.forms or column.heading.endswith("× dense")}
    return [one for one in every if "wide" in one[0].forms and (not summary or one[0].heading in first)]


def _of_batch(batch: int, show: Callable[[Times], Cell]) -> Callable[[Average], Cell]:
    return lambda row: next((show(entry) for entry in row.latency if entry.batch == batch), UNMEASURED)


def _cell(row: Average, metric: Metric, family: Judgement | None, *, ends: bool) -> Cell:
    """Show a row's metric, with the number of patches it is for and what chance gives."""
    cell = estimate_cell(row.estimate(metric), metric.text, ends=ends)
    if cell.value is None:
        return cell
    own, words = row.measured(metric.name), str(cell)
    if own and own.at is not None:
        words += f" at {own.at}"
    if own and own.chance is not None:
        words += f" ({metric.text(own.chance)})"
    return Cell(words, cell.value, "" if family is None else family.mark(row, metric.name))


def estimate_cell(estimate: Interval | float | None, text: Callable[[float], str], *, ends: bool = True) -> Cell:
    """Show an estimate, with the ends of its interval where it has one."""
    if estimate is None:
        return UNMEASURED
    if not isinstance(estimate, Interval):
        return Cell(text(estimate), estimate)
    value, low, high = map(text, estimate)
    return Cell(f"{value} [{low}, {high}]" if ends else value, estimate.estimate)


def keep_cell(keep: float) -> Cell:
    """Show a keep rate."""
    return Cell(f"{100 * keep:.3g} %", keep)


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one section per keep rate of the target."""
    target, batch = rows[0].target, rows[0].batch
    distance, short = METRICS["cosine_distance"], METRICS["cosine_distance"].title
    apart = functools.partial(distance.text, form=distance.change)
    nearer = together({at: row.distance_p for at, row in enumerate(rows)})
    righter = together({at: row.p_value for at, row in enumerate(rows)})
    cost, what = ("GFLOPs", "GFLOPs") if batch is None else ("x dense", f"time at batch {batch}")

    def cells(at: int, row: Matched) -> Iterator[Cell]:
        own = row.row is row.target
        yield Cell(f"{100 * row.target.keep:.3g}" if own else "")
        yield Cell(row.row.method, row.row.method)
        yield figure(row.row.keep, ".1%")
        yield figure(row.cost, ".3f")
        yield figure(None if own else row.off, "+.1%" if batch else "+.2%", " %")
        yield figure(row.row.mean(distance.name), distance.form)
        cell = estimate_cell(row.distance, apart)
        yield Cell(cell, cell.value, nearer.mark(at))
        if target.top1 is not None:
            yield figure(row.row.mean("top1"), ".1%")
            yield points(row.difference, righter.mark(at))

    to, tests = f"to {target.method}", FLIPPED
    heads = ["at", "method", "keep", cost, "off", short, f"{short} {to}"]
    timed = "" if batch is None else "x dense: median time by the dense model's, both in eager mode; "
    caption = (
        f"at: keep rate of {target.method} in %; {timed}{short}: {distance.fidelity}; {to}: difference with "
        "95 % paired bootstrap interval"
    )
    if target.top1 is not None:
        heads += ["top-1", f"top-1 {to}"]
        caption += "; top-1 in %, its difference in points"
        tests = f"{short}: {FLIPPED}, top-1: {exact_test(target)}"
    lost = describe_uncounted(*(row.row.first for row in rows))
    return Table.of(
        f"at equal {what}: {title(target.first, seeds(target.records))}",
        heads,
        [list(cells(at, row)) for at, row in enumerate(rows)],
        words=("method",),
        roomy=(f"top-1 {to}",),
        caption="; ".join(filter(None, [caption, mark_note(tests, "all of a column"), lost])),
        sections=frozenset(at for at, row in enumerate(rows) if row.row is row.target),
    )
