"""Tables of measured models. Their columns are what `records.Metric` declares."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from harness.console.table import FORMS, UNMEASURED, Cell, Column, Form, Table, points
from harness.measure.compare import Floor
from harness.records.averages import (
    Average,
    Judged,
    Matched,
    averages,
    exact_test,
    judged,
    labels,
    learned,
    protocol,
    row_p,
    seeds,
    shots_of,
    tower_of,
    uncounted,
)
from harness.records.conditions import DENSE
from harness.records.record import Latency, Metric, Record, declared, metrics, refuse_mixed
from harness.records.statistics import (
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    mark_note,
    together,
)
from harness.report.writers import csv_text

# What a column of a table of shots differs in from another, with what follows from it.
BY_COLUMN = ("shots", "tuning", "prompt_tokens", "seed", "image_count", "images_sha256")
OVER_SEEDS = (
    "mean over seeds: top-1 in % with 95 % t interval over seeds, the difference to dense with "
    "95 % paired bootstrap interval over images"
)
_ROOMY: tuple[Form, ...] = ("wide", "middle")
_METHOD = Column(heading="method", left=True)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A column, and what fills it of each row."""

    column: Column
    cell: Callable[[Average], Cell]


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
        columns=[each.column for each in columns],
        rows=[[each.cell(row) for each in columns] for row in rows],
        models=[row.first.model for row in rows],
        settings=settings,
    )


def title(record: Record, more: str = "") -> str:
    """Say what the records of a table have in common; ``more`` goes with the protocol."""
    return (
        f"{record.dataset} ({record.split}, {record.image_count} images; {protocol(record)}"
        f"{more}), {tower_of(record)}, {record.dtype}, {record.device_name}, "
        f"{record.threads} threads"
    )


def comparison_table(records: Sequence[Record]) -> Table:
    """Lay out what was measured on one dataset for the terminal, one row per model.

    Args:
        records: of one dataset and number of shots; several seeds of a model become their mean.

    Raises:
        ValueError: they don't belong in one table; see `averages.averages`.
    """
    rows = averages(records)
    batches = sorted({entry.batch for row in rows for entry in row.latency})
    family = judged(rows)
    seeded = len(rows[0].records) > 1
    wide, narrow = OVER_SEEDS if seeded else "top-1 in % with 95 % intervals", (
        f"{'mean over seeds: ' if seeded else ''}top-1 in %, to dense with 95 % paired bootstrap "
        "interval over images"
    )  # fmt: skip
    if batches:
        wide += "; latency in ms: median [quartiles], ratio to dense"
        narrow += f"; x b{batches[-1]}: time at batch {batches[-1]} by the dense model's"
    rest = "; GFLOPs: 1e9 multiply-adds per image"
    rest += "" if family is None else f"; {family.note}"
    rest += _lacking(rows)
    return table_of(
        rows,
        _terminal_columns(rows, batches, family),
        title=title(records[0], seeds(rows[0].records)),
        caption=wide + rest,
        narrow_caption=narrow + rest,
    )


def _terminal_columns(
    rows: Sequence[Average], batches: Sequence[int], family: Judged | None
) -> list[Filled]:
    before, after = _around_latency(rows)
    columns = [
        Filled(column=_METHOD, cell=lambda row: Cell(row.method, row.method)),
        Filled(
            column=Column(heading="keep"), cell=lambda row: Cell(f"{100 * row.keep:.0f}", row.keep)
        ),
    ]
    for metric in before:
        columns += _terminal(metric, family)
    for batch in batches:
        heading = f"batch {batch}, ms"
        columns.append(
            Filled(column=Column(heading=heading, forms=_ROOMY), cell=_timed(batch, _time))
        )
    for batch in batches[-1:]:
        speed, ratio = Column(heading="images/s", forms=("wide",)), f"x b{batch}"
        columns += [
            Filled(column=speed, cell=_timed(batch, lambda each: Cell(f"{each.images_per_s:.0f}"))),
            Filled(column=Column(heading=ratio, forms=("narrow",)), cell=_timed(batch, _ratio)),
        ]
    for metric in after:
        columns += _terminal(metric, family)
    return columns


def _around_latency(rows: Sequence[Average]) -> tuple[list[Metric], list[Metric]]:
    """Return the metrics whose columns stand before times, and those that stand after them."""
    kind = type(rows[0].first)
    names = list(declared(kind))
    every = list(metrics(kind).values())
    before = [m for m in every if not m.place and names.index(m.name) < names.index("latency")]
    return before, [metric for metric in every if metric not in before]


def _terminal(metric: Metric, family: Judged | None) -> list[Filled]:
    """Return a metric's columns for the terminal: two where the narrow one is without interval."""
    if not metric.short:
        return []
    forms = FORMS[: FORMS.index(metric.least) + 1]

    def filled(forms: Sequence[Form], *, ends: bool) -> Filled:
        return Filled(
            column=Column(heading=metric.short, forms=forms),
            cell=lambda row: _short_cell(row, metric, family, ends=ends),
        )

    if metric.ends != "wide" or "narrow" not in forms:
        return [filled(forms, ends=bool(metric.ends))]
    return [filled(_ROOMY, ends=True), filled(("narrow",), ends=False)]


def _short_cell(row: Average, metric: Metric, family: Judged | None, *, ends: bool) -> Cell:
    estimate = row.estimate(metric)
    if estimate is None:
        return UNMEASURED
    value = estimate.estimate if isinstance(estimate, Interval) else estimate
    text = metric.text(value, short=True)
    if ends and isinstance(estimate, Interval):
        low, high = (metric.text(end, short=True).lstrip("+") for end in estimate[1:])
        text += f" [{low}, {high}]"
    if metric.chance:
        text += f" ({metric.text(row.mean(metric.chance), short=True)})"
    return Cell(text, value, _mark(row, metric, family))


def _mark(row: Average, metric: Metric, family: Judged | None) -> str:
    return family.mark(row) if family is not None and metric.name == "diff_to_dense" else ""


def _timed(batch: int, show: Callable[[Latency], Cell]) -> Callable[[Average], Cell]:
    def cell(row: Average) -> Cell:
        entries = (show(entry) for entry in row.latency if entry.batch == batch)
        return next(entries, UNMEASURED)

    return cell


def _time(entry: Latency) -> Cell:
    text = f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]"
    ratio = "" if entry.ratio_to_dense is None else f" {entry.ratio_to_dense:.2f}x"
    return Cell(text + ratio, entry.median_ms)


def _ratio(entry: Latency) -> Cell:
    ratio = entry.ratio_to_dense
    return Cell("1" if ratio is None else f"{ratio:.2f}", ratio)


def _lacking(rows: Iterable[Average]) -> str:
    words = uncounted(*(row.first for row in rows))
    return f"; {words}" if words else ""


def report_columns(
    rows: Sequence[Average], *, family: Judged | None = None, summary: bool = False
) -> list[Filled]:
    """Return the columns of a report, with some for each batch size timed.

    Args:
        rows: of one table.
        family: marks the differences to dense that are clear.
        summary: leave out what a first look doesn't need.
    """
    names = labels(rows)
    before, after = _around_latency(rows)
    columns = [
        Filled(
            column=Column(heading="Method", left=True),
            cell=lambda row: Cell(names[row.identity], names[row.identity]),
        ),
        Filled(column=Column(heading="Keep"), cell=lambda row: keep_cell(row.keep)),
        *(_reported(metric, family) for metric in before if _stands(metric, summary=summary)),
    ]
    for batch in sorted({latency.batch for row in rows for latency in row.latency}):
        columns += [
            _reported_time(metric, batch)
            for metric in metrics(Latency).values()
            if _stands(metric, summary=summary)
        ]
    return [
        *columns,
        *(_reported(metric, family) for metric in after if _stands(metric, summary=summary)),
    ]


def _stands(metric: Metric, *, summary: bool) -> bool:
    return bool(metric.heading) and (metric.least == "narrow" or not summary)


def _reported(metric: Metric, family: Judged | None) -> Filled:
    def cell(row: Average) -> Cell:
        shown = estimate_cell(row.estimate(metric), metric)
        if shown.value is None:
            return shown
        k = f" at {row.mean(metric.at)}" if metric.at else ""
        chance = row.mean(metric.chance) if metric.chance else None
        beside = "" if chance is None else f" ({metric.text(chance)})"
        return Cell(f"{shown}{k}{beside}", shown.value, _mark(row, metric, family))

    return Filled(column=Column(heading=metric.heading), cell=cell)


def _reported_time(metric: Metric, batch: int) -> Filled:
    def cell(entry: Latency) -> Cell:
        names = (metric.name, metric.low, metric.high)
        numbers = [getattr(entry, name) for name in names if name]
        if None in numbers:
            return UNMEASURED
        return estimate_cell(Interval(*numbers) if metric.low else numbers[0], metric)

    column = Column(heading=metric.heading.format(batch=batch))
    return Filled(column=column, cell=_timed(batch, cell))


def keep_cell(keep: float) -> Cell:
    """Show a keep rate."""
    return Cell(f"{100 * keep:.3g} %", keep)


def estimate_cell(estimate: Interval | float | None, metric: Metric) -> Cell:
    """Show an estimate, with the ends of its interval where it has one."""
    if not isinstance(estimate, Interval):
        return UNMEASURED if estimate is None else Cell(metric.text(estimate), estimate)
    value, low, high = map(metric.text, estimate)
    return Cell(f"{value} [{low}, {high}]", estimate.estimate)


def shot_tables(groups: Sequence[Sequence[Average]], *, marked: bool = True) -> list[Table]:
    """Put top-1 at several numbers of shots side by side, one table for each kind of tuning.

    None where there is only one number of shots.

    Args:
        groups: of one dataset and tower, each of one number of shots and kind of tuning.
        marked: whether what is clear of the dense row at as many shots, judged over all of a
            table, has a mark.

    Raises:
        ValueError: other conditions differ.
    """
    return [_shot_table(columns, marked=marked) for columns in by_shots(groups)]


def by_shots(groups: Sequence[Sequence[Average]]) -> list[list[Sequence[Average]]]:
    """Return the groups of each kind of tuning, shots rising, where there are at least two.

    Args:
        groups: as for `shot_tables`; what is by text begins every kind.

    Raises:
        ValueError: conditions that don't follow from the shots differ.
    """
    kinds = dict.fromkeys(_kind(group) for group in groups if group[0].first.shots)
    by_text = [group for group in groups if not group[0].first.shots]
    every = [[*by_text, *(group for group in groups if _kind(group) == kind)] for kind in kinds]
    several = [columns for columns in every if len(columns) > 1]
    for columns in several:
        records = (r for group in columns for row in group for r in row.records)
        refuse_mixed(records, varying=BY_COLUMN)
    return [sorted(columns, key=lambda group: group[0].first.shots) for columns in several]


def _kind(group: Sequence[Average]) -> tuple[str | None, int | None]:
    return group[0].first.tuning, group[0].first.prompt_tokens


def _shot_table(groups: Sequence[Sequence[Average]], *, marked: bool) -> Table:
    columns = [{row.identity: row for row in group} for group in groups]
    names = {key: name for group in groups for key, name in labels(group).items()}
    models = {key: row.first for column in columns for key, row in column.items()}
    first, family = groups[-1][0].first, _shot_family(columns if marked else ())
    note = ""
    if family.alone:
        several = any(len(row.records) > 1 for group in groups for row in group)
        test = SIGN_FLIP if several else MCNEMAR
        note = mark_note(test, "all of this table", of="the dense model's at as many shots")
    top1 = metrics(type(first))["top1"]
    last = len(groups) - 1
    heads = [
        Column(
            heading=shots_of(group[0].first), forms=FORMS if at in (0, last) or last < 2 else _ROOMY
        )
        for at, group in enumerate(groups)
    ]
    rows = []
    for key, record in models.items():
        cells = []
        for at, column in enumerate(columns):
            cell = estimate_cell(column[key].top1 if key in column else None, top1)
            cells.append(Cell(cell, cell.value, family.mark((key, at))))
        rows.append([Cell(names[key], names[key]), keep_cell(record.keep), *cells])
    return Table(
        title=f"{first.dataset} {first.split}, top-1 by shots, {learned(first)}, {tower_of(first)}",
        caption="; ".join(filter(None, (_about_shots(groups), note))),
        columns=[Column(heading="Method", left=True), Column(heading="Keep"), *heads],
        rows=rows,
        models=[record.model for record in models.values()],
    )


def _shot_family(columns: Sequence[Mapping[str, Average]]) -> Together[tuple[str, int]]:
    """Judge every row at every number of shots against the dense one there, all together."""
    p_values: dict[tuple[str, int], float | None] = {}
    for at, column in enumerate(columns):
        dense = next((row for row in column.values() if row.method == DENSE), None)
        if dense is not None:
            for key, row in column.items():
                if row is not dense:
                    p_values[key, at] = row_p(row, dense)
    return together(p_values)


def _about_shots(groups: Sequence[Sequence[Average]]) -> str:
    """Say what the intervals are of, and on how many images."""
    first, last = groups[0][0], groups[-1][0]
    words = ["top-1 in % with 95 % intervals"]
    if not first.first.shots:
        words += ["0 shots: by text, Wilson"]
    count = len(last.records)
    words += [f"shots: mean of {count} seeds, t over seeds" if count > 1 else "shots: Wilson"]
    images = dict.fromkeys(group[0].first.image_count for group in groups)
    return f"{'; '.join(words)}; {' or '.join(map(str, images))} images"


def floor_table(rows: Sequence[Floor], seeds: int) -> Table:
    """Lay out methods beside random pruning."""
    first = rows[0]
    family = together({at: row.p_value for at, row in enumerate(rows)})
    return Table(
        title=f"{first.dataset} ({first.split}), against random pruning, mean of {seeds} orders",
        caption="in points; interval: 95 % paired bootstrap over images; " + mark_note(SIGN_FLIP),
        columns=_columns("method", "keep", "images", "top-1", "random", "difference"),
        rows=[
            [
                Cell(row.method, row.method),
                Cell(f"{100 * row.keep:.0f}", row.keep),
                Cell(str(row.image_count), row.image_count),
                _percent(row.top1),
                _percent(row.random_top1),
                points(row.difference, family.mark(at)),
            ]
            for at, row in enumerate(rows)
        ],
    )


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one section per keep rate of the target."""
    method, first = rows[0].target.method, rows[0].target.first
    family = together({at: row.p_value for at, row in enumerate(rows)})
    cells = []
    for at, row in enumerate(rows):
        own, gflops = row.difference is None, row.row.mean("gflops")
        cells.append(
            [
                Cell(f"{method} {100 * row.target.keep:.3g}" if own else ""),
                Cell(row.row.method, row.row.method),
                Cell(f"{100 * row.row.keep:.1f}", row.row.keep),
                UNMEASURED if gflops is None else Cell(f"{gflops:.3f}", gflops),
                UNMEASURED if own else Cell(f"{100 * row.off:+.2f} %", row.off),
                _percent(row.row.top1.estimate),
                points(row.difference, family.mark(at)),
                UNMEASURED if row.p_value is None else Cell(f"{row.p_value:.3f}", row.p_value),
            ]
        )
    return Table(
        title=f"at equal GFLOPs: {title(first, seeds(rows[0].target.records))}",
        caption=f"top-1 in %, the difference to {method} in points with 95 % paired bootstrap "
        f"interval; p: {exact_test(rows[0].target)}, one comparison at a time; "
        f"{mark_note('the same test', 'all differences of this table')}"
        f"{_lacking(row.row for row in rows)}",
        columns=_columns("at", "method", "keep", "GFLOPs", "off", "top-1", f"to {method}", "p"),
        rows=cells,
        sections=frozenset(at for at, row in enumerate(rows) if row.difference is None),
    )


def _columns(*headings: str) -> list[Column]:
    return [Column(heading=heading, left=heading == "method") for heading in headings]


def _percent(value: float) -> Cell:
    return Cell(f"{100 * value:.1f}", value)


def records_csv(records: Sequence[Record], runs: Sequence[str] = ()) -> str:
    """Return CSV with a line per record and every field; what was not measured is empty.

    Lists and settings are JSON. Of each batch size timed there is a column per figure.

    Args:
        records: at least one.
        runs: which run each record is from, the last column; none to leave it out.
    """
    batches = sorted({timed.batch for record in records for timed in record.latency})
    rows = [_csv_row(record, batches) for record in records]
    if runs:
        rows = [row | {"run": run} for row, run in zip(rows, runs, strict=True)]
    return csv_text(rows)


def _csv_row(record: Record, batches: Sequence[int]) -> dict[str, Any]:
    row = {
        f"{name}_{own.unit}" if own.unit else name: getattr(record, name)
        for name, own in declared(type(record)).items()
        if name != "latency"
    }
    times = {timed.batch: timed for timed in record.latency}
    names = [field.name for field in fields(Latency) if field.name != "batch"]
    for batch in batches:
        for name in names:
            row[f"latency_batch{batch}_{name}"] = getattr(times.get(batch), name, None)
    return row
