"""Where studies get their models: rankings, predictors and prompts are made once and kept."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.models import save_for_hf

import zoo
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import require_apart, subset
from harness.golden.fit import fit
from harness.golden.rank import AUTO, Job, Source, rank
from harness.golden.store import Rankings, find_rankings, own_store, shipped_rankings
from harness.measure.rows import (
    KeepSolver,
    Variant,
    as_json,
    golden_row,
    predictors_digest,
    rows_of,
)
from harness.measure.tuning import Tuned, Tuner
from harness.models.cost import gflops
from harness.models.towers import Tower, load_tower
from harness.records.conditions import DENSE
from zoo.adopt import add_prompts
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.predictor import PredictorFile
from zoo.prompt_learner import TuneConfig
from zoo.reducer import ReducerConfig
from zoo.vit import ReducedViT
from zoo.weights import cache_folder, fingerprint, load_predictor

PREDICTED = "patchrank"
STOPPED_BY = 300  # val images per dataset, at most, that end a fit
STOPPED_TUNED = 100  # likewise of a tuned tower, which is slow to rank: its prefix is long


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """On what a study is made. Fields that a study varies are not looked at by it.

    Attributes:
        model: dense tower, see ``harness.models.towers.load_tower``; it needs a text tower.
        datasets: names of those that are judged by, and learnt from.
        split: what is judged by.
        limit: images of it per dataset, see ``sampling.subset``; None for all.
        train_limit: ranked images to learn from, per dataset; None for all.
        keeps: keep rates; None for the study's own.
        seeds: fits per predictor, and random orders.
        golden: score, block and windows of the golden rankings.
        fit: recipe of predictors; its seed is the first.
        shots: ranked images per class to learn from; None for all.
        tune: recipe of learned tokens; its seed is the first.
        labelled: images per class that they are learned from.
        own_predictors: a tuned model's predictor is fitted to the rankings of its dataset, as all
            others are; else it is the one that ships or is in the user's cache.
        batches: batch sizes to time models at; none to time nothing.
        device: torch device.
        dtype: of the models.
    """

    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = ("fashion", "emoji")
    split: SplitName = "val"
    limit: int | None = 300
    train_limit: int | None = 500
    keeps: tuple[float, ...] | None = None
    seeds: int = 3
    golden: GoldenConfig = field(default_factory=lambda: GoldenConfig(window=3, stride=2))
    fit: FitConfig = field(default_factory=FitConfig)
    shots: int | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)
    labelled: int = 16
    own_predictors: bool = False
    batches: tuple[int, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("limit", "train_limit", "seeds", "shots", "labelled"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: expected a number from 1")

    def described(self, *, tunes: bool = False) -> str:
        """Return in words what models are made of, where a study doesn't vary it."""
        if tunes:
            one = self.tune
            predictors = "predictors that ship or are fitted as in the other studies"
            if self.own_predictors:
                predictors = f"predictors fitted to {self.golden.described()}"
            kind = "" if one.tokens != "vt" else ", coupled" if one.coupled else ", independent"
            return (
                f"Where nothing else is said: {predictors}; {one.count} tokens "
                f"({one.tokens}{kind}), "
                f"depth {one.depth}, anchor {one.anchor:g}, learned from {self.labelled} labelled "
                f"images per class in at most {one.rounds} rounds of {one.steps} steps of "
                f"{one.batch} images; "
                f"{self.seeds} seeds, each with images of its own, stopped by up to 4 other "
                "images per class."
            )
        fit = self.fit
        images = "all" if self.train_limit is None else f"up to {self.train_limit}"
        few = "" if self.shots is None else f", {self.shots} per class"
        return (
            f"Where nothing else is said: golden {self.golden.described()}; predictors "
            f"{fit.arch} of width {fit.width}, {fit.loss}, {self.seeds} seeds, {images} ranked "
            f"training images of each dataset{few}, stopped by val."
        )


@dataclass(frozen=True)
class Line:
    """One line of a study's table.

    Attributes:
        labels: what distinguishes it, by column.
        rows: the same model from several seeds, or one.
        group: lines are compared within it: a keep rate, maybe by equal cost, or a name.
        prompts: what was tuned for each row; none where class captions classify.
    """

    labels: dict[str, str]
    rows: Sequence[Variant]
    group: float | str
    prompts: Sequence[Tuned] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about methods, and what answers it.

    Attributes:
        name: what it is called on the command line.
        title: of its tables.
        question: what it answers.
        keeps: usual keep rates.
        lines: from workshop, dataset and keep rates to the models that are judged on the dataset;
            the first of a group is what the others are compared with.
        split: what is judged by unless another is asked for.
        tunes: it is about learned tokens, whose labelled images may come from val.
    """

    name: str
    title: str
    question: str
    keeps: tuple[float, ...]
    lines: "Lines"
    split: SplitName = "val"
    tunes: bool = False


def study(
    title: str, question: str, keeps: tuple[float, ...], *, name: str = "", tunes: bool = False
) -> Callable[["Lines"], Study]:
    """Declare a study of a function's name, or another one, whose lines the function yields.

    Studies of learned tokens are judged by test.
    """
    split: SplitName = "test" if tunes else "val"

    def declare(lines: "Lines") -> Study:
        return Study(
            name=name or lines.__name__,
            title=title,
            question=question,
            keeps=keeps,
            lines=lines,
            split=split,
            tunes=tunes,
        )

    return declare


def find(
    model: str, weights: str, source: Source, golden: GoldenConfig, image_ids: Sequence[str]
) -> Rankings | None:
    """Return the golden rankings that there are of some images: shipped, or the user's own.

    Returns:
        Rankings of those of the images that have one, in their order; None where nobody has made
        any in this way, or some are broken.
    """
    shipped = shipped_rankings(model, source.name, cast(SplitName, source.split), golden.block)
    for path in (shipped, own_store(model, source.name, source.split, golden)):
        if path is None or not path.exists():
            continue
        try:
            rankings = Rankings.read(path)
        except ValueError:  # `rank` tells what is broken, and mends it
            continue
        facts = rankings.provenance
        same = all(getattr(facts, name) == value for name, value in asdict(golden).items())
        if same and (facts.weights, facts.revision) == (weights, source.revision):
            known = set(rankings.image_ids)
            if path != shipped or known >= set(image_ids):
                return rankings.take([name for name in image_ids if name in known])
    return None


def find_or_rank(
    model: str,
    weights: str,
    source: Source,
    golden: GoldenConfig,
    limit: int | None,
    *,
    device: str,
    progress: Progress,
) -> Rankings:
    """Return the golden rankings of the first images of a split, in its order."""
    image_ids = subset(source.images, limit).image_ids
    rankings = find(model, weights, source, golden, image_ids)
    if rankings is None or len(rankings) < len(image_ids):
        job = Job(model=model, source=source, config=golden, limit=limit, dtype=AUTO, device=device)
        rankings = Rankings.read(rank(job, progress).path)
    return rankings.take(image_ids)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A predictor that a study fitted.

    Attributes:
        file: where it is.
        seed: of its fit.
        images: ranked images that it learnt from.
    """

    file: PredictorFile
    seed: int
    images: int


class Workshop:
    """Make rankings, predictors and rows for one dense tower."""

    def __init__(self, config: StudyConfig, tower: Tower, progress: Progress) -> None:
        """Prepare nothing yet."""
        self.config, self.tower, self.progress = config, tower, progress
        self.dense: ReducedViT = tower.vit
        self.weights = fingerprint(tower.vit)
        self._rankings: dict[tuple[str, str, GoldenConfig, int | None], Rankings] = {}
        self._solvers: dict[str, KeepSolver] = {}

    def tuner(self, dataset: Dataset) -> Tuner:
        """Return what tunes models of the tower on a dataset."""
        assert self.tower.clip is not None
        return Tuner(
            self.tower.clip,
            dataset,
            model=self.tower.arch,
            tag=self.tower.tag,
            weights=self.weights,
            progress=self.progress,
        )

    def golden(self, **changes: Any) -> GoldenConfig:
        """Return the study's settings of golden rankings with some of them changed."""
        return replace(self.config.golden, **changes)

    def known(self, dataset: str) -> Rankings | None:
        """Return golden rankings of a dataset's judged images if there are any."""
        block = self.config.golden.block
        return find_rankings(self.tower.name, dataset, self.config.split, block)

    def rankings(
        self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None
    ) -> Rankings:
        """Find the golden rankings of the study's images of a split, or make them.

        Args:
            dataset: name of the dataset whose images these are.
            split: train, or one to judge or stop by.
            golden: how they are made.
            most: images, where all are judged by and fewer will do.
        """
        limit = self.limit(split, most)
        if (dataset, split, golden, limit) not in self._rankings:
            self._rankings[dataset, split, golden, limit] = find_or_rank(
                self.tower.name,
                self.weights,
                Source.of(get_dataset(dataset), split),
                golden,
                limit,
                device=self.config.device,
                progress=self.progress,
            )
        return self._rankings[dataset, split, golden, limit]

    def limit(self, split: SplitName, most: int | None) -> int | None:
        """Return how many images of a split are ranked, None for all."""
        limits = (self.config.train_limit if split == "train" else self.config.limit, most)
        return min((limit for limit in limits if limit is not None), default=None)

    def most_shots(self, dataset: str, golden: GoldenConfig) -> int:
        """Return how many ranked training images the poorest class of a dataset has."""
        split = get_dataset(dataset).split("train")
        ranked = np.isin(split.image_ids, self.rankings(dataset, "train", golden).image_ids)
        counts = np.bincount(split.labels[ranked], minlength=len(get_dataset(dataset).classes))
        return int(counts.min())

    def fitted(
        self,
        datasets: Sequence[str],
        golden: GoldenConfig,
        recipe: FitConfig | None = None,
        shots: int | None = None,
    ) -> list[Fitted]:
        """Fit a predictor from each of the study's seeds, or take those of an earlier run.

        Args:
            datasets: names of those to learn from.
            golden: the target.
            recipe: how; None for the study's.
            shots: ranked images per class; None for the study's.
        """
        recipe = recipe or self.config.fit
        shots = shots or self.config.shots
        train = [self.rankings(name, "train", golden) for name in datasets]
        stop = [self.rankings(name, "val", golden, STOPPED_BY) for name in datasets]
        images = sum(map(len, train))
        if shots is not None:
            images = sum(shots * len(get_dataset(name).classes) for name in datasets)
        seeds = range(recipe.seed, recipe.seed + self.config.seeds)
        files = [self.predictor(train, stop, replace(recipe, seed=seed), shots) for seed in seeds]
        return [
            Fitted(file=file, seed=seed, images=images)
            for file, seed in zip(files, seeds, strict=True)
        ]

    def predictor(
        self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None
    ) -> PredictorFile:
        """Fit a predictor, or take that of an earlier run."""
        path = self.predictor_path(train, stop, recipe, shots)
        if not path.is_file():
            fit(self.tower.name, train, stop, recipe, out=path, progress=self.progress, shots=shots)
        return PredictorFile.read(path)

    def predictor_path(
        self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None
    ) -> Path:
        """Return where a predictor is kept: by all that decides its weights."""
        parts = [
            [asdict(r.provenance) | {"ids": r.image_ids} for r in part] for part in (train, stop)
        ]
        conditions = [self.tower.name, self.weights, parts, asdict(recipe), shots]
        conditions.append(torch.__version__)
        digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "studies" / f"{digest[:20]}.safetensors"

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
        """Make a row of each predictor.

        Args:
            fits: predictors of one shape and block, one per seed.
            keep: keep rate.
            truth: golden rankings to compare with.
            what: tells these rows apart from others.
            later: those of later reduction points, where each scores anew.
            options: further ones of the method.
        """
        rows = []
        for one, *rest in zip(fits, *later, strict=True):
            vit = zoo.reduce(
                self.dense,
                method=PREDICTED,
                keep=keep,
                **{"reduce_at": (one.file.block,), **one.file.options, **options},
            )
            digest = self.load(vit, [one.file, *(other.file for other in rest)])
            rows.append(self._row(PREDICTED, vit, f"{what}, seed {one.seed}", truth, digest))
        return rows

    def load(self, vit: ReducedViT, files: Sequence[PredictorFile]) -> str:
        """Load predictors into a model; return 16 hex digits that tell them from others."""
        load_predictor(vit, files)
        return predictors_digest(files)

    def oracle(self, truth: Rankings, keep: float, what: str, **options: Any) -> list[Variant]:
        """Make a row that prunes by golden rankings."""
        options = {"reduce_at": (truth.provenance.block,), **options}
        config = ReducerConfig(keep=keep, **options)
        row = golden_row(self.dense, self._name("golden", keep), config)
        return [replace(row, what=what, rankings=truth)]

    def baseline(
        self, method: str, keep: float, truth: Rankings | None, what: str, **options: Any
    ) -> list[Variant]:
        """Make a row of a method without a predictor; several where it is random."""
        seeded = method == "random"
        rows = []
        for seed in range(self.config.seeds if seeded else 1):
            if seeded:
                options["seed"] = seed
            vit = zoo.reduce(self.dense, method=method, keep=keep, **options).eval()
            rows.append(self._row(method, vit, f"{what}, seed {seed}" if seeded else what, truth))
        return rows

    def at_cost(self, name: str, build: Callable[[float], Sequence[Variant]], goal: float) -> float:
        """Return the keep rate at which a model costs as nearly as it can what another does."""
        if name not in self._solvers:
            self._solvers[name] = KeepSolver(self.dense, lambda keep: build(keep)[0].vit)
        return self._solvers[name].nearest(goal)

    def gflops(self, row: Variant) -> float:
        """Return what a row's model costs, 1e9 multiply-adds."""
        return gflops(row.vit, self.dense.patch_embed.img_size).gflops

    def _name(self, method: str, keep: float) -> str:
        return f"{self.tower.arch}_{method}{round(100 * keep)}"

    def _row(
        self,
        method: str,
        vit: ReducedViT,
        what: str,
        truth: Rankings | None,
        predictor: str = "",
    ) -> Variant:
        assert vit.reducer is not None
        config = as_json(vit.reducer.config)
        if predictor:
            config["predictor"] = predictor
        if truth is not None:
            config["against"] = truth.provenance.described()
        keep = float(config["keep"])
        return Variant(
            model=self._name(method, keep),
            method=method,
            keep=keep,
            vit=vit.eval(),
            config=config,
            what=what,
            rankings=truth,
        )


class TuningShop:
    """Tune a study's models on one dataset.

    Raises:
        ValueError: the study judges by images that models learn from.
    """

    def __init__(self, shop: Workshop, dataset: Dataset) -> None:
        """Tune nothing yet."""
        require_apart(dataset, shop.config.split)
        self.shop, self.dataset = shop, dataset
        self.tuner = shop.tuner(dataset)

    def row(self, keep: float) -> Variant:
        """Return the dense model (keep rate 1), or Patch Ranking.

        Its predictor is the one that is found, or with ``own_predictors`` the dataset's own, that
        of the study's first seed.
        """
        if keep < 1 and self.shop.config.own_predictors:
            fits = self.shop.fitted([self.dataset.images_of], self.shop.golden())[:1]
            (own,) = self.shop.predicted(fits, keep, None, "own predictor")
            return own
        pair = (DENSE, 1.0) if keep == 1 else (PREDICTED, keep)
        tower = self.shop.tower
        (row,) = rows_of(self.shop.dense, tower.arch, tower.tag, [pair])
        return row

    def tuned(self, row: Variant, **changes: Any) -> list[Tuned]:
        """Tune a row once for each of the study's seeds, which draw images and initial tokens."""
        config, tuned = replace(self.shop.config.tune, **changes), []
        shots, seeds = self.shop.config.labelled, self.shop.config.seeds
        for seed in range(config.seed, config.seed + seeds):
            recipe = replace(config, seed=seed)
            tuned.append(self.tuner.tuned([row], shots, seed, recipe)[row.key])
        return tuned

    def moved(self, row: Variant, tuned: Sequence[Tuned]) -> list[Tuned]:
        """Give a row the prompts that were tuned on another one of the tower."""
        return [Tuned.of(row.vit, one.file) for one in tuned]

    def line(
        self, labels: dict[str, str], row: Variant, group: str, tuned: Sequence[Tuned]
    ) -> Line:
        """Return a line of the table: one model, tuned from several seeds."""
        return Line(labels, [row] * len(tuned), group, list(tuned))

    def ranked_after(self, one: Tuned, golden: GoldenConfig) -> Fitted:
        """Fit a predictor to golden rankings of a dense tower that was tuned before.

        Returns:
            The predictor, which needs the tower's learned tokens as well.
        """
        shop, seed = self.shop, int(one.file.recipe["seed"])
        folder = cache_folder() / "studies" / f"{shop.tower.arch}-{one.digest}"
        if not (folder / "config.json").is_file():
            dense = load_tower(shop.tower.name).vit
            save_for_hf(add_prompts(dense, one.file), str(folder), safe_serialization=True)
        path = folder / f"predictor-{golden.block}.safetensors"
        name = f"local-dir:{folder}"
        if not path.is_file():
            weights = fingerprint(one.vit)

            def ranked(split: SplitName, limit: int | None) -> Rankings:
                source = Source.of(self.dataset, split)
                return find_or_rank(
                    name,
                    weights,
                    source,
                    golden,
                    limit,
                    device=shop.config.device,
                    progress=shop.progress,
                )

            train, stop = ranked("train", shop.config.train_limit), ranked("val", STOPPED_TUNED)
            recipe = replace(shop.config.fit, seed=seed)
            fit(name, [train], [stop], recipe, out=path, progress=shop.progress)
        file = PredictorFile.read(path)
        return Fitted(file=file, seed=seed, images=shop.config.train_limit or 0)


Lines = Callable[[Workshop, Dataset, Sequence[float]], Iterator[Line]]
