"""What a table or figure would still take: what is cached, and how many images and passes are left.

The study's own lines are made, so that no list of work is kept twice. Rankings, predictors and
prompts that are cached are taken; a place holder stands for each that is missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from harness.console.table import json_values
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import draw, subset
from harness.golden.budget import Point
from harness.golden.rank import Source
from harness.golden.store import Provenance, Rankings
from harness.measure.plan import tuning_of
from harness.measure.rows import KeepSolver, Variant
from harness.measure.tuning import Tuned, Tuner
from harness.models.towers import Tower
from harness.records.conditions import Tuning
from harness.records.record import Record
from harness.studies.paper import Reproduction
from harness.studies.run import bench_of, lines, plain_rows, tower_with_text
from harness.studies.workshop import Line, StudyConfig, Workshop, find
from zoo.approximate import Effort
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.predictor import PredictorFile
from zoo.prompt_learner import TuneConfig
from zoo.prompts import PromptFile, PromptShape
from zoo.vit import ReducedViT

NO_SHAPE = PromptShape(tokens=0, depth=0, classes=0, features=0)
MISSING = "missing"  # in place of the digest of predictors that aren't there
CAPTION = (
    "Images and passes are those that are left: images to be run, and passes of an image through "
    "the tower (of rankings: from the reduction point on). Tunings mostly stop earlier. What is "
    "cached costs nothing; tables share it through the user's cache."
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Some work of one kind.

    Attributes:
        kind: what is done.
        of: what, in words.
        unit: what is counted.
        total: how many of them the table needs.
        cached: how many of them are there already.
        images: that are left.
        passes: that are left, at most.
    """

    kind: str
    of: str
    unit: str
    total: int
    cached: int
    images: int
    passes: int

    @property
    def missing(self) -> int:
        """How many of ``total`` aren't there."""
        return self.total - self.cached


class DryShop(Workshop):
    """A workshop that makes nothing and counts what it would make."""

    def __init__(self, config: StudyConfig, tower: Tower, solvers: dict[str, KeepSolver]) -> None:
        """Count nothing yet."""
        super().__init__(config, tower, Progress())
        self._solvers = solvers
        self._counts: dict[tuple[str, str, str], Counter[str]] = {}
        self._predictors: dict[Path, PredictorFile] = {}

    def count(
        self, kind: str, of: str, unit: str, *, total: int, cached: int, images: int, passes: int
    ) -> None:
        """Add work to that of the same kind."""
        more = Counter(total=total, cached=cached, images=images, passes=passes)
        self._counts.setdefault((kind, of, unit), Counter()).update(more)

    @property
    def steps(self) -> list[Step]:
        """What was counted, in the order in which it is done first."""
        names = ("total", "cached", "images", "passes")
        return [
            Step(kind=kind, of=of, unit=unit, **{name: counts[name] for name in names})
            for (kind, of, unit), counts in self._counts.items()
        ]

    def rankings(
        self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None
    ) -> Rankings:
        """Return those that are cached, or rankings of no image."""
        limit = self.limit(split, most)
        key = (dataset, split, golden, limit)
        if key in self._rankings:
            return self._rankings[key]
        source = Source.of(get_dataset(dataset), split)
        image_ids = subset(source.images, limit).image_ids
        cached = find(self.tower.name, self.weights, source, golden, image_ids)
        left = len(image_ids) - (0 if cached is None else len(cached))
        point = Point(window=golden.window, stride=golden.stride, approximate=golden.approximate)
        passes = left * point.passes(Effort.of(self.dense, golden.block), golden.block)
        self.count(
            "rank images",
            f"{dataset} {split}, {golden.score} before block {golden.block}",
            "images",
            total=len(image_ids),
            cached=len(image_ids) - left,
            images=left,
            passes=round(passes),
        )
        if cached is None or left:
            provenance = Provenance(
                model=self.tower.name,
                weights=self.weights,
                dataset=source.name,
                revision=source.revision,
                split=source.split,
                dtype="float32",
                **asdict(golden),
            )
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
        cached = path.is_file()
        if cached:
            file = PredictorFile.read(path)
        else:
            file = PredictorFile(
                path=path,
                model=self.tower.arch,
                tag=self.tower.tag,
                block=target.block,
                options={"arch": recipe.arch, "width": recipe.width},
            )
        names = " + ".join(one.provenance.dataset for one in train)
        self.count(
            "fit predictors",
            f"{recipe.arch} {recipe.width} on {names}, {target.score} before block {target.block}",
            "fits",
            total=1,
            cached=int(cached),
            images=0,
            passes=0,
        )
        self._predictors[path] = file
        return file

    def load(self, vit: ReducedViT, files: Sequence[PredictorFile]) -> str:
        """Load predictors if all of them are cached."""
        if all(file.path.is_file() for file in files):
            return super().load(vit, files)
        return MISSING

    def tuner(self, dataset: Dataset) -> Tuner:
        """Return what takes prompts that are cached, and counts others."""
        return DryTuner(self, super().tuner(dataset))


class DryTuner(Tuner):
    """Take prompts that are cached; count others."""

    def __init__(self, shop: DryShop, tuner: Tuner) -> None:
        """Look at no prompts yet."""
        super().__init__(
            tuner.parts,
            tuner.dataset,
            model=tuner.model,
            tag=tuner.tag,
            weights=tuner.weights,
            progress=Progress(),
        )
        self.shop = shop

    def tuned(
        self, rows: Sequence[Variant], shots: int, seed: int, config: TuneConfig
    ) -> dict[str, Tuned]:
        """Return prompts that are cached, and place holders whose file doesn't exist."""
        few = draw(self.dataset, shots, seed)
        tuned = {}
        for row in rows:
            path = self.path(row, few, shots, seed, config)
            cached = path.is_file()
            images = len(few.train) + len(few.val)
            passes = images  # of learned text tokens: features of images are computed once
            if config.tokens != "t":
                passes = config.rounds * (config.steps * config.batch + len(few.val))
            self.shop.count(
                "tune tokens",
                f"{config.tokens} for {row.model} on {self.dataset.name}",
                "tunings",
                total=1,
                cached=int(cached),
                images=0 if cached else images,
                passes=0 if cached else passes,
            )
            if cached:
                tuned[row.key] = Tuned.of(row.vit, PromptFile.read(path))
            else:
                file = PromptFile(
                    path=path,
                    model=self.model,
                    tag=self.tag,
                    weights=self.weights,
                    width=int(row.vit.embed_dim),
                    classes=self.dataset.classes,
                    dataset=self.dataset.name,
                    recipe=asdict(config),
                    shape=NO_SHAPE,
                    provenance={},
                )
                tuned[row.key] = Tuned(vit=row.vit, classifier=torch.empty(0), file=file)
        return tuned


def remaining(
    recipe: Reproduction,
    config: StudyConfig,
    datasets: Sequence[Dataset],
    known: Sequence[Record],
    progress: Progress,
) -> list[Step]:
    """Return the steps of a table, those that are done already among them."""
    if not datasets:
        return []
    by_name = {dataset.name: dataset for dataset in datasets}
    parts = recipe.groups(replace(config, datasets=tuple(by_name)))
    steps: list[Step] = []
    solvers: dict[str, KeepSolver] = {}
    with progress.task(f"what {recipe.name} takes", len(parts)) as update:
        for done, part in enumerate(parts, start=1):
            # Anew, as looking for records brings a tower to its device and precision.
            shop = DryShop(part, tower_with_text(config.model), solvers)
            lines_of = {name: lines(recipe.study, shop, by_name[name]) for name in part.datasets}
            for name, own in lines_of.items():
                _count_judging(shop, by_name[name], own, known)
            steps += shop.steps
            update(done)
    return steps


def _count_judging(
    shop: DryShop, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]
) -> None:
    """Count the rows of lines that are to be judged: all without prompts, or none of them."""
    bench = bench_of(shop, dataset, lines)
    plain = plain_rows(bench, lines)
    tuning = Tuning(seed=bench.plan.seed)
    left = 0
    if not known or bench.reusable(dataset, tuning, plain, {}, known) is None:
        left += len(plain)
    prompted = [pair for one in lines for pair in zip(one.rows, one.prompts, strict=False)]
    for row, own in prompted:
        if (
            not known
            or not own.file.path.is_file()
            or bench.reusable(dataset, tuning_of(own.file), [row], {row.key: own}, known) is None
        ):
            left += 1
    images = len(subset(dataset.split(shop.config.split), shop.config.limit))
    total = len(plain) + len(prompted)
    shop.count(
        "judge rows",
        f"{dataset.name} {shop.config.split}, {images} images",
        "rows",
        total=total,
        cached=total - left,
        images=images if left else 0,
        passes=images * left,
    )


def plan_data(
    recipe: Reproduction, model: str, steps: Sequence[Step], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Return steps with their sums, and why datasets can't be read, as JSON values."""
    values: dict[str, Any] = json_values(
        {
            "name": recipe.name,
            "model": model,
            "images": sum(step.images for step in steps),
            "passes": sum(step.passes for step in steps),
            "steps": list(steps),
            "missing": missing,
        }
    )
    return values


def plan_table(
    recipe: Reproduction, model: str, steps: Sequence[Step], missing: Mapping[str, str]
) -> Table:
    """Lay out steps with their sums, and datasets that can't be read with the reason."""
    table = Table(title=f"{recipe.title}; {model}", caption=CAPTION)
    for head in ("step", "of"):
        table.add_column(head)
    for head in ("cached", "missing", "images", "passes"):
        table.add_column(head, justify="right", no_wrap=True)
    for step in steps:
        counts = (step.cached, step.missing, step.images, step.passes)
        table.add_row(step.kind, step.of, *(f"{count:,}" if count else "–" for count in counts))
    for name, reason in missing.items():
        table.add_section()
        table.add_row("missing", f"{name}: {reason}", "", "?", "?", "?")
    table.add_section()
    sums = [f"{sum(getattr(s, name) for s in steps):,}" for name in ("images", "passes")]
    table.add_row("all", "but what is missing" if missing else "", "", "", *sums)
    return table
