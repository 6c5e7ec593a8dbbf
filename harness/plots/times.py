"""Time over the dense model's against the batch size, as `latency` measured it."""

from collections.abc import Sequence

from harness.latency.record import VERDICTS, LatencyRecord
from harness.latency.tables import short_name
from harness.plots.chart import Chart, Point
from harness.plots.panel import Plot
from harness.report.times import TimedGroup
from harness.statistics import Interval

_APART = 0.07  # between models at one batch size


def batches_plot(groups: Sequence[TimedGroup]) -> Plot | None:
    """Return the ratio to dense by batch size, a panel for each table that has some."""
    panels = [panel for group in groups if (panel := _panel(group)) is not None]
    if not panels:
        return None
    about = (
        "Time over the dense model's in the same round, as the subcommand latency timed them: "
        "below 1 (dotted) is faster. Bars are 95 % intervals; one that reaches across 1 shows no "
        "difference. Batch sizes are evenly spaced, and models at one size stand side by side so "
        "that bars don't hide each other."
    )
    return Plot(name="ratio_batches", title="Time against batch size", about=about, panels=panels)


def _panel(group: TimedGroup) -> Chart | None:
    timed = [(row, ratio) for row in group.rows if (ratio := _ratio(row)) is not None]
    if not timed:
        return None
    batches = sorted({row.batch for row, _ in timed})
    names = list(dict.fromkeys(short_name(row) for row, _ in timed))
    series: dict[str, list[Point]] = {name: [] for name in names}
    for row, ratio in timed:
        name = short_name(row)
        at = batches.index(row.batch) + _APART * (names.index(name) - (len(names) - 1) / 2)
        series[name].append(Point(x=Interval(at, at, at), y=ratio))
    notes = [note for verdict in VERDICTS if (note := _told(verdict, [r for r, _ in timed]))]
    if doubtful := sum(bool(row.warnings) for row, _ in timed):
        notes.append(f"{doubtful} of these {len(timed)} times have warnings: see the table.")
    return Chart(
        title=group.name,
        alt=f"Time over dense's by batch size, {group.name}: {len(names)} models. {notes[0]}",
        x_label="batch size",
        y_label="time, × dense",
        series=series,
        level=1.0,
        ticks={float(at): str(batch) for at, batch in enumerate(batches)},
        notes=notes,
    )


def _ratio(row: LatencyRecord) -> Interval | None:
    if row.ratio_to_dense is None or row.ratio_low is None or row.ratio_high is None:
        return None
    return Interval(row.ratio_to_dense, row.ratio_low, row.ratio_high)


def _told(verdict: str, rows: Sequence[LatencyRecord]) -> str:
    """Say which models have a verdict, and at which batch sizes."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == verdict:
            found.setdefault(short_name(row), []).append(str(row.batch))
    told = "; ".join(f"{name} at batch {', '.join(own)}" for name, own in found.items())
    return f"{verdict.capitalize()}: {told}." if told else ""
