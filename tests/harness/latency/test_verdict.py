"""What times show, and what speaks against it."""

import pytest

from harness.latency.machine import Surroundings
from harness.latency.timing import Timing
from harness.latency.verdict import FASTER, LEAST_ROUNDS, OPEN, SLOWER, verdict, warnings_of
from harness.statistics import Interval, median_interval

QUIET = Surroundings(load_1min=0.1, clock_mhz_before=2000, clock_mhz_after=2010, others_cores=0.1)
CALM = tuple(100 + 0.1 * (index % 3) for index in range(12))


def told(samples: tuple[float, ...], around: Surroundings = QUIET) -> tuple[str, ...]:
    return warnings_of(Timing(batch=1, samples_ms=samples), around, 2)


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        ((0.7, 0.6, 0.99), FASTER),
        ((1.2, 1.01, 1.3), SLOWER),
        ((0.7, 0.6, 1.0), OPEN),
        ((1.2, 1.0, 1.3), OPEN),
        ((0.9, 0.5, 1.4), OPEN),
        ((1.0, 1.0, 1.0), OPEN),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_one(ratio: tuple[float, ...], word: str):
    assert verdict(Interval(*ratio)) == word


def test_paired_rounds_show_a_difference_that_lies_within_the_noise():
    noise = (1.0, 3.0, 1.5, 2.5, 1.2, 2.0, 2.8)
    dense = Timing(batch=1, samples_ms=noise)
    pruned = Timing(batch=1, samples_ms=tuple(0.9 * time for time in noise))
    assert verdict(pruned.ratio_to(dense)) == FASTER
    shuffled = Timing(batch=1, samples_ms=tuple(0.9 * time for time in noise[1:] + noise[:1]))
    assert verdict(shuffled.ratio_to(dense)) == OPEN


def test_fewest_rounds_are_those_from_which_on_a_median_has_an_interval():
    """The chance that all of n values lie on one side of the median, both sides counted."""
    assert 2 * 0.5**LEAST_ROUNDS < 0.05 < 2 * 0.5 ** (LEAST_ROUNDS - 1)
    assert median_interval([1.0] * (LEAST_ROUNDS - 1) + [9.0]).high == 9.0


def test_calm_times_in_quiet_surroundings_are_no_reason_to_warn():
    assert told(CALM) == ()
    assert told(CALM, Surroundings()) == ()  # what isn't known is no reason either


def test_a_wide_spread_is_told_with_its_width():
    wide = (100.0, 130.0) * 6
    assert told(wide) == ("wide spread: quartiles 26 % of the median apart, more than 10 %",)
    for high in (104.0, 110.8):  # that's 10.2 % of their median, told as 10 %
        assert told((100.0, high) * 6) == ()


@pytest.mark.parametrize(("factor", "found"), [(1.2, True), (0.8, True), (1.03, False)])
def test_a_second_half_that_is_apart_from_the_first_is_drift(factor: float, found: bool):
    half = CALM[:6]
    samples = half + tuple(factor * time for time in half)
    drifts = [text for text in told(samples) if "drift" in text]
    text = f"drift: the second half of the rounds took {factor:.2f} of the first's time"
    assert drifts == ([text] if found else [])


def test_noise_is_not_drift():
    samples = (100.0, 140, 100, 140, 100, 140, 141, 101, 141, 141, 101, 141)
    assert not any("drift" in text for text in told(samples))
    assert told((100.0, 200.0, 300.0, 400.0))[0].startswith("wide spread")  # too few for halves


@pytest.mark.parametrize(
    ("around", "text"),
    [
        ({"others_cores": 0.7}, "other processes kept 0.7 of 2 cores busy meanwhile"),
        ({"clock_mhz_before": 2000, "clock_mhz_after": 1700}, "the clock went from 2000 to 1700"),
        ({"clock_mhz_before": 1000, "clock_mhz_after": 1100}, "the clock went from 1000 to 1100"),
        ({"slowed_by": ("power cap", "power brake")}, "slowed down: power cap, power brake"),
    ],
)
def test_disturbances_are_told(around: dict, text: str):
    [found] = told(CALM, Surroundings(**around))
    assert text in found


@pytest.mark.parametrize(
    "around", [{"others_cores": 0.2}, {"clock_mhz_before": 2000, "clock_mhz_after": 1950}]
)
def test_what_is_within_bounds_is_not(around: dict):
    assert told(CALM, Surroundings(**around)) == ()
