"""A group in short claims no more than the tests on its images; and no less."""

from typing import Any

import numpy as np
import pytest
from by_hand import part, per_image, replace

from harness.records.averages import Average, averages
from harness.records.metrics import METRICS, pack
from harness.records.record import Record
from harness.records.statistics import Interval, holm, mcnemar_exact
from harness.report.groups import group_records
from harness.report.highlights import Highlights, Standing, headline, highlights, plots_of, standings


def gflops(row: Average) -> Interval | None:
    value = row.mean("gflops")
    return None if value is None else Interval(value, value, value)


def verdicts(found: list[Standing]) -> dict[str, str]:
    return {one.row.first.model: one.verdict for one in found}


def drawn(row: Any, seed: int, count: int = 9, **more: Any) -> list[Record]:
    """Return rows of random accuracy and cost, on the same images."""
    rng = np.random.default_rng(seed)
    hard = rng.random(100)
    found = []
    for at in range(count):
        correct = hard < rng.choice([0.3, 0.5, 0.55, 0.8])
        correct ^= rng.random(100) < 0.05
        top1 = float(correct.mean())
        keep = round(0.1 + 0.08 * at, 2)
        change = {"correct_bits": pack(correct), "top1": top1, "top1_low": 0.0}
        one = row("evit", keep, 0, float(rng.choice([1.0, 1.005, 1.5, 2.0, 3.0])), **more)
        found.append(replace(one, **change, top1_high=1.0))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_it_is_its_definition_read_slowly(row: Any, seed: int):
    rows = averages(drawn(row, seed))
    pairs = [
        (a, b)
        for b in rows
        for a in rows
        if a is not b
        and a.first.mean("gflops") <= 1.01 * b.first.mean("gflops")
        and a.first.mean("top1") > b.first.mean("top1")
    ]
    # Of each row the best one that costs no more is tested; the other pairs count as p-values of 1.
    best = {b.identity: max((a for a, other in pairs if other is b), key=lambda a: (a.top1.estimate, -a.mean("gflops")))
            for _, b in pairs}  # fmt: skip
    tested = [mcnemar_exact(a.first.correct, b.first.correct) if a is best[b.identity] else 1.0 for a, b in pairs]
    clear = [pair for pair, p in zip(pairs, holm(tested), strict=True) if p <= 0.05]
    beaten = {b.first.model for _, b in clear}
    judged = standings(rows, [gflops])[0]
    assert {m for m, v in verdicts(judged).items() if v == "beaten"} == beaten
    for one in judged:
        better = [
            other
            for other in rows
            if other.first.mean("gflops") <= one.row.first.mean("gflops")
            and other.first.mean("top1") >= one.row.first.mean("top1")
            and (other.first.mean("gflops"), other.first.mean("top1"))
            != (one.row.first.mean("gflops"), one.row.first.mean("top1"))
        ]
        if one.verdict == "beaten":
            own = [a for a, b in clear if b.identity == one.row.identity]
            assert one.by is not None
            assert one.by.first.mean("top1") == max(a.first.mean("top1") for a in own)
        else:
            assert (one.verdict == "front") == (not better)
            assert one.by is None


def test_a_method_is_ahead_where_all_rows_of_others_are_beaten(row: Any):
    distances = {"tome": 0.010, "patchrank": 0.02, "evit": 0.03, "random": 0.001}
    records = near(row, distances, {"tome": 2.0, "patchrank": 2.0, "evit": 3.0, "random": 1.0})
    other = [
        replace(r, dataset="emoji", gflops=1.0) if r.method == "evit" else replace(r, dataset="emoji") for r in records
    ]

    def said(records: list[Record]) -> list[str]:
        return headline([highlights(group) for group in group_records(records)])

    [ahead] = said(records)
    assert ahead == "tome is clearly ahead on fashion, in nearness to dense by GFLOPs."
    right = {"top1": 0.7, "top1_low": 0.6, "top1_high": 0.8, "correct_bits": pack(np.arange(100) < 70)}
    changed = right | {"diff_to_dense": -0.03, "diff_low": -0.06, "diff_high": 0.0}
    labelled = [replace(r, **(right if r.method == "dense" else changed)) for r in records]
    assert said(labelled) == [ahead]  # by the figure that decided, whatever else was measured
    _, none = said([*records, *other])
    words = "No method is clearly ahead on emoji: in nearness to dense by GFLOPs, "
    assert none == f"{words}rows of tome and evit are unbeaten."
    assert said([r for r in records if r.method in ("dense", "tome", "random")]) == []


NEAR = METRICS["cosine_distance"]


def near(row: Any, distances: dict[str, float], costs: dict[str, float]) -> list[Record]:
    """Return rows so far from dense on average, on the same 100 images without labels."""
    spread = np.random.default_rng(0).normal(0, 0.001, size=(len(distances), 100))
    nothing = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high"))
    own = {"shots": 0, "tuning": None}
    dense = replace(row("dense", 1.0, 70, 4.0), **own, **nothing)
    return [dense] + [
        replace(row(method, 0.6, 70, costs[method]), **own, **nothing,
                **per_image("cosine_distance", mean + noise))
        for (method, mean), noise in zip(distances.items(), spread, strict=True)
    ]  # fmt: skip


def test_nearness_has_a_front_of_its_own_that_labels_are_not_asked_for(row: Any):
    distances = {"tome": 0.010, "patchrank": 0.02, "evit": 0.0201, "random": 0.05}
    records = near(row, distances, {"tome": 3.0, "patchrank": 2.0, "evit": 2.0, "random": 3.0})
    judged = standings(averages(records), [gflops], NEAR)[0]
    assert verdicts(judged) == {
        **{"clip_vit_s14_tome60": "front", "clip_vit_s14_patchrank60": "front"},
        **{"clip_vit_s14_evit60": "open", "clip_vit_s14_random60": "beaten"},
    }
    assert [one.by.method for one in judged if one.by] == ["tome"]
    [group] = group_records(records)
    short = highlights(group)
    assert short.least is None
    assert [front.name for front in short.fronts] == ["cosine_distance_gflops"]
    [plot] = [plot for plot in plots_of([short]) if plot.name.startswith(("fid", "acc"))]
    [panel] = plot.charts
    assert (plot.name, panel.log) == ("fidelity_gflops", True)
    [point] = panel.series["tome"]
    tome = next(r for r in records if r.method == "tome")
    assert point.y == (tome.mean("cosine_distance"), part(tome, "cosine_low"), part(tome, "cosine_high"))
    assert list(panel.front) == sorted(
        (r.mean("gflops"), r.mean("cosine_distance")) for r in records if r.method in ("tome", "patchrank")
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((60, 2.0), (60, 2.0), ["front", "front"]),  # equal
        ((60, 2.0), (62, 2.0), ["open", "front"]),  # a small lead beats nobody
        ((30, 2.0), (70, 2.01), ["beaten", "front"]),  # cheaper by a hair only
        ((30, 2.0), (70, 2.03), ["front", "front"]),
    ],
)
def test_two_rows_of_right_answers_and_gflops(row: Any, one: Any, other: Any, expected: list[str]):
    rows = averages([row("evit", 0.6, *one), row("tome", 0.6, *other)])
    assert [standing.verdict for standing in standings(rows, [gflops])[0]] == expected


def test_where_times_overlap_nobody_is_beaten(row: Any):
    rows = averages([row("random", 0.6, 30, 0.70), row("tome", 0.6, 70, 0.72)])

    def within(margin: float) -> dict[str, str]:
        def cost(one: Average) -> Interval:
            ratio = one.first.mean("gflops") or 0.0
            if one.method == "tome":
                ratio = 0.65
            return Interval(ratio, ratio - margin, ratio + margin)

        return verdicts(standings(rows, [cost])[0])

    assert within(0.01)["clip_vit_s14_random60"] == "beaten"
    assert within(0.05)["clip_vit_s14_random60"] == "open"


def short(records: list[Record]) -> Highlights:
    [group] = group_records(records)
    return highlights(group)


@pytest.fixture
def rows(dense: Record, patchrank: Record, row: Any) -> list[Record]:
    lost = {"diff_to_dense": -0.3, "diff_low": -0.39, "diff_high": -0.21}
    return [dense, patchrank, row("random", 0.3, 40, 1.7, **lost)]


def test_the_cheapest_row_without_a_clear_loss_is_named_with_what_it_saves(rows: list[Record]):
    group = short(rows)
    assert group.least is not None
    assert group.least.method == "patchrank"  # random is cheaper and clearly worse
    for words in ("patchrank 60 %, -2.0 points [-5.1, +1.2]", "28 % fewer", "0.71 of dense's time at batch 1"):
        assert words in group.saving


@pytest.mark.parametrize(
    ("methods", "changes", "saving"),
    [
        (["random"], {}, "No loss of accuracy can be told"),
        (["dense", "evit"], {}, "Every row with fewer GFLOPs is less accurate than dense"),
        (["dense", "random"], {"diff_low": -0.01, "diff_high": 0.01, "diff_to_dense": 0.0}, "No row with a difference"),
        (["dense", "patchrank"], {"gflops": 3.5}, "No row with a difference to dense has fewer"),
        # The exact test sees nothing in two images; the interval that stands beside it does.
        (["dense", "patchrank"], {"diff_high": -0.001}, "Every row with fewer GFLOPs is less"),
    ],
)
def test_no_saving_has_its_reason(methods: list[str], changes: dict[str, Any], saving: str, rows: list[Record]):
    other = replace(rows[2], method="evit", model="clip_vit_s14_evit30")
    changed = [r if r.method == "dense" else replace(r, **changes) for r in (*rows, other)]
    group = short([record for record in changed if record.method in methods])
    assert group.least is None
    assert group.saving.startswith(saving)
