"""Tables of measured models. Their columns are `metrics.METRICS`."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from harness.records.metrics import METRICS, RECALL_AT, Metric, fidelity_metrics
from harness.records.record import Record, Times
from harness.records.statistics import FLIPPED, Interval, mark_note, together

OVER_SEEDS = (
    "mean over seeds: top-1 in % with 95 % t interval over seeds, the difference to dense with "
    "95 % paired bootstrap interval over images"
)
RECALLS = (
    "t2i, i2t R@k: captions that find an image of theirs among the k nearest, and images a caption, in %, "
    "with 95 % bootstrap intervals over images"
)
_AFTER_TIMES = "tau"  # the first metric whose column stands behind those of times
Filled = tuple[Column, Callable[[Average], Cell]]  # a column, and what fills it of each row


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a metric's column stands in a terminal, whose tables have three forms."""

    heading: str = ""  # empty: it has no column
    form: str | None = None  # ``format`` of a value, if it isn't the metric's
    ends: Form | None = None  # narrowest form that shows the interval
    least: Form = "wide"  # narrowest form with the column; what the narrow one has, a report's summary has, too


_LAYOUTS = {
    "cosine_distance": Layout(heading="1 - cos", ends="middle", least="narrow"),
    "dense_agreement": Layout(heading="agree", least="middle"),
    "kl_to_dense": Layout(heading="KL"),
    "neighbour_overlap": Layout(heading="nn@10"),
    "top1": Layout(heading="top-1", ends="wide", least="narrow"),
    "diff_to_dense": Layout(heading="to dense", ends="narrow", least="narrow"),
    "gflops": Layout(heading="GFLOPs", least="narrow"),
    "tau": Layout(heading="tau", form=".2f", least="narrow"),
    "weighted_tau": Layout(heading="w. tau", form=".2f"),
    "match_at_k": Layout(heading="match@k (chance)", form=".2f"),
    "final_tokens": Layout(heading="tokens", least="middle"),
}
for _found, _short in (("image", "t2i"), ("text", "i2t")):
    _LAYOUTS |= {f"recall_{_found}_{k}": Layout(heading=f"{_short} R@{k}") for k in RECALL_AT[1:]}
    for _name, _heading in (("1", f"{_short} R@1"), ("1_diff", f"{_short} to dense")):
        _LAYOUTS[f"recall_{_found}_{_name}"] = Layout(heading=_heading, ends="middle", least="narrow")


def _layout(metric: Metric) -> Layout:
    return _LAYOUTS.get(metric.name) or Layout(heading=metric.heading)


def short_heading(metric: Metric) -> str:
    """Return what a metric is called in a terminal."""
    return _layout(metric).heading


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
    batches = sorted({entry.batch for row in rows for entry in row.latency})
    family = judge_rows(rows, reference, short_heading)
    near = {_layout(m): m.fidelity for m in fidelity_metrics() if any(row.has(m) for row in rows)}
    about = [f"{m.heading}: {what}{', with 95 % bootstrap interval' if m.ends else ''}" for m, what in near.items()]
    if rows[0].top1 is not None:
        about.append(OVER_SEEDS if len(rows[0].records) > 1 else "top-1 in % with 95 % intervals")
    if rows[0].first.caption_count is not None:
        about.append(RECALLS)
    if batches:
        about.append("latency in ms: median [quartiles], ratio to dense")
    about += ["GFLOPs: 1e9 multiply-adds per image", "" if family is None else family.note]
    return table_of(
        rows,
        _terminal_columns(rows, batches, family),
        title=title(records[0], seeds(rows[0].records) + with_recovery(rows)),
        caption="; ".join(filter(None, [*about, describe_uncounted(*(row.first for row in rows))])),
    )


def _terminal_columns(rows: Sequence[Average], batches: Sequence[int], family: Judgement | None) -> list[Filled]:
    names = labels(rows)

    def milliseconds(entry: Times) -> Cell:
        ratio = "" if entry.ratio_to_dense is None else f" {entry.ratio_to_dense:.2f}x"
        return Cell(f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]{ratio}", entry.median_ms)

    def per_second(entry: Times) -> Cell:
        return figure(entry.images_per_s, ".0f")

    def to_dense(entry: Times) -> Cell:
        return Cell("1") if entry.ratio_to_dense is None else figure(entry.ratio_to_dense, ".2f")

    def terminal(metric: Metric) -> Iterator[Filled]:
        """Return two columns where narrower forms are without interval."""
        own = _layout(metric)
        forms = FORMS[: FORMS.index(own.least) + 1]
        whole = 0 if own.ends is None else FORMS.index(own.ends) + 1
        for some, ends in ((forms[:whole], True), (forms[whole:], False)):
            if own.heading and some:
                cell = functools.partial(_cell, metric=metric, family=family, short=True, ends=ends)
                yield Column(heading=own.heading, forms=some), cell

    times = [(Column(heading=f"batch {b}, ms", forms=FORMS[:2]), _of_batch(b, milliseconds)) for b in batches]
    for batch in batches[-1:]:
        times += [
            (Column(heading="images/s", forms=FORMS[:1]), _of_batch(batch, per_second)),
            (Column(heading=f"b{batch}, x dense", forms=FORMS[2:]), _of_batch(batch, to_dense)),
        ]
    return [
        (Column(heading="method", left=True), lambda row: Cell(names[row.identity], row.label)),
        (Column(heading="keep"), lambda row: figure(row.keep, ".0%")),
        *_in_order(rows, times, terminal),
    ]


def report_columns(rows: Sequence[Average], *, family: Judgement | None = None, summary: bool = False) -> list[Filled]:
    """Return the columns of a report; a summary leaves out what a first look doesn't need."""

    def report(metric: Metric) -> list[Filled]:
        if not metric.heading or (summary and _layout(metric).least != "narrow"):
            return []
        return [(Column(heading=metric.heading), functools.partial(_cell, metric=metric, family=family))]

    def milliseconds(entry: Times) -> Cell:
        return estimate_cell(Interval(entry.median_ms, entry.q1_ms, entry.q3_ms), "{:.1f}".format)

    def to_dense(entry: Times) -> Cell:
        return estimate_cell(entry.ratio, "{:.2f}".format)

    def per_second(entry: Times) -> Cell:
        return figure(entry.images_per_s, ".1f")

    kinds = (("ms [IQR]", milliseconds), ("× dense", to_dense), ("images/s", per_second))
    names, entries = labels(rows), [entry for row in rows for entry in row.latency]
    times = [
        (Column(heading=f"Batch {batch}, {heading}"), _of_batch(batch, show))
        for batch in sorted({entry.batch for entry in entries})
        for heading, show in (kinds[1:2] if summary else kinds)
        if any(show(entry) != UNMEASURED for entry in entries if entry.batch == batch)
    ]
    return [
        (Column(heading="Method", left=True), lambda row: Cell(names[row.identity], names[row.identity])),
        (Column(heading="Keep"), lambda row: keep_cell(row.keep)),
        *_in_order(rows, times, report),
    ]


def _in_order(
    rows: Sequence[Average], times: Sequence[Filled], columns: Callable[[Metric], Iterable[Filled]]
) -> Iterator[Filled]:
    """Yield columns of metrics and times; a metric that no row has, such as top-1 without labels, has no column."""
    for metric in METRICS.values():
        if metric.name == _AFTER_TIMES:
            yield from times
        if any(row.has(metric) for row in rows):
            yield from columns(metric)


def _of_batch(batch: int, show: Callable[[Times], Cell]) -> Callable[[Average], Cell]:
    return lambda row: next((show(entry) for entry in row.latency if entry.batch == batch), UNMEASURED)


def _cell(row: Average, metric: Metric, family: Judgement | None, *, short: bool = False, ends: bool = True) -> Cell:
    """Show a row's metric, with the number of patches it is for and what chance gives."""
    text = functools.partial(metric.text, form=_layout(metric).form if short else None)
    cell = estimate_cell(row.estimate(metric), text, short=short, ends=ends)
    if cell.value is None:
        return cell
    own = row.measured(metric.name)
    words = f"{cell} at {own.at}" if own and own.at is not None and not short else str(cell)
    if own and own.chance is not None:
        words += f" ({text(own.chance)})"
    return Cell(words, cell.value, "" if family is None else family.mark(row, metric.name))


def estimate_cell(
    estimate: Interval | float | None, text: Callable[[float], str], *, ends: bool = True, short: bool = False
) -> Cell:
    """Show an estimate, with the ends of its interval where it has one."""
    if estimate is None:
        return UNMEASURED
    if not isinstance(estimate, Interval):
        return Cell(text(estimate), estimate)
    value, low, high = map(text, estimate)
    if short:  # the terminal is narrow
        low, high = low.lstrip("+"), high.lstrip("+")
    return Cell(f"{value} [{low}, {high}]" if ends else value, estimate.estimate)


def keep_cell(keep: float) -> Cell:
    """Show a keep rate."""
    return Cell(f"{100 * keep:.3g} %", keep)


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one section per keep rate of the target."""
    target, batch = rows[0].target, rows[0].batch
    distance, short = METRICS["cosine_distance"], short_heading(METRICS["cosine_distance"])
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
