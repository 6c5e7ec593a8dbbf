"""Tables of measured models. Their columns are `metrics.METRICS`."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Form, Table, figure, points
from harness.records.averages import (
    REFERENCE,
    Average,
    Judged,
    Matched,
    averages,
    exact_test,
    judged,
    judged_on,
    labels,
    learned,
    protocol,
    row_p,
    seeds,
    shots_of,
    tower_of,
    training_free,
    uncounted,
    with_recovery,
)
from harness.records.conditions import DENSE
from harness.records.metrics import METRICS, RECALL_AT, Metric, fidelity_metrics
from harness.records.record import Record, Times, refuse_mixed
from harness.records.statistics import FLIPPED, MCNEMAR, SIGN_FLIP, Interval, Together, mark_note, together

# What a column of a table of shots differs in from another, with what follows from it.
BY_COLUMN = ("shots", "tuning", "prompt_tokens", "seed", "image_count", "classes_judged", "images_sha256")
OVER_SEEDS = (
    "mean over seeds: top-1 in % with 95 % t interval over seeds, the difference to dense with "
    "95 % paired bootstrap interval over images"
)
RECALLS = (
    "t2i, i2t R@k: captions that find an image of theirs among the k nearest, and images a caption, in %, "
    "with 95 % bootstrap intervals over images"
)
_ROOMY: tuple[Form, ...] = ("wide", "middle")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a metric's column stands in a terminal, whose tables have three forms."""

    heading: str = ""  # empty: the metric's own
    form: str = ""  # ``format`` of a value, if it isn't the metric's
    ends: Literal["", "wide", "roomy", "always"] = ""  # which forms show the interval
    least: Form = "wide"  # narrowest form with the column; what the narrow one has, a report's summary has, too


_LAYOUTS = {
    "cosine_distance": Layout(heading="1 - cos", ends="roomy", least="narrow"),
    "dense_agreement": Layout(heading="agree", least="middle"),
    "kl_to_dense": Layout(heading="KL"),
    "neighbour_overlap": Layout(heading="nn@10"),
    "top1": Layout(heading="top-1", ends="wide", least="narrow"),
    "diff_to_dense": Layout(heading="to dense", ends="always", least="narrow"),
    "gflops": Layout(least="narrow"),
    "tau": Layout(heading="tau", form=".2f", least="narrow"),
    "weighted_tau": Layout(heading="w. tau", form=".2f"),
    "match_at_k": Layout(heading="match@k (chance)", form=".2f"),
    "border_overlap": Layout(heading="border (chance)", form=".2f"),
    "final_tokens": Layout(heading="tokens", least="middle"),
}
for _found, _short in (("image", "t2i"), ("text", "i2t")):
    for _k in RECALL_AT:
        _first: Any = {"ends": "roomy", "least": "narrow"} if _k == RECALL_AT[0] else {}
        _LAYOUTS[f"recall_{_found}_{_k}"] = Layout(heading=f"{_short} R@{_k}", **_first)
    _LAYOUTS[f"recall_{_found}_1_diff"] = Layout(heading=f"{_short} to dense", ends="roomy", least="narrow")
_AFTER_TIMES = "tau"  # the first metric whose column stands behind those of times
# Columns of times in reports: field, heading, format, whether a summary has it.
_TIMES = (
    ("median_ms", "Batch {batch}, ms [IQR]", ".1f", False),
    ("ratio_to_dense", "Batch {batch}, × dense", ".2f", True),
    ("images_per_s", "Batch {batch}, images/s", ".1f", False),
)


def layout(metric: Metric) -> Layout:
    """Return how a metric's column stands in a terminal."""
    own = _LAYOUTS.get(metric.name, Layout())
    return replace(own, heading=own.heading or metric.heading, form=own.form or metric.form)


def short_heading(metric: Metric) -> str:
    """Return what a metric is called in a terminal."""
    return layout(metric).heading


# A column, and what fills it of each row.
Filled = tuple[Column, Callable[[Average], Cell]]


def table_of(
    rows: Sequence[Average],
    columns: Sequence[Filled],
    *,
    title: str,
    caption: str,
    narrow_caption: str | None = None,
    settings: Sequence[dict[str, Any]] | None = None,
) -> Table:
    """Return a table of rows and columns."""
    return Table(
        title=title,
        caption=caption,
        narrow_caption=narrow_caption,
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
    family = judged(rows, reference, short_heading)
    seeded = len(rows[0].records) > 1
    near = {layout(m): m.fidelity for m in fidelity_metrics() if any(row.has(m) for row in rows)}
    wide = [f"{m.heading}: {what}{', with 95 % bootstrap interval' if m.ends else ''}" for m, what in near.items()]
    narrow = [f"{m.heading}: {what}" for m, what in near.items() if m.least == "narrow"]
    if rows[0].top1 is not None:
        wide.append(OVER_SEEDS if seeded else "top-1 in % with 95 % intervals")
        over = "mean over seeds: " if seeded else ""
        narrow.append(f"{over}top-1 in %, to dense with 95 % paired bootstrap interval over images")
    if rows[0].first.caption_count is not None:
        wide.append(RECALLS)
        narrow.append(RECALLS)
    if batches:
        wide.append("latency in ms: median [quartiles], ratio to dense")
        narrow.append(f"x b{batches[-1]}: time at batch {batches[-1]} by the dense model's")
    rest = ["GFLOPs: 1e9 multiply-adds per image", "" if family is None else family.note]
    rest.append(uncounted(*(row.first for row in rows)))
    return table_of(
        rows,
        _terminal_columns(rows, batches, family),
        title=title(records[0], seeds(rows[0].records) + with_recovery(rows)),
        caption="; ".join(filter(None, [*wide, *rest])),
        narrow_caption="; ".join(filter(None, [*narrow, *rest])),
    )


def _terminal_columns(rows: Sequence[Average], batches: Sequence[int], family: Judged | None) -> list[Filled]:
    names = labels(rows)
    times = [(Column(heading=f"batch {b}, ms", forms=_ROOMY), _time_column(b, _time)) for b in batches]
    for batch in batches[-1:]:
        speed = _time_column(batch, lambda entry: figure(entry.images_per_s, ".0f"))
        times += [
            (Column(heading="images/s", forms=("wide",)), speed),
            (Column(heading=f"x b{batch}", forms=("narrow",)), _time_column(batch, _ratio)),
        ]
    return [
        (
            Column(heading="method", left=True),
            lambda row: Cell(names[row.identity] if row.first.recovered else row.method, row.label),
        ),
        (Column(heading="keep"), lambda row: figure(row.keep, ".0%")),
        *_in_order(rows, times, lambda metric: _terminal(metric, family)),
    ]


def _in_order(
    rows: Sequence[Average], times: Sequence[Filled], columns: Callable[[Metric], list[Filled]]
) -> list[Filled]:
    """Return columns of metrics and times.

    A metric that no row has, such as top-1 without labels, has no column.
    """
    at = list(METRICS).index(_AFTER_TIMES)
    before, after = (
        [metric for metric in part if any(row.has(metric) for row in rows)]
        for part in (list(METRICS.values())[:at], list(METRICS.values())[at:])
    )
    return [
        *(column for metric in before for column in columns(metric)),
        *times,
        *(column for metric in after for column in columns(metric)),
    ]


def _terminal(metric: Metric, family: Judged | None) -> list[Filled]:
    """Return a metric's columns for the terminal: two where the narrow one is without interval."""
    own = layout(metric)
    if not own.heading:
        return []
    forms = FORMS[: FORMS.index(own.least) + 1]

    def fill(forms: Sequence[Form], *, ends: bool) -> Filled:
        column = Column(heading=own.heading, forms=forms)
        return column, lambda row: _cell(row, metric, family, short=True, ends=ends)

    shown = {"": (), "wide": FORMS[:1], "roomy": _ROOMY, "always": FORMS}[own.ends]
    parts = [(tuple(form for form in forms if (form in shown) == ends), ends) for ends in (True, False)]
    return [fill(some, ends=ends) for some, ends in parts if some]


def _cell(row: Average, metric: Metric, family: Judged | None, *, short: bool = False, ends: bool = True) -> Cell:
    """Show a row's metric, with the number of patches it is for and what chance gives."""
    cell = estimate_cell(row.estimate(metric), metric, short=short, ends=ends)
    if cell.value is None:
        return cell
    own = row.measured(metric.name)
    text = f"{cell} at {own.at}" if own and own.at is not None and not short else str(cell)
    if own and own.chance is not None:
        text += f" ({metric.text(own.chance, layout(metric).form if short else None)})"
    return Cell(text, cell.value, "" if family is None else family.mark(row, metric.name))


def _time_column(batch: int, show: Callable[[Times], Cell]) -> Callable[[Average], Cell]:
    def cell(row: Average) -> Cell:
        return next((show(entry) for entry in row.latency if entry.batch == batch), UNMEASURED)

    return cell


def _time(entry: Times) -> Cell:
    text = f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]"
    ratio = "" if entry.ratio_to_dense is None else f" {entry.ratio_to_dense:.2f}x"
    return Cell(text + ratio, entry.median_ms)


def _ratio(entry: Times) -> Cell:
    return Cell("1") if entry.ratio_to_dense is None else figure(entry.ratio_to_dense, ".2f")


def _describe_uncounted(rows: Iterable[Average]) -> str:
    words = uncounted(*(row.first for row in rows))
    return f"; {words}" if words else ""


def report_columns(rows: Sequence[Average], *, family: Judged | None = None, summary: bool = False) -> list[Filled]:
    """Return the columns of a report; a summary leaves out what a first look doesn't need."""

    def stands(metric: Metric) -> bool:
        return bool(metric.heading) and (layout(metric).least == "narrow" or not summary)

    def report(metric: Metric) -> list[Filled]:
        cell = functools.partial(_cell, metric=metric, family=family)
        return [(Column(heading=metric.heading), cell)] if stands(metric) else []

    names = labels(rows)
    times = [
        (
            Column(heading=heading.format(batch=batch)),
            _time_column(batch, functools.partial(_time_cell, name=name, form=form)),
        )
        for batch in sorted({latency.batch for row in rows for latency in row.latency})
        for name, heading, form, brief in _TIMES
        if (brief or not summary)
        and any(getattr(own, name) is not None for row in rows for own in row.latency if own.batch == batch)
    ]
    return [
        (Column(heading="Method", left=True), lambda row: Cell(names[row.identity], names[row.identity])),
        (Column(heading="Keep"), lambda row: keep_cell(row.keep)),
        *_in_order(rows, times, report),
    ]


def _time_cell(entry: Times, name: str, form: str) -> Cell:
    spread = Interval(entry.median_ms, entry.q1_ms, entry.q3_ms)
    estimate = {"median_ms": spread, "ratio_to_dense": entry.ratio}.get(name, getattr(entry, name))
    return _estimate_cell(estimate, lambda value: format(value, form), ends=True)


def keep_cell(keep: float) -> Cell:
    """Show a keep rate."""
    return Cell(f"{100 * keep:.3g} %", keep)


def estimate_cell(estimate: Interval | float | None, metric: Metric, *, short: bool = False, ends: bool = True) -> Cell:
    """Show an estimate, with the ends of its interval where it has one."""
    form = layout(metric).form if short else None
    return _estimate_cell(estimate, lambda value: metric.text(value, form), ends=ends, short=short)


def _estimate_cell(
    estimate: Interval | float | None, text: Callable[[float], str], *, ends: bool, short: bool = False
) -> Cell:
    if estimate is None:
        return UNMEASURED
    if not isinstance(estimate, Interval):
        return Cell(text(estimate), estimate)
    value, low, high = map(text, estimate)
    if short:  # the terminal is narrow
        low, high = low.lstrip("+"), high.lstrip("+")
    return Cell(f"{value} [{low}, {high}]" if ends else value, estimate.estimate)


def shot_tables(groups: Sequence[Sequence[Average]], *, marked: bool = True) -> list[Table]:
    """Put top-1 at several numbers of shots side by side, one table for each kind of tuning.

    None where there is only one number of shots. With ``marked``, what is clear of the dense row at
    as many shots has a mark. Groups are as for `by_shots`.
    """
    return [_shot_table(columns, marked=marked) for columns in by_shots(groups)]


def shots_apart(groups: Sequence[Sequence[Record]]) -> list[Table]:
    """Make `shot_tables` of the records of each number of shots, those with recovery apart."""
    parts = [part for group in groups for part in training_free(group)]
    kinds = [[averages(p) for p in parts if any(r.recovered for r in p) == kind] for kind in (False, True)]
    return [table for kind in kinds for table in shot_tables(kind)]


def by_shots(groups: Sequence[Sequence[Average]]) -> list[list[Sequence[Average]]]:
    """Return the groups of each kind of tuning, shots rising, where there are at least two.

    Args:
        groups: of one dataset and tower, each of one number of shots and kind of tuning; what is by
            text begins every kind.

    Raises:
        ValueError: conditions that don't follow from the shots differ.
    """

    def kind(group: Sequence[Average]) -> tuple[str | None, int | None]:
        return group[0].first.tuning, group[0].first.prompt_tokens

    kinds = dict.fromkeys(kind(group) for group in groups if group[0].first.shots)
    by_text = [group for group in groups if not group[0].first.shots]
    every = [[*by_text, *(group for group in groups if kind(group) == one)] for one in kinds]
    several = [columns for columns in every if len(columns) > 1]
    for columns in several:
        records = (r for group in columns for row in group for r in row.records)
        refuse_mixed(records, varying=BY_COLUMN)
    return [sorted(columns, key=lambda group: group[0].first.shots) for columns in several]


def _shot_table(groups: Sequence[Sequence[Average]], *, marked: bool) -> Table:
    columns = [{row.identity: row for row in group} for group in groups]
    names = {key: name for group in groups for key, name in labels(group).items()}
    models = {key: row.first for column in columns for key, row in column.items()}
    first, family = groups[-1][0].first, _shot_family(columns if marked else ())
    caption = _about_shots(groups)
    if family.alone:
        several = any(len(row.records) > 1 for group in groups for row in group)
        test = SIGN_FLIP if several else MCNEMAR
        note = mark_note(test, "all of this table", of="the dense model's at as many shots")
        caption = f"{caption}; {note}"
    top1 = METRICS["top1"]

    def cell(key: str, at: int) -> Cell:
        row = columns[at].get(key)
        text = estimate_cell(None if row is None else row.top1, top1)
        return Cell(text, text.value, family.mark((key, at)))

    ends = {0, len(groups) - 1}
    roomy = set(range(len(groups))) - ends if len(groups) > 2 else set()
    heads = [
        Column(heading=shots_of(group[0].first), forms=_ROOMY if at in roomy else FORMS)
        for at, group in enumerate(groups)
    ]
    return Table(
        title=f"{first.dataset} {judged_on(first)}, top-1 by shots, {learned(first)}, {tower_of(first)}",
        caption=caption,
        columns=[Column(heading="Method", left=True), Column(heading="Keep"), *heads],
        rows=[
            [Cell(names[key], names[key]), keep_cell(record.keep), *(cell(key, at) for at in range(len(groups)))]
            for key, record in models.items()
        ],
        models=[record.model for record in models.values()],
    )


def _shot_family(columns: Sequence[Mapping[str, Average]]) -> Together[tuple[str, int]]:
    """Judge every row at every number of shots against the dense one there, all together."""
    return together(
        {
            (key, at): row_p(row, dense)
            for at, column in enumerate(columns)
            for dense in [row for row in column.values() if row.method == DENSE][:1]
            for key, row in column.items()
            if row is not dense
        }
    )


def _about_shots(groups: Sequence[Sequence[Average]]) -> str:
    """Say what the intervals are of, and on how many images."""
    words = ["top-1 in % with 95 % intervals"]
    if not groups[0][0].first.shots:
        words += ["0 shots: by text, Wilson"]
    count = len(groups[-1][0].records)
    words += [f"shots: mean of {count} seeds, t over seeds" if count > 1 else "shots: Wilson"]
    images = dict.fromkeys(group[0].first.image_count for group in groups)
    return f"{'; '.join(words)}; {' or '.join(map(str, images))} images"


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one section per keep rate of the target."""
    target, batch = rows[0].target, rows[0].batch
    distance = METRICS["cosine_distance"]
    short = short_heading(distance)
    apart = replace(distance, form=distance.change)
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
    return Table.of(
        f"at equal {what}: {title(target.first, seeds(target.records))}",
        heads,
        [list(cells(at, row)) for at, row in enumerate(rows)],
        words=("method",),
        roomy=(f"top-1 {to}",),
        caption=f"{caption}; {mark_note(tests, 'all of a column')}{_describe_uncounted(row.row for row in rows)}",
        sections=frozenset(at for at, row in enumerate(rows) if row.row is row.target),
    )
