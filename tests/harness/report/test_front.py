"""The front: by estimates, by intervals, and against a slow reading of its definition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.averages import Average, averages
from harness.records import Record, pack_correct
from harness.report.front import Standing, standings
from harness.statistics import Interval, holm, mcnemar_exact


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
        change = {"correct_bits": pack_correct(correct), "top1": top1, "top1_low": 0.0}
        one = row("evit", keep, 0, float(rng.choice([1.0, 1.005, 1.5, 2.0, 3.0])), **more)
        found.append(replace(one, **change, top1_high=1.0))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_it_is_its_definition_read_slowly(row: Any, seed: int):
    rows = averages(drawn(row, seed))
    asked = [
        (a, b)
        for b in rows
        for a in rows
        if a is not b and a.first.gflops <= 1.01 * b.first.gflops and a.first.top1 > b.first.top1
    ]
    p_values = holm([mcnemar_exact(a.first.correct, b.first.correct) for a, b in asked])
    clear = [pair for pair, p in zip(asked, p_values, strict=True) if p <= 0.05]
    beaten = {b.first.model for _, b in clear}
    found = standings(rows, gflops)
    assert {m for m, v in verdicts(found).items() if v == "beaten"} == beaten
    for one in found:
        better = [
            other
            for other in rows
            if other.first.gflops <= one.row.first.gflops
            and other.first.top1 >= one.row.first.top1
            and (other.first.gflops, other.first.top1) != (one.row.first.gflops, one.row.first.top1)
        ]
        if one.verdict == "beaten":
            own = [a for a, b in clear if b.identity == one.row.identity]
            assert one.by is not None
            assert one.by.first.top1 == max(a.first.top1 for a in own)
        else:
            assert (one.verdict == "front") == (not better)
            assert one.by is None


def test_the_order_of_rows_does_not_matter(row: Any):
    rows = averages(drawn(row, 3))
    assert verdicts(standings(rows, gflops)) == verdicts(standings(rows[::-1], gflops))


def test_equal_rows_are_both_on_it(row: Any):
    twins = [row("evit", 0.6, 60, 2.0), row("tome", 0.6, 60, 2.0)]
    assert set(verdicts(standings(averages(twins), gflops)).values()) == {"front"}


def test_a_small_lead_beats_nobody(row: Any):
    rows = averages([row("evit", 0.6, 60, 2.0), row("tome", 0.6, 62, 2.0)])
    assert verdicts(standings(rows, gflops)) == {
        "clip_vit_s14_evit60": "open",
        "clip_vit_s14_tome60": "front",
    }


def test_a_row_that_is_cheaper_by_a_hair_can_be_beaten(row: Any):
    rows = [row("random", 0.6, 30, 2.0), row("tome", 0.6, 70, 2.01)]
    assert verdicts(standings(averages(rows), gflops))["clip_vit_s14_random60"] == "beaten"
    rows[1] = replace(rows[1], gflops=2.03)
    assert verdicts(standings(averages(rows), gflops))["clip_vit_s14_random60"] == "front"


def test_where_times_overlap_nobody_is_beaten(row: Any):
    rows = averages([row("random", 0.6, 30, 0.70), row("tome", 0.6, 70, 0.72)])

    def within(margin: float) -> dict[str, str]:
        def cost(one: Average) -> Interval:
            ratio = one.first.gflops or 0.0
            if one.method == "tome":
                ratio = 0.65
            return Interval(ratio, ratio - margin, ratio + margin)

        return verdicts(standings(rows, cost))

    assert within(0.01)["clip_vit_s14_random60"] == "beaten"
    assert within(0.05)["clip_vit_s14_random60"] == "open"


def test_means_over_seeds_are_judged_by_their_images(row: Any):
    seeds = [
        row(method, 0.6, right + seed, 2.0, seed=seed)
        for method, right in (("random", 30), ("evit", 60), ("tome", 61))
        for seed in (0, 1, 2)
    ]
    found = standings(averages(seeds), gflops)
    assert verdicts(found)["clip_vit_s14_random60"] == "beaten"
    assert verdicts(found)["clip_vit_s14_evit60"] == "open"
    [lost] = [one for one in found if one.by is not None]
    assert lost.by is not None
    assert lost.by.method == "tome"


def test_what_has_no_cost_takes_no_part(row: Any):
    rows = averages([row("golden", 0.6, 90), row("evit", 0.6, 60, 2.0)])
    assert verdicts(standings(rows, gflops)) == {"clip_vit_s14_evit60": "front"}
    assert standings(rows[:1], gflops) == []
