"""Where studies get their models: rankings, predictors and prompts are made once and kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from timm.models import save_for_hf

import zoo
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import COOP, OURS, draw, require_apart, subset
from harness.golden.fit import fit
from harness.golden.rank import RankJob, Source, rank
from harness.golden.store import Rankings, find_rankings, own_store, shipped_rankings
from harness.measure.bench import measured_here
from harness.measure.cost import gflops
from harness.measure.match import ROUNDS, KeepSolver, TimeRatios, equal_times, remembered, say_miss
from harness.measure.plan import Plan
from harness.measure.rows import MethodRate, Variant, golden_row, predictors_digest, rows_of
from harness.measure.tuning import Tuned, Tuner, loadable
from harness.models.towers import Tower, load_tower
from harness.records.conditions import DENSE, MATCHED
from harness.records.record import Record
from zoo.core.digests import fingerprint
from zoo.core.files import cache_folder, digest
from zoo.core.precision import AUTO
from zoo.core.reducer import ReducerConfig
from zoo.learning.fit import FitConfig
from zoo.learning.prompt_learner import TuneConfig
from zoo.loading.adopt import add_prompts
from zoo.loading.predictor_file import PredictorFile, load_predictor
from zoo.ranking.golden import GoldenConfig
from zoo.towers.vit import ReducedViT

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
    # recipe of learned tokens; its seed is the first
    tune: TuneConfig = field(default_factory=TuneConfig)
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
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: expected a number from 1")

    def described(self, *, tunes: bool = False) -> str:
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
            f"Where nothing else is said: golden {self.golden.describe()}; predictors "
            f"{fit.arch} of width {fit.width}, {fit.loss}, {self.seeds} seeds, {images} ranked "
            f"training images of each dataset{few}, stopped by val."
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
class Line:
    """One line of a study's table."""

    labels: dict[str, str]  # what distinguishes it, by column
    rows: Sequence[Variant]  # the same model from several seeds, or one
    group: float | str  # a keep rate or a name; lines are compared within it
    prompts: Sequence[Tuned] = ()  # of each row; none where class captions classify


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about methods, and what answers it."""

    name: str  # on the command line
    title: str  # of its tables
    question: str  # what it answers
    keeps: tuple[float, ...]  # usual keep rates
    # from workshop, dataset and keep rates to the models that are judged on the dataset; the
    # first of a group is what the others are compared with
    lines: "Lines"
    tunes: bool = False  # it is about learned tokens, whose labelled images may come from val
    labels: bool = False  # it is about what labels or classes decide

    @property
    def split(self) -> SplitName:
        """Split to judge by unless another is asked for."""
        return "test" if self.tunes else "val"


def study(
    title: str, question: str, keeps: tuple[float, ...], *, tunes: bool = False, labels: bool = False
) -> Callable[["Lines"], Study]:
    """Declare a study of a function's name, whose lines the function yields; ``tunes`` implies ``labels``."""

    def declare(lines: "Lines") -> Study:
        about = {"name": lines.__name__, "title": title, "question": question}
        return Study(**about, keeps=keeps, lines=lines, tunes=tunes, labels=labels or tunes)

    return declare


def find(model: str, weights: str, source: Source, golden: GoldenConfig, image_ids: Sequence[str]) -> Rankings | None:
    """Find golden rankings of some images, shipped or the user's own.

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


def _decided_by(conditions: list[Any]) -> str:
    """Return 20 hex digits that tell what was made under these conditions, and this torch, from all else."""
    return digest([*conditions, torch.__version__], length=20)


class Fitted(NamedTuple):
    """A predictor that a study fitted."""

    file: PredictorFile
    seed: int
    images: int  # number of ranked images that it learnt from


class Workshop:
    """Make rankings, predictors and rows for one dense tower."""

    def __init__(self, config: StudyConfig, tower: Tower, progress: Progress, records: Sequence[Record] = ()) -> None:
        """Prepare nothing yet; ``records`` are of earlier runs."""
        self.config, self.tower, self.progress, self.records = config, tower, progress, records
        self.dense: ReducedViT = tower.vit
        self.weights = fingerprint(tower.vit)
        self.scores: tuple[str, ...] = ()  # that a study ranks by: each image is ranked by all of them at once
        self._rankings: dict[tuple[str, str, GoldenConfig, int | None], Rankings] = {}
        self._solvers: dict[str, KeepSolver] = {}
        self._times: dict[tuple[float, str, str], tuple[float, dict[str, Any]]] = {}

    def tuned(self, tuner: Tuner, row: Variant, seed: int, recipe: TuneConfig) -> Tuned:
        """Tune a row, or take the prompts of an earlier run."""
        return tuner.tuned([row], self.config.labelled, seed, recipe)[row.key]

    def moved(self, row: Variant, one: Tuned) -> Tuned:
        """Give a row the prompts that were tuned on another one of the tower."""
        return Tuned.of(row.vit, one.file)

    def ranked_after(self, dataset: Dataset, one: Tuned, golden: GoldenConfig) -> Fitted:
        """Fit a predictor, which needs the learned tokens, to rankings of the tuned dense tower, or take it."""
        path = self.path_after(one, golden)
        if self.cached(path) is None:
            if not (path.parent / "config.json").is_file():
                dense = load_tower(self.tower.name).vit
                save_for_hf(add_prompts(dense, one.file), str(path.parent), safe_serialization=True)
            name, weights = f"local-dir:{path.parent}", fingerprint(one.vit)
            train, stop = (
                [self.rank(name, weights, Source.of(dataset, split), golden, most)]
                for split, most in self.ranked_after_on
            )
            recipe = replace(self.config.fit, seed=int(one.file.recipe["seed"]))
            fit(name, train, stop, recipe, out=path, progress=self.progress)
        return self._after(one, PredictorFile.read(path))

    @property
    def ranked_after_on(self) -> tuple[tuple[SplitName, int | None], ...]:
        """Splits that a tuned tower is ranked on, with how many images at most."""
        return ("train", self.config.train_limit), ("val", STOPPED_TUNED)

    def path_after(self, one: Tuned, golden: GoldenConfig) -> Path:
        """Return where the predictor of a tuned tower is kept: by a hash of all that decides its weights."""
        conditions = [asdict(golden), asdict(self.config.fit), self.ranked_after_on]
        folder = cache_folder() / "studies" / f"{self.tower.arch}-{one.digest}"
        return folder / f"predictor-{_decided_by(conditions)}.safetensors"

    def _after(self, one: Tuned, file: PredictorFile) -> Fitted:
        return Fitted(file, int(one.file.recipe["seed"]), self.config.train_limit or 0)

    def golden(self, **changes: Any) -> GoldenConfig:
        """Return the study's settings of golden rankings with some of them changed."""
        return replace(self.config.golden, **changes)

    def known(self, dataset: str) -> Rankings | None:
        """Return golden rankings of a dataset's judged images if there are any."""
        block = self.config.golden.block
        return find_rankings(self.tower.name, dataset, self.config.split, block)

    def rankings(self, dataset: str, split: SplitName, golden: GoldenConfig, most: int | None = None) -> Rankings:
        """Find the golden rankings of the study's images of a split (at most ``most``), or make."""
        limit = self.limit(split, most)
        key = (dataset, split, golden, limit)
        if key not in self._rankings:
            source = Source.of(get_dataset(dataset), split)
            self._rankings[key] = self.rank(self.tower.name, self.weights, source, golden, limit)
        return self._rankings[key]

    def truth(self, dataset: Dataset, golden: GoldenConfig) -> Rankings:
        """Return the golden rankings of the images that are judged."""
        return self.rankings(dataset.images_of, self.config.split, golden)

    def rank(self, model: str, weights: str, source: Source, golden: GoldenConfig, limit: int | None) -> Rankings:
        """Find the golden rankings of the first images of a source, or make them."""
        image_ids = subset(source.images, limit).image_ids
        rankings = find(model, weights, source, golden, image_ids)
        if rankings is None or len(rankings) < len(image_ids):
            others = (replace(golden, score=score) for score in self.scores)
            lacking = [
                one for one in others if len(find(model, weights, source, one, image_ids) or ()) < len(image_ids)
            ]
            job = RankJob(
                model=model, source=source, config=golden, scores=tuple(one.score for one in lacking), limit=limit,
                dtype=AUTO, device=self.config.device,
            )  # fmt: skip
            rankings = Rankings.read(rank(job, self.progress).path)
        return rankings.take(image_ids)

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
        self, datasets: Sequence[str], golden: GoldenConfig, recipe: FitConfig | None = None, shots: int | None = None
    ) -> list[Fitted]:
        """Fit a predictor from each of the study's seeds, or take those of an earlier run.

        Without ``recipe`` and ``shots`` (ranked images per class) the study's are taken.
        """
        recipe = recipe or self.config.fit
        shots = shots or self.config.shots
        train = [self.rankings(name, "train", golden) for name in datasets]
        stop = [self.rankings(name, "val", golden, STOPPED_BY) for name in datasets]
        images = sum(map(len, train))
        if shots is not None:
            images = sum(shots * len(get_dataset(name).classes) for name in datasets)
        return [
            Fitted(self.predictor(train, stop, replace(recipe, seed=seed), shots), seed, images)
            for seed in range(recipe.seed, recipe.seed + self.config.seeds)
        ]

    def predictor(
        self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None
    ) -> PredictorFile:
        """Fit a predictor, or take that of an earlier run."""
        path = self.predictor_path(train, stop, recipe, shots)
        if (cached := self.cached(path)) is not None:
            return cached
        fit(self.tower.name, train, stop, recipe, out=path, progress=self.progress, shots=shots)
        return PredictorFile.read(path)

    def cached(self, path: Path) -> PredictorFile | None:
        """Return the predictor of an earlier run; None, with a note, of a file that can't be loaded any more."""
        words = "a predictor of an earlier run is fitted anew"
        return loadable(path, PredictorFile.read, PredictorFile.tensors, words, self.progress)

    def predictor_path(self, train: list[Rankings], stop: list[Rankings], recipe: FitConfig, shots: int | None) -> Path:
        """Return where a predictor is kept: by a hash of all that decides its weights."""
        parts = [[asdict(r.provenance) | {"ids": r.image_ids} for r in part] for part in (train, stop)]
        conditions = [self.tower.name, self.weights, parts, asdict(recipe), shots]
        return cache_folder() / "studies" / f"{_decided_by(conditions)}.safetensors"

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
        """Make a row of each predictor, one per seed, all of one shape, block and action, for which it ranks.

        ``what`` tells these rows apart from others; ``later`` are predictors of later reduction
        points, where each scores anew.
        """
        rows = []
        for one, *rest in zip(fits, *later, strict=True):
            block, method = one.file.block, PREDICTED
            settings: dict[str, Any] = {"reduce_at": (block,)}
            if one.file.action == "merge":
                method, settings = MERGED, {"rank": "predictor", "rank_at": block}
            vit = zoo.reduce(self.dense, method=method, keep=keep, **settings | one.file.options | options)
            digest = self.load(vit, [one.file, *(other.file for other in rest)])
            rows.append(self._row(method, vit, f"{what}, seed {one.seed}", truth, digest))
        return rows

    def load(self, vit: ReducedViT, files: Sequence[PredictorFile]) -> str:
        """Load predictors into a model; return 16 hex digits that tell them from others."""
        load_predictor(vit, files)
        return predictors_digest(files)

    def oracle(self, truth: Rankings, keep: float, what: str, **options: Any) -> list[Variant]:
        """Make a row that prunes by golden rankings."""
        config = ReducerConfig(keep=keep, **{"reduce_at": (truth.provenance.block,), **options})
        row = golden_row(self.dense, self._name("golden", keep), config)
        return [replace(row, what=what, rankings=truth)]

    def baseline(self, method: str, keep: float, truth: Rankings | None, what: str, **options: Any) -> list[Variant]:
        """Make a row of a method without a predictor; several where it is random."""
        if method != "random":
            vit = zoo.reduce(self.dense, method=method, keep=keep, **options)
            return [self._row(method, vit, what, truth)]
        rows = []
        for seed in range(self.config.seeds):
            vit = zoo.reduce(self.dense, method=method, keep=keep, seed=seed, **options)
            rows.append(self._row(method, vit, f"{what}, seed {seed}", truth))
        return rows

    def at_cost(self, name: str, build: Callable[[float], list[Variant]], goal: float) -> list[Variant]:
        """Build a model at the keep rate at which it costs as nearly as it can ``goal`` GFLOPs."""
        if name not in self._solvers:
            self._solvers[name] = KeepSolver(self.dense, lambda keep: build(keep)[0].vit)
        return build(self._solvers[name].nearest(goal))

    def at_time(
        self, targets: Mapping[float, Variant], methods: Sequence[str], dtype: str
    ) -> dict[MethodRate, tuple[float, dict[str, Any]]]:
        """Solve methods' keep rates for the time of rows in a precision, or take those of an earlier run.

        Returns:
            By method and keep rate of the target: the method's own, and the setting that says so,
            with the times by the dense tower's that were measured of both in the end.
        """
        plan = Plan(methods=tuple(methods), match="time", device=self.config.device, dtype=dtype)
        here = measured_here(replace(plan, dtype=self.config.dtype), self.tower.tag, self.weights)
        known = [r for r in self.records if all(getattr(r, name) == value for name, value in here.items())]
        keys, vits = list(product(methods, targets)), {rate: row.vit for rate, row in targets.items()}
        for method, rate in keys:
            if record := remembered(known, targets[rate], method, plan.matched(rate)):
                self._times.setdefault((rate, method, dtype), (record.keep, record.method_config[MATCHED]))
        left = [(method, rate) for method, rate in keys if (rate, method, dtype) not in self._times]
        if left:

            def build(method: str, keep: float) -> ReducedViT:
                return self.baseline(method, keep, None, "")[0].vit

            times = TimeRatios(self.dense, batch=plan.match_batch, device=plan.device, dtype=dtype)
            solvers = {key: KeepSolver(self.dense, partial(build, key[0])) for key in left}
            keeps = equal_times(times, vits, solvers, self.progress)
            ratios = times.of(
                dict[Any, ReducedViT](vits) | {key: build(key[0], keeps[key]) for key in left}, 4 * ROUNDS
            )
            for (method, rate), keep in keeps.items():
                ratio, goal = ratios[method, rate], ratios[rate]
                say_miss((method, rate), keep, ratio, goal, plan, self.progress)
                self._times[rate, method, dtype] = keep, plan.matched(rate) | {"ratio": ratio, "goal": goal}
        return {(method, rate): self._times[rate, method, dtype] for method, rate in keys}

    def gflops(self, row: Variant) -> float:
        """Return what a row's model costs, 1e9 multiply-adds."""
        return gflops(row.vit, self.dense.patch_embed.img_size).gflops

    def _name(self, method: str, keep: float) -> str:
        return f"{self.tower.arch}_{method}{round(100 * keep)}"

    def _row(self, method: str, vit: ReducedViT, what: str, truth: Rankings | None, predictor: str = "") -> Variant:
        assert vit.reducer is not None
        config = vit.reducer.config.plain()
        if predictor:
            config["predictor"] = predictor
        if truth is not None:
            config["against"] = truth.provenance.described()
        keep = float(config["keep"])
        return Variant(
            model=self._name(method, keep), method=method, keep=keep, vit=vit.eval(),
            config=config, what=what, rankings=truth,
        )  # fmt: skip


class TuningShop:
    """Tune a study's models on one dataset.

    Raises:
        ValueError: the study judges by images that models learn from.
    """

    def __init__(self, shop: Workshop, dataset: Dataset) -> None:
        """Tune nothing yet."""
        require_apart(dataset, shop.config.split)
        self.shop, self.dataset = shop, dataset
        assert shop.tower.clip is not None
        self.tuner = Tuner(
            shop.tower.clip, dataset, model=shop.tower.arch, tag=shop.tower.tag,
            weights=shop.weights, progress=shop.progress, draws=shop.config.draws,
        )  # fmt: skip

    def row(self, keep: float) -> Variant:
        """Return the dense model (keep rate 1), or Patch Ranking by ``own_predictors``."""
        shop = self.shop
        if keep < 1 and shop.config.own_predictors:
            fits = shop.fitted([self.dataset.images_of], shop.golden())[:1]
            (row,) = shop.predicted(fits, keep, None, "own predictor")
            return row
        pair = (DENSE, 1.0) if keep == 1 else (PREDICTED, keep)
        (row,) = rows_of(shop.dense, shop.tower.arch, shop.tower.tag, [pair])
        return row

    def tuned(self, row: Variant, **changes: Any) -> list[Tuned]:
        """Tune a row once for each of the study's seeds, which draw images and initial tokens."""
        if changes.get("tokens") == "v":
            changes.setdefault("init", None)  # which is of text tokens
        recipe = replace(self.shop.config.tune, **changes)
        return [
            self.shop.tuned(self.tuner, row, seed, replace(recipe, seed=seed))
            for seed in range(recipe.seed, recipe.seed + self.shop.config.seeds)
        ]

    def moved(self, row: Variant, tuned: Sequence[Tuned]) -> list[Tuned]:
        """Give a row the prompts that were tuned on another one of the tower."""
        return [self.shop.moved(row, one) for one in tuned]

    def line(self, labels: dict[str, str], row: Variant, group: str, tuned: Sequence[Tuned]) -> Line:
        """Return a line of the table: one model, tuned from several seeds."""
        return Line(labels, [row] * len(tuned), group, list(tuned))


Lines = Callable[[Workshop, Dataset, Sequence[float]], Iterator[Line]]
