"""Make what a study's lines describe, or find it in the user's cache, where it is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import save_for_hf

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import subset
from harness.golden.fit import fit
from harness.golden.rank import RankJob, Source, rank
from harness.golden.store import Rankings, find_rankings, own_store, shipped_rankings
from harness.measure.cost import gflops
from harness.measure.match import ROUNDS, KeepSolver, TimeRatios, equal_times, find_record, say_miss
from harness.measure.plan import Plan
from harness.measure.rows import MethodRate, Variant, golden_row, predictors_digest, reduced_row
from harness.measure.tuning import Tuned, Tuner, read_if_valid
from harness.models.towers import Tower, load_tower
from harness.records.conditions import DENSE, GOLDEN, MATCHED
from harness.records.record import Record
from harness.studies.spec import (
    EqualCost,
    KnownRankings,
    ModelSpec,
    PredictorSpec,
    PromptsSpec,
    RankingSpec,
    StudyConfig,
    StudyLine,
    Truth,
)
from zoo.core.files import cache_folder, digest, fingerprint
from zoo.core.precision import AUTO, precision_on
from zoo.core.reducer import ReducerConfig
from zoo.loading.adopt import add_prompts, reduce
from zoo.loading.learned_files import PromptFile
from zoo.loading.open_clip import FOLDER
from zoo.loading.predictor_file import PredictorFile, load_predictor
from zoo.ranking.golden import GoldenConfig
from zoo.towers.vit import ReducedViT

Spec = RankingSpec | PredictorSpec | PromptsSpec


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


def needs(one: Spec | ModelSpec | EqualCost | StudyLine) -> list[Spec]:
    """Return all that must be made before a spec, or for a line of a table: each once, in the order of making."""
    found: dict[Spec, None] = {}
    for value in vars(one).values():
        for below in value if isinstance(value, tuple) else (value,):
            if isinstance(below, Spec | ModelSpec | EqualCost):
                found |= dict.fromkeys(needs(below))
            if isinstance(below, Spec):
                found[below] = None
    return list(found)


@dataclass(frozen=True)
class ReadyLine:
    """A line of a study's table, its models made."""

    labels: dict[str, str]
    rows: list[Variant]
    group: float | str
    prompts: list[Tuned]  # of each row; none where class captions classify


class Workshop:
    """Make models of one dense tower under a study's conditions; each thing is made once, and kept."""

    def __init__(self, config: StudyConfig, tower: Tower, progress: Progress) -> None:
        """Prepare nothing yet."""
        self.config, self.tower, self.progress = config, tower, progress
        self.records: Sequence[Record] = ()  # of earlier runs of this tower on this machine
        self.dense: ReducedViT = tower.vit
        self.weights = fingerprint(tower.vit)
        self.scores: set[str] = set()  # that a study ranks by: each image is ranked by all of them at once
        self._made: dict[Any, Any] = {}
        self._there: dict[Spec, tuple[int, int]] = {}
        self._solvers: dict[ModelSpec, KeepSolver] = {}
        self._times: dict[tuple[str, MethodRate], tuple[float, dict[str, Any]]] = {}

    # Rankings

    def _ranker(self, spec: RankingSpec) -> tuple[str, str, Source, tuple[str, ...]]:
        """Return the name and weights of the tower that ranks, with the images and their ids.

        A tuned tower has weights once it is written, and a name free of where that is.
        """
        source = Source.of(get_dataset(spec.dataset), spec.split)
        name, weights = self.tower.name, self.weights
        if spec.prompts is not None:
            folder = self._folder(spec.prompts)
            name, weights = f"{FOLDER}{folder.name}", ""
            if (folder / "config.json").is_file():
                if folder not in self._made:
                    self._made[folder] = fingerprint(load_tower(f"{FOLDER}{folder}").vit)
                weights = self._made[folder]
        return name, weights, source, subset(source.images, spec.limit).image_ids

    def rankings(self, spec: RankingSpec) -> Rankings:
        """Find golden rankings, or make those that are missing."""
        if spec in self._made:
            return cast(Rankings, self._made[spec])
        loaded_by = self._write_tower(spec)
        name, weights, source, image_ids = self._ranker(spec)
        rankings = find(name, weights, source, spec.golden, image_ids)
        if rankings is None or len(rankings) < len(image_ids):
            others = (replace(spec.golden, score=score) for score in sorted(self.scores))
            lacking = [one for one in others if len(find(name, weights, source, one, image_ids) or ()) < len(image_ids)]
            job = RankJob(
                model=loaded_by, source=source, config=spec.golden,
                scores=tuple(one.score for one in lacking), limit=spec.limit, dtype=AUTO, device=self.config.device,
            )  # fmt: skip
            rankings = Rankings.read(rank(job, self.progress).path)
        self._made[spec] = rankings.take(image_ids)
        return cast(Rankings, self._made[spec])

    def _folder(self, spec: PromptsSpec) -> Path:
        """Return where a tuned tower is written."""
        tuned = Tuned.of(self.model(spec.model).vit, self.prompts(spec))
        return cache_folder() / "studies" / f"{self.tower.arch}-{tuned.digest}"

    def _write_tower(self, spec: RankingSpec) -> str:
        """Return what the tower that ranks is loaded by; a tuned one is written first."""
        if spec.prompts is None:
            return self.tower.name
        folder = self._folder(spec.prompts)
        if not (folder / "config.json").is_file():
            dense = add_prompts(load_tower(self.tower.name).vit, self.prompts(spec.prompts))
            save_for_hf(dense, str(folder), safe_serialization=True)
        return f"{FOLDER}{folder}"

    # Predictors

    def predictor(self, spec: PredictorSpec) -> PredictorFile:
        """Fit a predictor, or take that of an earlier run."""
        if spec not in self._made:
            path = self._predictor_path(spec)
            if (file := self._loadable(path)) is None:
                train, stop = (list(map(self.rankings, part)) for part in (spec.train, spec.stop))
                name = self._write_tower(spec.train[0])
                fit(name, train, stop, spec.recipe, out=path, progress=self.progress, shots=spec.shots)
                file = PredictorFile.read(path)
            self._made[spec] = file
        return cast(PredictorFile, self._made[spec])

    def _predictor_path(self, spec: PredictorSpec) -> Path:
        """Return where a predictor is kept: by a hash of all that decides its weights."""
        every = [[self.rankings(one) for one in part] for part in (spec.train, spec.stop)]
        name, weights, *_ = self._ranker(spec.train[0])
        parts = [[asdict(one.provenance) | {"ids": one.image_ids} for one in part] for part in every]
        key = digest([name, weights, parts, asdict(spec.recipe), spec.shots, torch.__version__], length=20)
        return cache_folder() / "studies" / f"{key}.safetensors"

    def _loadable(self, path: Path) -> PredictorFile | None:
        """Return the predictor of an earlier run; None, with a note, of a file that can't be loaded any more."""
        words = "a predictor of an earlier run is fitted anew"
        return read_if_valid(path, PredictorFile.read, PredictorFile.tensors, words, self.progress)

    # Learned tokens

    def _tuner(self, dataset: str) -> Tuner:
        """Return what tunes models on a dataset."""
        if dataset not in self._made:
            assert self.tower.clip is not None
            self._made[dataset] = Tuner(
                self.tower.clip, get_dataset(dataset), model=self.tower.arch, tag=self.tower.tag,
                weights=self.weights, progress=self.progress, draws=self.config.draws,
            )  # fmt: skip
        return cast(Tuner, self._made[dataset])

    def prompts(self, spec: PromptsSpec) -> PromptFile:
        """Tune tokens, or take those of an earlier run."""
        if spec not in self._made:
            row, config = self.model(spec.model), self.config
            tuned = self._tuner(spec.dataset).tuned([row], config.labelled, spec.recipe.seed, spec.recipe)
            self._made[spec] = tuned[row.key].file
        return cast(PromptFile, self._made[spec])

    def make(self, specs: Sequence[Spec]) -> Iterator[Any]:
        """Make things in their order, or take those of an earlier run; each image is ranked by all scores at once."""
        self.scores = {spec.golden.score for spec in specs if isinstance(spec, RankingSpec)}
        for spec in specs:
            match spec:
                case RankingSpec():
                    yield self.rankings(spec)
                case PredictorSpec():
                    yield self.predictor(spec)
                case PromptsSpec():
                    yield self.prompts(spec)

    # What is there already

    def cached(self, spec: Spec) -> tuple[int, int]:
        """Return how many things, images of rankings, are in the user's cache, and how many there will be."""
        if spec not in self._there:
            total = 1
            if isinstance(spec, RankingSpec):
                total = len(subset(get_dataset(spec.dataset).split(spec.split), spec.limit))
            below = all(there == every for there, every in map(self.cached, needs(spec)))
            self._there[spec] = self._count(spec) if below else 0, total
        return self._there[spec]

    def _count(self, spec: Spec) -> int:
        match spec:
            case RankingSpec():
                name, weights, source, image_ids = self._ranker(spec)
                return len(find(name, weights, source, spec.golden, image_ids) or ())
            case PredictorSpec():
                return int(self._loadable(self._predictor_path(spec)) is not None)
            case PromptsSpec():
                tuner, seed = self._tuner(spec.dataset), spec.recipe.seed
                row, few = self.model(spec.model), tuner.few(self.config.labelled, seed)
                dtype = precision_on(next(row.vit.parameters()).device, spec.recipe.dtype)
                path = tuner.path(row, few, self.config.labelled, seed, replace(spec.recipe, dtype=dtype))
                return int(tuner.cached(path) is not None)

    # Models

    def model(self, spec: ModelSpec) -> Variant:
        """Make a model; the same one again for the same spec."""
        if spec not in self._made:
            what = "" if spec.method == DENSE else f"({len(self._made)})"
            self._made[spec] = replace(self._build(spec), what=what)
        return cast(Variant, self._made[spec])

    def _build(self, spec: ModelSpec) -> Variant:
        arch, tag, options = self.tower.arch, self.tower.tag, dict(spec.options)
        name = f"{arch}_{spec.method}{round(100 * spec.keep)}"
        if spec.method == DENSE:
            return Variant(model=arch, method=DENSE, keep=1.0, vit=self.dense, config={})
        if spec.method == GOLDEN:
            return replace(
                golden_row(self.dense, name, ReducerConfig(keep=spec.keep, **options)), rankings=self._truth(spec.truth)
            )
        if spec.predictors:
            files = [self.predictor(one) for one in spec.predictors]
            vit = reduce(self.dense, method=spec.method, keep=spec.keep, **files[0].options | options).eval()
            load_predictor(vit, files)
            assert vit.reducer is not None
            config = vit.reducer.config.plain() | {"predictor": predictors_digest(files)}
            row = Variant(model=name, method=spec.method, keep=spec.keep, vit=vit, config=config)
        else:
            row = reduced_row(self.dense, arch, tag, name, spec.method, {"keep": spec.keep} | options)
        if (truth := self._truth(spec.truth)) is not None:
            row = replace(row, config=row.config | {"against": truth.provenance.describe()}, rankings=truth)
        return row

    def _truth(self, spec: Truth) -> Rankings | None:
        if isinstance(spec, KnownRankings):
            if spec not in self._made:
                self._made[spec] = find_rankings(self.tower.name, *astuple(spec))
            return cast(Rankings | None, self._made[spec])
        return None if spec is None else self.rankings(spec)

    def lines(self, lines: Sequence[StudyLine]) -> list[ReadyLine]:
        """Make the models of a table's lines, at keep rates of equal cost where these are asked for."""
        self._meet_times(lines)
        return list(map(self._line, lines))

    def _line(self, line: StudyLine) -> ReadyLine:
        models, setting = line.models, {}
        if line.cost is not None:
            if line.cost.dtype is None:
                keep = self._equal_gflops(line.cost.target, line.cost.solved or models[0])
            else:
                keep, matched = self._times[line.cost.dtype, (models[0].method, line.cost.target.keep)]
                setting = {MATCHED: matched}
            models = tuple(replace(one, keep=keep) for one in models)
        rows = [self.model(one) for one in models]
        rows = [replace(row, config=row.config | setting) for row in rows] if setting else rows
        prompts = [Tuned.of(row.vit, self.prompts(one)) for row, one in zip(rows, line.prompts, strict=False)]
        labels = {name: value if isinstance(value, str) else value(rows[0]) for name, value in line.labels.items()}
        return ReadyLine(labels, rows, line.group, prompts)

    def gflops(self, row: Variant) -> float:
        """Return what a row's model costs, 1e9 multiply-adds."""
        return gflops(row.vit, self.dense.patch_embed.img_size).gflops

    def _equal_gflops(self, target: ModelSpec, model: ModelSpec) -> float:
        """Return the keep rate at which a model costs as nearly as it can what another one does."""
        kind = replace(model, keep=1.0, truth=None)
        if kind not in self._solvers:
            self._solvers[kind] = KeepSolver(self.dense, lambda keep: self._build(replace(kind, keep=keep)).vit)
        return self._solvers[kind].nearest(self.gflops(self.model(target)))

    def _meet_times(self, lines: Sequence[StudyLine]) -> None:
        """Solve keep rates for the time of other models, all of a precision in the same rounds.

        The setting that says so has the times by the dense tower's that were measured of both in the end.
        """
        by_dtype: dict[str, list[tuple[ModelSpec, ModelSpec]]] = {}
        for line in lines:
            if line.cost is not None and line.cost.dtype is not None:
                by_dtype.setdefault(line.cost.dtype, []).append((line.models[0], line.cost.target))
        for dtype, pairs in by_dtype.items():
            plan = Plan(methods=(), match="time", device=self.config.device, dtype=dtype)
            vits: dict[float, ReducedViT] = {}
            solvers: dict[MethodRate, KeepSolver] = {}
            for spec, target in pairs:
                key, row = (spec.method, target.keep), self.model(target)
                if (dtype, key) in self._times:  # from another dataset's lines
                    continue
                if record := find_record(self.records, row, spec.method, plan.matched(target.keep)):
                    self._times[dtype, key] = record.keep, record.method_config[MATCHED]
                else:
                    vits[target.keep] = row.vit
                    solvers[key] = KeepSolver(self.dense, partial(self._at, replace(spec, truth=None)))
            if not solvers:
                continue
            times = TimeRatios(self.dense, batch=plan.match_batch, device=plan.device, dtype=dtype)
            keeps = equal_times(times, vits, solvers, self.progress)
            every: dict[Any, ReducedViT] = dict(vits)
            every |= {key: solvers[key].build(keep) for key, keep in keeps.items()}
            ratios = times.of(every, 4 * ROUNDS)
            for (method, rate), keep in keeps.items():
                ratio, goal = ratios[method, rate], ratios[rate]
                say_miss((method, rate), keep, ratio, goal, plan, self.progress)
                facts = plan.matched(rate) | {"ratio": ratio, "goal": goal}
                self._times[dtype, (method, rate)] = keep, facts

    def _at(self, spec: ModelSpec, keep: float) -> ReducedViT:
        return self._build(replace(spec, keep=keep)).vit


def get_tower(model: str) -> Tower:
    """Load a tower that has a text tower; ValueError if it has none."""
    tower = load_tower(model)
    if tower.clip is None:
        raise ValueError(
            f"{tower.name} has no text tower here, so accuracy can't be judged; use --model "
            "clip_vit_s14, or open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    return tower


def open_dataset(config: StudyConfig, name: str) -> Dataset:
    """Return a dataset, its split ``final`` released where the study judges by it."""
    dataset = get_dataset(name)
    return dataset.released() if config.split == "final" else dataset
