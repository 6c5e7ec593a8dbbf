"""What is read off records: accuracy, agreement or cost, each with its interval and its form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.records import Record
from harness.statistics import Interval, bootstrap_mean

TOP1, MATCH, GFLOPS, LATENCY = "top1", "match", "gflops", "latency"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A way to read records of one line, one per seed.

    Attributes:
        read: their mean over seeds with a 95 % interval; None where it wasn't measured.
        compare: that of one line against another, None likewise.
        form: how a number of it is written, by ``format``.
        relative: how one against another is written.
    """

    read: Callable[[Sequence[Record]], Interval | None]
    compare: Callable[[Sequence[Record], Sequence[Record]], Interval | None]
    form: str
    relative: str


def _right(records: Sequence[Record]) -> np.ndarray:
    """Return (images,) float, for what share of the seeds each image was right."""
    right: np.ndarray = np.mean([record.correct for record in records], axis=0)
    return right


def _top1(records: Sequence[Record]) -> Interval:
    if len(records) == 1:
        one = records[0]
        return Interval(*(100 * share for share in (one.top1, one.top1_low, one.top1_high)))
    return _percent(bootstrap_mean(_right(records), seed=0))


def _lost(records: Sequence[Record], reference: Sequence[Record]) -> Interval:
    return _percent(bootstrap_mean(_right(records) - _right(reference), seed=0))


def _percent(interval: Interval) -> Interval:
    return Interval(*(100 * number for number in interval))


def _match(records: Sequence[Record]) -> Interval | None:
    if any(record.match_at_k is None for record in records):
        return None
    names = ("match_at_k", "match_low", "match_high")
    ends = [np.mean([getattr(record, name) for record in records]) for name in names]
    return Interval(*(100 * float(end) for end in ends))


def _gflops(records: Sequence[Record]) -> Interval | None:
    count = records[0].gflops
    return None if count is None else Interval(count, count, count)


def _latency(records: Sequence[Record]) -> Interval | None:
    """Return the time per image of the largest batch, with its quartiles."""
    times = records[0].latency
    if not times:
        return None
    last = max(times, key=lambda entry: entry.batch)
    spread = (last.median_ms, last.q1_ms, last.q3_ms)
    return Interval(*(time / last.batch for time in spread))


def _nothing(_records: Sequence[Record], _reference: Sequence[Record]) -> None:
    return None


def _share(records: Sequence[Record], reference: Sequence[Record]) -> Interval | None:
    ours, theirs = _gflops(records), _gflops(reference)
    if ours is None or theirs is None:
        return None
    share = ours.estimate / theirs.estimate
    return Interval(share, share, share)


def _ratio(records: Sequence[Record], _reference: Sequence[Record]) -> Interval | None:
    """Return the time as ratio to the dense model's in the same rounds."""
    times = records[0].latency
    if not times:
        return None
    last = max(times, key=lambda entry: entry.batch)
    if last.ratio_to_dense is None or last.ratio_low is None or last.ratio_high is None:
        return None
    return Interval(last.ratio_to_dense, last.ratio_low, last.ratio_high)


MEASURES = {
    TOP1: Measure(read=_top1, compare=_lost, form=".1f", relative="+.1f"),
    MATCH: Measure(read=_match, compare=_nothing, form=".1f", relative="+.1f"),
    GFLOPS: Measure(read=_gflops, compare=_share, form=".2f", relative=".3f"),
    LATENCY: Measure(read=_latency, compare=_ratio, form=".3g", relative=".3f"),
}
RATIOS = (GFLOPS, LATENCY)  # compared by dividing


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates with the interval that follows from theirs."""
    count = len(intervals)
    mean = sum(one.estimate for one in intervals) / count
    below = sum((one.estimate - one.low) ** 2 for one in intervals) ** 0.5 / count
    above = sum((one.high - one.estimate) ** 2 for one in intervals) ** 0.5 / count
    return Interval(mean, mean - below, mean + above)
