"""Plots of records and times: which rows they show, and the words that go with them."""

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import TypeVar

from harness.records.averages import Average, judged_on, labels, learned, shots_of, tower_of
from harness.records.conditions import DENSE, GOLDEN, RANDOM
from harness.records.metrics import METRICS, Metric
from harness.records.statistics import Interval
from harness.records.times import LatencyRecord, short_name
from harness.report.charts import Chart, Dot, Plot
from harness.report.groups import Group, Grouped, TimedGroup, shot_columns
from harness.report.highlights import (
    TOP1,
    Cost,
    Front,
    Highlights,
    Standing,
    exact,
    front_notes,
    list_rows,
    qualities,
    row_name,
)
from harness.report.tables import short_heading

T = TypeVar("T")

DRAWN = 6  # groups that are drawn, the first, unless all are asked for: a chart takes a while
_SPREAD = 0.07  # between rows at one number of shots, and between models at one batch size
_LABELLED = 24  # dots of a chart that have their keep rates beside them; of more, the ends of each series
_NAMES = {"top1": "accuracy", "cosine_distance": "fidelity"}  # of files of plots
_TOP1 = f"{short_heading(TOP1)}, %"
_RATIO = "time, × dense"
_COUNTED = "Multiply-adds are counted, so they have no interval."
_TIMED = "Below 1 is faster than dense, timed in turns with it. Horizontal bars are the ratios' intervals."
_FRONT = (
    "Vertical bars are 95 % intervals, of top-1 that of the difference to dense on the same images; beside a dot "
    "stands its keep rate in %, and at the edge random pruning where the axes would be stretched for it. "
    "Hollow rows are clearly beaten: the best row that costs no more, within 1 %, is clearly {}. The line "
    "is the Pareto front of the rest by the estimates: no row is as cheap and as good as one on it "
    "and better in one of the two. Filled rows beside it may belong on it: images or timings are too "
    "few to say. Random pruning is a control and takes no part in the front."
)


_MEASURED_BY: dict[str | tuple[str, ...], tuple[str, str]] = {  # by the beginning of a plot's name
    ("accuracy_ratio", "fidelity_ratio"): ("Quality against time", "--batches 1 32"),
    "tau_keep": ("Kendall τ against keep rate", "--methods golden patchrank"),
    "shots": ("Top-1 by shots", "--shots 0 1 4 16"),
    "agreement": ("Agreement of rankings", "--fresh"),
}


_OTHERS = {  # title, and what it shows and how to read it
    "tau_keep": (
        f"{METRICS['tau'].heading} against keep rate",
        "Mean over images of Kendall τ between a method's ranking of the patches and the golden "
        "one: 1 is the same order, 0 (dotted) is no relation. Bars are 95 % bootstrap intervals "
        "over images. The golden row is left out, as it agrees with itself. High agreement isn't "
        "high accuracy: look at both.",
    ),
    "tokens_per_block": (
        "Tokens per block",
        "Tokens that leave each block, class token and learned tokens included; the area below a "
        "line is about what the blocks cost. Methods that share a line share its name.",
    ),
    "shots": (
        "Top-1 by shots",
        "Numbers of labelled images per class, evenly spaced; 0 is by text. Bars are 95 % "
        "intervals: Wilson's for one seed, Student's over several. Rows at one number stand "
        "side by side so that bars don't hide each other.",
    ),
    "ratio_batches": (
        "Time against batch size",
        "Time over the dense model's in the same round, as the subcommand latency timed them: "
        "below 1 (dotted) is faster. Bars are 95 % intervals; one that reaches across 1 shows no "
        "difference. Batch sizes are evenly spaced, and models at one size stand side by side so "
        "that bars don't hide each other.",
    ),
}


def plots_of(
    report: Grouped, short: Sequence[Highlights], times: Sequence[TimedGroup] = (), most: int | None = None
) -> list[Plot]:
    """Return the plots that there are figures for, of records in groups and of times.

    ``most`` is how many charts a plot has at most; None for all.
    """
    shots = [
        _shot_chart(columns, keep)
        for columns in shot_columns(report)
        for keep in sorted({row.keep for own in columns for row in own if row.method != DENSE}, reverse=True)
    ]
    charts: dict[str, Sequence[Chart | None]] = {
        "tau_keep": [_tau_chart(group) for group in report.groups[:most]],
        "tokens_per_block": _token_charts(report.groups[:most]),
        "shots": shots[:most],
        "ratio_batches": [_batch_chart(group) for group in times[:most]],
    }
    others = [
        Plot(name=name, title=_OTHERS[name][0], about=_OTHERS[name][1], charts=known)
        for name, own in charts.items()
        if (known := [chart for chart in own if chart is not None])
    ]
    return [*quality_plots(short[:most]), *others]


def describe_missing(names: Collection[str]) -> list[str]:
    """Say which plots and pictures are not among those of these names, and how their figures are measured."""
    return [
        f"{title}: not measured; patchrank compare {flags} measures it"
        for start, (title, flags) in _MEASURED_BY.items()
        if not any(name.startswith(start) for name in names)
    ]


def quality_plots(short: Sequence[Highlights]) -> list[Plot]:
    """Return fidelity and top-1 against each cost, a chart per group in which two rows have both."""
    fronts: dict[tuple[Metric, Cost], list[tuple[Group, Front]]] = {}
    for one in short:
        for front in one.fronts:
            fronts.setdefault((front.metric, front.cost), []).append((one.group, front))
    better = " or ".join(words for _, words in qualities().values())
    metrics = list(qualities())
    return [
        Plot(
            name=f"{_NAMES.get(metric.name, metric.name)}_{cost.name}",
            title=_against(metric, cost),
            about=f"{_COUNTED if cost.batch is None else _TIMED} {_FRONT.format(better)}",
            charts=[_quality_chart(group, front) for group, front in fronts[metric, cost]],
            axis=_axis(cost),
        )
        # The time that a user waits comes first, at the largest batch size.
        for metric, cost in sorted(fronts, key=lambda key: (metrics.index(key[0]), -(key[1].batch or 0)))
    ]


def _axis(cost: Cost) -> str:
    return cost.words if cost.batch is None else f"{cost.words}, ratio to dense"


def _against(metric: Metric, cost: Cost) -> str:
    name = f"{short_heading(TOP1)} to dense" if metric == TOP1 else metric.heading
    return f"{name[0].upper()}{name[1:]} against {_axis(cost)}"


def _quality_chart(group: Group, front: Front) -> Chart:
    """Plot distance to dense, or the paired difference to it in top-1; without a dense row top-1 itself."""
    names, metric = labels(group.rows), front.metric
    paired = metric == TOP1 and any(row.to_dense is not None for row in group.rows)
    factor = 100 if metric == TOP1 else 1

    def height(row: Average) -> Interval | None:
        estimate = exact(0.0) if paired and row.method == DENSE else row.to_dense if paired else row.estimate(metric)
        return Interval(*(factor * number for number in estimate)) if isinstance(estimate, Interval) else None

    heights = {one.row.identity: high for one in front.standings if (high := height(one.row)) is not None}
    rows = sorted(
        (one for one in front.standings if one.row.identity in heights),
        key=lambda one: (one.row.method != DENSE, names[one.row.identity], one.row.keep),
    )
    own: dict[str, list[str]] = {}
    for one in rows:
        own.setdefault(names[one.row.identity], []).append(one.row.identity)
    ends = {key for keys in own.values() for key in (keys[0], keys[-1])}

    def dot(one: Standing) -> Dot:
        named = one.row.method != DENSE and (len(rows) <= _LABELLED or one.row.identity in ends)
        label = f"{100 * one.row.keep:.3g}" if named else ""
        return Dot(one.cost, heights[one.row.identity], one.verdict == "beaten", label)

    notes = list(front_notes(rows, names).values())
    lacking = [row for row in group.rows if row.identity not in heights and row.mean(metric.name) is not None]
    if lacking:
        notes.append(
            f"Without this cost or a difference to dense: {list_rows([row_name(row, names) for row in lacking])}."
        )
    dense = [heights[one.row.identity].estimate for one in rows if one.row.method == DENSE]
    heading = _TOP1 if metric == TOP1 else f"{metric.heading} to dense"
    return Chart(
        title=group.name,
        alt=f"{_against(metric, front.cost)}, {group.name}: {len(rows)} rows. {notes[0]}",
        x_label=f"{front.cost.words} per image" if front.cost.batch is None else _RATIO,
        y_label=f"{short_heading(TOP1)} to dense, points" if paired else heading,
        series=_series(rows, lambda one: names[one.row.identity], dot),
        level=dense[0] if dense else None,
        front=sorted((one.cost.estimate, heights[one.row.identity].estimate) for one in rows if one.verdict == "front"),
        log=metric != TOP1,
        aside=RANDOM,
        notes=notes,
    )


def _tau_chart(group: Group) -> Chart | None:
    names, heading = labels(group.rows), METRICS["tau"].heading
    taus = [
        (row, tau)
        for row in sorted(group.rows, key=lambda row: (names[row.identity], row.keep))
        if row.method != GOLDEN and (own := row.measured("tau")) is not None and (tau := own.interval) is not None
    ]
    if not taus:
        return None
    series = _series(taus, lambda one: names[one[0].identity], lambda one: Dot(exact(100 * one[0].keep), one[1]))
    means = {name: sum(dot.y.estimate for dot in own) / len(own) for name, own in series.items()}
    best = max(means, key=lambda name: means[name])
    ticks = sorted({100 * row.keep for row, _ in taus})
    return Chart(
        title=group.name,
        alt=f"{heading} against keep rate, {group.name}: {len(series)} methods; "
        f"{best} agrees most with the golden ranking, {means[best]:.2f} on average.",
        x_label="keep rate, %",
        y_label=f"{heading} to golden",
        series=series,
        level=0.0,
        ticks={tick: f"{tick:.3g}" for tick in ticks} if len(ticks) <= 6 else None,
    )


def _token_charts(groups: Sequence[Group]) -> list[Chart]:
    """Plot tokens per block, a chart for each set of rows; datasets share it where all is one."""
    shared: dict[tuple[tuple[str, tuple[float, ...]], ...], list[str]] = {}
    for group in groups:
        if courses := _courses(group.rows):
            shared.setdefault(tuple(courses.items()), []).append(group.name)
    return [_token_chart(dict(courses), names) for courses, names in shared.items()]


def _courses(rows: Sequence[Average]) -> dict[str, tuple[float, ...]]:
    """Return tokens per block by the names of the rows that have them so."""
    names = labels(rows)
    shared: dict[tuple[str, tuple[float, ...]], dict[str, None]] = {}
    for row in rows:
        counts = row.first.tokens_per_block
        if counts is not None:
            key = (f"{100 * row.keep:.3g} %", tuple(counts))
            shared.setdefault(key, {})[names[row.identity]] = None
    return {f"{', '.join(own)} {keep}": counts for (keep, counts), own in shared.items()}


def _token_chart(courses: dict[str, tuple[float, ...]], groups: Sequence[str]) -> Chart:
    depth = max(map(len, courses.values()))
    runs = {name: [(count, len(list(same))) for count, same in groupby(own)] for name, own in courses.items()}
    words = (
        f"{name}: {', '.join(f'{count} × {length}' if length > 1 else str(count) for count, length in own)}"
        for name, own in runs.items()
    )
    return Chart(
        title="; ".join(groups),
        alt=f"Tokens per block, {'; '.join(groups)}: {len(courses)} different courses.",
        x_label="block",
        y_label="tokens that leave it",
        series={name: [Dot(exact(at), exact(n)) for at, n in enumerate(counts)] for name, counts in courses.items()},
        steps=True,
        ticks={float(at): str(at) for at in range(0, depth, 1 if depth <= 12 else 2)},
        notes=[f"{'; '.join(words)}."],
    )


def _shot_chart(columns: Sequence[Sequence[Average]], keep: float) -> Chart | None:
    names = {key: name for column in columns for key, name in labels(column).items()}
    every: dict[str, dict[int, Interval]] = {}
    for at, column in enumerate(columns):
        for row in column:
            if row.top1 is not None and (row.method == DENSE or row.keep == keep):
                every.setdefault(names[row.identity], {})[at] = Interval(*(100 * number for number in row.top1))
    # At one number of shots a row is no curve.
    curves = {name: values for name, values in every.items() if len(values) > 1}
    if not curves:
        return None
    first = columns[-1][0].first
    title = f"{first.dataset} {judged_on(first)}, {learned(first)}, {tower_of(first)}, keep {100 * keep:.3g} %"
    last = {name: values[max(values)].estimate for name, values in curves.items()}
    return Chart(
        title=title,
        alt=f"Top-1 by shots, {title}. At the most shots of each, {shots_of(first)} at most: "
        f"{', '.join(f'{name} {value:.1f} %' for name, value in last.items())}.",
        x_label="shots per class",
        y_label=_TOP1,
        series={
            name: [Dot(_beside(at, nth, len(curves)), top1) for at, top1 in sorted(values.items())]
            for nth, (name, values) in enumerate(curves.items())
        },
        ticks={float(at): str(column[0].first.shots) for at, column in enumerate(columns)},
    )


def _batch_chart(group: TimedGroup) -> Chart | None:
    timed = [(row, row.ratio) for row in group.rows if row.ratio is not None]
    if not timed:
        return None
    rows = [row for row, _ in timed]
    batches = sorted({row.batch for row in rows})
    names = list(dict.fromkeys(map(short_name, rows)))

    def dot(one: tuple[LatencyRecord, Interval]) -> Dot:
        return Dot(_beside(batches.index(one[0].batch), names.index(short_name(one[0])), len(names)), one[1])

    doubtful = sum(bool(row.warnings) for row in rows)
    return Chart(
        title=group.name,
        alt=f"Time over dense's by batch size, {group.name}: {len(names)} models.",
        x_label="batch size",
        y_label=_RATIO,
        series=_series(timed, lambda one: short_name(one[0]), dot),
        level=1.0,
        ticks={float(at): str(batch) for at, batch in enumerate(batches)},
        notes=[f"{doubtful} of these {len(rows)} times have warnings: see the table."] if doubtful else [],
    )


def _series(rows: Sequence[T], name: Callable[[T], str], dot: Callable[[T], Dot]) -> dict[str, list[Dot]]:
    """Return a dot per row, by the name of its series."""
    series: dict[str, list[Dot]] = {}
    for row in rows:
        series.setdefault(name(row), []).append(dot(row))
    return series


def _beside(at: float, nth: int, count: int) -> Interval:
    """Return where the nth of some rows stands that would all be at one place."""
    return exact(at + _SPREAD * (nth - (count - 1) / 2))
