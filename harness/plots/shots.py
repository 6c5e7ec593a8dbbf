"""Top-1 by number of shots."""

from collections.abc import Sequence

from harness.averages import Average, labels
from harness.plots.chart import Chart, Point
from harness.plots.panel import Plot
from harness.protocol import learned, shots_of, tower_of
from harness.statistics import Interval
from harness.variants import DENSE

_APART = 0.07  # between rows at one number of shots


def shots_plot(tables: Sequence[Sequence[Sequence[Average]]]) -> Plot | None:
    """Return top-1 by shots, a panel for each table of shots and keep rate.

    Args:
        tables: what `report.sections.shot_columns` returns.
    """
    panels = [
        panel
        for columns in tables
        for keep in _keeps(columns)
        if (panel := _panel(columns, keep)) is not None
    ]
    if not panels:
        return None
    about = (
        "Numbers of labelled images per class, evenly spaced; 0 is by text. Bars are 95 % "
        "intervals: Wilson's for one seed, Student's over several. Rows at one number stand "
        "side by side so that bars don't hide each other."
    )
    return Plot(name="shots", title="Top-1 by shots", about=about, panels=panels)


def _keeps(columns: Sequence[Sequence[Average]]) -> list[float]:
    rows = (row for column in columns for row in column)
    return sorted({row.keep for row in rows if row.method != DENSE}, reverse=True)


def _panel(columns: Sequence[Sequence[Average]], keep: float) -> Chart | None:
    named = {key: name for column in columns for key, name in labels(column).items()}
    found: dict[str, dict[int, Interval]] = {}
    for place, column in enumerate(columns):
        for row in column:
            if row.method == DENSE or row.keep == keep:
                found.setdefault(named[row.identity], {})[place] = row.top1
    # At one number of shots a row is no curve.
    curves = {name: values for name, values in found.items() if len(values) > 1}
    if not curves:
        return None
    middle = (len(curves) - 1) / 2
    series = {
        name: [_point(at + _APART * (nth - middle), top1) for at, top1 in sorted(values.items())]
        for nth, (name, values) in enumerate(curves.items())
    }
    first, shots = columns[-1][0].first, [column[0].first.shots for column in columns]
    title = (
        f"{first.dataset} {first.split}, {learned(first)}, {tower_of(first)}, "
        f"keep {100 * keep:.3g} %"
    )
    last = {name: 100 * values[max(values)].estimate for name, values in curves.items()}
    return Chart(
        title=title,
        alt=f"Top-1 by shots, {title}. At the most shots of each, {shots_of(first)} at most: "
        f"{', '.join(f'{name} {value:.1f} %' for name, value in last.items())}.",
        x_label="shots per class",
        y_label="top-1, %",
        series=series,
        ticks={float(at): str(count) for at, count in enumerate(shots)},
    )


def _point(at: float, top1: Interval) -> Point:
    return Point(x=Interval(at, at, at), y=Interval(*(100 * number for number in top1)))
