"""What a study is: conditions, and lines of a table whose models are described before any is made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import COOP, OURS, draw, subset
from harness.measure.plan import Plan
from harness.measure.rows import Variant
from harness.models.towers import Tower
from harness.records.conditions import DENSE, GOLDEN
from zoo.learning.fit import FitConfig
from zoo.learning.tuning import TuneConfig
from zoo.ranking.golden import GoldenConfig

PREDICTED = "patchrank"
MERGED = "rankmerge"
STOPPED_BY = 300  # val images per dataset, at most, that end a fit
STOPPED_TUNED = 100  # likewise of a tuned tower, which is slow to rank: its prefix is long


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Conditions of a study, which ignores the fields that it varies."""

    # dense tower, see ``harness.models.towers.load_tower``; it needs a text tower
    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = Plan.datasets  # names of those to judge by and to learn from
    split: SplitName = "val"
    limit: int | None = 300  # images per dataset to judge by; None for all
    train_limit: int | None = 500  # ranked images to learn from, per dataset; None for all
    keeps: tuple[float, ...] | None = None  # keep rates; None for the study's own
    seeds: int = 3  # fits per predictor, and random orders
    # score, block and windows of the golden rankings
    golden: GoldenConfig = field(default_factory=lambda: GoldenConfig(window=3, stride=2))
    fit: FitConfig = field(default_factory=FitConfig)  # recipe of predictors; its seed is the first
    shots: int | None = None  # ranked images per class to learn from; None for all
    tune: TuneConfig = field(default_factory=TuneConfig)  # recipe of learned tokens; its seed is the first
    labelled: int = 16  # images per class that they are learned from
    draws: str = OURS  # which images a seed means, of ``harness.datasets.few_shot.DRAWS``
    # a tuned model's predictor is fitted to the rankings of its dataset, as all others are;
    # else it is the one that ships or is in the user's cache
    own_predictors: bool = False
    batches: tuple[int, ...] = ()  # batch sizes to time models at; none to time nothing
    time_dtypes: tuple[str, ...] = ("float32", "bfloat16")  # precisions of rows at equal time
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("limit", "train_limit", "seeds", "shots", "labelled"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from 1")
        names: dict[int, float] = {}
        for keep in self.keeps or ():
            if (other := names.setdefault(round(100 * keep), keep)) != keep:
                raise ValueError(
                    f"--keeps {' '.join(f'{one:g}' for one in self.keeps or ())}: {other:g} and {keep:g} make models "
                    "of one name; expected rates that differ by a whole percent"
                )

    def describe(self, *, tunes: bool = False) -> str:
        """Describe what models are made of where a study doesn't vary it."""
        if tunes:
            one = self.tune
            predictors = "predictors that ship or are fitted as in the other studies"
            if self.own_predictors:
                predictors = f"predictors fitted to {self.golden.describe()}"
            drawn = ", CoOp's own draws," if self.draws == COOP else ""
            val = " and up to 4 others per class to validate by" if one.patience else ""
            return (
                f"Where nothing else is said: {predictors}; {one.learned}, learned from {self.labelled} labelled "
                f"images per class{drawn} in {one.described()}; {self.seeds} seeds from {one.seed} on, each with "
                f"images of its own{val}.{self._steps()}"
            )
        fit = self.fit
        images = "all" if self.train_limit is None else f"up to {self.train_limit}"
        few = "" if self.shots is None else f", {self.shots} per class"
        return (
            f"Where nothing else is said: golden {self.golden.describe()}; predictors {fit.arch} of width "
            f"{fit.width}, {fit.loss}, {self.seeds} seeds, {images} ranked training images of each dataset{few}, "
            "stopped by val."
        )

    def _steps(self) -> str:
        """Say how many steps the epochs of tuning are on each dataset; nothing where the recipe counts steps."""
        if self.tune.epochs is None:
            return ""
        steps = []
        for dataset in filter(lambda one: one.labelled, map(get_dataset, self.datasets)):
            few = draw(dataset, self.labelled, self.tune.seed, self.draws)
            steps.append(f"{self.tune.total_steps(len(few.train)):,} on {dataset.name}")
        return f" Steps in all: {', '.join(steps)}."


@dataclass(frozen=True)
class RankingSpec:
    """Golden rankings of the first images of a split, by the dense tower or, with prompts, by the tuned one."""

    dataset: str
    split: SplitName
    golden: GoldenConfig
    limit: int | None  # None for all
    prompts: "PromptsSpec | None" = None


@dataclass(frozen=True)
class KnownRankings:
    """Golden rankings of a split by preservation, however made, if there are any once predictors are fitted."""

    dataset: str
    split: SplitName
    block: int


Truth = RankingSpec | KnownRankings | None


@dataclass(frozen=True)
class PredictorSpec:
    """A predictor fitted to rankings of one kind."""

    train: tuple[RankingSpec, ...]
    stop: tuple[RankingSpec, ...]  # that end the fit
    recipe: FitConfig
    shots: int | None = None  # images per class; None for all


@dataclass(frozen=True)
class ModelSpec:
    """A model of the study's tower; what isn't fitted here ships or is in the user's cache."""

    method: str  # registered, ``dense`` or ``golden``
    keep: float
    options: tuple[tuple[str, Any], ...] = ()  # of the method
    predictors: tuple[PredictorSpec, ...] = ()  # one for each block at which it scores
    truth: Truth = None  # that it is compared with, and a golden one prunes by


@dataclass(frozen=True)
class PromptsSpec:
    """Tokens learned on a model from the labelled images that the recipe's seed draws of a dataset."""

    dataset: str
    model: ModelSpec
    recipe: TuneConfig


@dataclass(frozen=True)
class EqualCost:
    """The keep rate of a line is that at which a model costs what another one does."""

    target: ModelSpec
    solved: ModelSpec | None = None  # whose keep rate is taken; None for the line's first
    dtype: str | None = None  # precision in which they take equal time; None for equal multiply-adds


Label = str | Callable[[Variant], str]


@dataclass(frozen=True)
class StudyLine:
    """One line of a study's table."""

    labels: Mapping[str, Label]  # what distinguishes it, by column; of what is only known of the model, a function
    models: tuple[ModelSpec, ...]  # the same from several seeds, or one
    group: float | str  # a keep rate or a name; lines are compared within it
    prompts: tuple[PromptsSpec, ...] = ()  # of each model; none where class captions classify
    cost: EqualCost | None = None


@dataclass(frozen=True)
class StudyCase:
    """What a study is asked about: a dense tower, a dataset to judge by, and keep rates."""

    config: StudyConfig
    tower: Tower
    dataset: Dataset
    keeps: Sequence[float]
    progress: Progress

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.tower.vit.depth)

    def golden(self, **changes: Any) -> GoldenConfig:
        """Return the study's settings of golden rankings with some of them changed."""
        return replace(self.config.golden, **changes)

    def truth(self, golden: GoldenConfig) -> RankingSpec:
        """Rank the images that are judged."""
        return self._ranking(self.dataset.images_of, self.config.split, golden)

    def known(self) -> KnownRankings:
        """Take golden rankings of the judged images if there are any."""
        return KnownRankings(self.dataset.images_of, self.config.split, self.config.golden.block)

    def _ranking(self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None) -> RankingSpec:
        limits = (self.config.train_limit if split == "train" else self.config.limit, most)
        return RankingSpec(dataset, split, golden, min((one for one in limits if one is not None), default=None))

    def labels_of(self, dataset: str) -> np.ndarray:
        """Return the labels (n,) of the training images that are ranked."""
        return subset(get_dataset(dataset).split("train"), self.config.train_limit).labels

    def predictors(
        self,
        golden: GoldenConfig,
        sources: Sequence[str] | None = None,
        recipe: FitConfig | None = None,
        shots: int | None = None,
    ) -> list[PredictorSpec]:
        """Fit a predictor to rankings of datasets from each of the study's seeds.

        Without ``sources``, ``recipe`` and ``shots`` (ranked images per class) the study's are taken.
        """
        recipe, sources = recipe or self.config.fit, sources or self.config.datasets
        train = tuple(self._ranking(name, "train", golden) for name in sources)
        stop = tuple(self._ranking(name, "val", golden, STOPPED_BY) for name in sources)
        seeds = range(recipe.seed, recipe.seed + self.config.seeds)
        shots = shots or self.config.shots
        return [PredictorSpec(train, stop, replace(recipe, seed=seed), shots) for seed in seeds]

    def predictor_after(self, prompts: PromptsSpec) -> PredictorSpec:
        """Fit a predictor to rankings by a tuned dense tower."""
        limits: dict[SplitName, int | None] = {"train": self.config.train_limit, "val": STOPPED_TUNED}
        where = self.dataset.name
        train, stop = (RankingSpec(where, split, self.golden(), most, prompts) for split, most in limits.items())
        return PredictorSpec((train,), (stop,), replace(self.config.fit, seed=prompts.recipe.seed))

    def predicted(
        self,
        predictors: Sequence[PredictorSpec],
        keep: float,
        truth: Truth = None,
        *,
        later: Sequence[Sequence[PredictorSpec]] = (),
        **options: Any,
    ) -> tuple[ModelSpec, ...]:
        """Reduce by each predictor; ``later`` are those of later reduction points, where each scores anew."""
        golden = predictors[0].train[0].golden
        method: str = PREDICTED
        own: dict[str, Any] = {"reduce_at": (golden.block,)}
        if golden.action == "merge":
            method, own = MERGED, {"rank": "predictor", "rank_at": golden.block}
        settings = tuple((own | options).items())
        return tuple(ModelSpec(method, keep, settings, each, truth) for each in zip(predictors, *later, strict=True))

    def oracle(self, golden: GoldenConfig, keep: float, **options: Any) -> tuple[ModelSpec, ...]:
        """Prune by golden rankings."""
        settings = tuple(({"reduce_at": (golden.block,)} | options).items())
        return (ModelSpec(GOLDEN, keep, settings, truth=self.truth(golden)),)

    def baseline(self, method: str, keep: float, truth: Truth = None, **options: Any) -> tuple[ModelSpec, ...]:
        """Reduce by a method without a predictor; from each of the study's seeds where it is random."""
        if method != "random":
            return (ModelSpec(method, keep, tuple(options.items()), truth=truth),)
        seeds = range(self.config.seeds)
        return tuple(ModelSpec(method, keep, (("seed", seed), *options.items()), truth=truth) for seed in seeds)

    def untuned(self, keep: float) -> ModelSpec:
        """Return the dense model (keep rate 1), or Patch Ranking by ``own_predictors``."""
        if keep == 1:
            return ModelSpec(DENSE, 1.0)
        if self.config.own_predictors:
            return self.predicted(self.predictors(self.golden(), [self.dataset.images_of])[:1], keep)[0]
        return ModelSpec(PREDICTED, keep)

    def tuned(self, model: ModelSpec, **changes: Any) -> tuple[PromptsSpec, ...]:
        """Tune a model once for each of the study's seeds, which draw images and initial tokens."""
        if changes.get("tokens") == "v":
            changes.setdefault("init", None)  # which is of text tokens
        recipe = replace(self.config.tune, **changes)
        seeds = range(recipe.seed, recipe.seed + self.config.seeds)
        return tuple(PromptsSpec(self.dataset.name, model, replace(recipe, seed=seed)) for seed in seeds)

    def line(
        self, labels: Mapping[str, Label], model: ModelSpec, group: str, prompts: Sequence[PromptsSpec]
    ) -> StudyLine:
        """Return a line of the table: one model, tuned from several seeds."""
        return StudyLine(labels, (model,) * len(prompts), group, tuple(prompts))


Lines = Callable[[StudyCase], Iterator[StudyLine]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about methods, and what answers it."""

    name: str  # on the command line
    title: str  # of its tables
    question: str  # what it answers
    keeps: tuple[float, ...]  # usual keep rates
    lines: Lines  # of the table; the first of a group is what the others are compared with
    tunes: bool = False  # it is about learned tokens, whose labelled images may come from val
    labels: bool = False  # it is about what labels or classes decide

    @property
    def split(self) -> SplitName:
        """Split to judge by unless another is asked for."""
        return "test" if self.tunes else "val"


def study(
    title: str, question: str, keeps: tuple[float, ...], *, tunes: bool = False, labels: bool = False
) -> Callable[[Lines], Study]:
    """Declare a study of a function's name, whose lines the function yields; ``tunes`` implies ``labels``."""

    def declare(lines: Lines) -> Study:
        about = {"name": lines.__name__, "title": title, "question": question}
        return Study(**about, keeps=keeps, lines=lines, tunes=tunes, labels=labels or tunes)

    return declare
