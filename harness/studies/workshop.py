"""What a study is, and what its lines are made of: each model once, kept in the user's cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import OURS, subset
from harness.golden.rank import rank
from harness.golden.settings import RankJob
from harness.golden.store import Rankings, Source, cache_store, shipped_rankings
from harness.learning.predictor import fit
from harness.learning.prompts import Tuner, read_if_valid
from harness.measure.cost import gflops
from harness.measure.plan import KeepSolver
from harness.measure.rows import Tuned, Variant, make_row
from harness.measure.settings import Plan
from harness.records.record import DENSE, GOLDEN
from zoo.core.files import cache_file, digest
from zoo.core.recipes import FitConfig, GoldenConfig, TuneConfig
from zoo.core.settings import AUTO, precision_on
from zoo.loading.learned_files import PredictorFile, PromptFile
from zoo.loading.towers import Tower
from zoo.methods.patchrank import PatchRank
from zoo.methods.rankmerge import RankMerge

PREDICTED, MERGED = PatchRank.method, RankMerge.method
STOPPED_BY = 300  # val images per dataset, at most, that end a fit
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Conditions of a study, which ignores the fields that it varies."""

    model: str = "clip_vit_s14"  # dense tower with a text tower
    datasets: tuple[str, ...] = Plan.datasets  # to judge by and to learn from
    split: SplitName = "val"
    limit: int | None = 300  # images per dataset to judge by; None for all
    train_limit: int | None = 500  # ranked images to learn from, per dataset; None for all
    keeps: tuple[float, ...] | None = None  # keep rates; None for the study's own
    seeds: int = 3  # fits per predictor, tunings, and random orders
    golden: GoldenConfig = field(default_factory=lambda: GoldenConfig(window=3, stride=2))
    fit: FitConfig = field(default_factory=FitConfig)  # recipe of predictors; its seed is the first
    tune: TuneConfig = field(default_factory=TuneConfig)  # recipe of learned tokens; its seed is the first
    labelled: int = 16  # images per class that tokens are learned from
    draws: str = OURS  # which images a seed means, of ``harness.datasets.few_shot.DRAWS``
    # a tuned model's predictor is fitted to the rankings of its dataset, as all others are;
    # else it is the one that ships or is in the user's cache
    own_predictors: bool = False
    batches: tuple[int, ...] = ()  # batch sizes to time models at; none to time nothing
    device: str = "cpu"
    dtype: str = "float32"


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


class Kind(NamedTuple):
    """A kind of model of the study's tower; its keep rate makes a model of it."""

    method: str  # registered, ``dense`` or ``golden``
    options: tuple[tuple[str, Any], ...] = ()
    predictor: Fitted | None = None  # None for one that ships or is in the user's cache


@dataclass(frozen=True)
class StudyLine:
    """One line of a study's table."""

    labels: dict[str, str]  # what distinguishes it, by column
    rows: Sequence[Variant]  # the same model from several seeds, or one
    group: float | str  # a keep rate or a name; lines are compared within it
    prompts: Sequence[Tuned] = ()  # of each row; none where class captions classify


def tuned_line(labels: dict[str, str], row: Variant, group: str, prompts: Sequence[PromptFile | None]) -> StudyLine:
    """Return a line of one model, tuned from several seeds."""
    tuned = [Tuned.of(row.vit, file) for file in prompts if file is not None]
    return StudyLine(labels, [row] * len(prompts), group, tuned)


@dataclass(frozen=True)
class StudyCase:
    """What a study is asked about, and what makes it: each thing once, kept in the user's cache.

    In a dry run, which has a ``stock``, nothing is made: what is cached and what is missing is counted.
    """

    config: StudyConfig
    tower: Tower
    weights: str  # fingerprint of the tower as loaded
    dataset: Dataset  # to judge by
    keeps: Sequence[float]
    progress: Progress
    made: dict[Any, Any]  # by what decides it; all datasets of a study share it
    stock: dict[tuple[str, str], list[int]] | None  # of a dry run: cached and missing, by kind and what it is of

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.tower.vit.depth)

    def golden(self, **changes: Any) -> GoldenConfig:
        """Return the study's settings of golden rankings with some of them changed."""
        return replace(self.config.golden, **changes)

    def truth(self, golden: GoldenConfig) -> RankingSpec:
        """Return which golden rankings the judged images have; they are made if they are missing."""
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
        every = [replace(recipe, seed=recipe.seed + seed) for seed in range(seeds or self.config.seeds)]
        return [self._once((train, stop, one, shots), partial(self._fit, train, stop, one, shots)) for one in every]

    def predicted(
        self,
        predictors: Sequence[Fitted],
        keep: float,
        truth: RankingSpec | None = None,
        cost: Variant | None = None,
        **options: Any,
    ) -> list[Variant]:
        """Reduce by each predictor, compared with golden rankings, at the cost of another model; see `_models`."""
        golden = predictors[0].golden
        settings = tuple(({"reduce_at": (golden.block,)} | options).items())
        return self._models([Kind(PREDICTED, settings, one) for one in predictors], keep, truth, cost)

    def oracle(self, golden: GoldenConfig, keep: float, **options: Any) -> list[Variant]:
        """Prune by golden rankings."""
        settings = tuple(({"reduce_at": (golden.block,)} | options).items())
        return self._models([Kind(GOLDEN, settings)], keep, self.truth(golden))

    def baseline(
        self, method: str, keep: float, truth: RankingSpec | None = None, cost: Variant | None = None, **options: Any
    ) -> list[Variant]:
        """Reduce by a method without a predictor; from each of the study's seeds where it is random. See `_models`."""
        seeds = [{"seed": seed} for seed in range(self.config.seeds)] if method == "random" else [{}]
        return self._models([Kind(method, tuple((seed | options).items())) for seed in seeds], keep, truth, cost)

    def untuned(self, keep: float) -> Variant:
        """Return the dense model (keep rate 1), or Patch Ranking by ``own_predictors``."""
        if keep < 1 and self.config.own_predictors:
            return self.predicted(self.predictors(self.golden(), [self.dataset.images_of], seeds=1), keep)[0]
        return self._models([Kind(DENSE if keep == 1 else PREDICTED)], keep)[0]

    def gflops(self, row: Variant) -> float:
        """Count a model's 1e9 multiply-adds per image; a dry run counts none."""
        if self.stock is not None:
            return 0.0
        return self._once(("gflops", row.key), lambda: gflops(row.vit, row.vit.input_size).gflops)

    def tuned(self, row: Variant, **changes: Any) -> list[PromptFile | None]:
        """Tune a model once for each of the study's seeds, which draw images and initial tokens."""
        recipe = replace(self.config.tune, **changes)
        every = [replace(recipe, seed=recipe.seed + seed) for seed in range(self.config.seeds)]
        return [self._once((self.dataset.name, row.key, one), partial(self._tune, row, one)) for one in every]

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.made:
            self.made[key] = make()
        found: T = self.made[key]
        return found

    def _count(self, kind: str, of: str, cached: int, total: int = 1) -> None:
        """Count what a dry run finds."""
        if self.stock is not None:
            counts = self.stock.setdefault((kind, of), [0, 0])
            counts[0] += cached
            counts[1] += total - cached

    def _models(
        self, kinds: Sequence[Kind], keep: float, truth: RankingSpec | None = None, cost: Variant | None = None
    ) -> list[Variant]:
        """Build models of some kinds, alike but for their seed, at one keep rate.

        With ``cost`` it is the rate at which the first costs as nearly as it can what that model does. Models are
        compared with the rankings of ``truth``, and a golden one prunes by them.
        """
        if cost is not None and self.stock is None:
            new = KeepSolver(self.tower.vit, lambda keep: self._build(kinds[0], keep, None).vit)
            keep = self._once(("solver", kinds[0]), lambda: new).nearest(self.gflops(cost))
        return [self._once((kind, keep, truth), partial(self._build, kind, keep, truth)) for kind in kinds]

    def _build(self, kind: Kind, keep: float, truth: RankingSpec | None) -> Variant:
        method, settings, predictor = kind
        options, path = {"keep": keep, **dict(settings)}, None if predictor is None else predictor.path
        number = f"({len(self.made)})"  # tells it from others of its name
        if predictor is not None and path is None:  # a dry run has no weights for it, so another model stands there
            options = {"keep": keep, "reduce_at": options.get("reduce_at", predictor.golden.block)}
            row = make_row(self.tower, "random", options, number)
            return replace(row, method=method)
        row = make_row(self.tower, method, options, predictor=path)
        if method == DENSE:
            return row
        rankings = None if truth is None else self._rankings(truth)
        against = {} if rankings is None or method == GOLDEN else {"against": rankings.provenance.describe()}
        return replace(row, config=row.config | against, rankings=rankings, what=number)

    def _rankings(self, spec: RankingSpec) -> Rankings | None:
        """Return golden rankings; None where a dry run would have to make some."""
        return self._once(spec, partial(self._rank, spec))

    def _rank(self, spec: RankingSpec) -> Rankings | None:
        source = Source.of(get_dataset(spec.dataset), spec.split)
        image_ids = subset(source.images, spec.limit).image_ids
        rankings = find(self.tower.name, self.weights, source, spec.golden, image_ids)
        self._count(
            "rankings", f"{spec.dataset} {spec.split}: {spec.golden.describe()}", len(rankings or ()), len(image_ids)
        )
        if len(rankings or ()) < len(image_ids):
            if self.stock is not None:
                return None
            name, device = self.tower.name, self.config.device
            job = RankJob(model=name, source=source, config=spec.golden, limit=spec.limit, dtype=AUTO, device=device)
            rankings = Rankings.read(rank(job, self.progress).path)
        assert rankings is not None
        return rankings.take(image_ids)

    def _fit(
        self, train: Sequence[RankingSpec], stop: Sequence[RankingSpec], recipe: FitConfig, shots: int | None
    ) -> Fitted:
        golden, path, known = train[0].golden, None, False
        rankings = [[one for spec in part if (one := self._rankings(spec)) is not None] for part in (train, stop)]
        if list(map(len, rankings)) == [len(train), len(stop)]:
            # By a hash of all that decides its weights.
            parts = [[asdict(one.provenance) | {"ids": one.image_ids} for one in part] for part in rankings]
            conditions = [self.tower.name, self.weights, parts, asdict(recipe), shots, torch.__version__]
            path = cache_file("studies", f"{digest(conditions, length=20)}.safetensors")
            words = "a predictor of an earlier run is fitted anew"
            file = read_if_valid(path, PredictorFile.read, PredictorFile.tensors, words, self.progress)
            known = file is not None
        names = " + ".join(one.dataset for one in train)
        self._count("predictors", f"{recipe.arch} {recipe.width} on {names}: {golden.describe()}", known)
        if not known and self.stock is not None:
            return Fitted(golden, None)
        assert path is not None
        if not known:
            fit(self.tower.name, rankings[0], rankings[1], recipe, out=path, progress=self.progress, shots=shots)
        return Fitted(golden, path)

    def _tune(self, row: Variant, recipe: TuneConfig) -> PromptFile | None:
        tuner = self._once(self.dataset.name, self._tuner)
        shots, seed = self.config.labelled, recipe.seed
        if self.stock is None:
            return tuner.tune([row], shots, seed, recipe)[row.key].file
        dtype = precision_on(next(row.vit.parameters()).device, recipe.dtype)
        path = tuner.path(row, tuner.few(shots, seed), shots, seed, replace(recipe, dtype=dtype))
        name = DENSE if row.method == DENSE else f"{row.method}{round(100 * row.keep)}"
        words = f"{recipe.tokens} for {name} on {self.dataset.name}"
        self._count("prompts", words, tuner.read_cached(path) is not None)
        return None

    def _tuner(self) -> Tuner:
        dataset, draws = get_dataset(self.dataset.name), self.config.draws
        return Tuner(self.tower, dataset, weights=self.weights, progress=self.progress, draws=draws)


def find(model: str, weights: str, source: Source, golden: GoldenConfig, image_ids: Sequence[str]) -> Rankings | None:
    """Return golden rankings of those of the images that have one, shipped or the user's own.

    None is for rankings that nobody has made in this way, and for broken ones.
    """
    shipped = shipped_rankings(model, source.name, source.split, golden.block)
    for path in (shipped, cache_store(model, source.name, source.split, golden)):
        if path is None or not path.exists():
            continue
        try:
            rankings = Rankings.read(path)
        except ValueError:  # `rank` tells what is broken, and mends it
            continue
        facts, known = rankings.provenance, set(rankings.image_ids)
        wanted = asdict(golden) | {"weights": weights, "revision": source.revision}
        same = all(getattr(facts, name) == value for name, value in wanted.items())
        if same and (path != shipped or known.issuperset(image_ids)):
            return rankings.take([name for name in image_ids if name in known])
    return None


Lines = Callable[[StudyCase], Iterator[StudyLine]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about methods, and what answers it."""

    title: str  # of its tables
    keeps: tuple[float, ...]  # usual keep rates
    lines: Lines  # of the table; the first of a group is what the others are compared with
    fits: bool  # it fits predictors to golden rankings
    tunes: bool = False  # it is about learned tokens, whose labelled images may come from val
    foreground: bool = False  # it fits linear probes of foreground, chosen by val
    labels: bool  # it is about what labels or classes decide
    plot: tuple[str, ...] = ()  # columns of its plot: the x axis, then what tells series apart; none without a plot

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return str(self.lines.__name__)


def study(title: str, keeps: tuple[float, ...], **facts: Any) -> Callable[[Lines], Study]:
    """Declare a study of a function's name, whose docstring is the question and which yields the lines of the answer.

    ``facts`` are fields of `Study`; ``tunes`` implies ``labels``, and without ``fits`` that it fits no predictors.
    ``harness.cli`` reads the questions from the source.
    """
    tunes = facts.get("tunes", False)
    facts = {"fits": not tunes, "labels": tunes} | facts
    return lambda lines: Study(title=title, keeps=keeps, lines=lines, **facts)
