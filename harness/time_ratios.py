"""What the times of one row in two runs say of each other."""

from harness.records import Latency, Record
from harness.statistics import Interval


def ratios(a: Record, b: Record) -> dict[int, float]:
    """Return the median time of b over a's by batch size, where both have it.

    There is no interval: records keep no rounds, and the two weren't timed in turns.
    """
    times = {entry.batch: entry.median_ms for entry in a.latency}
    both = [entry for entry in b.latency if times.get(entry.batch)]
    return {entry.batch: entry.median_ms / times[entry.batch] for entry in both}


def ratios_to_dense(a: Record, b: Record) -> dict[int, Interval]:
    """Return b's ratio to its dense model over a's to its own, where both have it.

    Each of the two was timed in turns with its dense model, so a busier machine cancels out. The
    ends are the furthest that both 95 % intervals allow, which covers at least 90 %.
    """
    ours = {entry.batch: _to_dense(entry) for entry in a.latency}
    found = {}
    for entry in b.latency:
        before, after = ours.get(entry.batch), _to_dense(entry)
        if before is not None and after is not None:
            found[entry.batch] = Interval(
                after.estimate / before.estimate, after.low / before.high, after.high / before.low
            )
    return found


def _to_dense(entry: Latency) -> Interval | None:
    """Return the ratio to dense with its interval; None where one is missing or 0."""
    ratio, low, high = entry.ratio_to_dense, entry.ratio_low, entry.ratio_high
    return Interval(ratio, low, high) if ratio and low and high else None
