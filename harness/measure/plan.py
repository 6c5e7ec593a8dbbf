"""What to compare, and rows at equal cost: keep rates are solved for another method's multiply-adds or time."""

import copy
import functools
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from harness.base.terminal import Progress
from harness.datasets.base import SplitName
from harness.measure.cost import count_costs, gflops
from harness.measure.rows import MethodRate, Variant, make_row, rows_of
from harness.measure.timing import BusyError, Patience, time_models
from harness.records.averages import CLOSE, time_ratio
from harness.records.record import DENSE, GOLDEN, MATCHED, PROMPTS, RECOVERY, TUNINGS, Record, Times, Tuning
from harness.records.statistics import LEAST_ROUNDS
from zoo.core.recipes import TuneConfig
from zoo.core.settings import check_fields, expected, torch_dtype
from zoo.loading.adopt import reduce
from zoo.loading.towers import Tower
from zoo.towers.vit import ReducedViT

MATCHES = ("keep", "gflops", "time")
TOLERANCE = {"gflops": 0.01, "time": 0.02}  # of the target's cost; a row further off is reported
# Of the target's time, which a search may be off: half the tolerance, as timing again moves it.
SLACK = TOLERANCE["time"] / 2
ROUNDS = 4  # of a search's steps
STEPS = 12  # of a search, at most
SURE = 3  # costs of one count, of which one may be disturbed
# Asks for costs of counts of patch tokens; returns one of them with its cost minus 1.
Search = Generator[int, float, tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    models: tuple[str, ...] = ("clip_vit_s14",)  # dense timm names, with weight tag or without
    methods: tuple[str, ...]  # of `rows.known_methods`; dense is always there
    keeps: tuple[float, ...] = (0.6, 0.3)
    recoveries: tuple[Path, ...] = ()  # files; each is a row with the method and keep rate that it was trained for
    datasets: tuple[str, ...] = ("fashion", "emoji", "photos")
    shots: tuple[int, ...] = (0,)  # labelled images per class; 0 takes the text classifier
    tokens: str = "t"  # what is learned from shots, of `TUNINGS`
    num_tokens: int = TuneConfig.count
    seeds: int = 3  # how often it is learned from other shots, counted on from ``seed``
    limit: int | None = 50  # images per dataset, None for the whole split
    split: SplitName = "test"
    seed: int = 0  # of the choice of shots, the first
    device: str = "cpu"
    dtype: str = "float32"  # of `PRECISIONS`
    batches: tuple[int, ...] = (8,)  # for latency, none to skip it
    rounds: int = 9  # calls of each model at each batch size; of fewer than 6 no median has a 95 % interval
    match: str = "keep"  # what rows have in common, of `MATCHES`
    match_to: str = "patchrank"  # method that others' fidelity is compared with, and whose cost they meet by ``match``
    optimized: bool = False  # a row of the dense tower by `zoo.optimize`, too
    match_batch: int = 8  # images per call, where that cost is time
    far: bool = False  # keep rows that can't come near the GFLOPs they should meet

    @property
    def timed_batches(self) -> list[int]:
        """Batch sizes at which rows are timed."""
        return list(dict.fromkeys((*self.batches, self.match_batch) if self.match == "time" else self.batches))

    def matched(self, *rates: float) -> dict[str, Any]:
        """Return the setting of a row whose time is that of the target at these keep rates."""
        return {"time_of": self.match_to, "keeps": list(rates), "batch": self.match_batch, "dtype": self.dtype}

    def tunings(self, shots: int) -> list[Tuning]:
        """Return one tuning per seed; at 0 shots one, since nothing is drawn."""
        if shots == 0:
            return [Tuning(seed=self.seed)]
        count = self.num_tokens if self.tokens in PROMPTS else None
        seeds = range(self.seed, self.seed + self.seeds)
        return [Tuning(shots=shots, seed=seed, kind=self.tokens, prompt_tokens=count) for seed in seeds]


def check_plan(plan: Plan) -> None:
    """Raise ValueError for what can't be measured, whatever the tower and the data."""
    rounds = f"[{LEAST_ROUNDS}, inf)"
    check_fields(plan, tokens=TUNINGS, seeds="[1, inf)", num_tokens="[1, inf)", match=MATCHES, rounds=rounds)
    if min(plan.shots) < 0:
        raise ValueError(f"--shots {min(plan.shots)}: expected 0, which is by text, or a number from 1")
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

    dense: ReducedViT
    build: Callable[[float], ReducedViT]  # a model for a keep rate, or ValueError where there is none
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
        # Keeping all apart, as that spares the method's own work too.
        counts = (self.patches, above, max(above - 1, self.least))
        return min(counts, key=lambda count: abs(cost(count) / goal - 1))

    def search(self, start: int) -> Search:
        """Look, from ``start``, for the number of patch tokens whose cost is 1, although any sample may be disturbed.

        It ends where the median of `SURE` costs is within `SLACK`, or with the nearest after `STEPS`.
        """
        self.build(1.0)  # a method that can't do even this says why
        samples = defaultdict[int, list[float]](list)
        # Keeping all is apart, as that spares the method's own work too.
        if abs((yield self.patches) - 1) <= SLACK:
            return self.patches, 0.0
        count = min(max(start, self.least), self.patches - 1)
        for _ in range(STEPS - 1):
            samples[count].append((yield count))
            off = {each: statistics.median(costs) - 1 for each, costs in samples.items()}
            likely = [count] if abs(off[count]) <= SLACK else self._meeting(off)
            unsure = [each for each in likely if len(samples.get(each, ())) < SURE]
            if not unsure:
                break
            count = min(unsure, key=lambda each: len(samples.get(each, ())))
        best = min(off, key=lambda each: (len(samples[each]) == 1, abs(off[each]), -each))
        return best, off[best]

    def _meeting(self, off: Mapping[int, float]) -> Sequence[int]:
        """Return the counts whose cost may meet the goal, the likeliest first, by how far costs are ``off`` by count.

        Costs are smoothed by isotonic regression, as they rise with the count. Where all lie on one side of the goal,
        the line through them is extended; through a single one the cost is taken to be proportional to the count.
        """
        counts = sorted(off)
        rising = isotonic_regression([off[count] for count in counts]).x
        if rising[0] < 0 < rising[-1]:
            above = int(np.searchsorted(rising, 0.0))
            return round(float(np.interp(0.0, rising, counts))), counts[above - 1], counts[above]
        at, gap = (counts[0], rising[0]) if rising[0] >= 0 else (counts[-1], rising[-1])
        slope = 1 / at
        if len(counts) > 1:  # of noise, or flat over what a processor does at once, no line follows
            slope = max(np.polyfit(counts, [off[count] for count in counts], 1)[0], slope / 4)
        return (round(min(max(at - gap / slope, at / 4, self.least), 4 * at, self.patches - 1)),)

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
    dense: ReducedViT,
    targets: Mapping[float, ReducedViT],
    solvers: Mapping[MethodRate, KeepSolver],
    plan: Plan,
    progress: Progress,
) -> dict[MethodRate, float]:
    """Return the keep rates at which methods take the targets' times, by method and the target's keep rate.

    Searches start at the latter. A method that stays further off than `CLOSE` has none. Every step times the dense
    tower, the targets and what all searches ask for in the same rounds.
    """
    # A copy, as predictors know the tower by its weights.
    dense = copy.deepcopy(dense).to(plan.device, torch_dtype(plan.dtype))
    like, patience = next(dense.parameters()), Patience(say=progress.say)
    searches = {key: solver.search(round(key[1] * solver.patches)) for key, solver in solvers.items()}
    asked, answers, step = {key: next(search) for key, search in searches.items()}, dict[MethodRate, float](), 0
    with progress.task("keep rates of equal time", STEPS) as update:
        while asked:
            models: dict[Any, ReducedViT] = {DENSE: dense} | {key[1]: targets[key[1]] for key in solvers}
            for key, count in asked.items():
                if count < solvers[key].patches:  # else it is the dense tower
                    models[key] = solvers[key].build(count / solvers[key].patches)
            for name, vit in list(models.items())[1:]:  # on the copy's weights
                models[name] = reduce(dense, method=None)
                models[name].reducer = copy.deepcopy(vit.reducer)
                models[name].to(like.device, like.dtype).eval()
            timings = time_models(models, plan.match_batch, ROUNDS, warmup=0, patience=patience)
            ratios = {name: timing.ratio_to(timings[DENSE]).estimate for name, timing in timings.items()}
            update(step := step + 1)
            for key in list(asked):
                try:
                    asked[key] = searches[key].send(ratios.get(key, 1.0) / ratios[key[1]])
                except StopIteration as end:
                    (count, off), goal = end.value, ratios[key[1]]
                    if abs(off) <= CLOSE:
                        answers[key] = count / solvers[key].patches
                    else:
                        say_miss(key, count / solvers[key].patches, goal * (1 + off), goal, plan, progress.say)
                    del asked[key]
    return answers


def matched_rows(tower: Tower, plan: Plan, progress: Progress, known: Sequence[Record] = ()) -> list[Variant]:
    """Make the plan's rows: one method has its keep rates, the others meet its cost at each of them.

    Times are measured, unless ``known`` records, of this tower on this machine, have what came out before. Two keep
    rates may share a method's row. GFLOPs further off than `TOLERANCE` are reported, and there is no row further off
    than `CLOSE`; for times see `keep_near_rows`.
    """
    methods = [method for method in dict.fromkeys(plan.methods) if method != DENSE]

    def build(method: str, keep: float) -> ReducedViT:
        return make_row(tower, method, {"keep": keep}).vit

    solvers = {name: KeepSolver(tower.vit, functools.partial(build, name)) for name in methods if name != GOLDEN}
    if plan.match == "gflops":
        keeps = _equal_gflops(solvers.pop(plan.match_to), solvers, plan, progress)
    else:
        targets = {rate: make_row(tower, plan.match_to, {"keep": rate}) for rate in plan.keeps}
        keeps = _known_keeps(known, targets, plan)
        every = product((name for name in solvers if name != plan.match_to), targets)
        if left := {key: solvers[key[0]] for key in every if key not in keeps}:
            keeps |= equal_times(tower.vit, {rate: one.vit for rate, one in targets.items()}, left, plan, progress)
    keeps |= {(method, rate): rate for method in (plan.match_to, GOLDEN) for rate in plan.keeps}
    pairs = [(name, keeps[name, rate]) for name, rate in product(methods, plan.keeps) if (name, rate) in keeps]
    rows = rows_of(tower, dict.fromkeys([(DENSE, 1.0), *pairs]))
    return rows if plan.match == "gflops" else [_mark(one, keeps, plan) for one in rows]


def _known_keeps(known: Sequence[Record], targets: Mapping[float, Variant], plan: Plan) -> dict[MethodRate, float]:
    """Return methods' keep rates at the targets' times by the newest records, where the target is known, too."""
    rates = {rate for rate, one in targets.items() if any(record.method_config == one.config for record in known)}
    keeps = dict[MethodRate, float]()
    for record in known:
        own = record.method_config.get(MATCHED, {"keeps": ()})
        if own == plan.matched(*own["keeps"]):
            keeps |= {(record.method, rate): record.keep for rate in rates.intersection(own["keeps"])}
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
    own = row.method not in (plan.match_to, GOLDEN)
    rates = [rate for (method, rate), keep in keeps.items() if own and (method, keep) == (row.method, row.keep)]
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
    target, found = f"{plan.match_to} at keep {100 * rate:.3g} %", f"({100 * off:+.1f} %), at keep {100 * keep:.3g} %"
    apart = "; left out" if abs(off) > CLOSE and not plan.far else ""
    if plan.match == "gflops":
        say(f"{method} can't meet the {goal:.3f} GFLOPs of {target}: the nearest is {cost:.3f} {found}{apart}")
    else:
        say(
            f"{method} misses the time of {target}, {goal:.3f} of dense's at batch {plan.match_batch}: it takes "
            f"{cost:.3f} {found}{apart}"
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
    vits, counts = {key: row.vit for key, row in real.items()}, count_costs(list(real.values()), progress)
    for batch in batches:
        try:
            with progress.task(f"latency at batch {batch}", rounds) as update:
                timings = time_models(vits, batch, rounds, warmup=1, tick=update, patience=patience)
        except BusyError as error:
            progress.say(f"batch {batch}: {error}")
            continue
        for key, timing in timings.items():
            latency[key].append(timing.latency(None if key == dense else timings.get(dense)))
    return {row.key: counts[row.key] | {"latency": tuple(latency[row.key])} if row.key in real else {} for row in rows}
