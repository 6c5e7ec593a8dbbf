"""What plots show is what records say; how it is drawn is the same every time."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from by_hand import part

from harness.records.record import Record, read_run
from harness.report.charts import FRONT, Plot, draw, encode, render
from harness.report.groups import group_records
from harness.report.highlights import Highlights, highlights, plots_of

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="session")
def committed() -> list[Record]:
    return read_run(RESULTS)


@pytest.fixture(scope="session")
def short(committed: list[Record]) -> list[Highlights]:
    return [highlights(group) for group in group_records(committed)]


@pytest.fixture(scope="session")
def plots(short: list[Highlights]) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots_of(short)}


@pytest.mark.parametrize(("at", "dataset"), [(0, "fashion"), (1, "emoji")])
def test_accuracy_against_cost_has_every_row_with_its_intervals(at: int, dataset: str, plots, committed: list[Record]):
    own = [r for r in committed if r.dataset == dataset and r.mean("gflops") is not None]
    shown = plots["accuracy_gflops"].charts[at].series
    assert sum(map(len, shown.values())) == len(own) == 13
    for name, series in shown.items():
        rows = sorted((r for r in own if r.method == name), key=lambda r: r.keep)
        for point, row in zip(series, rows, strict=True):
            assert tuple(point.x) == (row.mean("gflops"),) * 3
            paired = [row.mean("diff_to_dense"), part(row, "diff_low"), part(row, "diff_high")]
            assert point.y == pytest.approx((0.0,) * 3 if name == "dense" else [100 * number for number in paired])
            assert point.label == ("" if name == "dense" else f"{100 * row.keep:.0f}")


def test_the_front_is_a_staircase_of_its_rows(plots, short: list[Highlights]):
    panel = plots["accuracy_gflops"].charts[0]
    [stood] = [front.standings for front in short[0].fronts if front.name == "gflops"]
    front = [s.row for s in stood if s.verdict == "front"]
    on = sorted((r.first.mean("gflops"), 100 * r.to_dense.estimate if r.to_dense else 0.0) for r in front)
    assert list(panel.front) == on
    assert sorted(y for _, y in on) == [y for _, y in on]
    assert {name for name, series in panel.series.items() if any(p.hollow for p in series)} == {"random"}


def test_drawings_have_their_words_plain_numbers_and_random_at_the_edge(plots):
    fidelity, accuracy = (plots[f"{name}_gflops"].charts for name in ("fidelity", "accuracy"))
    words = "".join(ET.fromstring(render(fidelity)).itertext())
    assert {"0.01", "0.02", "0.05"} <= set(words.split())
    assert "mathdefault" not in words
    for chart in fidelity:
        assert all(name in words for name in (*chart.series, FRONT))
    svg = encode(draw(accuracy[:1], small=True), "svg")
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"30 -34", "60"} <= set(texts)
    assert min(float(text.replace("\u2212", "-")) for text in texts if re.fullmatch("\u2212\\d+", text)) >= -15
    assert render(accuracy[:1], form="png").startswith(b"\x89PNG")
