"""Methods at equal cost: a target's rows, each with the rows of nearest GFLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.averages import Average, averages, mean_difference, row_p
from harness.conditions import DENSE
from harness.records import Record
from harness.statistics import Interval, paired_difference


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One method beside the target, at the keep rate that costs as nearly the same as it can.

    Attributes:
        target: the target; its keep rate is the one asked for.
        row: the method, the target itself among them.
        off: the method's GFLOPs over the target's, minus 1.
        difference: top-1 of the method minus the target's, same images, 95 % paired bootstrap; of
            several seeds that of their mean; None for the target itself.
        p_value: that both are equally often right, see `averages.row_p`; None for the target
            itself.
    """

    target: Average
    row: Average
    off: float
    difference: Interval | None
    p_value: float | None


def matched(records: Sequence[Record], target: str) -> list[Matched]:
    """Pair each of the target's rows with every method's row of the nearest GFLOPs.

    Args:
        records: of one dataset, tower and number of shots; those without GFLOPs and the dense one
            are left out.
        target: name of the method whose cost counts.

    Returns:
        Grouped by the target's keep rate, falling; the target first, then the best top-1.
    """
    rows = [row for row in averages(records) if row.method != DENSE]
    rows = [row for row in rows if row.mean("gflops") is not None]
    methods = list(dict.fromkeys(row.method for row in rows if row.method != target))
    pairs = []
    for goal in sorted((row for row in rows if row.method == target), key=lambda row: -row.keep):
        others = [
            min((row for row in rows if row.method == method), key=lambda row: abs(_off(row, goal)))
            for method in methods
        ]
        others.sort(key=lambda row: -row.top1.estimate)
        pairs.append(Matched(target=goal, row=goal, off=0.0, difference=None, p_value=None))
        pairs += [_paired(other, goal) for other in others]
    return pairs


def _paired(other: Average, goal: Average) -> Matched:
    if len(goal.records) > 1:
        difference = mean_difference(other, goal)
    else:
        difference = paired_difference(other.first.correct, goal.first.correct, seed=0)
    off = _off(other, goal)
    p_value = row_p(other, goal)
    return Matched(target=goal, row=other, off=off, difference=difference, p_value=p_value)


def _off(row: Average, goal: Average) -> float:
    return float(row.mean("gflops") / goal.mean("gflops") - 1)
