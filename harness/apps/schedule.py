"""Schedules by measurement: points and counts that keep a method nearest to dense on unlabelled images, at one cost.

A candidate is some reduction points and how they share the work; its keep rate is solved for the cost. The search
begins with evenly spaced points and goes on with neighbours of the best; all are tried on a third of the images, the
better ones on the rest. What candidates have in common, the dense blocks before their first points, is run once for
several of them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import accumulate, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from harness import git_commit
from harness.apps.recovery import LearningSet, Sources, preprocess_split
from harness.base.table import UNMEASURED, Cell, Table, figure
from harness.base.terminal import Progress
from harness.datasets.base import Split, cached_json, keep_json
from harness.measure.cost import gflops
from harness.measure.match import ROUNDS, TOLERANCE, KeepSolver, TimeRatios, search_times
from harness.measure.plan import MATCHES, Plan
from harness.measure.rows import Variant, reduced_row, run
from harness.models.towers import load_tower
from harness.records.metrics import cosine_distance
from harness.records.statistics import Interval, paired_mean
from zoo.core.files import blocks_fingerprint, cache_folder
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, spread
from zoo.loading.learned_files import OPTIONS, ScheduleFile
from zoo.towers.vit import ReducedViT

UNITS = 12  # that a candidate's points share the work in
STEPS = (2, 1)  # units that move from one point to another, the coarse step first
BEAM = 2  # best candidates whose neighbours are tried
FIRST = 3  # one image in so many is for a first look, and one candidate in so many passes it
SHOWN = 4  # best schedules that are judged on held-out images beside the default
GROUP = 8  # candidates that are run together
CHUNK = 32  # images at a time
FARTHEST = {"gflops": TOLERANCE["gflops"], "time": 0.1}  # of the goal, that the default may cost more or less
WORDS = {"gflops": "GFLOPs", "time": "time"}
_NOTHING = 1e-12  # 1 - cosine that counts as none


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to search among, and at what cost."""

    points: int = 4  # reduction points at most
    candidates: int = 150  # schedules to try at most
    match: str = "gflops"  # what the cost is, or ``time``
    match_to: str = Plan.match_to  # method whose cost it is, at keep rate ``keep``
    keep: float | None = None  # that keep rate; None with ``cost``
    cost: float | None = None  # the cost instead, as a share of the dense tower's
    match_batch: int = Plan.match_batch  # images per call, where the cost is time
    dtype: str = Plan.dtype  # precision that is timed; features are compared in float32

    def __post_init__(self) -> None:
        """Validate."""
        if self.match not in MATCHES:
            raise ValueError(f"--match {self.match!r}: {expected(self.match, MATCHES)}")
        if self.match_to not in METHODS:
            raise ValueError(f"--match-to {self.match_to!r}: {expected(self.match_to, METHODS)}")
        for name in ("points", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected a number from 1")
        if (self.keep is None) == (self.cost is None):
            raise ValueError(
                "expected one cost: --keep RATE for that of --match-to at this keep rate, or --cost X for a share of "
                "the dense tower's"
            )
        if self.cost is not None and not 0 < self.cost < 1:
            raise ValueError(f"--cost {self.cost:g}: expected a share of the dense tower's cost, in (0, 1)")

    @property
    def asked(self) -> str:
        """The cost in words."""
        if self.cost is not None:
            return f"{100 * self.cost:g} % of dense"
        assert self.keep is not None
        return f"{self.match_to} at keep {100 * self.keep:g} %"


class Shape(NamedTuple):
    """Reduction points, and how many twelfths of the work each does; without points, the method's own default.

    The logarithms of the shares of patch tokens that the points leave are in proportion to their work.
    """

    points: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    def options(self, keep: float) -> dict[str, Any]:
        """Return the options of the method that end at a keep rate."""
        if not self.points:
            return {"keep": keep}
        rates = [keep ** (done / UNITS) for done in accumulate(self.parts)]
        return {"reduce_at": self.points, "schedule": tuple(rates[:-1]), "keep": keep}


DEFAULT = Shape()


class Schedule(NamedTuple):
    """Reduction points, and how many patch tokens are left after each."""

    points: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, vit: ReducedViT) -> "Schedule":
        """Return that of a reduced tower."""
        assert vit.reducer is not None
        config, points = vit.reducer.config, vit.reducer.points
        assert config.keep is not None
        return cls(points, tuple(spread(math.prod(vit.grid), config.keep, points, config.schedule).values()))

    def options(self, patches: int) -> dict[str, Any]:
        """Return the options of the method: keep rates in four digits, which give these counts again."""
        rates = [round(count / patches, 4) for count in self.counts]
        return {"reduce_at": self.points, "schedule": tuple(rates[:-1]), "keep": rates[-1]}


def starts(depth: int, most: int) -> list[Shape]:
    """Return candidates of one to ``most`` points, evenly spaced from the first block and from a third of the depth."""
    shapes = []
    for first in (0, depth // 3):
        for count in range(1, min(most, depth - first) + 1):
            points = tuple(first + (depth - first) * at // count for at in range(count))
            shapes.append(Shape(points, tuple(UNITS // count + (at < UNITS % count) for at in range(count))))
    return list(dict.fromkeys(shapes))


def neighbours(shape: Shape, depth: int, most: int, step: int) -> list[Shape]:
    """Return candidates that differ in one place.

    A point does ``step`` units of another's work, is in the next block, is gone, or shares its work with a new one.
    """
    every = []
    work = dict(zip(shape.points, shape.parts, strict=True))
    for giver, taker in permutations(work, 2):
        if work[giver] > step:
            every.append(work | {giver: work[giver] - step, taker: work[taker] + step})
    for point, units in work.items():
        rest = {other: part for other, part in work.items() if other != point}
        every += [rest | {to: units} for to in (point - 1, point + 1) if 0 <= to < depth and to not in work]
        if rest:
            nearest = min(rest, key=lambda other: abs(other - point))
            every.append(rest | {nearest: rest[nearest] + units})
    for point in range(depth) if len(work) < most else ():
        nearest = min(work, key=lambda other: abs(other - point))
        if point not in work and work[nearest] > 1:
            half = work[nearest] // 2
            every.append(work | {nearest: work[nearest] - half, point: half})
    return [Shape(tuple(sorted(one)), tuple(one[point] for point in sorted(one))) for one in every]


def search(
    look: Callable[[Sequence[Shape], bool], Mapping[Shape, float]],
    depth: int,
    config: SearchConfig,
    on_round: Callable[[int, Mapping[Shape, float]], None] = lambda *_: None,
) -> dict[Shape, float]:
    """Return the candidates that got beyond a first look, with their loss, the best first.

    ``look`` gives the loss of those candidates that can be had, on some images or, if told so, on all. ``on_round``
    takes how many were tried, and the losses so far.
    """
    steps = list(STEPS)
    tried: set[Shape] = set()
    losses: dict[Shape, float] = {}
    front = starts(depth, config.points)
    while True:
        new = [shape for shape in dict.fromkeys(front) if shape not in tried][: config.candidates - len(tried)]
        tried |= set(new)
        best = min(losses.values(), default=math.inf)
        rough = look(new, False)
        passed = sorted(rough, key=lambda shape: rough[shape])[: max(BEAM, -(-len(new) // FIRST))]
        losses |= look(passed, True)
        losses = dict(sorted(losses.items(), key=lambda item: item[1]))
        on_round(len(tried), losses)
        if len(tried) >= config.candidates or not losses:
            return losses
        if min(losses.values()) >= best:
            steps = steps[1:]
            if not steps:
                return losses
        front = [near for shape in list(losses)[:BEAM] for near in neighbours(shape, depth, config.points, steps[0])]


def loss(means: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    """Return what is left of the default's 1 - cosine, a geometric mean over sets; of the worst one if it got worse.

    So a set that is near dense already isn't given up for another.
    """
    shares = (means + _NOTHING) / (before + _NOTHING)
    return float(shares.max()) if shares.max() > 1 else float(np.exp(np.log(shares).mean()))


class _Bench:
    """A method in a tower, what its schedules cost, and what a stopped search found out so far."""

    def __init__(
        self, model: str, method: str, sources: Sources, config: SearchConfig, options: Mapping[str, Any], device: str
    ) -> None:
        self.method, self.fixed, self.config = method, options, config
        self.sets = LearningSet.load(sources)
        self.tower = load_tower(model)
        self.weights = blocks_fingerprint(self.tower.vit.state_dict(), self.tower.vit.blocks_prefix)
        self.dense = self.tower.vit.to(device)
        self.patches = math.prod(self.dense.grid)
        self.settings = self.row({"keep": 1.0}).config
        # A longer search goes on from a shorter one.
        goal = {name: value for name, value in asdict(config).items() if name not in ("points", "candidates")}
        self.path, known = cached_json(
            "fits",
            *(self.tower.name, self.weights, method, self.settings, goal, device, torch.__version__),
            *((one.facts, one.image_ids) for one in self.sets),
        )
        # Counts and cost by candidate, None if it can't be had; 1 - cosine of images by schedule.
        self.known: dict[str, Any] = known or {"solved": {}, "first": {}, "rest": {}, "seconds": 0.0}
        self._begun = time.monotonic() - self.known["seconds"]
        self.why = ""  # a candidate can't be had
        self.target: ReducedViT | None = None  # whose cost is to be met
        if config.keep is not None:
            row = reduced_row(*self._names, "target", config.match_to, {"keep": config.keep})
            self.target = row.vit
        if config.match == "time":
            self.times = TimeRatios(self.dense, batch=config.match_batch, device=device, dtype=config.dtype)
            if "goal" not in self.known:
                own = self.target
                self.known["goal"] = config.cost if own is None else self.times.of({"": own}, 2 * ROUNDS)[""]
            self.goal: float = self.known["goal"]
        else:
            whole = self.gflops(self.dense)
            self.goal = whole * config.cost if config.cost is not None else self.gflops(self.target)
            self._off = whole - closed_gflops(self.dense)

    @property
    def _names(self) -> tuple[ReducedViT, str, str]:
        return self.tower.vit, self.tower.arch, self.tower.tag

    def save(self) -> None:
        """Write what is known."""
        self.known["seconds"] = time.monotonic() - self._begun
        keep_json(self.path, self.known)

    def row(self, options: Mapping[str, Any], what: str = "") -> Variant:
        """Make the method's row with some options beside the fixed ones."""
        return reduced_row(
            *self._names, f"{self.tower.arch}_{self.method}", self.method, {**self.fixed, **options}, what
        )

    def schedule_row(self, schedule: Schedule) -> Variant:
        """Make the row of a schedule."""
        return self.row(schedule.options(self.patches), _key(schedule))

    def gflops(self, vit: ReducedViT | None) -> float:
        """Return fvcore's count of a tower."""
        assert vit is not None
        return gflops(vit, vit.input_size).gflops

    def solve(self, shapes: Sequence[Shape]) -> dict[Shape, Schedule]:
        """Return the schedule of each candidate that can meet the cost."""
        solved = self.known["solved"]
        new = [shape for shape in shapes if _key(shape) not in solved]
        for start in range(0, len(new), GROUP):
            some = new[start : start + GROUP]
            solvers = {shape: solver for shape in some if (solver := self._solver(shape)) is not None}
            answers = (self._by_time if self.config.match == "time" else self._by_gflops)(solvers)
            solved |= {_key(shape): None for shape in some}
            for shape, (count, cost) in answers.items():
                schedule = Schedule.of(solvers[shape].build(count / self.patches))
                solved[_key(shape)] = [schedule.points, schedule.counts, cost]
            self.save()
        known = {shape: solved[_key(shape)] for shape in shapes}
        return {
            shape: Schedule(tuple(one[0]), tuple(one[1]))
            for shape, one in known.items()
            if one is not None and abs(one[2] / self.goal - 1) <= TOLERANCE[self.config.match]
        }

    def _solver(self, shape: Shape) -> KeepSolver | None:
        solver = KeepSolver(self.dense, lambda keep: self.row(shape.options(keep)).vit)
        try:
            solver.build(1.0)
        except (ValueError, FileNotFoundError) as error:  # no such block, or no predictor for it
            if shape == DEFAULT:
                raise
            self.why = str(error)
            return None
        return solver

    def _by_gflops(self, solvers: Mapping[Shape, KeepSolver]) -> dict[Shape, tuple[int, float]]:
        """Bisect by the blocks' closed form, and correct that by what fvcore counts of its answer."""
        answers = {}
        for shape, solver in solvers.items():

            def build(count: int, solver: KeepSolver = solver) -> ReducedViT:
                return solver.build(count / solver.patches)

            tried: dict[int, float] = {}
            off: float = self.known.get("off", self._off)
            while (count := solver.bisect(self.goal - off, lambda count: closed_gflops(build(count)))) not in tried:
                tried[count] = self.gflops(build(count))
                off = tried[count] - closed_gflops(build(count))
            answers[shape] = min(tried.items(), key=lambda item: abs(item[1] - self.goal))
            self.known.setdefault("off", off)  # the default's, from which others differ little
        return answers

    def _by_time(self, solvers: Mapping[Shape, KeepSolver]) -> dict[Shape, tuple[int, float]]:
        """Search with measured times, those of all candidates and of the target in the same rounds."""
        starts = dict.fromkeys(solvers, round(self.goal * self.patches))
        goals = dict.fromkeys(solvers, self.target or self.goal)
        answers = search_times(self.times, solvers, starts, goals)
        return {shape: (count, cost * self.goal) for shape, (count, cost) in answers.items()}

    def ratios(self, vits: Mapping[Schedule, ReducedViT]) -> dict[Schedule, float]:
        """Return times by the dense tower's, as if the target took now what it took at first."""
        every: dict[Any, ReducedViT] = dict(vits) | ({} if self.target is None else {"target": self.target})
        ratios = self.times.of(every, 2 * ROUNDS)
        drift = 1.0 if self.target is None else self.goal / ratios.pop("target")
        return {key: ratio * drift for key, ratio in ratios.items()}

    def default(self, progress: Progress) -> Schedule:
        """Return the method's own schedule at the cost; one that misses it is reported, or refused if far off."""
        self.solve([DEFAULT])
        points, counts, cost = self.known["solved"][_key(DEFAULT)]
        off = abs(cost / self.goal - 1)
        if off > TOLERANCE[self.config.match]:
            miss = (
                f"{self.method} can't meet the {WORDS[self.config.match]} of {self.config.asked} by its default "
                f"schedule: asked {self.goal:.4g}, the nearest is {cost:.4g}"
            )
            if off > FARTHEST[self.config.match]:
                raise ValueError(miss)
            progress.say(miss)
        return Schedule(tuple(points), tuple(counts))


class _Images:
    """Images of several datasets, in their order, and 1 - cosine to dense of schedules on them."""

    def __init__(self, bench: _Bench, splits: Sequence[Split], progress: Progress) -> None:
        self.bench = bench
        sets = [
            preprocess_split(split, bench.tower.preprocess, one.dataset.name, progress)
            for one, split in zip(bench.sets, splits, strict=True)
        ]
        self.images, self.device = torch.cat(sets), next(bench.dense.parameters()).device
        self.set_of = np.repeat(np.arange(len(sets)), [len(images) for images in sets])
        with torch.inference_mode():
            features = [bench.dense(chunk.to(self.device)).float().cpu() for chunk in self.images.split(CHUNK)]
        self.truth = F.normalize(torch.cat(features), dim=-1)

    def run(self, schedules: Sequence[Schedule], places: NDArray[np.int64]) -> dict[Schedule, list[float]]:
        """Run schedules on the images at some places."""
        rows = {schedule: self.bench.schedule_row(schedule) for schedule in schedules}
        values: dict[Schedule, list[float]] = {schedule: [] for schedule in schedules}
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            outcomes = run(list(rows.values()), self.images[some].to(self.device))
            for schedule, row in rows.items():
                values[schedule] += cosine_distance(outcomes[row.key].features, self.truth[some]).tolist()
        return values

    def means(self, values: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean of each set of values at some places."""
        sets = self.set_of[places]
        return np.bincount(sets, weights=values) / np.bincount(sets)


def _search_on_images(bench: _Bench, default: Schedule, progress: Progress) -> tuple[list[Schedule], int]:
    """Return schedules that got beyond a first look, the best on training images first, and how many were tried."""
    train, count = _Images(bench, [one.train for one in bench.sets], progress), 0
    # Each set's own, so that none is left out.
    first = np.concatenate([np.flatnonzero(train.set_of == at)[::FIRST] for at in range(len(bench.sets))])
    every = np.arange(len(train.images))
    parts = {"first": first, "rest": np.setdiff1d(every, first)}

    def look(shapes: Sequence[Shape], whole: bool) -> dict[Shape, float]:
        schedules, values = bench.solve(shapes), np.empty(len(every))
        for name, places in parts.items() if whole else [("first", first)]:
            known = bench.known[name]
            lack = [one for one in sorted({*schedules.values(), default}) if _key(one) not in known]
            for start in range(0, len(lack), GROUP):
                found = train.run(lack[start : start + GROUP], places)
                known |= {_key(one): each for one, each in found.items()}
                bench.save()
                update(len(bench.known["first"]))

        def means(one: Schedule) -> NDArray[np.float64]:
            for name, places in parts.items():
                values[places] = bench.known[name].get(_key(one), 0.0)
            return train.means(values[looked], looked)

        looked = every if whole else first
        before = means(default)
        return {shape: loss(means(one), before) for shape, one in schedules.items()}

    def on_round(tried: int, losses: Mapping[Shape, float]) -> None:
        nonlocal count
        count = tried
        if losses:
            shape, left = next(iter(losses.items()))
            blocks = ", ".join(map(str, shape.points))
            progress.say(f"{tried} tried; the best is at blocks {blocks}: {left:.3f} of the default's 1 - cosine")

    with progress.task("schedules tried", bench.config.candidates) as update:
        shapes = search(look, bench.dense.depth, bench.config, on_round)
    if bench.why:
        progress.say(f"some schedules can't be had: {bench.why}")
    return list(dict.fromkeys(bench.solve(list(shapes)).values())), count


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A schedule on held-out images."""

    schedule: Schedule
    gflops: float
    time_ratio: float | None  # to dense; None where times weren't asked for
    means: tuple[float, ...]  # 1 - cosine, of each dataset
    differences: tuple[Interval, ...]  # to the default, paired
    better: bool  # than the default, its interval clear of zero, and on no set worse so


def _finalists(bench: _Bench, schedules: Sequence[Schedule], progress: Progress) -> list[Finalist]:
    """Run schedules, the default first, on held-out images; images of one group are resampled together."""
    held_out = _Images(bench, [one.held_out for one in bench.sets], progress)
    every = np.arange(len(held_out.images))
    names = [
        f"{one.dataset.name}/{one.dataset.group_of(name)}" for one in bench.sets for name in one.held_out.image_ids
    ]
    groups = np.unique(names, return_inverse=True)[1]
    distinct = sorted(set(schedules))
    values: dict[Schedule, NDArray[np.float64]] = {}
    for start in range(0, len(distinct), GROUP):
        found = held_out.run(distinct[start : start + GROUP], every)
        values |= {one: np.array(each) for one, each in found.items()}
    vits = {one: bench.schedule_row(one).vit for one in schedules}
    ratios = bench.ratios(vits) if bench.config.match == "time" else {}
    sets = [held_out.set_of == at for at in range(len(bench.sets))]
    default = values[schedules[0]]
    # Each image counts by the default's mean on its set.
    before = np.maximum([default[some].mean() for some in sets], _NOTHING)[held_out.set_of]

    def difference(one: Schedule, some: NDArray[np.bool_], scale: NDArray[np.float64] | float = 1.0) -> Interval:
        ours, theirs = values[one] / scale, default / scale
        return paired_mean(ours[some], theirs[some], 0, np.unique(groups[some], return_inverse=True)[1])

    finalists = []
    for one in schedules:
        differences = tuple(difference(one, some) for some in sets)
        worse = any(each.low > 0 for each in differences)
        finalists.append(
            Finalist(
                schedule=one,
                gflops=bench.gflops(vits[one]),
                time_ratio=ratios.get(one),
                means=tuple(float(values[one][some].mean()) for some in sets),
                differences=differences,
                better=not worse and difference(one, every >= 0, before).high < 0,
            )
        )
    return finalists


@dataclass(frozen=True, kw_only=True)
class ScheduleResult:
    """What a search came to."""

    file: ScheduleFile
    path: Path
    default: Finalist
    best: tuple[Finalist, ...]  # by the images that were searched on, the best first


def search_schedule(
    model: str,
    method: str,
    sources: Sources,
    config: SearchConfig,
    *,
    options: Mapping[str, Any] | None = None,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress,
) -> ScheduleResult:
    """Search the schedule of a method in a dense tower and write it; a search that was stopped goes on where it was.

    ``options`` are others of the method. The best on training images is stored if it is better than the default on
    held-out ones, see `Finalist`; else the default is. ``out`` None is for the user's cache.

    Raises:
        ValueError: an unknown name, a dataset without images, or a cost that the method can't meet.
        FileNotFoundError: no predictor for the method or the one whose cost is to be met.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    if taken := set(options or {}) & set(OPTIONS):
        raise ValueError(f"option {min(taken)!r} is what is searched for: leave it out")
    bench = _Bench(model, method, sources, config, options or {}, device)
    default = bench.default(progress)
    schedules, tried = _search_on_images(bench, default, progress)
    shown = [one for one in schedules if one != default][:SHOWN]
    plain, *others = _finalists(bench, [default, *shown], progress)
    best = others[0] if others and schedules[0] != default and others[0].better else plain
    losses = zip(bench.sets, plain.means, best.means, best.differences, strict=True)
    bench.save()
    tower, numbers = bench.tower, best.schedule.options(bench.patches)
    file = ScheduleFile(
        **numbers,
        model=tower.arch,
        tag=tower.tag,
        weights=bench.weights,
        method=method,
        options={name: value for name, value in bench.settings.items() if name not in OPTIONS},
        cost={
            "match": config.match,
            "of": config.asked,
            "asked": bench.goal,
            "reached": best.gflops if best.time_ratio is None else best.time_ratio,
        },
        found=best is not plain,
        datasets=[{**one.facts, "before": a, "after": b, "difference": list(d)} for one, a, b, d in losses],
        candidates=tried,
        seconds=bench.known["seconds"],
        version=version("clip-patchrank"),
        commit=git_commit(),
    )
    name = f"{tower.arch}_{method}.{tower.tag or 'own'}.{bench.path.stem}.json"
    path = out or cache_folder() / "schedules" / name
    file.write(path)
    bench.path.unlink(missing_ok=True)
    return ScheduleResult(file=file, path=path, default=plain, best=tuple(others))


def closed_gflops(vit: ReducedViT) -> float:
    """Return what the blocks cost by the counts of patch tokens, regardless of the method's own work."""
    left, total = math.prod(vit.grid), 0
    counts = {} if vit.reducer is None else vit.reducer.counts(left)
    linear = sum(module.weight.numel() for module in vit.block_modules[0].modules() if isinstance(module, nn.Linear))
    for index in range(vit.depth):
        left = counts.get(index, left)
        tokens = vit.prefix_count + left
        total += tokens * linear + 2 * tokens**2 * vit.embed_dim
    return total / 1e9


def _key(one: Shape | Schedule) -> str:
    points, numbers = one
    return f"{','.join(map(str, points))}:{','.join(map(str, numbers))}"


def schedule_table(result: ScheduleResult) -> Table:
    """Show the default and the best schedules on held-out images."""
    file = result.file
    names = [one["name"] for one in file.datasets]
    timed = result.default.time_ratio is not None
    time = ["x dense"] if timed else []
    heads = ["schedule", "at blocks", "patches left", "GFLOPs", *time, "images", "1 - cos", "to default"]
    rows = []
    for at, one in enumerate([result.default, *result.best]):
        blocks, counts = (", ".join(map(str, numbers)) for numbers in one.schedule)
        cells = [Cell(f"found {at}" if at else "default"), Cell(blocks), Cell(counts), figure(one.gflops, ".3f")]
        cells += [figure(one.time_ratio, ".3f")] if timed else []
        for name, mean, (estimate, low, high) in zip(names, one.means, one.differences, strict=True):
            change = f"{estimate:+.5f} [{low:+.5f}, {high:+.5f}]" if at else UNMEASURED
            rows.append([*cells, Cell(name), figure(mean, ".5f"), Cell(change)])
            cells = [Cell("")] * len(cells)
    return Table.of(
        f"Schedules of {file.method} in {file.model} at the {WORDS[file.cost['match']]} of {file.cost['of']}",
        heads,
        rows,
        words=("schedule", "at blocks", "patches left", "images"),
        roomy=("GFLOPs", "at blocks", "patches left"),
        sections=frozenset(range(len(names), len(rows), len(names))),
        caption="1 - cosine to dense on held-out images, and the paired difference to the default [95 % interval]; "
        "the best on training images first.",
    )
