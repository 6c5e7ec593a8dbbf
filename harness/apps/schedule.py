"""Schedules by measurement: points and counts that keep a method nearest to dense on unlabelled images, at one cost.

A candidate is some reduction points and how they share the work; its keep rate is solved for the cost. The search
begins with evenly spaced points and goes on with neighbours of the best; all are tried on a third of the images, the
better ones on the rest. What candidates have in common, the dense blocks before their first points, is run once for
several of them.
"""

import hashlib
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import accumulate, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from harness import git_commit
from harness.base.table import UNMEASURED, Cell, Table, figure
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.measure.match import ROUNDS, TOLERANCE, KeepSolver, TimeRatios, together
from harness.measure.plan import MATCHES, Plan
from harness.measure.recovery import Sources, learning_splits, preprocessed
from harness.measure.rows import Variant, reduced_row, run
from harness.models.cost import gflops
from harness.models.towers import Tower, load_tower
from harness.records.metrics import cosine_distance
from harness.records.statistics import Interval, paired_mean
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, spread
from zoo.loading.schedule_file import OPTIONS, ScheduleFile
from zoo.loading.weights import blocks_fingerprint, cache_folder
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
    """What to search among, and at what cost.

    Attributes:
        points: reduction points at most.
        candidates: schedules to try at most.
        match: what the cost is, ``gflops`` or ``time``.
        match_to: method whose cost it is, at keep rate ``keep``.
        keep: that keep rate; None with ``cost``.
        cost: the cost instead, as a share of the dense tower's.
        match_batch: images per call, where the cost is time.
        dtype: precision that is timed; features are compared in float32.
    """

    points: int = 4
    candidates: int = 150
    match: str = "gflops"
    match_to: str = Plan.match_to
    keep: float | None = None
    cost: float | None = None
    match_batch: int = Plan.match_batch
    dtype: str = Plan.dtype

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
        return cls(points, tuple(spread(_patches(vit), config.keep, points, config.schedule).values()))

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


@dataclass
class _State:
    """What a search found out so far, in a file that a stopped search goes on from."""

    path: Path
    solved: dict[str, Any] = field(default_factory=dict)  # by candidate: counts and cost, None if it can't be had
    values: dict[str, list[float | None]] = field(default_factory=dict)  # by schedule: 1 - cosine of each image
    target: float | None = None  # time of the model whose time it is to meet, by the dense tower's
    off: float | None = None  # GFLOPs of the default beside the blocks' closed form
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Read what is there."""
        if self.path.is_file():
            try:
                facts: dict[str, Any] = json.loads(self.path.read_bytes())
            except ValueError as error:
                raise ValueError(f"checkpoint {str(self.path)!r} can't be read; delete it: {error}") from error
            for name, value in facts.items():
                setattr(self, name, value)
        self._begun = time.monotonic() - self.seconds

    def save(self) -> None:
        """Write it whole."""
        self.seconds = time.monotonic() - self._begun
        facts = {name: getattr(self, name) for name in ("solved", "values", "target", "off", "seconds")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(facts).encode())


class _Costs:
    """Solve keep rates of candidates for the cost that is asked for."""

    def __init__(
        self, tower: Tower, build: Callable[[Mapping[str, Any]], ReducedViT], config: SearchConfig, state: _State
    ) -> None:
        self.dense, self.build, self.config, self.state = tower.vit, build, config, state
        self.why = ""  # a candidate can't be had
        self.target: ReducedViT | None = None
        if config.keep is not None:
            options = {"keep": config.keep}
            self.target = reduced_row(tower.vit, tower.arch, tower.tag, "target", config.match_to, options).vit
        if config.match == "time":
            device = str(next(tower.vit.parameters()).device)
            self.times = TimeRatios(tower.vit, batch=config.match_batch, device=device, dtype=config.dtype)
            if state.target is None:
                state.target = config.cost or self.times.of({"": self._target}, 2 * ROUNDS)[""]
            self.goal = state.target
        else:
            whole = self.gflops(tower.vit)
            self.goal = self.gflops(self._target) if config.cost is None else config.cost * whole
            self._off = whole - _closed_gflops(tower.vit)

    @property
    def _target(self) -> ReducedViT:
        assert self.target is not None
        return self.target

    def gflops(self, vit: ReducedViT) -> float:
        """Return fvcore's count of a tower."""
        return gflops(vit, vit.input_size).gflops

    def solve(self, shapes: Sequence[Shape]) -> dict[Shape, Schedule]:
        """Return the schedule of each candidate that can meet the cost."""
        new = [shape for shape in shapes if _key(shape) not in self.state.solved]
        for part in _parts(new, GROUP):
            solvers = {shape: solver for shape in part if (solver := self._solver(shape)) is not None}
            answers = (self._by_time if self.config.match == "time" else self._by_gflops)(solvers)
            for shape in part:
                self.state.solved[_key(shape)] = None
                if shape in answers:
                    count, cost = answers[shape]
                    schedule = Schedule.of(solvers[shape].build(count / solvers[shape].patches))
                    self.state.solved[_key(shape)] = [schedule.points, schedule.counts, cost]
            self.state.save()
        known = {shape: self.state.solved[_key(shape)] for shape in shapes}
        return {
            shape: Schedule(tuple(one[0]), tuple(one[1]))
            for shape, one in known.items()
            if one is not None and abs(one[2] / self.goal - 1) <= TOLERANCE[self.config.match]
        }

    def _solver(self, shape: Shape) -> KeepSolver | None:
        solver = KeepSolver(self.dense, lambda keep: self.build(shape.options(keep)))
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
            tried: dict[int, float] = {}
            off = self._off if self.state.off is None else self.state.off
            while True:
                count = solver.bisect(self.goal - off, partial(self._about, solver))
                if count in tried:
                    break
                vit = solver.build(count / solver.patches)
                tried[count] = self.gflops(vit)
                off = tried[count] - _closed_gflops(vit)
            answers[shape] = min(tried.items(), key=lambda item: abs(item[1] - self.goal))
            if self.state.off is None:  # the default's, from which others differ little
                self.state.off = off
        return answers

    @staticmethod
    def _about(solver: KeepSolver, count: int) -> float:
        return _closed_gflops(solver.build(count / solver.patches))

    def _by_time(self, solvers: Mapping[Shape, KeepSolver]) -> dict[Shape, tuple[int, float]]:
        """Search with measured times, those of all candidates and of the target in the same rounds."""
        measured = defaultdict[tuple[Shape, int], list[float]](list)

        def costs(asked: Mapping[Shape, int]) -> dict[Shape, float]:
            vits = {shape: solvers[shape].build(count / solvers[shape].patches) for shape, count in asked.items()}
            ratios = self.ratios(vits)
            for shape, count in asked.items():
                measured[shape, count].append(ratios[shape])
            return {shape: ratio / self.goal for shape, ratio in ratios.items()}

        starts = {shape: solver.search(round(self.goal * solver.patches)) for shape, solver in solvers.items()}
        counts = together(starts, costs)
        return {shape: (count, statistics.median(measured[shape, count])) for shape, count in counts.items()}

    def ratios(self, vits: Mapping[Any, ReducedViT], rounds: int = ROUNDS) -> dict[Any, float]:
        """Return times by the dense tower's, as if the target took now what it took at first."""
        every: dict[Any, ReducedViT] = dict(vits) | ({"target": self.target} if self.target is not None else {})
        ratios = self.times.of(every, rounds)
        drift = self.goal / ratios.pop("target") if self.target is not None else 1.0
        return {key: ratio * drift for key, ratio in ratios.items()}


class _Distances:
    """1 - cosine to dense of schedules on sets of images."""

    def __init__(
        self,
        dense: ReducedViT,
        sets: Sequence[Tensor],
        row: Callable[[Schedule], Variant],
        values: dict[str, list[float | None]],
    ) -> None:
        self.images, self.row, self.values = torch.cat(list(sets)), row, values
        self.save: Callable[[], None] = lambda: None  # called when some schedules have run
        self.ran: Callable[[float], None] = lambda _images: None  # called after each on some images
        self.device = next(dense.parameters()).device
        self.set_of = np.repeat(np.arange(len(sets)), [len(images) for images in sets])
        # Each set's own, so that none is left out.
        self.first = np.concatenate([np.flatnonzero(self.set_of == at)[::FIRST] for at in range(len(sets))])
        with torch.inference_mode():
            chunks = self.images.split(CHUNK)
            features = torch.cat([dense(chunk.to(self.device)).float().cpu() for chunk in chunks])
        self.truth = F.normalize(features, dim=-1)

    def of(self, schedules: Iterable[Schedule], places: NDArray[np.int64]) -> dict[Schedule, NDArray[np.float64]]:
        """Return the values of schedules at the ``places`` of some images; none is run twice."""
        distinct = sorted(set(schedules))
        missing = {one: tuple(p for p in places.tolist() if self._known(one)[p] is None) for one in distinct}
        for lack in sorted(set(missing.values()) - {()}):
            for part in _parts([one for one in distinct if missing[one] == lack], GROUP):
                self._run(part, np.array(lack))
        return {one: np.array([self._known(one)[p] for p in places.tolist()], dtype=float) for one in distinct}

    def _known(self, schedule: Schedule) -> list[float | None]:
        return self.values.setdefault(_key(schedule), [None] * len(self.images))

    def _run(self, schedules: Sequence[Schedule], places: NDArray[np.int64]) -> None:
        rows = {schedule: self.row(schedule) for schedule in schedules}
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            outcomes = run(list(rows.values()), self.images[some].to(self.device), on_row=partial(self.ran, len(some)))
            for schedule, row in rows.items():
                found = cosine_distance(outcomes[row.key].features, self.truth[some])
                for place, value in zip(some.tolist(), found.tolist(), strict=True):
                    self._known(schedule)[place] = value
        self.save()

    def means(self, schedule: Schedule, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean of each set."""
        values, sets = self.of([schedule], places)[schedule], self.set_of[places]
        return np.bincount(sets, weights=values) / np.bincount(sets)


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A schedule on held-out images."""

    schedule: Schedule
    gflops: float
    time_ratio: float | None  # to dense; None where times weren't asked for
    means: tuple[float, ...]  # 1 - cosine, of each dataset
    differences: tuple[Interval, ...]  # to the default, paired


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    file: ScheduleFile
    path: Path
    default: Finalist
    best: tuple[Finalist, ...]  # by the images that were searched on, the best first


class _Bench:
    """A method in a tower, and the images that its schedules are tried on."""

    def __init__(
        self, model: str, method: str, sources: Sources, options: Mapping[str, Any], device: str, progress: Progress
    ) -> None:
        self.method, self.fixed, self.progress = method, options, progress
        self.datasets = [get_dataset(name) for name in sources.datasets]
        self.splits = [learning_splits(dataset, sources) for dataset in self.datasets]
        self.tower = load_tower(model)
        self.weights = blocks_fingerprint(self.tower.vit.state_dict(), self.tower.vit.blocks_prefix)
        self.tower.vit.to(device)
        self.device, self.patches = device, _patches(self.tower.vit)
        self.config = self.row({"keep": 1.0}).config

    def row(self, options: Mapping[str, Any], what: str = "") -> Variant:
        """Make the method's row with some options beside the fixed ones."""
        tower, method = self.tower, self.method
        every = {**self.fixed, **options}
        return reduced_row(tower.vit, tower.arch, tower.tag, f"{tower.arch}_{method}", method, every, what)

    def vit(self, options: Mapping[str, Any]) -> ReducedViT:
        """Make the reduced tower alone."""
        return self.row(options).vit

    def scheduled(self, schedule: Schedule) -> Variant:
        """Make the row of a schedule."""
        return self.row(schedule.options(self.patches), _key(schedule))

    def distances(self, at: int, values: dict[str, list[float | None]]) -> _Distances:
        """Read the images to search on (0) or those held out (1)."""
        pairs = zip(self.datasets, self.splits, strict=True)
        sets = [preprocessed(pair[at], self.tower.preprocess, one.name, self.progress) for one, pair in pairs]
        return _Distances(self.tower.vit, sets, self.scheduled, values)

    def facts(self) -> list[dict[str, Any]]:
        """Return what a file says of each dataset."""
        return [
            {"name": dataset.name, "revision": dataset.revision, "images": len(pair[0]), "held_out": len(pair[1])}
            for dataset, pair in zip(self.datasets, self.splits, strict=True)
        ]

    def key(self, config: SearchConfig) -> str:
        """Return a digest of what decides candidates and their values; a longer search goes on from a shorter one."""
        goal = {name: value for name, value in asdict(config).items() if name not in ("points", "candidates")}
        decisive = [
            *(self.tower.name, self.weights, self.method, self.config, goal, self.facts(), self.device),
            *([each.image_ids for each in pair] for pair in self.splits),
            torch.__version__,
        ]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def groups(self) -> NDArray[np.int64]:
        """Return the number of each held-out image's group, over all sets."""
        names = [
            f"{dataset.name}/{dataset.group_of(name)}"
            for dataset, pair in zip(self.datasets, self.splits, strict=True)
            for name in pair[1].image_ids
        ]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


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
) -> Found:
    """Search the schedule of a method in a dense tower and write it; a search that was stopped goes on where it was.

    ``options`` are others of the method. The best on training images is stored if it is better than the default on
    held-out ones, see `_better`; else the default is. ``out`` None is for the user's cache.

    Raises:
        ValueError: an unknown name, a dataset without images, or a cost that the method can't meet.
        FileNotFoundError: no predictor for the method or the one whose cost is to be met.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    if taken := set(options or {}) & set(OPTIONS):
        raise ValueError(f"option {min(taken)!r} is what is searched for: leave it out")
    bench = _Bench(model, method, sources, options or {}, device, progress)
    key = bench.key(config)
    state = _State(cache_folder() / "fits" / f"{key}.json")
    costs = _Costs(bench.tower, bench.vit, config, state)
    default = _default(bench, costs, config)
    schedules, tried = _searched(bench, costs, state, default, config)
    judge = _Judge(bench, costs, default, [one for one in schedules if one != default][:SHOWN])
    chosen = schedules[0] if schedules and judge.better(schedules[0]) else default
    best, plain = judge.finalist(chosen), judge.finalist(default)
    losses = zip(bench.facts(), plain.means, best.means, best.differences, strict=True)
    state.save()
    numbers = chosen.options(bench.patches)
    file = ScheduleFile(
        reduce_at=numbers["reduce_at"],
        schedule=numbers["schedule"],
        keep=numbers["keep"],
        model=bench.tower.arch,
        tag=bench.tower.tag,
        weights=bench.weights,
        method=method,
        options={name: value for name, value in bench.config.items() if name not in OPTIONS},
        cost={
            "match": config.match,
            "of": config.asked,
            "asked": costs.goal,
            "reached": best.gflops if best.time_ratio is None else best.time_ratio,
        },
        found=chosen != default,
        datasets=[{**one, "before": a, "after": b, "difference": list(d)} for one, a, b, d in losses],
        candidates=tried,
        seconds=state.seconds,
        version=version("clip-patchrank"),
        commit=git_commit(),
    )
    tower = bench.tower
    path = out or cache_folder() / "schedules" / f"{tower.arch}_{method}.{tower.tag or 'own'}.{key}.json"
    file.write(path)
    state.path.unlink(missing_ok=True)
    return Found(file=file, path=path, default=plain, best=tuple(map(judge.finalist, judge.shown)))


def _default(bench: _Bench, costs: _Costs, config: SearchConfig) -> Schedule:
    """Return the method's own schedule at the cost; one that misses it is reported, or refused if far off."""
    costs.solve([DEFAULT])
    points, counts, cost = costs.state.solved[_key(DEFAULT)]
    off = abs(cost / costs.goal - 1)
    if off > TOLERANCE[config.match]:
        miss = (
            f"{bench.method} can't meet the {WORDS[config.match]} of {config.asked} by its default schedule: asked "
            f"{costs.goal:.4g}, the nearest is {cost:.4g}"
        )
        if off > FARTHEST[config.match]:
            raise ValueError(miss)
        bench.progress.say(miss)
    return Schedule(tuple(points), tuple(counts))


def _searched(
    bench: _Bench, costs: _Costs, state: _State, default: Schedule, config: SearchConfig
) -> tuple[list[Schedule], int]:
    """Return schedules that got beyond a first look, the best on training images first, and how many were tried."""
    train, progress = bench.distances(0, state.values), bench.progress
    everywhere, count = np.arange(len(train.images)), 0

    def look(shapes: Sequence[Shape], whole: bool) -> dict[Shape, float]:
        schedules, places = costs.solve(shapes), everywhere if whole else train.first
        train.of({*schedules.values(), default}, places)
        before = train.means(default, places)
        return {shape: loss(train.means(one, places), before) for shape, one in schedules.items()}

    # The best few of those that get a first look run on all images.
    runs = config.candidates * (len(train.first) + len(everywhere) / FIRST)
    known = sum(value is not None for values in state.values.values() for value in values)
    train.ran = progress.advance
    with (
        progress.overall(f"schedules of {bench.method}", max(runs - known, 1)),
        progress.task("schedules tried", config.candidates) as update,
    ):

        def saved() -> None:
            state.save()
            update(sum(one[0] is not None for one in state.values.values()))

        def on_round(tried: int, losses: Mapping[Shape, float]) -> None:
            nonlocal count
            count = tried
            if losses:
                shape, left = next(iter(losses.items()))
                blocks = ", ".join(map(str, shape.points))
                progress.say(f"{tried} tried; the best is at blocks {blocks}: {left:.3f} of the default's 1 - cosine")

        train.save = saved
        shapes = search(look, bench.tower.vit.depth, config, on_round)
    if costs.why:
        progress.say(f"some schedules can't be had: {costs.why}")
    return list(dict.fromkeys(costs.solve(list(shapes)).values())), count


class _Judge:
    """The default and some schedules on held-out images."""

    def __init__(self, bench: _Bench, costs: _Costs, default: Schedule, shown: Sequence[Schedule]) -> None:
        self.bench, self.costs, self.default, self.shown = bench, costs, default, shown
        self.images = bench.distances(1, {})
        every = [default, *shown]
        self.values = self.images.of(every, np.arange(len(self.images.images)))
        self.sets = [self.images.set_of == at for at in range(len(bench.datasets))]
        self.groups = bench.groups()
        self.ratios = {}
        if costs.config.match == "time":
            self.ratios = costs.ratios({one: bench.scheduled(one).vit for one in every}, 2 * ROUNDS)

    def finalist(self, one: Schedule) -> Finalist:
        """Return what is shown of a schedule."""
        return Finalist(
            schedule=one,
            gflops=self.costs.gflops(self.bench.scheduled(one).vit),
            time_ratio=self.ratios.get(one),
            means=self._means(one),
            differences=tuple(self._difference(one, some) for some in self.sets),
        )

    def better(self, one: Schedule) -> bool:
        """Tell whether a schedule is better than the default with an interval clear of zero, and on no set worse so.

        Each image counts by the default's mean on its set.
        """
        if one == self.default:
            return False
        before = np.maximum(np.array(self._means(self.default)), _NOTHING)[self.images.set_of]
        everywhere = np.ones(len(before), dtype=bool)
        worse = any(self._difference(one, some).low > 0 for some in self.sets)
        return not worse and self._difference(one, everywhere, before).high < 0

    def _means(self, one: Schedule) -> tuple[float, ...]:
        return tuple(float(self.values[one][some].mean()) for some in self.sets)

    def _difference(self, one: Schedule, some: NDArray[np.bool_], scale: NDArray[np.float64] | float = 1.0) -> Interval:
        """Return the paired difference to the default; images of one group are resampled together."""
        ours, theirs = (self.values[each] / scale for each in (one, self.default))
        groups = np.unique(self.groups[some], return_inverse=True)[1]
        return paired_mean(ours[some], theirs[some], 0, groups)


def loss(means: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    """Return what is left of the default's 1 - cosine, a geometric mean over sets; of the worst one if it got worse.

    So a set that is near dense already isn't given up for another.
    """
    shares = (means + _NOTHING) / (before + _NOTHING)
    return float(shares.max()) if shares.max() > 1 else float(np.exp(np.log(shares).mean()))


def _closed_gflops(vit: ReducedViT) -> float:
    """Return what the blocks cost by the counts of patch tokens, regardless of the method's own work."""
    left, total = _patches(vit), 0
    counts = {} if vit.reducer is None else vit.reducer.counts(left)
    linear = sum(module.weight.numel() for module in vit.block_modules[0].modules() if isinstance(module, nn.Linear))
    for index in range(vit.depth):
        left = counts.get(index, left)
        tokens = vit.prefix_count + left
        total += tokens * linear + 2 * tokens**2 * vit.embed_dim
    return total / 1e9


def _patches(vit: ReducedViT) -> int:
    return math.prod(vit.grid)


def _key(one: Shape | Schedule) -> str:
    points, numbers = one
    return f"{','.join(map(str, points))}:{','.join(map(str, numbers))}"


def _parts(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def schedule_table(found: Found) -> Table:
    """Show the default and the best schedules on held-out images."""
    file = found.file
    names = [one["name"] for one in file.datasets]
    timed = found.default.time_ratio is not None
    time = ["x dense"] if timed else []
    heads = ["schedule", "at blocks", "patches left", "GFLOPs", *time, "images", "1 - cos", "to default"]
    rows = []
    for at, one in enumerate([found.default, *found.best]):
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
