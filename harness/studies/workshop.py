"""Where studies get their models: rankings and predictors are made once and kept."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from harness.cost import gflops
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.fit import fit
from harness.golden.rank import Source
from harness.golden.store import Rankings, find_rankings
from harness.progress import Progress
from harness.solve import KeepSolver
from harness.studies.config import StudyConfig
from harness.studies.found import find_or_rank
from harness.towers import Tower
from harness.tuning import Tuner
from harness.variants import Variant, as_json, golden_row, predictors_digest
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.predictor_file import PredictorFile
from zoo.reducer import ReducerConfig
from zoo.vit import ReducedViT
from zoo.weights import cache_folder, fingerprint, load_predictor

PREDICTED = "patchrank"
STOPPED_BY = 300  # val images per dataset, at most, that end a fit


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
    """Make rankings, predictors and rows for one dense tower.

    Args:
        config: of the study.
        tower: the tower.
        progress: where to show how far things are.
    """

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
        arch, _, tag = self.tower.name.partition(".")
        told: dict[str, Any] = {"weights": self.weights, "progress": self.progress}
        return Tuner(self.tower.clip, dataset, model=arch, tag=tag, **told)

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
        limit = self.config.train_limit if split == "train" else self.config.limit
        limit = most if limit is None or (most is not None and most < limit) else limit
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
        found = []
        for seed in range(recipe.seed, recipe.seed + self.config.seeds):
            one = replace(recipe, seed=seed)
            path = self._place(train, stop, one, shots)
            if not path.is_file():
                told: dict[str, Any] = {"shots": shots, "block": golden.block, "out": path}
                fit(self.tower.name, train, stop, one, progress=self.progress, **told)
            found.append(Fitted(file=PredictorFile.read(path), seed=seed, images=images))
        return found

    def _place(
        self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None
    ) -> Path:
        """Return where a predictor is kept: by all that decides its weights."""
        parts = [
            [asdict(r.provenance) | {"ids": r.image_ids} for r in part] for part in (train, stop)
        ]
        told = [self.tower.name, self.weights, parts, asdict(recipe), shots, torch.__version__]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
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
            told = {"keep": keep, "reduce_at": (one.file.block,), **one.file.options, **options}
            vit = zoo.reduce(self.dense, method=PREDICTED, **told)
            files = [one.file, *(other.file for other in rest)]
            load_predictor(vit, files)
            rows.append(self._row(PREDICTED, vit, f"{what}, seed {one.seed}", truth, files))
        return rows

    def oracle(self, truth: Rankings, keep: float, what: str, **options: Any) -> list[Variant]:
        """Make a row that prunes by golden rankings.

        Args:
            truth: the rankings; of the reduction point that they are for.
            keep: keep rate.
            what: tells it apart from others.
            options: of ``ReducerConfig``.
        """
        told: dict[str, Any] = {"reduce_at": (truth.provenance.block,), **options}
        row = golden_row(self.dense, self._name("golden", keep), ReducerConfig(keep=keep, **told))
        return [replace(row, what=what, rankings=truth)]

    def baseline(
        self, method: str, keep: float, truth: Rankings | None, what: str, **options: Any
    ) -> list[Variant]:
        """Make a row of a method without a predictor; several where it is random."""
        seeded = method == "random"
        rows = []
        for seed in range(self.config.seeds if seeded else 1):
            told = {"keep": keep, **options} | ({"seed": seed} if seeded else {})
            vit = zoo.reduce(self.dense, method=method, **told).eval()
            rows.append(self._row(method, vit, f"{what}, seed {seed}" if seeded else what, truth))
        return rows

    def at_cost(self, name: str, build: Callable[[float], Sequence[Variant]], goal: float) -> float:
        """Return the keep rate at which a model costs as nearly as it can what another does.

        Args:
            name: of the kind of model, under which costs are remembered.
            build: from keep rate to rows of equal cost.
            goal: GFLOPs.
        """
        if name not in self._solvers:
            self._solvers[name] = KeepSolver(self.dense, lambda keep: build(keep)[0].vit)
        return self._solvers[name].nearest(goal)

    def gflops(self, row: Variant) -> float:
        """Return what a row's model costs, 1e9 multiply-adds."""
        return gflops(row.vit, self.dense.patch_embed.img_size).gflops

    def _name(self, method: str, keep: float) -> str:
        return f"{self.tower.name.partition('.')[0]}_{method}{round(100 * keep)}"

    def _row(
        self,
        method: str,
        vit: ReducedViT,
        what: str,
        truth: Rankings | None,
        files: Sequence[PredictorFile] = (),
    ) -> Variant:
        assert vit.reducer is not None
        config = as_json(vit.reducer.config)
        if files:
            config["predictor"] = predictors_digest(files)
        if truth is not None:
            config["against"] = truth.provenance.described()
        keep = float(config["keep"])
        told: dict[str, Any] = {"what": what, "rankings": truth, "config": config, "keep": keep}
        return Variant(model=self._name(method, keep), method=method, vit=vit.eval(), **told)
