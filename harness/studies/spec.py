"""What a study is: conditions, and lines of a table whose models are described before any is made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.base.terminal import Progress
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import COOP, OURS
from harness.measure.plan import Plan
from harness.measure.rows import Variant
from harness.models.towers import Tower
from harness.records.record import DENSE, GOLDEN
from zoo.learning.fit import FitConfig
from zoo.learning.tuning import TuneConfig
from zoo.methods.patchrank import PatchRank
from zoo.methods.rankmerge import RankMerge
from zoo.ranking.golden import GoldenConfig

PREDICTED, MERGED = PatchRank.method, RankMerge.method
STOPPED_BY = 300  # val images per dataset, at most, that end a fit


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
    halves: bool = False  # tables of the images' halves by detail, too
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse keep rates of one name."""
        names: dict[int, float] = {}
        for keep in self.keeps or ():
            if (other := names.setdefault(round(100 * keep), keep)) != keep:
                raise ValueError(
                    f"--keeps {' '.join(f'{one:g}' for one in self.keeps or ())}: {other:g} and {keep:g} make models "
                    "of one name; expected rates that differ by a whole percent"
                )

    def describe(self, *, tunes: bool = False) -> str:
        """Describe what models are made of where a study doesn't vary it."""
        fit, tune, images = self.fit, self.tune, "all" if self.train_limit is None else f"up to {self.train_limit}"
        words = (
            f"golden {self.golden.describe()}; predictors {fit.arch} of width {fit.width}, {fit.loss}, fitted to "
            f"{images} ranked training images of each dataset, stopped by val"
        )
        if tunes:
            shipped = (
                "" if self.own_predictors else "predictors that ship or lie in the user's cache; where one is fitted, "
            )
            drawn = "CoOp's own draws" if self.draws == COOP else "draws of our own"
            words = (
                f"{shipped}{words}; {tune.learned}, learned from {self.labelled} labelled images per class, {drawn}, "
                f"in {tune.describe()}"
            )
        return f"Where nothing else is said: {words}; {self.seeds} seeds."


@dataclass(frozen=True)
class RankingSpec:
    """Golden rankings of the first images of a split by the dense tower."""

    dataset: str
    split: SplitName
    golden: GoldenConfig
    limit: int | None  # None for all


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
    predictor: PredictorSpec | None = None
    truth: RankingSpec | None = None  # that it is compared with, and a golden one prunes by


@dataclass(frozen=True)
class PromptsSpec:
    """Tokens learned on a model from the labelled images that the recipe's seed draws of a dataset."""

    dataset: str
    model: ModelSpec
    recipe: TuneConfig


Label = str | Callable[[Variant], str]


@dataclass(frozen=True)
class StudyLine:
    """One line of a study's table."""

    labels: Mapping[str, Label]  # what distinguishes it, by column; of what is only known of the model, a function
    models: tuple[ModelSpec, ...]  # the same from several seeds, or one
    group: float | str  # a keep rate or a name; lines are compared within it
    prompts: tuple[PromptsSpec, ...] = ()  # of each model; none where class captions classify
    cost: ModelSpec | None = None  # whose GFLOPs the keep rate is sought for
    solved: ModelSpec | None = None  # whose keep rate is taken then; None for the line's first


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
        return RankingSpec(self.dataset.images_of, self.config.split, golden, self.config.limit)

    def predictors(
        self,
        golden: GoldenConfig,
        sources: Sequence[str] | None = None,
        recipe: FitConfig | None = None,
        shots: int | None = None,
    ) -> list[PredictorSpec]:
        """Fit a predictor to rankings of datasets from each of the study's seeds.

        Without ``sources`` and ``recipe`` the study's are taken, without ``shots`` (per class) all ranked images.
        """
        recipe, sources = recipe or self.config.fit, sources or self.config.datasets
        most = STOPPED_BY if self.config.limit is None else min(self.config.limit, STOPPED_BY)
        train = tuple(RankingSpec(name, "train", golden, self.config.train_limit) for name in sources)
        stop = tuple(RankingSpec(name, "val", golden, most) for name in sources)
        seeds = range(recipe.seed, recipe.seed + self.config.seeds)
        return [PredictorSpec(train, stop, replace(recipe, seed=seed), shots) for seed in seeds]

    def predicted(
        self, predictors: Sequence[PredictorSpec], keep: float, truth: RankingSpec | None = None, **options: Any
    ) -> tuple[ModelSpec, ...]:
        """Reduce by each predictor."""
        golden = predictors[0].train[0].golden
        method: str = PREDICTED
        own: dict[str, Any] = {"reduce_at": (golden.block,)}
        if golden.action == "merge":
            method, own = MERGED, {"rank": "predictor", "rank_at": golden.block}
        settings = tuple((own | options).items())
        return tuple(ModelSpec(method, keep, settings, one, truth) for one in predictors)

    def oracle(self, golden: GoldenConfig, keep: float, **options: Any) -> tuple[ModelSpec, ...]:
        """Prune by golden rankings."""
        settings = tuple(({"reduce_at": (golden.block,)} | options).items())
        return (ModelSpec(GOLDEN, keep, settings, truth=self.truth(golden)),)

    def baseline(
        self, method: str, keep: float, truth: RankingSpec | None = None, **options: Any
    ) -> tuple[ModelSpec, ...]:
        """Reduce by a method without a predictor; from each of the study's seeds where it is random."""
        seeds = [{"seed": seed} for seed in range(self.config.seeds)] if method == "random" else [{}]
        return tuple(ModelSpec(method, keep, tuple((seed | options).items()), truth=truth) for seed in seeds)

    def untuned(self, keep: float) -> ModelSpec:
        """Return the dense model (keep rate 1), or Patch Ranking by ``own_predictors``."""
        if keep == 1:
            return ModelSpec(DENSE, 1.0)
        if self.config.own_predictors:
            return self.predicted(self.predictors(self.golden(), [self.dataset.images_of])[:1], keep)[0]
        return ModelSpec(PREDICTED, keep)

    def tuned(self, model: ModelSpec, **changes: Any) -> tuple[PromptsSpec, ...]:
        """Tune a model once for each of the study's seeds, which draw images and initial tokens."""
        recipe = replace(self.config.tune, **changes)
        seeds = range(recipe.seed, recipe.seed + self.config.seeds)
        return tuple(PromptsSpec(self.dataset.name, model, replace(recipe, seed=seed)) for seed in seeds)


def tuned_line(labels: Mapping[str, Label], model: ModelSpec, group: str, prompts: Sequence[PromptsSpec]) -> StudyLine:
    """Return a line of one model, tuned from several seeds."""
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
    fits: bool = True  # it fits predictors to golden rankings
    tunes: bool = False  # it is about learned tokens, whose labelled images may come from val
    labels: bool = False  # it is about what labels or classes decide
    plot: tuple[str, ...] = ()  # columns of its plot: the x axis, then what tells series apart; none without a plot


def study(
    title: str,
    keeps: tuple[float, ...],
    *,
    fits: bool | None = None,
    tunes: bool = False,
    labels: bool = False,
    plot: tuple[str, ...] = (),
) -> Callable[[Lines], Study]:
    """Declare a study of a function's name, whose docstring is the question and which yields the lines of the answer.

    ``tunes`` implies ``labels``, and without ``fits`` that it fits no predictors. ``harness.cli`` reads the keywords
    from the source: each study has its own flags.
    """

    def declare(lines: Lines) -> Study:
        about: dict[str, Any] = {
            "name": lines.__name__,
            "title": title,
            "question": (lines.__doc__ or "").partition("\n")[0],
        }
        about |= {"keeps": keeps, "lines": lines, "tunes": tunes, "labels": labels or tunes, "plot": plot}
        return Study(**about, fits=not tunes if fits is None else fits)

    return declare
