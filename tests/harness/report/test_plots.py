"""What plots show is what records say; how it is drawn is the same every time."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from by_hand import part, replace

from harness.records.record import Record
from harness.records.times import LatencyRecord
from harness.report.changes import read_run
from harness.report.charts import FRONT, INK, LINES, STYLES, Dot, Plot, draw, encode, render, styles_of
from harness.report.groups import Grouped, group_records, group_times
from harness.report.highlights import fronts, highlights
from harness.report.plots import plots_of

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="session")
def committed() -> list[Record]:
    return read_run(RESULTS)


@pytest.fixture(scope="session")
def report(committed: list[Record]) -> Grouped:
    return group_records(committed)


@pytest.fixture(scope="session")
def with_shots(committed: list[Record]) -> Grouped:
    """The run by text, and as if it were learned from one and two shots."""
    learned = [
        replace(record, shots=shots, tuning="probe", seed=0, latency=())
        for shots in (1, 2)
        for record in committed
        if record.method != "tome" or shots == 2
    ]
    return group_records([*committed, *learned])


def plots(report: Grouped) -> dict[str, Plot]:
    short = [highlights(group) for group in report.groups]
    return {plot.name: plot for plot in plots_of(report, short)}


def points(plot: Plot | None, at: int = 0) -> dict[str, Sequence[Dot]]:
    assert plot is not None
    return dict(plot.charts[at].series)


def of(committed: list[Record], dataset: str) -> list[Record]:
    return [record for record in committed if record.dataset == dataset]


@pytest.mark.parametrize(("at", "dataset"), [(0, "fashion"), (1, "emoji")])
def test_accuracy_against_cost_has_every_row_with_its_intervals(
    at: int, dataset: str, report: Grouped, committed: list[Record]
):
    own = {(r.method, r.keep): r for r in of(committed, dataset) if r.mean("gflops") is not None}
    shown = points(plots(report)["accuracy_gflops"], at)
    assert sum(map(len, shown.values())) == len(own) == 13
    for name, series in shown.items():
        rows = sorted((r for r in own.values() if r.method == name), key=lambda r: r.keep)
        for point, row in zip(series, rows, strict=True):
            assert tuple(point.x) == (row.mean("gflops"),) * 3
            paired = (
                (0.0,) * 3
                if name == "dense"
                else (row.mean("diff_to_dense"), part(row, "diff_low"), part(row, "diff_high"))
            )
            assert point.y == pytest.approx(tuple(100 * number for number in paired))
            assert point.label == ("" if name == "dense" else f"{100 * row.keep:.0f}")


def test_the_front_is_a_staircase_of_its_rows_and_the_words_name_them(report: Grouped):
    plot = plots(report)["accuracy_gflops"]
    panel = plot.charts[0]
    [stood] = [front.standings for front in fronts(report.groups[0]) if front.name == "gflops"]
    front = [s.row for s in stood if s.verdict == "front"]
    on = sorted((r.first.mean("gflops"), 100 * r.to_dense.estimate if r.to_dense else 0.0) for r in front)
    assert list(panel.front) == on
    assert sorted(y for _, y in on) == [y for _, y in on]
    assert panel.notes[0].count("%") + panel.notes[0].count("dense") == len(on)
    assert "random 30 % (by rankmerge 30 %)" in " ".join(panel.notes)
    assert "Without this cost or a difference to dense: golden 60 %, golden 30 %." in panel.notes
    hollow = {name for name, series in panel.series.items() if any(p.hollow for p in series)}
    assert hollow == {"random"}


def test_a_logarithmic_axis_has_plain_numbers(report: Grouped):
    plot = plots(report)["fidelity_gflops"]
    words = "".join(ET.fromstring(render(plot.charts)).itertext())
    assert {"0.01", "0.02", "0.05"} <= set(words.split())
    assert "mathdefault" not in words


def test_random_does_not_stretch_the_axes_and_stands_at_the_edge_with_its_figure(report: Grouped):
    plot = plots(report)["accuracy_gflops"]
    svg = encode(draw(plot.charts[:1], small=True), "svg")
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert "30 -34" in texts
    assert "60" in texts
    assert min(float(text.replace("\u2212", "-")) for text in texts if re.fullmatch("\u2212\\d+", text or "")) >= -15


def test_tau_against_keep_leaves_golden_out(report: Grouped, committed: list[Record]):
    shown = points(plots(report)["tau_keep"])
    assert sorted(shown) == ["clsattn", "evit", "patchrank", "random", "rankmerge", "tome"]
    row = next(r for r in of(committed, "fashion") if r.model == "clip_vit_s14_evit30")
    assert tuple(shown["evit"][0].y) == row.interval("tau")
    assert shown["evit"][0].x.estimate == 30


def test_methods_that_share_a_course_share_a_line(report: Grouped):
    plot = plots(report)["tokens_per_block"]
    [panel] = plot.charts  # both datasets have the same
    counts = {name: tuple(dot.y.estimate for dot in dots) for name, dots in panel.series.items()}
    assert counts["clsattn, patchrank, random 60 %"] == (197,) * 3 + (119,) * 6
    assert counts["tome 30 %"] == (182, 167, 151, 136, 121, 106, 90, 75, 60)
    assert panel.steps
    assert "clsattn, patchrank, random 60 %: 197 × 3, 119 × 6" in panel.notes[0]


def test_shots_have_a_panel_per_keep_and_dense_in_each(with_shots: Grouped):
    plot = plots(with_shots)["shots"]
    assert [panel.title.rpartition(", ")[2] for panel in plot.charts] == [
        "keep 60 %", "keep 30 %",
    ] * 2  # fmt: skip
    panel = plot.charts[0]
    assert panel.ticks == {0: "0", 1: "1", 2: "2"}
    assert "dense" in panel.series
    near = {name: [round(p.x.estimate) for p in own] for name, own in panel.series.items()}
    assert near.pop("tome") == [0, 2]
    assert set(map(tuple, near.values())) == {(0, 1, 2)}
    places = [p.x.estimate for own in panel.series.values() for p in own]
    assert len(set(places)) == len(places)  # no bar hides another


def test_every_plot_is_an_svg_of_its_words_and_a_png(report: Grouped):
    """One of each kind."""
    own = plots(report)
    for plot in (own["accuracy_gflops"], own["tokens_per_block"]):
        words = "".join(ET.fromstring(render(plot.charts)).itertext())
        for chart in plot.charts:
            assert all(name in words for name in chart.series)
            assert len(chart.alt) > 40
        assert (FRONT in words) == plot.name.startswith("accuracy")
    assert render(plot.charts, form="png").startswith(b"\x89PNG")


def test_styles_differ_in_more_than_colour():
    names = [f"method{at:02d}" for at in range(len(STYLES) * len(LINES))]
    styles = styles_of([*names, "dense"])
    assert len({style.colour for style in styles.values()}) == len(STYLES) + 1
    without_colour = [(style.marker, style.line) for style in styles.values()]
    assert len(set(without_colour)) == len(without_colour)
    assert styles["dense"].colour == INK
    assert styles_of(["b", "a"]) == styles_of(["a", "b", "a"])


Make = Callable[..., LatencyRecord]


def test_a_panel_per_condition_with_every_ratio(latency_record: Make, reduced_time: Make):
    times = [
        record
        for dtype in ("float32", "bfloat16")
        for batch in (1, 32)
        for record in (
            latency_record(batch=batch, dtype=dtype),
            reduced_time("tome", 0.7, batch=batch, dtype=dtype),
            reduced_time("evit", 1.2, batch=batch, dtype=dtype, warnings=("drift",)),
        )
    ]
    [plot] = plots_of(Grouped(groups=[]), [], group_times(times))
    assert plot.name == "ratio_batches"
    assert ["bfloat16" in panel.title for panel in plot.charts] == [False, True]
    panel = plot.charts[0]
    assert list(panel.series) == ["tome60", "evit60"]
    for point, row in zip(panel.series["tome60"], (times[1], times[4]), strict=True):
        assert tuple(point.y) == row.ratio
    assert [round(p.x.estimate) for p in panel.series["evit60"]] == [0, 1]
    places = [p.x.estimate for own in panel.series.values() for p in own]
    assert len(set(places)) == len(places)  # no bar hides another
    assert (panel.ticks, panel.level) == ({0: "1", 1: "32"}, 1.0)
    assert list(panel.notes) == ["2 of these 4 times have warnings: see the table."]
