"""What may be concluded from times, and what speaks against concluding it."""

from collections.abc import Sequence

import numpy as np

from harness.latency.machine import Surroundings
from harness.latency.timing import Timing
from harness.statistics import Interval, median_interval

FASTER, SLOWER, OPEN = "faster", "slower", "not shown"
VERDICTS = {
    FASTER: "the interval of the ratio to dense lies below 1",
    SLOWER: "it lies above 1",
    OPEN: "it includes 1: no difference can be concluded",
}
SPREAD = 0.1  # of the interquartile range by the median, from which on to warn
DRIFT = 0.05  # of the second half's median by the first's, likewise
OTHERS = 0.1  # of the cores, that other processes kept busy, likewise
CLOCK = 0.05  # of the clock's change, likewise
LEAST_ROUNDS = 6  # from which on a median has a 95 % interval


def verdict(ratio: Interval) -> str:
    """Return the word of ``VERDICTS`` for a ratio to the dense model's time."""
    if ratio.high < 1:
        return FASTER
    return SLOWER if ratio.low > 1 else OPEN


def warnings_of(timing: Timing, around: Surroundings, cores: int) -> tuple[str, ...]:
    """Say what makes times hard to trust, none if nothing does.

    Args:
        timing: of a model.
        around: what happened meanwhile.
        cores: that the process may use.
    """
    found = [_spread(timing), _drift(timing.samples_ms), *disturbed(around, cores)]
    return tuple(text for text in found if text is not None)


def disturbed(around: Surroundings, cores: int) -> list[str]:
    """Say what in the surroundings slows models down or makes their times differ."""
    found = []
    if around.others_cores is not None and around.others_cores > OTHERS * cores:
        found.append(
            f"other processes kept {around.others_cores:.1f} of {cores} cores busy meanwhile"
        )
    before, after = around.clock_mhz_before, around.clock_mhz_after
    if before and after and abs(after / before - 1) > CLOCK:
        found.append(f"the clock went from {before:.0f} to {after:.0f} MHz")
    if around.slowed_by:
        found.append(f"the GPU was slowed down: {', '.join(around.slowed_by)}")
    return found


def _spread(timing: Timing) -> str | None:
    first, third = timing.quartiles_ms
    share = round((third - first) / timing.median_ms, 2)  # as it is told
    if share <= SPREAD:
        return None
    return (
        f"wide spread: quartiles {100 * share:.0f} % of the median apart, more than "
        f"{100 * SPREAD:.0f} %"
    )


def _drift(samples: Sequence[float]) -> str | None:
    """Compare the halves' medians; their intervals must not overlap either."""
    half = len(samples) // 2
    if half < LEAST_ROUNDS // 2:
        return None
    early, late = median_interval(samples[:half]), median_interval(samples[-half:])
    factor = float(np.divide(late.estimate, early.estimate))
    apart = early.high < late.low or late.high < early.low
    if not apart or abs(factor - 1) <= DRIFT:
        return None
    return f"drift: the second half of the rounds took {factor:.2f} of the first's time"
