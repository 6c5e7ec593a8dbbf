"""Agreement with golden rankings against the keep rate."""

from collections.abc import Sequence

from harness.averages import labels
from harness.plots.chart import Chart, Point
from harness.plots.panel import Plot
from harness.report.groups import Group
from harness.statistics import Interval
from harness.variants import GOLDEN


def tau_plot(groups: Sequence[Group]) -> Plot | None:
    """Return Kendall tau against keep, a panel per group that has it."""
    panels = [panel for group in groups if (panel := _panel(group)) is not None]
    if not panels:
        return None
    about = (
        "Mean over images of Kendall τ between a method's ranking of the patches and the golden "
        "one: 1 is the same order, 0 (dotted) is no relation. Bars are 95 % bootstrap intervals "
        "over images. The golden row is left out, as it agrees with itself. High agreement isn't "
        "high accuracy: look at both."
    )
    return Plot(name="tau_keep", title="Kendall τ against keep rate", about=about, panels=panels)


def _panel(group: Group) -> Chart | None:
    named = labels(group.rows)
    series: dict[str, list[Point]] = {}
    for row in sorted(group.rows, key=lambda row: (named[row.identity], row.keep)):
        tau = row.interval("tau", "tau_low", "tau_high")
        if tau is not None and row.method != GOLDEN:
            keep = 100 * row.keep
            point = Point(x=Interval(keep, keep, keep), y=tau)
            series.setdefault(named[row.identity], []).append(point)
    if not series:
        return None
    means = {name: sum(p.y.estimate for p in own) / len(own) for name, own in series.items()}
    best = max(means, key=lambda name: means[name])
    ticks = sorted({point.x.estimate for own in series.values() for point in own})
    few = {tick: f"{tick:.3g}" for tick in ticks} if len(ticks) <= 6 else None
    return Chart(
        title=group.name,
        alt=f"Kendall τ against keep rate, {group.name}: {len(series)} methods; "
        f"{best} agrees most with the golden ranking, {means[best]:.2f} on average.",
        x_label="keep rate, %",
        y_label="Kendall τ to golden",
        series=series,
        level=0.0,
        ticks=few,
    )
