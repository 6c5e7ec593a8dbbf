"""Methods at equal cost: the keep rates that meet a target's GFLOPs, and the pairs to compare."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.averages import Average, averages, mean_difference, row_p
from harness.plan import Plan
from harness.progress import Progress
from harness.records import Record
from harness.solve import KeepSolver
from harness.statistics import Interval, paired_difference
from harness.variants import DENSE, GOLDEN, Asked, rows_of
from zoo.reducer import expected
from zoo.vit import ReducedViT

MATCHES = ("gflops",)
TOLERANCE = 0.01  # of the target's GFLOPs; a row further off is told


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


def check_match(plan: Plan) -> None:
    """Refuse a plan whose rows can't be at equal cost.

    Raises:
        ValueError: unknown ``match``; a target that has no cost, no keep rate, or isn't measured.
    """
    if plan.match is None:
        if plan.match_to != Plan.match_to:
            raise ValueError(f"match_to={plan.match_to!r} does nothing without --match gflops")
        return
    if plan.match not in MATCHES:
        raise ValueError(f"match={plan.match!r}: {expected(plan.match, MATCHES)}")
    if GOLDEN in plan.methods:
        raise ValueError(
            f"method {GOLDEN!r} has no GFLOPs to match, it needs the answer: leave it out of "
            "--methods"
        )
    if plan.match_to == DENSE:
        raise ValueError(f"match_to={DENSE!r} has no keep rate: name a method that reduces")
    if plan.match_to not in plan.methods:
        raise ValueError(
            f"match_to={plan.match_to!r} is not measured: {expected(plan.match_to, plan.methods)} "
            "with --match-to, or add it to --methods"
        )


def matched_rows(
    dense: ReducedViT, arch: str, tag: str, plan: Plan, progress: Progress
) -> list[Asked]:
    """Solve each method's keep rate for the target's GFLOPs at each of the plan's.

    Costs are fvcore's of the model itself. Two keep rates of the target may share a method's row.

    Args:
        dense: the tower, where fvcore can trace it.
        arch: its timm name.
        tag: its weight tag.
        plan: one that `check_match` lets pass.
        progress: told of rows further off than `TOLERANCE`.

    Raises:
        ValueError: as in `variants.rows_of`.
    """

    def solver(method: str) -> KeepSolver:
        return KeepSolver(dense, lambda keep: rows_of(dense, arch, tag, [(method, keep)])[0].vit)

    target = solver(plan.match_to)
    goals = {asked: target.gflops(asked) for asked in plan.keeps}
    methods = [method for method in dict.fromkeys(plan.methods) if method != DENSE]
    found: list[Asked] = [(DENSE, 1.0)]
    with progress.task("keep rates of equal cost", len(methods)) as update:
        for done, method in enumerate(methods, start=1):
            costs = solver(method)
            for asked, goal in goals.items():
                keep = asked
                if method != plan.match_to:
                    keep = costs.nearest(goal)
                    spent = costs.gflops(keep)
                    _tell(progress, plan.match_to, asked, goal, (method, keep), spent)
                found.append((method, keep))
            update(done)
    return list(dict.fromkeys(found))


def _tell(
    progress: Progress, target: str, asked: float, goal: float, got: Asked, spent: float
) -> None:
    if abs(spent / goal - 1) > TOLERANCE:
        progress.say(
            f"{got[0]} can't meet the {goal:.3f} GFLOPs of {target} at keep {100 * asked:.3g} %: "
            f"the nearest is {spent:.3f} ({100 * (spent / goal - 1):+.1f} %), at keep "
            f"{100 * got[1]:.3g} %"
        )


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
    found = []
    for goal in sorted((row for row in rows if row.method == target), key=lambda row: -row.keep):
        others = [
            min((row for row in rows if row.method == method), key=lambda row: abs(_off(row, goal)))
            for method in methods
        ]
        others.sort(key=lambda row: -row.top1.estimate)
        found.append(Matched(target=goal, row=goal, off=0.0, difference=None, p_value=None))
        found += [_paired(other, goal) for other in others]
    return found


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
