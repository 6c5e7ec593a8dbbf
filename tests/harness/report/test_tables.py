"""Tables: every number in its place, a dash for what wasn't measured, marks where it is clear."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import KNOWN, UNLABELLED, answers, per_image, replace, timed
from rich.console import Console
from scipy import stats

from harness.base.table import Table, fit
from harness.records.averages import averages, judge_rows, labels
from harness.records.metrics import METRICS, Metric, MetricInput, MetricValue, Tolerance, metric
from harness.records.record import MEASURED, Record, read_run
from harness.records.statistics import holm, paired_difference, sign_flip
from harness.records.times import LatencyRecord
from harness.report.changes import Pair, Tolerances, find_changes, find_movements
from harness.report.folder import latex, markdown, page, records_csv
from harness.report.highlights import plots_of
from harness.report.tables import comparison_table, group_records, latency_table, sections

RESULTS = Path(__file__).parents[3] / "docs" / "results"
NOTHING = dict.fromkeys(MEASURED) | {"latency": ()}
NAMED = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0, "method_config": {}}
DENSE = replace(KNOWN, **NOTHING | NAMED | answers([1, 1, 1, 0, 1, 0, 1, 1]))
EVIT = replace(DENSE, model="clip_vit_s14_evit30", method="evit", keep=0.3)
FULL = replace(
    EVIT,
    **{"diff_to_dense": -0.125, "diff_low": -0.25, "diff_high": 0.0},
    **{"cosine_distance": 0.0124, "cosine_low": 0.01, "cosine_high": 0.02, "gflops": 1.234},
    **{"tau": 0.4321, "tau_low": 0.4, "tau_high": 0.45, "final_tokens": 59, "golden_images": 8},
    **{"match_at_k": 0.613, "match_k": 59, "match_chance": 59 / 196},
    latency=(timed(1, 10.0, 0.55, 0.5, 0.6), timed(32, 400.0, 0.55, 0.5, 0.6)),
)  # fmt: skip


def shown(table: Table) -> list[str]:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(table.form("wide"))
    return console.export_text().splitlines()


def test_a_row_has_everything_and_what_was_not_measured_is_a_dash_not_a_zero():
    table = comparison_table([DENSE, FULL])
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown(table)]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["evit"] == [
        *("30 %", "0.0124 [0.0100, 0.0200]", "75.0 [37.5, 100.0]", "-12.5 [-25.0, +0.0]", "1.23"),
        *("10.0 [5.0, 20.0]", "0.55 [0.50, 0.60]", "100.0", "400.0 [200.0, 800.0]", "0.55 [0.50, 0.60]", "80.0"),
        *("+0.43 [+0.40, +0.45]", "61.3 at 59 (30.1)", "59"),
    ]
    assert rows["dense"] == ["100 %", "–", "75.0 [37.5, 100.0]", *["–"] * 11]
    assert [table.columns[at].heading for at in table.places("narrow")] == [
        *("Method", "Keep", "1 - cosine", "Top-1, %", "To dense", "GFLOPs", "Batch 32, × dense"),
    ]


def test_80_columns_show_times_with_their_interval_and_explain_no_column_that_is_not_there():
    table = comparison_table([DENSE, FULL, replace(FULL, method="tome", model="tome30", cosine_distance=0.02)])
    narrow, wide = (table.explain(form) for form in ("narrow", "wide"))
    assert "quartiles" in wide
    assert "quartiles" not in narrow
    for explained in (False, True):
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(fit(table.forms(explained=explained), 80))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        assert "0.55 [0.50, 0.60]" in text
        assert ("GFLOPs: " in text) == explained
    assert len(table.legend) <= 80


def compared(losses: dict[int, tuple[int, int]], images: int = 400) -> list[Record]:
    """Return a dense row right on half the images, and by keep what others lose and gain of it."""
    truth = np.arange(images) < images // 2
    found = [replace(DENSE, **answers(truth))]
    for keep, (lost, gained) in losses.items():
        right = truth.copy()
        right[:lost], right[images // 2 : images // 2 + gained] = False, True
        estimate, low, high = paired_difference(right, truth)
        facts = answers(right) | {"diff_to_dense": estimate, "diff_low": low, "diff_high": high}
        found.append(replace(DENSE, **facts, method="evit", model=f"evit{keep}", keep=keep / 100))
    return found


def marked(records: list[Record]) -> list[str]:
    """Return the keep rates whose row has a mark."""
    lines = [line.split() for line in shown(comparison_table(records))]
    return [line[3] for line in lines if "evit" in line and any("*[" in word for word in line)]


def test_differences_that_stay_clear_among_all_rows_are_marked():
    losses = {90: (3, 2), 70: (14, 4), 50: (14, 3), 30: (60, 5), 10: (2, 19)}
    p = {keep: stats.binomtest(a, a + b).pvalue for keep, (a, b) in losses.items()}
    assert [keep for keep in losses if p[keep] <= 0.05] == [70, 50, 30, 10]
    clear, left = [], sorted(losses, key=lambda keep: p[keep])
    while left and p[left[0]] * len(left) <= 0.05:
        clear.append(str(left.pop(0)))
    assert sorted(clear) == ["10", "30", "50"]
    assert sorted(marked(compared(losses))) == sorted(clear)
    assert marked(compared({70: losses[70]})) == ["70"]


def distant(distances: dict[tuple[str, float], float]) -> list[Record]:
    """Return a dense row without labels, and rows so far from it on average, by method and keep."""
    dense = replace(DENSE, image_count=100, **UNLABELLED)
    spread = np.random.default_rng(0).normal(0, 0.002, size=(len(distances), 100))
    return [dense] + [
        replace(dense, method=method, keep=keep, gflops=keep, model=f"{method}{100 * keep:.0f}",
                **per_image("cosine_distance", mean + noise))
        for ((method, keep), mean), noise in zip(distances.items(), spread, strict=True)
    ]  # fmt: skip


def test_fidelity_is_marked_where_it_is_clear_of_the_references_at_equal_cost():
    """A row's cost is its keep rate here."""
    distances = {
        ("patchrank", 0.6): 0.02, ("evit", 0.6): 0.022, ("tome", 0.6): 0.0195, ("random", 0.6): 0.0202,
        ("patchrank", 0.3): 0.03, ("evit", 0.3): 0.03, ("tome", 0.4): 0.01,
    }  # fmt: skip
    rows = averages(distant(distances))
    found = judge_rows(rows)
    assert found is not None
    metric = METRICS["cosine_distance"]
    values = {(row.method, row.keep): row.per_image(metric.name) for row in rows}
    pairs = {
        key: sign_flip(value - values["patchrank", key[1]])
        for key, value in values.items()
        if value is not None and key[0] != "patchrank" and ("patchrank", key[1]) in values
    }
    assert set(pairs) == {("evit", 0.6), ("tome", 0.6), ("random", 0.6), ("evit", 0.3)}
    adjusted = dict(zip(pairs, holm(list(pairs.values())), strict=True))
    clear = {key for key, p in adjusted.items() if p <= 0.05}
    assert ("evit", 0.6) in clear
    assert len(clear) < len(pairs)
    assert {(row.method, row.keep) for row in rows if found.mark(row, "cosine_distance")} == clear
    table = comparison_table(distant(distances))
    assert [cell.mark for cell in table.cells("1 - cosine")].count("*") == len(clear)
    order = sorted(rows[1:], key=lambda row: (-row.keep, row.mean(metric.name)))  # ToMe's 40 % costs what none does
    assert table.cells("Method") == ["dense", *(row.method for row in order)]
    assert sorted(table.sections) == [1, 5, 6]


def test_settings_that_differ_at_one_keep_rate_are_told_at_all():
    evit = [r for r in read_run(RESULTS) if r.method == "evit" and r.dataset == "emoji"]

    def names(*records: Record) -> list[str]:
        rows = averages(records)
        return [labels(rows)[row.identity] for row in rows]

    fused, predicted = (
        replace(evit[0], method_config=evit[0].method_config | more) for more in ({"fuse": True}, {"predictor": "ab12"})
    )
    assert names(*evit, fused) == ["evit (fuse false)", "evit (fuse false)", "evit (fuse true)"]
    assert names(evit[0], predicted) == ["evit", "evit (predictor ab12)"]  # one row lacks it


@pytest.fixture
def sharpness() -> Iterator[Callable[..., Record]]:
    """Declare one more metric by one function, and return what gives it to a record."""
    known = dict(METRICS)

    @metric(
        "sharpness", needs=("features",), heading="Sharpness, %", form=".1%", unit="fraction", better="higher",
        tolerance=Tolerance(by=5e-4), plotted="sharpness",
    )  # fmt: skip
    def _sharpness(features: torch.Tensor) -> np.ndarray:
        return features.numpy()[:, 0]

    def add(record: Record, value: float) -> Record:
        values = np.full(record.image_count, value)
        values[::2] += 1 / 64
        data = MetricInput(features=torch.from_numpy(values)[:, None])
        return replace(record, sharpness=METRICS["sharpness"].measure(data))

    yield add
    METRICS.clear()
    METRICS.update(known)


def test_a_metric_is_one_function_that_all_tables_and_check_read(sharpness: Callable[..., Record]):
    rows = [sharpness(replace(DENSE, gflops=3.0), 0.5), sharpness(FULL, 0.25)]
    table = comparison_table(rows)
    assert [cell.split()[0] for cell in table.cells("Sharpness, %")] == ["50.8", "25.8"]
    groups = group_records(rows)
    [section] = sections(groups)
    assert [cell.value for cell in section.cells("Sharpness, %")] == [0.5078125, 0.2578125]
    assert "| Sharpness, % |" in markdown([section])
    assert r"Sharpness, \%" in latex([section])
    plots = plots_of(groups)
    assert "sharpness_gflops" in {plot.name for plot in plots}
    text = page(groups, plots, [section])
    assert 'data-sort="0.2578125">25.8' in text
    [first, _] = csv.DictReader(io.StringIO(records_csv(rows)))
    assert first["sharpness_fraction"] == "0.5078125"


def test_a_metric_of_one_function_is_compared_and_checked(sharpness: Callable[..., Record]):
    then, now = sharpness(FULL, 0.25), sharpness(FULL, 0.1875)
    one = next(one for one in find_changes(Pair(then=then, now=now)) if one.quantity == "sharpness")
    assert (one.quantity, one.by.estimate) == ("sharpness", pytest.approx(-0.0625))
    [one] = find_movements(then, now, Tolerances())
    assert (one.quantity, one.by, one.allowed) == ("sharpness", pytest.approx(-0.0625), "±0.0005")
    assert list(find_movements(then, then, Tolerances())) == []


def test_by_default_a_metric_may_move_within_its_interval_as_another_machine_moves_it(sharpness: Callable[..., Record]):
    METRICS["sharpness"] = replace(METRICS["sharpness"], tolerance=Metric.tolerance)
    then = sharpness(FULL, 0.25)
    ends = then.metrics["sharpness"].interval
    for value, moved in ((0.2505, []), (0.3125, ["sharpness"]), (0.1875, ["sharpness"])):
        now = sharpness(FULL, value)
        assert [one.quantity for one in find_movements(then, now, Tolerances())] == moved
        assert (ends.low <= now.mean("sharpness") <= ends.high) == (not moved)
    alone = replace(then, sharpness=MetricValue(mean=0.25))  # without interval by a hundredth of itself
    near, far = (replace(then, sharpness=MetricValue(mean=mean)) for mean in (0.2524, 0.2526))
    assert [list(map(str, find_movements(alone, now, Tolerances()))) == [] for now in (near, far)] == [True, False]


def test_what_differs_between_tables_of_one_heading_is_told(dense: Record):
    other = replace(dense, device="cuda:0", threads=1, weights_sha256="cd" * 32)
    first, second = group_records([dense, other])
    assert second.name == f"{first.name.partition(';')[0]}; weights cdcdcdcd, device cuda:0, threads 1"


def test_the_newest_measurement_of_a_row_stands_wherever_it_is(row: Any):
    old = row("random", 0.6, 50)
    new = replace(row("random", 0.6, 60), created="2026-05-01T00:00:00+00:00")
    equal = row("random", 0.6, 70)
    for records, newest in (([old, new], new), ([new, old], new), ([old, equal], equal)):
        [group] = group_records(records)
        assert [each.first for each in group.rows] == [newest]


def test_rows_of_other_seeds_do_not_share_a_mean(row: Any):
    three = [row("evit", 0.6, 50 + seed, seed=seed) for seed in (0, 1, 2)]
    two = [row("tome", 0.6, 50, seed=seed) for seed in (0, 1)]
    first, second = group_records([*three, *two])
    assert (len(first.rows[0].records), len(second.rows[0].records)) == (3, 2)
    assert first.name.endswith("; seed 0, 1, 2")
    assert second.name.endswith("; seed 0, 1")


def test_rows_of_equal_time_stand_beside_the_method_whose_time_they_take(row: Any, dense: Record):
    """One that misses it by more than 5 % is named and left out."""
    setting = {"matched": {"time_of": "patchrank", "keeps": [0.6], "batch": 8, "precision": "float32"}}
    target = row("patchrank", 0.6, 60, latency=(timed(8, 8.0, 0.7),))
    plain = row("evit", 0.6, 60)
    rows = [row("evit", 0.45, 50, latency=(timed(8, 8.0, 0.71),), method_config=setting)]
    rows.append(row("tome", 0.5, 50, latency=(timed(8, 8.0, 0.75),), method_config=setting))
    every, equal = sections(group_records([dense, target, plain, *rows]))
    assert every.cells("Method") == ["dense", "patchrank", "evit"]
    assert equal.cells("Method") == ["dense", "patchrank", "evit"]
    assert equal.cells("Keep")[1:] == ["60 %", "45 %"]
    assert ["tome" in note for note in equal.notes] == [True]
    assert len(list(sections(group_records([target])))) == 1


def test_a_table_has_the_times_of_each_batch_and_says_once_what_holds_for_all(
    latency_record: Callable[..., LatencyRecord],
):
    dense = (10.0, 10.2, 10.1, 10.3, 10.2, 10.1)

    def row(method: str, factor: float, **facts: Any) -> LatencyRecord:
        names = {"model": f"clip_vit_b16_{method}50", "method": method, "keep": 0.5}
        costs = {"gflops": 1.5, "final_tokens": 32}
        samples = () if facts.get("failed") else tuple(factor * sample for sample in dense)
        return latency_record(samples, dense, **(names | costs | facts))

    late = row("evit", 1.0, batch=8, failed="out of memory")
    table = latency_table([latency_record(dense), row("tome", 0.8), row("evit", 1.0), late])
    ratio, unknown = "0.800 [0.800, 0.800]", ["–"] * 5
    assert table.rows[1] == ["1", "tome50", "32", "1.50", "8.12 [8.08, 8.16]", "–", "–", "123.2", ratio, "faster", "–"]
    assert table.rows[3] == ["8", "evit50", "32", "1.50", *unknown, "not timed", "–"]
    assert table.notes == [
        "batch 8: out of memory",
        "no difference to dense can be concluded, as the interval of the ratio includes 1: evit50 at batch 1",
    ]
