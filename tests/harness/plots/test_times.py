"""The plot of time against batch size shows ratios with their intervals, and the verdicts."""

from collections.abc import Callable
from dataclasses import replace

from harness.latency.record import LatencyRecord
from harness.plots.chart import Chart
from harness.plots.times import batches_plot
from harness.report.times import timed_groups

Make = Callable[..., LatencyRecord]
DENSE_MS = (10.0, 11.0, 10.5, 10.2, 10.1, 10.3)


def model(make: Make, method: str, factor: float, **more) -> LatencyRecord:
    name = f"clip_vit_b16_{method}60"
    samples = tuple(factor * ms for ms in DENSE_MS)
    return make(samples, DENSE_MS, model=name, method=method, keep=0.6, **more)


def test_a_panel_per_condition_with_every_ratio(latency_record: Make):
    times = [
        record
        for dtype in ("float32", "bfloat16")
        for batch in (1, 32)
        for record in (
            latency_record(batch=batch, dtype=dtype),
            model(latency_record, "tome", 0.7, batch=batch, dtype=dtype),
            model(latency_record, "evit", 1.2, batch=batch, dtype=dtype, warnings=("drift",)),
        )
    ]
    plot = batches_plot(timed_groups(times))
    assert plot is not None
    assert plot.name == "ratio_batches"
    assert ["bfloat16" in panel.title for panel in plot.panels] == [False, True]
    panel = plot.panels[0]
    assert isinstance(panel, Chart)
    assert list(panel.series) == ["tome60", "evit60"]
    for point, row in zip(panel.series["tome60"], (times[1], times[4]), strict=True):
        assert tuple(point.y) == (row.ratio_to_dense, row.ratio_low, row.ratio_high)
    assert [round(p.x.estimate) for p in panel.series["evit60"]] == [0, 1]
    places = [p.x.estimate for own in panel.series.values() for p in own]
    assert len(set(places)) == len(places)  # no bar hides another
    assert (panel.ticks, panel.level) == ({0: "1", 1: "32"}, 1.0)
    assert list(panel.notes) == [
        "Faster: tome60 at batch 1, 32.",
        "Slower: evit60 at batch 1, 32.",
        "2 of these 4 times have warnings: see the table.",
    ]


def test_what_shows_no_difference_is_called_so(latency_record: Make):
    row = replace(
        model(latency_record, "tome", 0.9), ratio_low=0.8, ratio_high=1.1, verdict="not shown"
    )
    plot = batches_plot(timed_groups([latency_record(), row]))
    assert plot is not None
    assert list(plot.panels[0].notes) == ["Not shown: tome60 at batch 1."]


def test_without_ratios_there_is_none(latency_record: Make):
    assert batches_plot(timed_groups([latency_record()])) is None
    assert batches_plot([]) is None
