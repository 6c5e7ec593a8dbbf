"""Schedules by measurement: points and counts that keep a method nearest to dense on unlabelled images, at one cost.

A candidate is some reduction points and how they share the work; its keep rate is solved for the cost. The search
begins with evenly spaced points and goes on with neighbours of the best; all are tried on a third of the images, the
better ones on the rest. What candidates have in common, the dense blocks before their first points, is run once for
several of them.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import accumulate, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.terminal import Progress
from harness.datasets.base import Split, cached_json, keep_json
from harness.learning.settings import SearchConfig, Sources
from harness.learning.sources import held_out_groups, learning_sets
from harness.measure.cost import gflops
from harness.measure.fidelity import Pictures, join_splits
from harness.measure.plan import TOLERANCE, KeepSolver
from harness.measure.rows import Variant, make_row
from harness.records.statistics import paired_mean
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_file
from zoo.core.host import Host
from zoo.core.reducer import METHODS, Reducer
from zoo.core.settings import expected
from zoo.loading.learned_files import OPTIONS, ScheduleFile
from zoo.loading.towers import load_tower
from zoo.methods.rankmerge import RankMergeConfig

UNITS = 12  # that a candidate's points share the work in
STEPS = (2, 1)  # units that move from one point to another, the coarse step first
BEAM = 2  # best candidates whose neighbours are tried
FIRST = 3  # one image in so many is for a first look, and one candidate in so many passes it
GROUP = 8  # candidates that are run together
NEAR = TOLERANCE["gflops"]  # of the goal, that a schedule may cost more or less
_NOTHING = 1e-12  # 1 - cosine that counts as none


class Shape(NamedTuple):
    """Reduction points, and how many twelfths of the work each does; without points, the method's own default.

    The logarithms of the shares of patch tokens that the points leave are in proportion to their work.
    """

    points: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    def options(self, keep: float) -> dict[str, Any]:
        """Return the method's options that end at a keep rate."""
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
    def of(cls, vit: Host) -> "Schedule":
        """Return the schedule of a reduced tower."""
        assert vit.reducer is not None
        return cls(vit.reducer.points, tuple(Reducer.counts(vit.reducer, math.prod(vit.grid)).values()))

    @property
    def key(self) -> str:
        """Points and counts as text."""
        return ":".join(",".join(map(str, numbers)) for numbers in self)

    def options(self, patches: int) -> dict[str, Any]:
        """Return the options of the method: keep rates in four digits, which give these counts again."""
        rates = [round(count / patches, 4) for count in self.counts]
        return {"reduce_at": self.points, "schedule": tuple(rates[:-1]), "keep": rates[-1]}


def starts(depth: int, most: int) -> list[Shape]:
    """Return the candidates that a search begins with.

    First those with rankmerge's points, then one to ``most`` points, evenly spaced from the first block and from a
    third of the depth.
    """
    points = RankMergeConfig(keep=1).points(depth)
    shapes, later = [], len(points) - 1
    for first in range(UNITS // 3 + 1) if 1 <= later < most else ():
        parts = even_parts(UNITS - first, later)
        shapes.append(Shape(points, (first, *parts)) if first else Shape(points[1:], parts))
    for first in (0, depth // 3):
        for count in range(1, min(most, depth - first) + 1):
            points = tuple(first + (depth - first) * at // count for at in range(count))
            shapes.append(Shape(points, even_parts(UNITS, count)))
    return list(dict.fromkeys(shapes))


def even_parts(units: int, count: int) -> tuple[int, ...]:
    """Share units out to so many points; where that leaves a rest, the first points have one more."""
    return tuple(units // count + (at < units % count) for at in range(count))


def neighbours(shape: Shape, depth: int, most: int, step: int) -> list[Shape]:
    """Return candidates that differ in one place.

    A point does ``step`` units of another's work, is in the next block, is gone, or shares its work with a new one.
    """
    every: list[dict[int, int]] = []
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
    return [Shape(tuple(sorted(units)), tuple(units[point] for point in sorted(units))) for units in every]


def search(
    look: Callable[[Sequence[Shape], bool], Mapping[Shape, float]], depth: int, config: SearchConfig
) -> tuple[dict[Shape, float], int]:
    """Return the candidates that got beyond a first look, with their loss, the best first, and how many were tried.

    ``look`` gives the loss of those candidates that can be had, on some images or, if told so, on all.
    """
    steps, front = list(STEPS), starts(depth, config.points)
    tried: set[Shape] = set()
    losses: dict[Shape, float] = {}
    while True:
        new = [shape for shape in dict.fromkeys(front) if shape not in tried][: config.candidates - len(tried)]
        tried |= set(new)
        best = min(losses.values(), default=math.inf)
        rough = look(new, False)
        passed = sorted(rough, key=lambda shape: rough[shape])[: max(BEAM, -(-len(new) // FIRST))]
        losses |= look(passed, True)
        losses = dict(sorted(losses.items(), key=lambda item: item[1]))
        if losses and min(losses.values()) >= best:
            steps = steps[1:]
        if len(tried) >= config.candidates or not losses or not steps:
            return losses, len(tried)
        front = [near for shape in list(losses)[:BEAM] for near in neighbours(shape, depth, config.points, steps[0])]


def closed_gflops(vit: Host) -> float:
    """Return what the blocks cost by the counts of patch tokens, regardless of the method's own work."""
    left, total = math.prod(vit.grid), 0
    counts = {} if vit.reducer is None else vit.reducer.counts(left)
    linear = sum(module.weight.numel() for module in vit.block_modules[0].modules() if isinstance(module, nn.Linear))
    for index in range(vit.depth):
        left = counts.get(index, left)
        tokens = vit.prefix_count + left
        total += tokens * linear + 2 * tokens**2 * vit.embed_dim
    return total / 1e9


def count_gflops(vit: Host) -> float:
    """Return fvcore's count of a tower."""
    return gflops(vit, vit.input_size).gflops


class _Search:
    """A method in a tower, what its schedules cost and lose, and what a stopped search has measured."""

    def __init__(
        self, model: str, method: str, sources: Sources, config: SearchConfig, device: str, progress: Progress
    ) -> None:
        self.method, self.config, self.progress = method, config, progress
        self.sets, self.tower = learning_sets(sources), load_tower(model)
        self.weights = blocks_fingerprint(self.tower.vit.state_dict(), self.tower.vit.blocks_prefix)
        self.dense = self.tower.vit.to(device)
        self.patches = math.prod(self.dense.grid)
        self.settings = self.row({"keep": 1.0}).config
        self.path, known = cached_json(  # a longer search goes on from a shorter one
            "fits",
            *(self.tower.name, self.weights, method, self.settings, config.cost, device, torch.__version__),
            *((images.provenance, images.image_ids) for images in self.sets),
        )
        # 1 - cosine of images by schedule.
        self.known: dict[str, Any] = known or {"first": {}, "rest": {}, "seconds": 0.0}
        self._begun = time.monotonic() - self.known["seconds"]
        whole = count_gflops(self.dense)
        self.goal, self._off = config.cost * whole, whole - closed_gflops(self.dense)
        self.solve = cache(self._solve)
        self.say = cache(progress.say)  # the same once

    def save(self) -> None:
        self.known["seconds"] = time.monotonic() - self._begun
        keep_json(self.path, self.known)

    def row(self, options: dict[str, Any], what: str = "") -> Variant:
        return make_row(self.tower, self.method, options, what)

    def _solve(self, shape: Shape) -> Schedule | None:
        """Return the schedule of a candidate that meets the cost, None if there is none.

        Bisect by the blocks' closed form, and correct that by what fvcore counts of its answer.
        """
        solver = KeepSolver(self.dense, lambda keep: self.row(shape.options(keep)).vit)
        try:
            solver.build(1.0)
        except (ValueError, FileNotFoundError) as error:  # no such block, or no predictor for it
            if shape == DEFAULT:
                raise
            self.say(f"some schedules can't be had: {error}")
            return None

        def build(count: int) -> Host:
            return solver.build(count / self.patches)

        tried: dict[int, float] = {}
        off = self._off
        while (count := solver.bisect(self.goal - off, lambda count: closed_gflops(build(count)))) not in tried:
            tried[count] = count_gflops(build(count))
            off = tried[count] - closed_gflops(build(count))
        count = min(tried, key=lambda count: abs(tried[count] - self.goal))
        meets = abs(tried[count] / self.goal - 1) <= NEAR
        if shape == DEFAULT:
            self._off = off  # from which others differ little
            if not meets:
                raise ValueError(
                    f"{self.method} can't meet the {self.goal:.4g} GFLOPs of --cost {self.config.cost:g} by its "
                    f"default schedule: the nearest is {tried[count]:.4g}"
                )
        return Schedule.of(build(count)) if meets else None

    def pictures(self, split: Split) -> Pictures:
        """Set images beside what the dense tower makes of them."""
        return Pictures(split, np.arange(len(split)), self.tower)

    def add_distances(self, pictures: Pictures, schedules: Iterable[Schedule], known: dict[str, Any]) -> None:
        """Add to ``known`` the 1 - cosine to dense of images by schedules that lack one."""
        new = [schedule for schedule in sorted(set(schedules)) if schedule.key not in known]
        for start in range(0, len(new), GROUP):
            rows = [self.row(schedule.options(self.patches), schedule.key) for schedule in new[start : start + GROUP]]
            distances = pictures.distances(rows)
            known |= {row.what: distances[row.key].tolist() for row in rows}
            self.save()

    def best_on_training_images(self, default: Schedule) -> tuple[Schedule, int]:
        """Search, and return the best schedule and how many candidates were tried."""
        splits = [images.train for images in self.sets]
        sets = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
        is_first = np.concatenate([np.arange(len(split)) % FIRST == 0 for split in splits])  # of each set
        whole = join_splits(splits)
        places = {"first": np.flatnonzero(is_first), "rest": np.flatnonzero(~is_first)}
        pictures = {name: self.pictures(whole.subset(positions)) for name, positions in places.items()}

        def means(schedule: Schedule, on_all: bool) -> NDArray[np.float64]:
            values = np.empty(len(sets))
            for name, positions in places.items():
                values[positions] = self.known[name].get(schedule.key, 0.0)
            seen = slice(None) if on_all else is_first
            return np.bincount(sets[seen], weights=values[seen]) / np.bincount(sets[seen])

        def look(shapes: Sequence[Shape], on_all: bool) -> dict[Shape, float]:
            schedules = {shape: schedule for shape in shapes if (schedule := self.solve(shape)) is not None}
            for name in places if on_all else ("first",):
                self.add_distances(pictures[name], [*schedules.values(), default], self.known[name])
            update(len(self.known["first"]))
            before = means(default, on_all)
            return {shape: loss(means(schedule, on_all), before) for shape, schedule in schedules.items()}

        with self.progress.task("schedules tried", self.config.candidates) as update:
            losses, tried = search(look, self.dense.depth, self.config)
        return self.solve(next(iter(losses), DEFAULT)) or default, tried

    def compare(self, default: Schedule, best: Schedule) -> tuple[bool, list[dict[str, Any]]]:
        """Say whether a schedule is better than the default on held-out images, and what a file says of each dataset.

        A better schedule's difference, each image counted by the default's mean on its set, is clear of zero, and no
        set clearly loses. Images of one group are resampled together.
        """
        splits = [images.held_out for images in self.sets]
        groups = held_out_groups(self.sets)
        distances: dict[str, Any] = {}
        self.add_distances(self.pictures(join_splits(splits)), [default, best], distances)
        before, after = (np.array(distances[schedule.key]) for schedule in (default, best))
        ends = np.cumsum([0, *map(len, splits)])
        scale, worse, datasets = np.empty(len(before)), False, []
        for images, part in zip(self.sets, map(slice, ends, ends[1:]), strict=True):
            scale[part] = max(before[part].mean(), _NOTHING)
            difference = paired_mean(after[part], before[part], np.unique(groups[part], return_inverse=True)[1])
            worse = worse or difference.low > 0
            means = {"before": float(before[part].mean()), "after": float(after[part].mean())}
            datasets.append({**images.provenance, **means, "difference": list(difference)})
        return not worse and paired_mean(after / scale, before / scale, groups).high < 0, datasets


def loss(means: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    """Return what is left of the default's 1 - cosine: the geometric mean over sets, or the worst set's if above 1.

    A set that is near dense already isn't given up for another.
    """
    shares = (means + _NOTHING) / (before + _NOTHING)
    return float(shares.max()) if shares.max() > 1 else float(np.exp(np.log(shares).mean()))


def search_schedule(
    model: str,
    method: str,
    sources: Sources,
    config: SearchConfig,
    *,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress,
) -> tuple[Path, ScheduleFile]:
    """Search the schedule of a method in a dense tower and write it; a search that was stopped goes on where it was.

    The best on training images is stored if it is better than the default on held-out ones; else the default is.
    ``out`` None is for the user's cache.

    Raises:
        ValueError: an unknown name, a dataset without images, or a cost that the method can't meet.
        FileNotFoundError: no predictor for the method.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    run = _Search(model, method, sources, config, device, progress)
    tower = run.tower
    path = out or cache_file("schedules", f"{tower.arch}_{method}.{tower.tag or 'own'}.{run.path.stem}.json")
    with lock_file(path):
        default = run.solve(DEFAULT)
        assert default is not None
        best, tried = run.best_on_training_images(default)
        better, datasets = run.compare(default, best)
        if not better:
            best = default
            datasets = [entry | {"after": entry["before"], "difference": [0.0] * 3} for entry in datasets]
        run.save()
        options = best.options(run.patches)
        reached = count_gflops(run.row(options).vit)
        file = ScheduleFile(
            **options,
            model=tower.arch,
            tag=tower.tag,
            weights=run.weights,
            method=method,
            options={name: value for name, value in run.settings.items() if name not in OPTIONS},
            cost={"match": "gflops", "of": f"{config.cost:g} x dense", "asked": run.goal, "reached": reached},
            found=better,
            datasets=datasets,
            candidates=tried,
            seconds=run.known["seconds"],
            version=version("clip-patchrank"),
            commit=git_commit(),
        )
        file.write(path)
        run.path.unlink(missing_ok=True)
    return path, file
