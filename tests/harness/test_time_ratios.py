"""Times of two runs: medians without an interval, ratios to dense with one that covers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.records import Latency, Record, read_records
from harness.statistics import median_interval
from harness.time_ratios import ratios, ratios_to_dense

[KNOWN] = read_records(Path(__file__).parent / "schema" / "v6.jsonl")


def timed(batch: int, median: float, *to_dense: float) -> Latency:
    told = dict(zip(("ratio_to_dense", "ratio_low", "ratio_high"), to_dense, strict=False))
    return Latency(batch=batch, median_ms=median, q1_ms=1.0, q3_ms=9.0, images_per_s=1.0, **told)


def row(*entries: Latency) -> Record:
    return replace(KNOWN, latency=entries)


def test_medians_are_divided_where_both_have_the_batch():
    a, b = row(timed(1, 4.0), timed(8, 10.0)), row(timed(8, 5.0), timed(32, 9.0))
    assert (ratios(a, b), ratios(b, a)) == ({8: 0.5}, {8: 2.0})
    assert ratios(a, row()) == ratios(row(timed(1, 0.0)), a) == {}


def test_the_ends_are_the_furthest_that_both_intervals_allow():
    a, b = row(timed(8, 9.0, 0.8, 0.72, 0.96)), row(timed(8, 1.0, 0.6, 0.54, 0.72))
    assert ratios_to_dense(a, b)[8] == pytest.approx((0.75, 0.54 / 0.96, 0.72 / 0.72))
    there, back = ratios_to_dense(a, b)[8], ratios_to_dense(b, a)[8]
    assert back == pytest.approx((1 / there.estimate, 1 / there.high, 1 / there.low))


@pytest.mark.parametrize(
    "other", [timed(8, 1.0), timed(1, 1.0, 0.6, 0.5, 0.7), timed(8, 1.0, 0.0, 0.0, 0.0)]
)
def test_without_a_ratio_to_dense_in_both_there_is_none(other: Latency):
    a = row(timed(8, 9.0, 0.8, 0.72, 0.96))
    assert ratios_to_dense(a, row(other)) == ratios_to_dense(row(other), a) == {}


def test_the_interval_covers_what_it_says():
    """Two runs of 10 rounds, of which the second is truly 1.1 times as slow beside dense."""
    dice, covered, rounds = np.random.default_rng(0), 0, 600
    for _ in range(rounds):
        drawn = [true * np.exp(0.1 * dice.normal(size=10)) for true in (0.5, 0.55)]
        a, b = (row(timed(8, 1.0, *median_interval(each))) for each in drawn)
        low, high = ratios_to_dense(a, b)[8][1:]
        covered += low <= 1.1 <= high
    assert covered / rounds > 0.9
