"""Which method is best at which cost: the rule against a slow search, its words, and plots of what records say."""

import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import UNLABELLED, part, per_image, replace, timed

from harness.records.record import Record, read_run
from harness.records.statistics import holm, sign_flip
from harness.report.charts import Plot, draw, render
from harness.report.highlights import headline, plots_of, standings
from harness.report.tables import group_records

RESULTS = Path(__file__).parents[3] / "docs" / "results"
DISTANCE = "cosine_distance"


def near(row: Any, dataset: str, distances: dict[str, float], **more: Any) -> list[Record]:
    """Return rows of equal cost, so far from dense on average on the same 100 images."""
    spread = np.random.default_rng(0).normal(0, 0.004, size=(len(distances), 100))
    own = {"shots": 0, "tuning": None, "dataset": dataset} | more
    return [replace(row("dense", 1.0, 70, 4.0), **own)] + [
        replace(row(method, 0.6, 70, 2.0), **own, **per_image("cosine_distance", mean + noise))
        for (method, mean), noise in zip(distances.items(), spread, strict=True)
    ]


def test_the_nearest_method_is_named_where_all_others_are_clearly_further(row: Any):
    """All pairs of all datasets are judged together; random pruning and golden rankings, here nearest, don't count."""
    records = [
        *near(row, "fashion", {"patchrank": 0.02, "tome": 0.011, "evit": 0.0105, "random": 0.001, "golden": 0.002}),
        *near(row, "photos", {"patchrank": 0.02, "tome": 0.01, "evit": 0.03}, **UNLABELLED),
        *near(row, "emoji", {"patchrank": 0.02, "tome": 0.01, "evit": 0.04}),
    ]
    [standing] = standings(group_records(records))
    assert [group.first.dataset for group in standing.groups] == ["photos", "fashion", "emoji"]
    p_values = {
        (a.dataset, a.method, b.method): sign_flip(a.per_image(DISTANCE) - b.per_image(DISTANCE))
        for a, b in combinations([r for r in records if r.method not in ("dense", "random", "golden")], 2)
        if a.dataset == b.dataset
    }
    assert len(p_values) == 9
    clear = {key for key, p in zip(p_values, holm(list(p_values.values())), strict=True) if p <= 0.05}
    assert set(p_values) - clear == {("fashion", "tome", "evit")}
    [text] = headline(standings(group_records(records)))
    assert text.startswith("At 50 % of dense's multiply-adds, tome stays nearest to dense on photos and emoji (")
    value = {
        r.method: "{:.4f} [{:.4f}, {:.4f}]".format(*r.metrics[DISTANCE].interval)
        for r in records
        if r.dataset == "photos"
        if r.method != "dense"
    }
    assert f"{value['tome']} on photos, against {value['patchrank']} of patchrank" in text
    assert text.endswith("; evit and tome may each be nearest on fashion.")

    [table] = [one.table() for one in standings(group_records(records))]
    assert table.cells("Method") == ["dense", "tome", "patchrank", "evit"]
    marks = [[cell.mark for cell in table.cells(f"1 - cosine, {name}")] for name in ("photos", "fashion")]
    assert marks == [["", "", "*", "*"], ["", "", "*", ""]]
    assert table.cells("Top-1, %, fashion")[0].value == 0.7
    alone = [record for record in records if record.method in ("dense", "tome", "random")]
    assert headline(standings(group_records(alone))) == []


def test_rows_of_equal_time_have_a_sentence_of_their_own(row: Any):
    dense, *rows = near(row, "photos", {"patchrank": 0.02, "tome": 0.01})
    setting = {"time_of": "patchrank", "keeps": [0.6], "batch": 8, "precision": "float32"}
    target, tome = (replace(record, latency=(timed(8, 8.0, 0.62),)) for record in rows)
    searched = replace(tome, keep=0.5, method_config={"matched": setting})
    [text] = headline(standings(group_records([dense, target, searched])))
    assert text.startswith("At 62 % of dense's time at batch 8, tome stays nearest")
    assert len(headline(standings(group_records([dense, target, searched, tome])))) == 2


def test_the_fastest_dense_row_is_named_beside_the_nearest_reduced_one(row: Any):
    dense, *rows = near(row, "photos", {"patchrank": 0.02, "tome": 0.01})
    rows = [replace(record, latency=(timed(8, 8.0, 0.62),)) for record in rows]
    dense = replace(dense, latency=(timed(8, 13.0, None),))

    def text(*ratios: float) -> str:
        others = [
            replace(
                row("openvino", 1.0, 70, 4.0, method_config={"precision": precision}, shots=0, tuning=None),
                dataset="photos", latency=(timed(8, 13 * ratio, ratio),), **per_image(DISTANCE, np.full(100, 0.003)),
            )
            for precision, ratio in zip(("int8", "float32"), ratios, strict=False)
        ]  # fmt: skip
        [text] = headline(standings(group_records([dense, *others, *rows])))
        return text.partition(" of patchrank). ")[2]

    assert text() == ""
    assert text(1.1) == "No other runtime of the dense model is faster at batch 8."
    assert text(0.39, 0.78).startswith("Without reduction, dense, openvino int8 is the fastest: 0.39 [")
    assert text(0.39, 0.78).endswith("; tome above takes 0.62 [0.62, 0.62].")


@pytest.fixture(scope="module")
def committed() -> list[Record]:
    return read_run(RESULTS)


@pytest.fixture(scope="module")
def plots(committed: list[Record]) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots_of(group_records(committed))}


@pytest.mark.parametrize(("at", "dataset"), [(0, "fashion"), (1, "emoji")])
def test_accuracy_against_cost_has_every_row_with_its_intervals(at: int, dataset: str, plots, committed: list[Record]):
    own = [r for r in committed if r.dataset == dataset and r.method != "optimized"]
    chart = plots["accuracy_gflops"].charts[at]
    assert sum(map(len, chart.series.values())) == len(own) == 11
    for name, series in chart.series.items():
        rows = sorted((r for r in own if r.method == name), key=lambda r: r.keep)
        for point, row in zip(series, rows, strict=True):
            assert tuple(point.x) == (row.mean("gflops"),) * 3
            paired = [row.mean("diff_to_dense"), part(row, "diff_low"), part(row, "diff_high")]
            assert point.y == pytest.approx((0.0,) * 3 if name == "dense" else [100 * number for number in paired])
            assert point.label == ("" if name == "dense" else f"{100 * row.keep:.3g} %")


def test_drawings_have_their_words_and_plain_numbers(plots):
    fidelity, accuracy = (plots[f"{name}_gflops"].charts for name in ("fidelity", "accuracy"))
    words = "".join(ET.fromstring(render(fidelity)).itertext())
    assert {"0.01", "0.02", "0.05"} <= set(words.split())
    assert "mathdefault" not in words
    for chart in fidelity:
        assert all(name in words for name in chart.series)
    svg = ET.fromstring(render(accuracy[:1]))
    texts = [element.text or "" for element in svg.iter() if element.tag.endswith("text")]
    assert {"30 %", "60 %"} <= set(texts)
    assert render(accuracy[:1], form="png").startswith(b"\x89PNG")


def test_labels_stay_inside_the_axes_and_clear_of_each_other(plots):
    for plot in plots.values():
        for axes in draw(plot.charts).axes:
            boxes = [text.get_window_extent() for text in axes.texts]
            assert len(boxes) > 5
            assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
            assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself


def test_a_method_of_one_dataset_alone_has_its_row_and_precisions_have_their_names(row: Any):
    records = [
        *near(row, "photos", {"patchrank": 0.02, "evit": 0.03}),
        *near(row, "fashion", {"patchrank": 0.02, "evit": 0.03, "tome": 0.01}),
    ]
    [standing] = standings(group_records(records))
    assert "tome stays nearest to dense on fashion" in standing.sentence()
    assert standing.table().cells("Method")[-1] == "tome"
    assert [cell.value is None for cell in standing.table().rows[-1][2:4]] == [True, False]
    both = standings(group_records([*records, *(replace(record, precision="bfloat16") for record in records)]))
    assert [text.partition(": At ")[0] for text in headline(both)] == ["float32", "bfloat16"]
