"""Models of a study's lines: rankings, predictors and prompts are made once and kept in the user's cache."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import subset
from harness.golden.rank import rank
from harness.golden.settings import RankJob
from harness.golden.store import Rankings, Source, cache_store, shipped_rankings
from harness.learning.predictor import fit
from harness.learning.prompts import Tuner, read_if_valid
from harness.measure.cost import gflops
from harness.measure.plan import KeepSolver
from harness.measure.rows import Tuned, Variant, make_row
from harness.records.record import DENSE, GOLDEN
from harness.studies.study import PREDICTED, StudyConfig, StudyLine
from zoo.core.digests import digest
from zoo.core.files import cache_file
from zoo.core.recipes import FitConfig, GoldenConfig, TuneConfig
from zoo.core.settings import AUTO, precision_on
from zoo.loading.learned_files import PredictorFile, PromptFile
from zoo.loading.towers import Tower

STOPPED_BY = 300  # val images per dataset, at most, that end a fit
T = TypeVar("T")


class RankingSpec(NamedTuple):
    """Golden rankings of the first images of a split by the dense tower."""

    dataset: str
    split: SplitName
    golden: GoldenConfig
    limit: int | None  # None for all


class Fitted(NamedTuple):
    """A predictor and the kind of rankings that it was fitted to."""

    golden: GoldenConfig
    path: Path | None  # None where a dry run would have to fit it


class ModelSpec(NamedTuple):
    """A reduction of the study's tower at any keep rate."""

    method: str  # registered, ``dense`` or ``golden``
    options: tuple[tuple[str, Any], ...] = ()
    predictor: Fitted | None = None  # None for one that ships or is in the user's cache


@dataclass(frozen=True)
class StudyCase:
    """A dataset to judge by; makes each model of a study once."""

    config: StudyConfig
    tower: Tower
    weights: str  # fingerprint of the tower as loaded
    dataset: Dataset  # to judge by
    keeps: Sequence[float]
    progress: Progress
    made: dict[Any, Any]  # by what decides it; all datasets of a study share it

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.tower.vit.depth)

    def golden(self, **changes: Any) -> GoldenConfig:
        """Return the study's settings of golden rankings with some of them changed."""
        return replace(self.config.golden, **changes)

    def truth(self, golden: GoldenConfig) -> RankingSpec:
        """Return the spec of the judged images' golden rankings, which are made if missing."""
        spec = RankingSpec(self.dataset.images_of, self.config.split, golden, self.config.limit)
        self._rankings(spec)
        return spec

    def predictors(
        self,
        golden: GoldenConfig,
        sources: Sequence[str] | None = None,
        recipe: FitConfig | None = None,
        shots: int | None = None,
        seeds: int | None = None,
    ) -> list[Fitted]:
        """Fit a predictor to rankings of datasets from each of the study's seeds.

        Without ``sources``, ``recipe`` and ``seeds`` the study's are taken, without ``shots`` (per class) all ranked
        images.
        """
        recipe, sources = recipe or self.config.fit, sources or self.config.datasets
        most = STOPPED_BY if self.config.limit is None else min(self.config.limit, STOPPED_BY)
        train = tuple(RankingSpec(name, "train", golden, self.config.train_limit) for name in sources)
        stop = tuple(RankingSpec(name, "val", golden, most) for name in sources)
        recipes = [replace(recipe, seed=recipe.seed + seed) for seed in range(seeds or self.config.seeds)]
        return [
            self._once((train, stop, each, shots), partial(self._fit, train, stop, each, shots)) for each in recipes
        ]

    def predicted(
        self,
        predictors: Sequence[Fitted],
        keep: float,
        truth: RankingSpec | None = None,
        cost: Variant | None = None,
        **options: Any,
    ) -> list[Variant]:
        """Reduce by each predictor. See `_models`."""
        options = {"reduce_at": (predictors[0].golden.block,)} | options
        specs = [ModelSpec(PREDICTED, tuple(options.items()), each) for each in predictors]
        return self._models(specs, keep, truth, cost)

    def oracle(self, golden: GoldenConfig, keep: float, **options: Any) -> list[Variant]:
        """Prune by golden rankings."""
        options = {"reduce_at": (golden.block,)} | options
        return self._models([ModelSpec(GOLDEN, tuple(options.items()))], keep, self.truth(golden))

    def baseline(
        self, method: str, keep: float, truth: RankingSpec | None = None, cost: Variant | None = None, **options: Any
    ) -> list[Variant]:
        """Reduce by a method without a predictor; from each of the study's seeds where it is random. See `_models`."""
        seeds = [{"seed": seed} for seed in range(self.config.seeds)] if method == "random" else [{}]
        return self._models([ModelSpec(method, tuple((seed | options).items())) for seed in seeds], keep, truth, cost)

    def untuned(self, keep: float) -> Variant:
        """Return the dense model (keep rate 1), or Patch Ranking by ``own_predictors``."""
        if keep < 1 and self.config.own_predictors:
            return self.predicted(self.predictors(self.golden(), [self.dataset.images_of], seeds=1), keep)[0]
        return self._models([ModelSpec(DENSE if keep == 1 else PREDICTED)], keep)[0]

    def gflops(self, row: Variant) -> float:
        """Count a model's 1e9 multiply-adds per image."""
        return self._once(("gflops", row.key), lambda: gflops(row.vit, row.vit.input_size).gflops)

    def tuned(self, row: Variant, **changes: Any) -> list[PromptFile | None]:
        """Tune a model once for each of the study's seeds, which draw images and initial tokens."""
        recipe = replace(self.config.tune, **changes)
        recipes = [replace(recipe, seed=recipe.seed + seed) for seed in range(self.config.seeds)]
        return [self._once((self.dataset.name, row.key, each), partial(self._tune, row, each)) for each in recipes]

    def tuned_line(
        self, labels: dict[str, str], row: Variant, group: str, prompts: Sequence[PromptFile | None]
    ) -> StudyLine:
        """Return a line of one model, tuned from several seeds."""
        tuned = [Tuned.of(row.vit, file) for file in prompts if file is not None]
        return StudyLine(labels, [row] * len(prompts), group, tuned)

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.made:
            self.made[key] = make()
        value: T = self.made[key]
        return value

    def _keep(
        self, kind: str, subject: str, cached: T | None, make: Callable[[], T], counts: tuple[int, int]
    ) -> T | None:
        """Return what is cached, or make it; ``counts`` are the cached and all items of a kind and a subject."""
        return make() if cached is None else cached

    def _models(
        self, specs: Sequence[ModelSpec], keep: float, truth: RankingSpec | None = None, cost: Variant | None = None
    ) -> list[Variant]:
        """Build models that differ by their seed alone, at one keep rate.

        With ``cost`` it is the rate at which the first costs as nearly as possible what that model does. Models are
        compared with the rankings of ``truth``, by which golden ones prune.
        """
        if cost is not None:
            keep = self._meet(specs[0], keep, cost)
        return [self._once((spec, keep, truth), partial(self._build, spec, keep, truth)) for spec in specs]

    def _meet(self, spec: ModelSpec, keep: float, cost: Variant) -> float:
        """Return the keep rate at which a model has another one's GFLOPs, ``keep`` being usual."""
        solver = KeepSolver(self.tower.vit, lambda keep: self._build(spec, keep, None).vit)
        return self._once(("solver", spec), lambda: solver).nearest(self.gflops(cost))

    def _build(self, spec: ModelSpec, keep: float, truth: RankingSpec | None) -> Variant:
        predictor = None if spec.predictor is None else spec.predictor.path
        row = make_row(self.tower, spec.method, {"keep": keep, **dict(spec.options)}, predictor=predictor)
        if spec.method == DENSE:
            return row
        rankings = None if truth is None else self._rankings(truth)
        against = {} if rankings is None or spec.method == GOLDEN else {"against": rankings.provenance.describe()}
        # The number tells models of one name apart.
        return replace(row, config=row.config | against, rankings=rankings, what=f"({len(self.made)})")

    def _rankings(self, spec: RankingSpec) -> Rankings | None:
        """Return golden rankings; None where they are missing and nothing is made."""
        return self._once(spec, partial(self._rank, spec))

    def _rank(self, spec: RankingSpec) -> Rankings | None:
        source = Source.of(get_dataset(spec.dataset), spec.split)
        image_ids = subset(source.images, spec.limit).image_ids
        cached = find(self.tower.name, self.weights, source, spec.golden, image_ids)
        count, subject = len(cached or ()), f"{spec.dataset} {spec.split}: {spec.golden.describe()}"

        def make() -> Rankings:
            name, device = self.tower.name, self.config.device
            job = RankJob(
                model=name, source=source, config=spec.golden, limit=spec.limit, precision=AUTO, device=device
            )
            return Rankings.read(rank(job, self.progress).path)

        whole = cached if count == len(image_ids) else None
        rankings = self._keep("rankings", subject, whole, make, (count, len(image_ids)))
        return None if rankings is None else rankings.take(image_ids)

    def _fit(
        self, train: Sequence[RankingSpec], stop: Sequence[RankingSpec], recipe: FitConfig, shots: int | None
    ) -> Fitted:
        golden, path, cached = train[0].golden, Path(), None
        rankings = [[each for spec in part if (each := self._rankings(spec)) is not None] for part in (train, stop)]
        if list(map(len, rankings)) == [len(train), len(stop)]:
            # By a hash of all that decides its weights.
            parts = [[asdict(each.provenance) | {"ids": each.image_ids} for each in part] for part in rankings]
            conditions = [self.tower.name, self.weights, parts, asdict(recipe), shots, torch.__version__]
            path = cache_file("studies", f"{digest(conditions, length=20)}.safetensors")
            words = "a predictor of an earlier run is fitted anew"
            file = read_if_valid(path, PredictorFile.read, PredictorFile.tensors, words, self.progress)
            cached = None if file is None else path

        def make() -> Path:
            fit(self.tower.name, rankings[0], rankings[1], recipe, out=path, progress=self.progress, shots=shots)
            return path

        names = " + ".join(spec.dataset for spec in train)
        subject = f"{recipe.arch} {recipe.width} on {names}: {golden.describe()}"
        return Fitted(golden, self._keep("predictors", subject, cached, make, (cached is not None, 1)))

    def _tune(self, row: Variant, recipe: TuneConfig) -> PromptFile | None:
        tuner = self._once(self.dataset.name, self._tuner)
        shots, seed = self.config.labelled, recipe.seed
        precision = precision_on(next(row.vit.parameters()).device, recipe.precision)
        path = tuner.path(row, tuner.few(shots, seed), shots, seed, replace(recipe, precision=precision))
        name = DENSE if row.method == DENSE else f"{row.method}{round(100 * row.keep)}"
        subject, cached = f"{recipe.tokens} for {name} on {self.dataset.name}", tuner.read_cached(path)
        make = lambda: tuner.tune([row], shots, seed, recipe)[row.key].file  # noqa: E731
        return self._keep("prompts", subject, cached, make, (cached is not None, 1))

    def _tuner(self) -> Tuner:
        dataset, draws = get_dataset(self.dataset.name), self.config.draws
        return Tuner(self.tower, dataset, weights=self.weights, progress=self.progress, draws=draws)


@dataclass(frozen=True)
class StudyInventory(StudyCase):
    """A case that makes nothing but counts what is cached and what is missing."""

    counts: dict[tuple[str, str], list[int]]  # cached and missing, by kind and subject

    def gflops(self, row: Variant) -> float:
        """Count nothing."""
        return 0.0

    def _keep(
        self, kind: str, subject: str, cached: T | None, make: Callable[[], T], counts: tuple[int, int]
    ) -> T | None:
        total = self.counts.setdefault((kind, subject), [0, 0])
        total[0] += counts[0]
        total[1] += counts[1] - counts[0]
        return cached

    def _meet(self, spec: ModelSpec, keep: float, cost: Variant) -> float:
        return keep

    def _build(self, spec: ModelSpec, keep: float, truth: RankingSpec | None) -> Variant:
        """Build random pruning in place of a predictor that is missing."""
        if spec.predictor is None or spec.predictor.path is not None:
            return super()._build(spec, keep, truth)
        options = {"reduce_at": spec.predictor.golden.block} | dict(spec.options)
        options = {"keep": keep, "reduce_at": options["reduce_at"]}
        return replace(make_row(self.tower, "random", options, f"({len(self.made)})"), method=spec.method)


def find(model: str, weights: str, source: Source, golden: GoldenConfig, image_ids: Sequence[str]) -> Rankings | None:
    """Return golden rankings of the images that have one, shipped or the user's own; None for none or broken ones."""
    shipped = shipped_rankings(model, source.name, source.split, golden.block)
    for path in (shipped, cache_store(model, source.name, source.split, golden)):
        if path is None or not path.exists():
            continue
        try:
            rankings = Rankings.read(path)
        except ValueError:  # `rank` tells what is broken, and mends it
            continue
        conditions, known = asdict(golden) | {"weights": weights, "revision": source.revision}, set(rankings.image_ids)
        same = all(getattr(rankings.provenance, name) == value for name, value in conditions.items())
        if same and (path != shipped or known.issuperset(image_ids)):
            return rankings.take([name for name in image_ids if name in known])
    return None
