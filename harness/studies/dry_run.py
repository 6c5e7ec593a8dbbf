"""What a table or figure would still take: what is cached, and how many images and passes are left.

The study's own lines are made, so that no list of work is kept twice. Rankings, predictors and
prompts that are cached are taken; a place holder stands for each that is missing.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.base.table import Cell, Column, Table, json_values
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import subset
from harness.golden.budget import passes_of
from harness.golden.fit import fit_runs
from harness.golden.rank import Source
from harness.golden.store import Provenance, Rankings
from harness.measure.cost import COUNTED
from harness.measure.match import KeepSolver
from harness.measure.plan import tuning_of
from harness.measure.rows import MethodRate, Variant
from harness.measure.tuning import Tuned, Tuner
from harness.models.towers import Tower
from harness.records.conditions import Tuning
from harness.records.record import Record
from harness.studies.paper import Reproduction, Target
from harness.studies.run import bench_of, dataset_of, lines, plain_rows, tower_with_text
from harness.studies.workshop import Fitted, Line, Study, StudyConfig, Workshop, find
from zoo.core.prompts import PromptShape
from zoo.learning.fit import FitConfig
from zoo.learning.prompt_learner import TuneConfig
from zoo.loading.predictor_file import PredictorFile
from zoo.loading.prompt_file import PromptFile
from zoo.ranking.golden import GoldenConfig
from zoo.towers.vit import ReducedViT

NO_SHAPE = PromptShape(tokens=0, depth=0, classes=0, features=0)
MISSING = "missing"  # in place of the digest of predictors that aren't there
CAPTION = (
    "Images and passes are those that are left: images to be run, and passes of an image through "
    "the tower (of rankings: from the reduction point on). Tunings mostly stop earlier. What is "
    "cached costs nothing; tables share it through the user's cache."
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Some work of one kind."""

    kind: str  # what is done
    of: str  # to what, in words
    total: int  # how many the table needs
    cached: int  # how many of them are there already
    images: int  # that are left
    passes: int  # that are left, at most


class DryShop(Workshop):
    """A workshop that makes nothing and counts what it would make."""

    def __init__(self, config: StudyConfig, tower: Tower, solvers: dict[str, KeepSolver]) -> None:
        """Count nothing yet."""
        super().__init__(config, tower, Progress())
        self._solvers = solvers
        self._counts: dict[tuple[str, str], Counter[str]] = {}
        self._predictors: dict[Path, PredictorFile] = {}

    def count(self, kind: str, of: str, *, total: int = 1, cached: int, images: int = 0, passes: int = 0) -> None:
        """Add work to that of the same kind."""
        more = Counter(total=total, cached=cached, images=images, passes=passes)
        self._counts.setdefault((kind, of), Counter()).update(more)

    @property
    def steps(self) -> list[Step]:
        """What was counted, in the order in which it is done first."""
        return [Step(kind=kind, of=of, **counts) for (kind, of), counts in self._counts.items()]

    def rankings(self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None) -> Rankings:
        """Return those that are cached, or rankings of no image."""
        limit = self.limit(split, most)
        key = (dataset, split, golden, limit)
        if key in self._rankings:
            return self._rankings[key]
        source = Source.of(get_dataset(dataset), split)
        image_ids = subset(source.images, limit).image_ids
        cached = find(self.tower.name, self.weights, source, golden, image_ids)
        left = len(image_ids) - (0 if cached is None else len(cached))
        # Scores share passes; rankings of no image stand for those that are made.
        others = [self._rankings.get((dataset, split, replace(golden, score=score), limit)) for score in self.scores]
        shared = golden.greedy is None and any(one is not None and not len(one) for one in others)
        todo = 0 if shared else left
        passes = todo * passes_of(golden, self.dense)
        self.count(
            "rank images",
            f"{dataset} {split}, {golden.score} before block {golden.block}",
            total=len(image_ids),
            cached=len(image_ids) - left,
            images=todo,
            passes=round(passes),
        )
        if cached is None or left:
            provenance = Provenance(
                model=self.tower.name, weights=self.weights, dataset=source.name, dtype="float32",
                revision=source.revision, split=source.split, **asdict(golden),
            )  # fmt: skip
            empty = np.empty((0, self.dense.patch_embed.num_patches), np.float16)
            cached = Rankings(image_ids=(), importance=empty, provenance=provenance)
        self._rankings[key] = cached
        return cached

    def predictor(
        self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None
    ) -> PredictorFile:
        """Return a predictor that is cached, or the description of one that isn't."""
        path = self.predictor_path(train, stop, recipe, shots)
        if path in self._predictors:
            return self._predictors[path]
        target = train[0].provenance
        names = " + ".join(one.provenance.dataset for one in train)
        file = self.cached(path)
        self.count(
            "fit predictors",
            f"{recipe.arch} {recipe.width} on {names}, {target.score} before block {target.block}",
            cached=int(file is not None),
        )
        if file is None:
            file = self._described(path, recipe, target)
        self._predictors[path] = file
        return file

    def load(self, vit: ReducedViT, files: Sequence[PredictorFile]) -> str:
        """Load predictors if all of them are cached."""
        if any(self.cached(file.path) is None for file in files):
            return MISSING
        return super().load(vit, files)

    def tuned(self, tuner: Tuner, row: Variant, seed: int, recipe: TuneConfig) -> Tuned:
        """Return prompts that are cached, or a place holder without shape."""
        few = tuner.few(self.config.labelled, seed)
        path = tuner.path(row, few, self.config.labelled, seed, recipe)
        of = f"{recipe.tokens} for {row.model} on {tuner.dataset.name}"
        if (cached := tuner.cached(path)) is not None:
            self.count("tune tokens", of, cached=1)
            return Tuned.of(row.vit, cached)
        images = len(few.train) + len(few.val)
        passes = images  # of learned text tokens: features of images are computed once
        if recipe.tokens != "t":
            passes = recipe.total_steps(len(few.train)) * min(recipe.batch, len(few.train))
            passes += recipe.most_rounds * len(few.val) if recipe.patience else 0
        self.count("tune tokens", of, cached=0, images=images, passes=passes)
        file = PromptFile(
            path=path, model=self.tower.arch, tag=self.tower.tag, weights=self.weights,
            width=int(row.vit.embed_dim), classes=tuner.dataset.classes,
            dataset=tuner.dataset.name, recipe=asdict(recipe), shape=NO_SHAPE, provenance={},
        )  # fmt: skip
        return Tuned(vit=row.vit, classifier=torch.empty(0), file=file)

    def moved(self, row: Variant, one: Tuned) -> Tuned:
        """Move prompts that are cached, or their place holder."""
        return replace(one, vit=row.vit) if one.file.shape == NO_SHAPE else super().moved(row, one)

    def ranked_after(self, dataset: Dataset, one: Tuned, golden: GoldenConfig) -> Fitted:
        """Return a tuned tower's predictor that is cached, or the description of one that isn't."""
        there = one.file.shape != NO_SHAPE
        path = self.path_after(one, golden) if there else one.file.path  # which nothing is read from
        file = self.cached(path) if there else None
        passes = passes_of(golden, one.vit)
        for split, most in self.ranked_after_on:
            images = len(subset(dataset.split(split), most))
            left = 0 if file else images
            of = f"{dataset.name} {split} by the tuned tower, {golden.score} before block {golden.block}"
            self.count("rank images", of, total=images, cached=images - left, images=left, passes=round(left * passes))
        of = f"{self.config.fit.arch} {self.config.fit.width} on {dataset.name} by the tuned tower"
        self.count("fit predictors", of, cached=int(file is not None))
        return self._after(one, file or self._described(path, self.config.fit, golden))

    def _described(self, path: Path, recipe: FitConfig, target: GoldenConfig | Provenance) -> PredictorFile:
        """Return the description of a predictor that isn't there."""
        options = {"arch": recipe.arch, "width": recipe.width}
        arch, tag = self.tower.arch, self.tower.tag
        return PredictorFile(path=path, model=arch, tag=tag, block=target.block, options=options, action=target.action)


class _QuickShop(DryShop):
    """A dry workshop that counts and times no models: rows of equal cost have any keep rate."""

    def gflops(self, row: Variant) -> float:
        """Return any cost: `at_cost` asks for none."""
        return 1.0

    def at_cost(self, name: str, build: Callable[[float], list[Variant]], goal: float) -> list[Variant]:
        """Build a model at any keep rate."""
        return build(0.5)

    def at_time(
        self, targets: Mapping[float, Variant], methods: Sequence[str], dtype: str
    ) -> dict[MethodRate, tuple[float, dict[str, Any]]]:
        """Return the targets' keep rates, as if each took its target's time."""
        return {(method, rate): (rate, {"ratio": 1.0, "goal": 1.0}) for method in methods for rate in targets}


def remaining(
    recipe: Reproduction, config: StudyConfig, datasets: Sequence[Dataset], known: Sequence[Record], progress: Progress
) -> list[Step]:
    """Return the steps of a table, with those that are done already."""
    if not datasets:
        return []
    by_name = {dataset.name: dataset for dataset in datasets}
    parts = recipe.groups(replace(config, datasets=tuple(by_name)))
    steps: list[Step] = []
    solvers: dict[str, KeepSolver] = {}
    with progress.task(f"what {recipe.name} takes", len(parts)) as update:
        for done, part in enumerate(parts, start=1):
            # Anew, as looking for records brings a tower to its device and precision. Without records
            # nothing depends on keep rates of equal cost, and solving them would take minutes.
            shop = (DryShop if known else _QuickShop)(part, tower_with_text(config.model), solvers)
            lines_of = {name: lines(recipe.study, shop, by_name[name]) for name in part.datasets}
            for name, own in lines_of.items():
                _count_judging(shop, by_name[name], own, known)
            steps += shop.steps
            update(done)
    return steps


def _count_judging(shop: DryShop, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]) -> None:
    """Count the rows of lines that are to be judged: all without prompts, or none of them."""
    bench = bench_of(shop, dataset, lines)
    plain = plain_rows(bench, lines)
    prompted = [pair for one in lines for pair in zip(one.rows, one.prompts, strict=False)]

    def left(rows: Sequence[Variant], own: Tuned | None = None) -> int:
        if not known or (own is not None and own.file.shape == NO_SHAPE):
            return len(rows)
        tuning = Tuning(seed=bench.plan.seed) if own is None else tuning_of(own.file)
        prompts = {} if own is None else {rows[0].key: own}
        there = bench.reusable(dataset, tuning, rows, prompts, known) is not None
        return 0 if there else len(rows)

    missing = left(plain) + sum(left([row], own) for row, own in prompted)
    images = len(subset(dataset.split(shop.config.split), shop.config.limit))
    total = len(plain) + len(prompted)
    shop.count(
        "judge rows",
        f"{dataset.name} {shop.config.split}, {images} images",
        total=total,
        cached=total - missing,
        images=images if missing else 0,
        passes=images * missing,
    )


def expected_runs(study: Study, config: StudyConfig, known: Sequence[Record], tower: Tower) -> float:
    """Return about how often a study will run a tower on an image, what else it does counted as runs that take as long.

    What is cached or in ``known`` records counts as nothing. The tower stays as it is.
    """
    datasets = [dataset_of(config, name) for name in config.datasets]
    datasets = [one for one in datasets if one.labelled or not study.labels]
    config = replace(config, datasets=tuple(one.name for one in datasets))
    # A copy, as looking for records brings a tower to its device and precision.
    shop = _QuickShop(config, tower._replace(vit=copy.deepcopy(tower.vit)), {})
    lines_of = {dataset.name: lines(study, shop, dataset) for dataset in datasets}
    rows = 0
    for dataset in datasets:
        _count_judging(shop, dataset, lines_of[dataset.name], known)
        rows += 1 + len(lines_of[dataset.name])
    images = sum(min(config.train_limit or len(one.split("train")), len(one.split("train"))) for one in datasets)
    fits = sum(step.total - step.cached for step in shop.steps if step.kind == "fit predictors")
    return rows * COUNTED + sum(step.passes for step in shop.steps) + fits * fit_runs(config.fit, images, 0)


def plan_data(recipe: Target, model: str, steps: Sequence[Step], missing: Mapping[str, str]) -> dict[str, Any]:
    """Return steps with their sums, and why datasets can't be read, as JSON values."""
    sums = {name: sum(getattr(step, name) for step in steps) for name in ("images", "passes")}
    about = {"name": recipe.name, "model": model, **sums}
    values: dict[str, Any] = json_values({**about, "steps": list(steps), "missing": missing})
    return values


def plan_table(recipe: Target, model: str, steps: Sequence[Step], missing: Mapping[str, str]) -> Table:
    """Lay out steps with their sums, and datasets that can't be read with the reason."""
    rows = []
    for step in steps:
        counts = (step.cached, step.total - step.cached, step.images, step.passes)
        rows.append([step.kind, step.of, *(f"{count:,}" if count else "–" for count in counts)])
    rows += [["missing", f"{name}: {reason}", "", *"???"] for name, reason in missing.items()]
    sums = [f"{sum(counts):,}" for counts in ([s.images for s in steps], [s.passes for s in steps])]
    rows.append(["all", "but what is missing" if missing else "", "", "", *sums])
    words = [Column(heading=head, left=True, fold=True) for head in ("step", "of")]
    figures = [Column(heading=head) for head in ("cached", "missing", "images", "passes")]
    return Table(
        title=f"{recipe.title}; {model}",
        caption=CAPTION,
        columns=[*words, *figures],
        rows=[list(map(Cell, row)) for row in rows],
        sections=frozenset(range(len(steps), len(rows))),
    )
