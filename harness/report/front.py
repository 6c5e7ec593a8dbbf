"""The Pareto front of accuracy and cost, and which rows are clearly off it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.averages import Average, row_p
from harness.statistics import Interval, together

Cost = Callable[[Average], Interval | None]
Verdict = Literal["front", "open", "beaten"]
SAME = 1.01  # costs nearer than this are one: else the cheapest by a hair could never be beaten


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a row stands.

    Attributes:
        row: which.
        cost: of it.
        verdict: ``beaten``: another row costs no more, within 1 %, intervals taken at their worse
            ends, and is clearly more accurate. ``front``: it isn't, and by the estimates no row is
            as cheap and as accurate and better in one of the two. ``open``: neither; the images or
            timings are too few to say.
        by: the most accurate row of those that clearly beat it.
    """

    row: Average
    cost: Interval
    verdict: Verdict
    by: Average | None = None


def standings(rows: Sequence[Average], cost: Cost) -> list[Standing]:
    """Judge every row that has a cost.

    Clearly more accurate is what the exact test of `averages.row_p` says on the same images, at 5 %
    by Holm over all pairs that are asked about.

    Args:
        rows: of one group.
        cost: of a row, with its interval; None where it wasn't measured.
    """
    costs = [(row, found) for row in rows if (found := cost(row)) is not None]
    pairs = [
        (better, worse)
        for worse, spent in costs
        for better, other in costs
        if better is not worse
        and other.high <= SAME * spent.low
        and better.top1.estimate > worse.top1.estimate
    ]
    beaten: dict[str, Average] = {}
    family = together({(a.identity, b.identity): row_p(a, b) for a, b in pairs})
    for better, worse in pairs:
        known = beaten.get(worse.identity)
        clear = (better.identity, worse.identity) in family.clear
        if clear and (known is None or better.top1.estimate > known.top1.estimate):
            beaten[worse.identity] = better
    return [
        Standing(
            row=row,
            cost=spent,
            verdict=_verdict(row, spent, costs, beaten),
            by=beaten.get(row.identity),
        )
        for row, spent in costs
    ]


def _verdict(
    row: Average,
    spent: Interval,
    costs: Sequence[tuple[Average, Interval]],
    beaten: dict[str, Average],
) -> Verdict:
    def better(other: Average, price: Interval) -> bool:
        ours = (-spent.estimate, row.top1.estimate)
        theirs = (-price.estimate, other.top1.estimate)
        return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]

    if row.identity in beaten:
        return "beaten"
    return "open" if any(better(other, price) for other, price in costs) else "front"
