"""Means over seeds by hand, and records that don't belong in one table."""

from typing import Any

import numpy as np
import pytest
from by_hand import BY_TEXT, KNOWN, answers, part, replace, timed
from scipy import stats

from harness.records.averages import averages, levels
from harness.records.metrics import METRICS
from harness.records.record import MEASURED, Record
from harness.records.statistics import bootstrap_mean
from harness.report.tables import comparison_table

IMAGES = 60
TOP1, DIFF = METRICS["top1"], METRICS["diff_to_dense"]
SEEDS = (3, 4, 5)


def record(method: str, seed: int, share: float, **changes: Any) -> Record:
    drawn = np.random.default_rng((seed, len(method))).random(IMAGES)
    facts: dict[str, Any] = dict.fromkeys(MEASURED) | {
        **{"model": "clip_vit_s14" + (method != "dense") * f"_{method}60", "method": method},
        **{"keep": 1.0 if method == "dense" else 0.6, "seed": seed},
        **{"method_config": {"reduce_at": [3], "prompts": f"{seed:016x}"}},
        **{"shots": 4, "tuning": "t", "prompt_tokens": 16},
        **{"tau": seed / 10, "tau_low": seed / 10 - 0.1, "tau_high": seed / 10 + 0.2},
        **{"gflops": 2.0, "final_tokens": 118},
        "latency": (timed(1, seed),),
    }
    return replace(KNOWN, **facts | answers(drawn < share) | changes)


def group(**changes: Any) -> list[Record]:
    """Three models, three seeds, in the order in which compare yields them."""
    shares = {"dense": 0.8, "evit": 0.75, "patchrank": 0.6}
    return [record(method, s, share, **changes) for s in SEEDS for method, share in shares.items()]


def test_the_mean_over_seeds_by_hand():
    rows = averages(group())
    assert {r.identity: r for r in rows} == {r.identity: r for r in averages(group()[::-1])}
    for row in rows:
        assert [r.seed for r in row.records] == list(SEEDS)
        tops = np.array([r.mean("top1") for r in row.records])
        low, high = stats.t.interval(0.95, 2, tops.mean(), stats.sem(tops))
        wanted = (tops.mean(), max(low, 0), min(high, 1))
        assert row.estimate(TOP1) == pytest.approx(wanted)
        assert row.mean("tau") == pytest.approx(0.4)
        assert row.measured("tau").interval == pytest.approx((0.4, 0.3, 0.6))
        assert (row.mean("final_tokens"), row.mean("cosine_distance")) == (118, None)
        [times] = row.latency
        rates = [own.images_per_s for record in row.records for own in record.latency]
        assert (times.median_ms, times.images_per_s) == (pytest.approx(4), pytest.approx(np.mean(rates)))
        assert row.config == {"reduce_at": [3]}


def test_the_difference_to_dense_is_paired_over_images():
    dense, evit, _ = averages(group())
    assert dense.estimate(DIFF) is None
    each = [a.correct * 1.0 - b.correct for a, b in zip(evit.records, dense.records, strict=True)]
    slow = bootstrap_mean(np.mean(each, axis=0), seed=1)
    assert evit.estimate(DIFF) == pytest.approx(slow, abs=0.01)
    twin = [replace(r, model="clip_vit_s14_tome60", method="tome") for r in dense.records]
    assert averages([*dense.records, *twin])[1].estimate(DIFF) == (0, 0, 0)
    change = evit.estimate(TOP1).estimate - dense.estimate(TOP1).estimate
    assert evit.estimate(DIFF).estimate == pytest.approx(change)


def test_one_seed_is_the_record_as_it_stands():
    diff = {"diff_to_dense": -0.1, "diff_low": -0.2, "diff_high": 0.05}
    one = record("evit", 3, 0.7, **diff)
    [row] = averages([one])
    assert row.estimate(TOP1) == (one.mean("top1"), part(one, "top1_low"), part(one, "top1_high"))
    assert row.estimate(DIFF) == (-0.1, -0.2, 0.05)
    assert (row.latency, row.config) == (one.latency, one.method_config)
    assert np.array_equal(row.hits, one.correct)


@pytest.mark.parametrize(("change", "match"), [
    ({"device_name": "another"}, "different device_name"),
    (BY_TEXT, "different shots, tuning"),
    ({"seed": 9}, r"clip_vit_s14_patchrank60 lacks \[5\]|clip_vit_s14 lacks \[9\]"),
    ({"method_config": {"reduce_at": [4]}}, r"seeds of one table must be the same for every"),
    ({"seed": 4}, "clip_vit_s14_patchrank60 has seed 4 twice"),
])  # fmt: skip
def test_what_is_not_one_group_is_refused_everywhere(change: dict[str, Any], match: str):
    *rest, last = group()
    mixed = [*rest, replace(last, **change)]
    for show in (averages, comparison_table):
        with pytest.raises(ValueError, match=match):
            show(mixed)
        with pytest.raises(ValueError, match="different seed"):  # by text there is none to average
            show(group(**BY_TEXT))


def test_rows_at_equal_cost_by_hand():
    """A method's nearest row counts up to 5 % off the target's cost; rows found for a time count by time alone."""
    costs = {("patchrank", 0.6): 2.0, ("patchrank", 0.3): 1.0, ("evit", 0.5): 2.09, ("evit", 0.4): 1.95}
    costs |= {("tome", 0.6): 2.2, ("tome", 0.3): 1.04, ("random", 0.3): 0.9}
    searched = {"time_of": "patchrank", "keeps": [0.3], "batch": 8, "precision": "float32"}

    def made(method: str, keep: float, gflops: float, **more: Any) -> Record:
        own = BY_TEXT | {"keep": keep, "model": f"{method}{keep}"}
        return record(method, 3, 0.5, **own, gflops=gflops, cosine_distance=gflops / 2, **more)

    rows = [made(*key, gflops) for key, gflops in costs.items()]
    rows[1] = replace(rows[1], latency=(timed(8, 8.0, 0.5),))
    rows += [
        made(method, 0.2, 1.0, method_config={"matched": searched}, latency=(timed(8, 8.0, ratio),))
        for method, ratio in (("clsattn", 0.52), ("tome", 0.53))
    ]
    found = [
        (level.target.keep, level.batch, [(row.method, row.keep) for row in level.rows], list(level.missing))
        for level in levels(averages(rows))
    ]
    assert found == [
        (0.6, None, [("evit", 0.4), ("patchrank", 0.6)], ["tome", "random"]),
        (0.3, None, [("patchrank", 0.3), ("tome", 0.3)], ["evit", "random"]),
        (0.3, 8, [("patchrank", 0.3), ("clsattn", 0.2)], ["tome"]),
    ]
