"""Go through a study without its work: what would be made, what is there, how long it takes.

The study's own lines are made, so that nothing is told twice. Rankings, predictors and prompts that
are there are taken; what is missing is noted, and an empty one goes in its place.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.evaluate import subset
from harness.golden.rank import Source
from harness.golden.store import Provenance, Rankings
from harness.progress import Progress
from harness.reproduction.pace import Pace
from harness.reproduction.tuner import RehearsedTuner
from harness.solve import KeepSolver
from harness.studies import workshop
from harness.studies.config import StudyConfig
from harness.studies.found import find
from harness.studies.workshop import PREDICTED, Fitted, Workshop
from harness.towers import Tower
from harness.tuning import Tuner
from harness.variants import Variant
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.predictor_file import PredictorFile
from zoo.tune_config import TuneConfig
from zoo.windows import windows

RANK, FIT = "rank", "fit predictors"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Some work of one kind.

    Attributes:
        kind: what is done.
        of: to what, in words.
        total: how many of ``unit`` are asked for.
        done: how many of them are there already, and cost nothing.
        unit: what is counted.
        seconds: that the others take.
    """

    kind: str
    of: str
    total: int
    done: int
    unit: str
    seconds: float


class Rehearsal(Workshop):
    """A workshop that makes nothing and notes what it would make.

    Attributes:
        steps: what it would make, by kind and object.
        recipes: of prompts that are place holders, by identity.
    """

    def __init__(
        self, config: StudyConfig, tower: Tower, pace: Pace, solvers: dict[str, KeepSolver]
    ) -> None:
        """Note nothing yet.

        Args:
            config: of the study.
            tower: the tower.
            pace: how long things take.
            solvers: costs that rehearsals of the same tower share, as counting them takes long.
        """
        super().__init__(config, tower, Progress())
        self._solvers = solvers
        self.pace = pace
        self.steps: dict[tuple[str, str], Step] = {}
        self._missing: set[int] = set()  # what is a place holder, by identity
        self._kept: list[Any] = []  # place holders, so that none of their identities comes twice
        self._counts: dict[int, int] = {}  # images of rankings, by identity
        self._fits: dict[Any, list[Fitted]] = {}
        self._entered: set[Any] = set()
        self.recipes: dict[int, TuneConfig] = {}

    def note(self, kind: str, of: str, total: int, done: int, unit: str, seconds: float) -> None:
        """Add work to that of the same kind and object."""
        old = self.steps.get((kind, of))
        if old is not None:
            total, done, seconds = total + old.total, done + old.done, seconds + old.seconds
        told: dict[str, Any] = {"total": total, "done": done, "unit": unit, "seconds": seconds}
        self.steps[kind, of] = Step(kind=kind, of=of, **told)

    def missing(self, thing: Any) -> bool:
        """Tell whether something is a place holder."""
        return id(thing) in self._missing

    def hollow(self, thing: Any) -> None:
        """Note that something is a place holder."""
        self._missing.add(id(thing))
        self._kept.append(thing)

    def rankings(
        self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None
    ) -> Rankings:
        """Return those that there are, or a place holder without images."""
        limit = self.config.train_limit if split == "train" else self.config.limit
        limit = most if limit is None or (most is not None and most < limit) else limit
        key = (dataset, split, golden, limit)
        if key in self._rankings:
            return self._rankings[key]
        one = get_dataset(dataset)
        source = Source.of(one, split)
        wanted = subset(source.images, limit).image_ids
        found = find(self.tower.name, self.weights, source, golden, wanted)
        there = 0 if found is None else len(found)
        left = len(wanted) - there
        seconds = 0.0
        if left:
            seconds = left * (self.pace.ranking(golden) + self.pace.reading(one))
            seconds += self.pace.loading()
        passes = len(windows(self.pace.geometry.grid, golden.window, golden.stride))
        of = f"{dataset} {split}, {golden.score} before block {golden.block}, {passes} passes each"
        self.note(RANK, of, len(wanted), there, "images", seconds)
        if found is None or left:
            found = self._place_holder(source, golden)
        self._counts[id(found)] = len(wanted)
        self._rankings[key] = found
        return found

    def _place_holder(self, source: Source, golden: GoldenConfig) -> Rankings:
        facts = Provenance(
            model=self.tower.name,
            weights=self.weights,
            dataset=source.name,
            revision=source.revision,
            split=source.split,
            dtype="float32",
            **asdict(golden),
        )
        empty = np.empty((0, self.pace.geometry.patches), np.float16)
        made = Rankings(image_ids=(), importance=empty, provenance=facts)
        self.hollow(made)
        return made

    def fitted(
        self,
        datasets: Sequence[str],
        golden: GoldenConfig,
        recipe: FitConfig | None = None,
        shots: int | None = None,
    ) -> list[Fitted]:
        """Return the predictors that there are, and place holders for others."""
        recipe = recipe or self.config.fit
        key = (tuple(datasets), golden, recipe, shots)
        if key not in self._fits:
            train = [self.rankings(name, "train", golden) for name in datasets]
            stop = [self.rankings(name, "val", golden, workshop.STOPPED_BY) for name in datasets]
            self._fits[key] = self._fit(datasets, golden, recipe, (train, stop))
        return self._fits[key]

    def _fit(
        self,
        datasets: Sequence[str],
        golden: GoldenConfig,
        recipe: FitConfig,
        parts: tuple[list[Rankings], list[Rankings]],
    ) -> list[Fitted]:
        known = not any(self.missing(one) for part in parts for one in part)
        found, there = [], 0
        images, stop = (sum(self._counts[id(one)] for one in part) for part in parts)
        for seed in range(recipe.seed, recipe.seed + self.config.seeds):
            one = replace(recipe, seed=seed)
            path = self._place(*parts, one, self.config.shots) if known else Path("not made yet")
            if known and path.is_file():
                file, there = PredictorFile.read(path), there + 1
            else:
                arch, _, tag = self.tower.name.partition(".")
                shape = {"arch": recipe.arch, "width": recipe.width}
                file = PredictorFile(
                    path=path, model=arch, tag=tag, block=golden.block, options=shape
                )
                self.hollow(file)
            found.append(Fitted(file=file, seed=seed, images=images))
        seconds = 0.0
        if there < self.config.seeds:
            each = self.pace.fitting(recipe, images, stop) + self.pace.loading()
            seconds = (self.config.seeds - there) * each
            seconds += self._entering(datasets, golden.block, images + stop)
        of = f"{recipe.arch} {recipe.width} on {' + '.join(datasets)}, {golden.score}"
        of += f" before block {golden.block}"
        self.note(FIT, of, self.config.seeds, there, "fits", seconds)
        return found

    def _entering(self, datasets: Sequence[str], block: int, images: int) -> float:
        """Return the seconds until the tokens are there that predictors learn from."""
        new = [name for name in datasets if (name, block) not in self._entered]
        self._entered |= {(name, block) for name in new}
        each = [self.pace.entering(block) + self.pace.reading(get_dataset(name)) for name in new]
        return images / len(datasets) * sum(each)

    def predicted(
        self,
        fits: Sequence[Fitted],
        keep: float,
        truth: Rankings | None,
        what: str,
        *,
        later: Sequence[Sequence[Fitted]] = (),
        **options: Any,
    ) -> list[Variant]:
        """Make a row of each predictor, with random weights where it isn't there."""
        rows = []
        for one in fits:
            if not self.missing(one.file):
                rows += super().predicted([one], keep, truth, what, **options)
                continue
            told = {"keep": keep, "reduce_at": (one.file.block,), **one.file.options, **options}
            vit = zoo.reduce(self.dense, method=PREDICTED, **told)
            rows.append(self._row(PREDICTED, vit, f"{what}, seed {one.seed}", truth))
            self.hollow(rows[-1].vit)
        return rows

    def tuner(self, dataset: Dataset) -> Tuner:
        """Return what takes prompts that there are, and notes others."""
        return RehearsedTuner(self, super().tuner(dataset))
