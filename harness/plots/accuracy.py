"""Top-1 against what it costs: multiply-adds, and measured time."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.averages import Average, labels
from harness.plots.chart import Chart, Point
from harness.plots.panel import Plot
from harness.records import Latency
from harness.report.front import Cost, Standing, standings
from harness.report.groups import Group
from harness.statistics import Interval
from harness.variants import DENSE

_FRONT = (
    "Hollow rows are clearly beaten: another costs no more, within 1 %, and is clearly more "
    "accurate. The line is the Pareto front of the rest by the estimates: no row is as cheap and "
    "as accurate as one on it and better in one of the two. Filled rows beside it may belong on "
    "it: images or timings are too few to say."
)
_BARS = "Vertical bars are 95 % intervals of top-1"


def gflops_plot(groups: Sequence[Group]) -> Plot | None:
    """Return top-1 against multiply-adds, a panel per group that has them."""
    return _plot(
        groups,
        lambda row: _exact(row.mean("gflops")),
        name="accuracy_gflops",
        title="Top-1 against GFLOPs",
        about=f"Multiply-adds are counted, so they have no interval. {_BARS}. {_FRONT}",
        x_label="GFLOPs per image",
    )


def ratio_plots(groups: Sequence[Group]) -> list[Plot]:
    """Return top-1 against time over dense's, a plot per batch size, a panel per group."""
    return _timed(
        groups,
        _ratio,
        name="accuracy_ratio_batch{}",
        title="Top-1 against time at batch {}, ratio to dense",
        about="Below 1 is faster than dense, timed in turns with it. Horizontal bars are the "
        f"ratios' intervals. {_BARS}. {_FRONT}",
        x_label="time, × dense",
    )


def time_plots(groups: Sequence[Group]) -> list[Plot]:
    """Return top-1 against milliseconds per image, a plot per batch size, a panel per group."""
    return _timed(
        groups,
        lambda timed, _: Interval(*(n / timed.batch for n in _quartiles(timed))),
        name="accuracy_ms_batch{}",
        title="Top-1 against time at batch {}, ms per image",
        about="Median of the rounds; horizontal bars are quartiles, which also hold the machine's "
        f"own swings, so trust the ratio more. {_BARS}. {_FRONT}",
        x_label="ms per image",
    )


def batches_of(groups: Iterable[Group]) -> list[int]:
    """Return the batch sizes that anything was timed at, rising."""
    rows = (row for group in groups for row in group.rows)
    return sorted({timed.batch for row in rows for timed in row.latency})


def judge(group: Group) -> dict[str, list[Standing]]:
    """Return where rows stand by each cost that was measured: ``gflops``, ``ratio_batch1``..."""
    costs: dict[str, Cost] = {"gflops": lambda row: _exact(row.mean("gflops"))}
    costs |= {f"ratio_batch{batch}": _of(batch, _ratio) for batch in batches_of([group])}
    found = {name: standings(group.rows, cost) for name, cost in costs.items()}
    return {name: stood for name, stood in found.items() if len(stood) > 1}


def _timed(
    groups: Sequence[Group],
    cost: Callable[[Latency, Average], Interval | None],
    *,
    name: str,
    title: str,
    about: str,
    x_label: str,
) -> list[Plot]:
    found = [
        _plot(
            groups,
            _of(batch, cost),
            name=name.format(batch),
            title=title.format(batch),
            about=about,
            x_label=x_label,
        )
        for batch in batches_of(groups)
    ]
    return [plot for plot in found if plot is not None]


def _of(batch: int, cost: Callable[[Latency, Average], Interval | None]) -> Cost:
    def of(row: Average) -> Interval | None:
        found = (cost(timed, row) for timed in row.latency if timed.batch == batch)
        return next(found, None)

    return of


def _ratio(timed: Latency, row: Average) -> Interval | None:
    if row.method == DENSE:
        return _exact(1.0)
    if timed.ratio_to_dense is None or timed.ratio_low is None or timed.ratio_high is None:
        return None
    return Interval(timed.ratio_to_dense, timed.ratio_low, timed.ratio_high)


def _quartiles(timed: Latency) -> tuple[float, float, float]:
    return timed.median_ms, timed.q1_ms, timed.q3_ms


def _exact(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, value, value)


def _plot(
    groups: Sequence[Group], cost: Cost, *, name: str, title: str, about: str, x_label: str
) -> Plot | None:
    """Return a panel per group in which at least two rows have the cost."""
    panels = [
        _panel(group, stood, f"{title}, {group.name}", x_label)
        for group in groups
        if len(stood := standings(group.rows, cost)) > 1
    ]
    return Plot(name=name, title=title, about=about, panels=panels) if panels else None


def _panel(group: Group, stood: Sequence[Standing], title: str, x_label: str) -> Chart:
    named = labels(group.rows)
    series: dict[str, list[Point]] = {}
    for one in sorted(
        stood, key=lambda s: (s.row.method != DENSE, named[s.row.identity], s.row.keep)
    ):
        top1 = Interval(*(100 * number for number in one.row.top1))
        point = Point(x=one.cost, y=top1, hollow=one.verdict == "beaten")
        series.setdefault(named[one.row.identity], []).append(point)
    on = sorted((one for one in stood if one.verdict == "front"), key=lambda s: s.cost.estimate)
    notes = front_notes(stood, named)
    left = [row for row in group.rows if row.identity not in {s.row.identity for s in stood}]
    if left:
        notes.append(f"Without this cost: {_listed(left, named)}.")
    dense = [one.row.top1.estimate for one in stood if one.row.method == DENSE]
    return Chart(
        title=group.name,
        alt=f"{title}: {len(stood)} rows. {notes[0]}",
        x_label=x_label,
        y_label="top-1, %",
        series=series,
        level=100 * dense[0] if dense else None,
        front=[(one.cost.estimate, 100 * one.row.top1.estimate) for one in on],
        notes=notes,
    )


def front_notes(stood: Sequence[Standing], named: Mapping[str, str]) -> list[str]:
    """Say which rows are on the front, which may be, and which clearly aren't."""
    ordered = sorted(stood, key=lambda one: one.cost.estimate)
    notes = []
    for verdict, words in (
        ("front", "On the front"),
        ("open", "Beside it, not clearly"),
    ):
        if rows := [one.row for one in ordered if one.verdict == verdict]:
            notes.append(f"{words}: {_listed(rows, named)}.")
    if beaten := [one for one in ordered if one.by is not None]:
        told = [
            f"{row_name(one.row, named)} (by {row_name(one.by, named)})" for one in beaten if one.by
        ]
        notes.append(f"Clearly beaten: {', '.join(told)}.")
    return notes


def row_name(row: Average, named: Mapping[str, str]) -> str:
    """Return what a row is called in a sentence."""
    name = named[row.identity]
    return name if row.method == DENSE else f"{name} {100 * row.keep:.3g} %"


def _listed(rows: Iterable[Average], named: Mapping[str, str]) -> str:
    return ", ".join(row_name(row, named) for row in rows)
