"""What to compare, and rows at equal cost: keep rates are solved for another method's multiply-adds or time."""

import copy
import functools
import itertools
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from harness.base.terminal import Progress
from harness.measure.cost import count_costs, gflops
from harness.measure.rows import MethodRate, Variant, make_row, rows_of
from harness.measure.settings import MATCHES, Plan
from harness.measure.timing import BusyError, Patience, time_models
from harness.records.averages import CLOSE, time_ratio
from harness.records.record import DENSE, GOLDEN, MATCHED, RECOVERY, RESIZE, TUNINGS, Record, Times
from harness.records.statistics import LEAST_ROUNDS
from zoo.core.host import Host
from zoo.core.reducer import METHODS
from zoo.core.settings import check_fields, expected, torch_dtype
from zoo.deploy.runtime import Prepared, find_runtime
from zoo.loading.adopt import reduce
from zoo.loading.towers import Tower

TOLERANCE = {"gflops": 0.01, "time": 0.02}  # of the target's cost; a row further off is reported
GRID, NEAR = 5, 3  # numbers of patch tokens at which a method is timed at once, over all and around one
CALLS, ROUNDS = 3, 3  # measurements of a time, of which one may be disturbed, and the rounds of each


def check_plan(plan: Plan) -> None:
    """Raise ValueError for what can't be measured, whatever the tower and the data."""
    rounds = f"[{LEAST_ROUNDS}, inf)"
    check_fields(plan, tokens=TUNINGS, seeds="[1, inf)", num_tokens="[1, inf)", match=MATCHES, rounds=rounds)
    for runtime in plan.runtimes:
        find_runtime(runtime)
    if min(plan.shots) < 0:
        raise ValueError(f"--shots {min(plan.shots)}: expected 0, which is by text, or a number from 1")
    if RESIZE in plan.methods and (plan.match == "time" or any(plan.shots) or plan.match_to == RESIZE):
        raise ValueError(f"method {RESIZE!r}: expected --match gflops or keep, another --match-to, and --shots 0 alone")
    for method in plan.budgets:
        if method not in METHODS or method not in plan.methods:
            raise ValueError(
                f"--budgets {method}: {expected(method, [name for name in plan.methods if name in METHODS])} that are "
                "measured; or add it to --methods"
            )
    if plan.match == "keep" and plan.match_to == Plan.match_to:
        return
    if plan.match_to in (DENSE, GOLDEN):
        raise ValueError(f"match_to={plan.match_to!r} has no cost that others could meet: name a method that reduces")
    if plan.match_to not in plan.methods:
        raise ValueError(
            f"match_to={plan.match_to!r} is not measured: {expected(plan.match_to, plan.methods)} "
            "with --match-to, or add it to --methods"
        )


@dataclass
class KeepSolver:
    """Solve the keep rate of one kind of model for a cost."""

    dense: Host
    build: Callable[[float], Host]  # a model for a keep rate, or ValueError where there is none
    counted: dict[float, float] = field(default_factory=dict)  # GFLOPs by keep rate

    @property
    def patches(self) -> int:
        """Patch tokens of the dense tower."""
        return self.dense.grid[0] * self.dense.grid[1]

    def gflops(self, keep: float) -> float:
        """Return fvcore's count of the model itself, 1e9 multiply-adds per image; counted once."""
        if keep not in self.counted:
            self.counted[keep] = gflops(self.build(keep), self.dense.input_size).gflops
        return self.counted[keep]

    def nearest(self, goal: float) -> float:
        """Return the keep rate whose cost is nearest to ``goal`` GFLOPs."""
        return self.bisect(goal, lambda count: self.gflops(count / self.patches)) / self.patches

    def bisect(self, goal: float, cost: Callable[[int], float]) -> int:
        """Return the number of patch tokens whose cost is nearest to the goal; costs rise with it."""
        self.build(1.0)  # a method that can't do even this says why
        cost = functools.cache(cost)
        above = bisect_left(range(self.patches), goal, self.least, self.patches - 1, key=cost)
        # Keeping all patch tokens spares the method's own work, too.
        counts = (self.patches, above, max(above - 1, self.least))
        return min(counts, key=lambda count: abs(cost(count) / goal - 1))

    def grid(self, low: float, high: float, size: int) -> list[int]:
        """Return up to ``size`` numbers of patch tokens, evenly from ``low`` to ``high``, that the model can end with.

        Keeping all of them is the dense tower.
        """
        counts = np.linspace(low, high, size).round().clip(self.least, self.patches - 1)
        return [int(count) for count in np.unique(counts)]

    def meet(self, costs: Mapping[int, float]) -> list[int]:
        """Return numbers around the one whose cost is 1, interpolated between measured costs by number."""
        counts, rising = [*costs], isotonic_regression([*costs.values()]).x
        middle, margin = np.interp(1.0, rising, counts), self.patches / GRID**2
        return self.grid(middle - margin, middle + margin, NEAR)

    @functools.cached_property
    def least(self) -> int:
        """The fewest patch tokens that the model can end with; ToMe, say, halves at most."""

        def able(count: int) -> bool:
            try:
                self.build(count / self.patches)
            except ValueError:
                return False
            return True

        return 1 + bisect_left(range(1, self.patches - 1), True, key=able)


def equal_times(
    dense: Host,
    targets: Mapping[float, Host],
    solvers: Mapping[MethodRate, KeepSolver],
    plan: Plan,
    progress: Progress,
) -> dict[MethodRate, float]:
    """Return the keep rates at which methods take the targets' times, by method and the target's keep rate.

    Each method is timed at `GRID` numbers of patch tokens, in the same rounds as the dense tower and the targets. The
    target's time is interpolated between them, `NEAR` numbers around the result are timed, and the nearest in time is
    taken. A method further off than `CLOSE` there has no keep rate.
    """
    # A copy, as predictors know the tower by its weights.
    dense = copy.deepcopy(dense).to(plan.device, torch_dtype(plan.precision))
    done = itertools.count(1)
    counts = {key: solver.grid(1, solver.patches, GRID) for key, solver in solvers.items()}
    costs = dict[MethodRate, dict[int, float]]()
    with progress.task("keep rates of equal time", 2 * CALLS) as update:
        for _ in range(2):
            models: dict[Hashable, Host] = {DENSE: dense}
            models |= {rate: targets[rate] for _, rate in solvers}
            for (method, rate), solver in solvers.items():
                models |= {(method, n): solver.build(n / solver.patches) for n in counts[method, rate]}
            ratios = _time_ratios(models, plan, progress, lambda: update(next(done)))
            costs = {
                (method, rate): {n: ratios[method, n] / ratios[rate] for n in counts[method, rate]}
                for method, rate in solvers
            }
            counts = {key: solver.meet(costs[key]) for key, solver in solvers.items()}
    keeps = {}
    for key, solver in solvers.items():
        goal = ratios[key[1]]
        costs[key][solver.patches] = 1 / goal  # the dense tower, which is spared the method's own work
        count = min(costs[key], key=lambda n: abs(costs[key][n] - 1))
        if abs(costs[key][count] - 1) <= CLOSE:
            keeps[key] = count / solver.patches
        else:
            say_miss(key, count / solver.patches, goal * costs[key][count], goal, plan, progress.say)
    return keeps


def _time_ratios(
    models: Mapping[Hashable, Host], plan: Plan, progress: Progress, tick: Callable[[], object]
) -> dict[Hashable, float]:
    """Return models' times by that of the first, the dense tower, whose weights, device and precision all share.

    A ratio is the median of `CALLS` measurements, of which one may be disturbed.
    """
    dense, like, patience = models[DENSE], next(models[DENSE].parameters()), Patience(say=progress.say)
    copies: dict[Hashable, Host] = {DENSE: dense}
    for name, vit in list(models.items())[1:]:
        copies[name] = reduce(dense, method=None)
        copies[name].reducer = copy.deepcopy(vit.reducer)
        copies[name].to(like.device, like.dtype).eval()
    ratios = defaultdict[Hashable, list[float]](list)
    for _ in range(CALLS):
        timings = time_models(copies, plan.match_batch, ROUNDS, warmup=0, patience=patience)
        for name, timing in timings.items():
            ratios[name].append(timing.ratio_to(timings[DENSE]).estimate)
        tick()
    return {name: statistics.median(values) for name, values in ratios.items()}


def matched_rows(tower: Tower, plan: Plan, progress: Progress, known: Sequence[Record] = ()) -> list[Variant]:
    """Make the plan's rows: one method has its keep rates, the others meet its cost at each of them.

    Times are measured, unless ``known`` records, of this tower on this machine, have what came out before. Two keep
    rates may share a method's row. GFLOPs further off than `TOLERANCE` are reported, and there is no row further off
    than `CLOSE`; for times see `keep_near_rows`.
    """
    methods = [method for method in dict.fromkeys(plan.methods) if method != DENSE]

    def build(method: str, keep: float) -> Host:
        return make_row(tower, method, {"keep": keep}).vit

    solvers = {name: KeepSolver(tower.vit, functools.partial(build, name)) for name in methods if name != GOLDEN}
    if plan.match == "gflops":
        keeps = _equal_gflops(solvers.pop(plan.match_to), solvers, plan, progress)
    else:
        targets = {rate: make_row(tower, plan.match_to, {"keep": rate}) for rate in plan.keeps}
        keeps = _known_keeps(known, targets, plan)
        every = itertools.product((name for name in solvers if name != plan.match_to), targets)
        if left := {key: solvers[key[0]] for key in every if key not in keeps}:
            keeps |= equal_times(tower.vit, {rate: row.vit for rate, row in targets.items()}, left, plan, progress)
    keeps |= {(method, rate): rate for method in (plan.match_to, GOLDEN) for rate in plan.keeps}
    pairs = [
        (name, keeps[name, rate]) for name, rate in itertools.product(methods, plan.keeps) if (name, rate) in keeps
    ]
    rows = rows_of(tower, dict.fromkeys([(DENSE, 1.0), *pairs]))
    return rows if plan.match == "gflops" else [_mark(row, keeps, plan) for row in rows]


def _known_keeps(known: Sequence[Record], targets: Mapping[float, Variant], plan: Plan) -> dict[MethodRate, float]:
    """Return methods' keep rates at the targets' times by the newest records, where the target is known, too."""
    rates = {rate for rate, row in targets.items() if any(record.method_config == row.config for record in known)}
    keeps = dict[MethodRate, float]()
    for record in known:
        matched = record.method_config.get(MATCHED, {"keeps": ()})
        if matched == plan.matched(*matched["keeps"]):
            keeps |= {(record.method, rate): record.keep for rate in rates.intersection(matched["keeps"])}
    return keeps


def _equal_gflops(
    target: KeepSolver, solvers: Mapping[str, KeepSolver], plan: Plan, progress: Progress
) -> dict[MethodRate, float]:
    keeps = {}
    with progress.task("keep rates of equal cost", len(solvers)) as update:
        for done, (method, solver) in enumerate(solvers.items(), start=1):
            for rate in plan.keeps:
                keep = solver.nearest(goal := target.gflops(rate))
                say_miss((method, rate), keep, solver.gflops(keep), goal, plan, progress.say)
                if plan.far or abs(solver.gflops(keep) / goal - 1) <= CLOSE:
                    keeps[method, rate] = keep
            update(done)
    return keeps


def _mark(row: Variant, keeps: Mapping[MethodRate, float], plan: Plan) -> Variant:
    """Note in a row's settings whose time it meets."""
    solved = row.method not in (plan.match_to, GOLDEN)
    rates = [rate for (method, rate), keep in keeps.items() if solved and (method, keep) == (row.method, row.keep)]
    return replace(row, config=row.config | {MATCHED: plan.matched(*rates)}) if rates else row


def keep_near_rows(
    rows: Sequence[Variant], costs: Mapping[str, Mapping[str, Any]], plan: Plan, say: Callable[[str], object]
) -> list[Variant]:
    """Return rows without those whose time, as it was measured in the end, is off the target's by more than `CLOSE`.

    Those further off than `TOLERANCE` are told. Raises BusyError if there are no times.
    """
    free = [row for row in rows if row.method not in (DENSE, GOLDEN) and RECOVERY not in row.config]
    times = {row.key: time_ratio(costs[row.key]["latency"], plan.match_batch) for row in free}
    ratios = {key: ratio for key, ratio in times.items() if ratio is not None}
    if len(ratios) < len(times):
        raise BusyError("rows at equal time")
    goals = {row.keep: ratios[row.key] for row in free if row.method == plan.match_to}
    near = []
    for row in rows:
        rates = row.config.get(MATCHED, {"keeps": ()})["keeps"]
        for rate in rates:
            say_miss((row.method, rate), row.keep, ratios[row.key], goals[rate], plan, say)
        if met := [rate for rate in rates if abs(ratios[row.key] / goals[rate] - 1) <= CLOSE]:
            near.append(replace(row, config=row.config | {MATCHED: plan.matched(*met)}))
        elif not rates:
            near.append(row)
    return near


def say_miss(key: MethodRate, keep: float, cost: float, goal: float, plan: Plan, say: Callable[[str], object]) -> None:
    """Report a row, by method and the target's keep rate, whose cost is further off the goal than `TOLERANCE`."""
    (method, rate), off = key, cost / goal - 1
    if abs(off) <= TOLERANCE[plan.match]:
        return
    target, miss = f"{plan.match_to} at keep {100 * rate:.3g} %", f"({100 * off:+.1f} %), at keep {100 * keep:.3g} %"
    result = "; left out" if abs(off) > CLOSE and not plan.far else ""
    if plan.match == "gflops":
        say(f"{method} can't meet the {goal:.3f} GFLOPs of {target}: the nearest is {cost:.3f} {miss}{result}")
    else:
        say(
            f"{method} misses the time of {target}, {goal:.3f} of dense's at batch {plan.match_batch}: it takes "
            f"{cost:.3f} {miss}{result}"
        )


def costs(
    rows: Sequence[Variant], batches: Sequence[int], rounds: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Measure what every row costs, latency included, as fields of ``Record`` and metrics by the row's key.

    Batch sizes at which the machine is too busy are told, and missing. A golden row is no model one could run, so it
    has no costs.
    """
    real = {row.key: row for row in rows if row.method != GOLDEN}  # each once, as lines of a study share rows
    dense = next((row.key for row in rows if row.method == DENSE), "")  # none beside prompts
    latency, patience = {key: list[Times]() for key in real}, Patience(say=progress.say)
    models: dict[str, Host | Prepared] = {key: row.prepared or row.vit for key, row in real.items()}
    counts = count_costs(list(real.values()), progress)
    for batch in batches:
        try:
            with progress.task(f"latency at batch {batch}", rounds) as update:
                timings = time_models(models, batch, rounds, warmup=1, tick=update, patience=patience)
        except BusyError as error:
            progress.say(f"batch {batch}: {error}")
            continue
        for key, timing in timings.items():
            latency[key].append(timing.latency(None if key == dense else timings.get(dense)))
    return {row.key: counts[row.key] | {"latency": tuple(latency[row.key])} if row.key in real else {} for row in rows}
