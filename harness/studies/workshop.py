"""Make studies: build or find what their lines describe, judge them on each dataset, and lay out tables."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import FINAL, Dataset
from harness.datasets.few_shot import require_apart, require_labels, subset
from harness.golden.fit import fit
from harness.golden.rank import RankJob, Source, rank
from harness.golden.store import Rankings, own_store, shipped_rankings
from harness.measure.bench import Bench
from harness.measure.cost import costs, gflops
from harness.measure.match import KeepSolver
from harness.measure.plan import Plan, tuning_of
from harness.measure.rows import Variant, make_row
from harness.measure.tuning import Tuned, Tuner, read_if_valid
from harness.models.towers import Tower, load_tower
from harness.records.averages import judged_on
from harness.records.record import DENSE, DTYPES, GOLDEN, Record, Tuning, halves
from harness.studies.spec import (
    ModelSpec,
    PredictorSpec,
    PromptsSpec,
    RankingSpec,
    Study,
    StudyCase,
    StudyConfig,
    StudyLine,
)
from harness.studies.tables import StudyTable, compare_lines
from zoo.core.files import cache_file, digest, fingerprint
from zoo.core.precision import AUTO, precision_on
from zoo.loading.learned_files import PromptFile
from zoo.loading.predictor_file import PredictorFile
from zoo.ranking.golden import GoldenConfig

Spec = RankingSpec | PredictorSpec | PromptsSpec


def find(model: str, weights: str, source: Source, golden: GoldenConfig, image_ids: Sequence[str]) -> Rankings | None:
    """Return golden rankings of those of the images that have one, shipped or the user's own.

    None is for rankings that nobody has made in this way, and for broken ones.
    """
    shipped = shipped_rankings(model, source.name, source.split, golden.block)
    for path in (shipped, own_store(model, source.name, source.split, golden)):
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


def needs(one: Spec | ModelSpec | StudyLine) -> list[Spec]:
    """Return what must be made before a spec, or for a line of a table: each once, in the order of making."""
    found: dict[Spec, None] = {}
    for value in vars(one).values():
        for below in value if isinstance(value, tuple) else (value,):
            if isinstance(below, Spec | ModelSpec):
                found |= dict.fromkeys(needs(below))
            if isinstance(below, Spec):
                found[below] = None
    return list(found)


class Stock(NamedTuple):
    """Things of one kind that a study takes: images of rankings, predictors or prompts."""

    kind: str
    of: str  # in words
    cached: int
    missing: int


class ReadyLine(NamedTuple):
    """A line of a study's table, its models made."""

    labels: dict[str, str]
    rows: list[Variant]
    group: float | str
    prompts: list[Tuned]  # of each row; none where class captions classify


class Workshop:
    """Make what lines describe for one dense tower; each thing is made once, and kept in the user's cache."""

    def __init__(self, config: StudyConfig, progress: Progress, tower: Tower | None = None) -> None:
        """Load the tower unless it is there."""
        self.config, self.progress = config, progress
        self.tower = tower or get_tower(config.model)
        self.weights = fingerprint(self.tower.vit)
        self.scores: set[str] = set()  # that a study ranks by: each image is ranked by all of them at once
        self._made: dict[Any, Any] = {}
        self._solvers: dict[ModelSpec, KeepSolver] = {}

    def make(self, spec: Any) -> Any:
        """Make a thing, or find it; the same one again for the same spec."""
        if spec not in self._made:
            makers: dict[type, Callable[[Any], Any]] = {
                **{RankingSpec: self._rank, PredictorSpec: self._fit},
                **{PromptsSpec: self._tune, ModelSpec: self._build},
            }
            self._made[spec] = makers[type(spec)](spec)
        return self._made[spec]

    def count(self, spec: Spec) -> int:
        """Return how much of a thing, all that it needs being complete, is in the user's cache."""
        if isinstance(spec, RankingSpec):
            return len(self._find(spec) or ())
        if isinstance(spec, PredictorSpec):
            return int(self._loadable(self._predictor_path(spec)) is not None)
        tuner, row = self._tuner(spec.dataset), self.make(spec.model)
        dtype = precision_on(next(row.vit.parameters()).device, spec.recipe.dtype)
        shots, seed = self.config.labelled, spec.recipe.seed
        path = tuner.path(row, tuner.few(shots, seed), shots, seed, replace(spec.recipe, dtype=dtype))
        return int(tuner.read_cached(path) is not None)

    def _find(self, spec: RankingSpec) -> Rankings | None:
        source, image_ids = _images(spec)
        return find(self.tower.name, self.weights, source, spec.golden, image_ids)

    def _rank(self, spec: RankingSpec) -> Rankings:
        source, image_ids = _images(spec)
        rankings = self._find(spec)
        if rankings is None or len(rankings) < len(image_ids):
            others = [replace(spec, golden=replace(spec.golden, score=score)) for score in sorted(self.scores)]
            lacking = tuple(one.golden.score for one in others if len(self._find(one) or ()) < len(image_ids))
            job = RankJob(
                model=self.tower.name, source=source, config=spec.golden, scores=lacking, limit=spec.limit,
                dtype=AUTO, device=self.config.device,
            )  # fmt: skip
            rankings = Rankings.read(rank(job, self.progress).path)
        return rankings.take(image_ids)

    def _fit(self, spec: PredictorSpec) -> PredictorFile:
        path = self._predictor_path(spec)
        if (file := self._loadable(path)) is None:
            train, stop = ([self.make(one) for one in part] for part in (spec.train, spec.stop))
            fit(self.tower.name, train, stop, spec.recipe, out=path, progress=self.progress, shots=spec.shots)
            file = PredictorFile.read(path)
        return file

    def _predictor_path(self, spec: PredictorSpec) -> Path:
        """Return where a predictor is kept: by a hash of all that decides its weights."""
        every = [[self.make(one) for one in part] for part in (spec.train, spec.stop)]
        parts = [[asdict(one.provenance) | {"ids": one.image_ids} for one in part] for part in every]
        conditions = [self.tower.name, self.weights, parts, asdict(spec.recipe), spec.shots, torch.__version__]
        return cache_file("studies", f"{digest(conditions, length=20)}.safetensors")

    def _loadable(self, path: Path) -> PredictorFile | None:
        words = "a predictor of an earlier run is fitted anew"
        return read_if_valid(path, PredictorFile.read, PredictorFile.tensors, words, self.progress)

    def _tuner(self, dataset: str) -> Tuner:
        if dataset not in self._made:
            assert self.tower.clip is not None
            about: dict[str, Any] = {"model": self.tower.arch, "tag": self.tower.tag, "weights": self.weights}
            about |= {"progress": self.progress, "draws": self.config.draws}
            self._made[dataset] = Tuner(self.tower.clip, get_dataset(dataset), **about)
        tuner: Tuner = self._made[dataset]
        return tuner

    def _tune(self, spec: PromptsSpec) -> PromptFile:
        row = self.make(spec.model)
        return self._tuner(spec.dataset).tune([row], self.config.labelled, spec.recipe.seed, spec.recipe)[row.key].file

    def _build(self, spec: ModelSpec) -> Variant:
        truth = None if spec.truth is None else self.make(spec.truth)
        path = None if spec.predictor is None else self.make(spec.predictor).path
        options, tower = {"keep": spec.keep, **dict(spec.options)}, self.tower
        row = make_row(tower.vit, tower.arch, tower.tag, spec.method, options, predictor=path)
        if spec.method == DENSE:
            return row
        against = {} if truth is None or spec.method == GOLDEN else {"against": truth.provenance.describe()}
        # A number tells it from others of its name.
        return replace(row, config=row.config | against, rankings=truth, what=f"({len(self._made)})")

    def line(self, line: StudyLine) -> ReadyLine:
        """Make the models of a table's line, at the keep rate of equal cost where that is asked for."""
        models = line.models
        if line.cost is not None:
            keep = self._equal_keep(line.cost, line.solved or models[0])
            models = tuple(replace(one, keep=keep) for one in models)
        rows = [self.make(one) for one in models]
        prompts = [Tuned.of(row.vit, self.make(one)) for row, one in zip(rows, line.prompts, strict=False)]
        labels = {name: value if isinstance(value, str) else value(rows[0]) for name, value in line.labels.items()}
        return ReadyLine(labels, rows, line.group, prompts)

    def _equal_keep(self, target: ModelSpec, model: ModelSpec) -> float:
        """Return the keep rate at which a model costs as nearly as it can what another one does."""
        kind, dense = replace(model, keep=1.0, truth=None), self.tower.vit
        if kind not in self._solvers:
            self._solvers[kind] = KeepSolver(dense, lambda keep: self._build(replace(kind, keep=keep)).vit)
        return self._solvers[kind].nearest(gflops(self.make(target).vit, dense.patch_embed.img_size).gflops)


def _images(spec: RankingSpec) -> tuple[Source, tuple[str, ...]]:
    """Return the split that a spec is of, and the ids of the images that are ranked."""
    source = Source.of(get_dataset(spec.dataset), spec.split)
    return source, subset(source.images, spec.limit).image_ids


def _describe(spec: Spec) -> tuple[str, str]:
    """Return the kind of thing that a spec describes, and what it is of."""
    if isinstance(spec, RankingSpec):
        return "rankings", f"{spec.dataset} {spec.split}: {spec.golden.describe()}"
    if isinstance(spec, PredictorSpec):
        names = " + ".join(one.dataset for one in spec.train)
        return "predictors", f"{spec.recipe.arch} {spec.recipe.width} on {names}: {spec.train[0].golden.describe()}"
    name = DENSE if spec.model.method == DENSE else f"{spec.model.method}{round(100 * spec.model.keep)}"
    return "prompts", f"{spec.recipe.tokens} for {name} on {spec.dataset}"


def get_tower(model: str) -> Tower:
    """Load a tower that has a text tower; ValueError if it has none."""
    tower = load_tower(model)
    if tower.clip is None:
        raise ValueError(
            f"{tower.name} has no text tower here, so accuracy can't be judged; use --model "
            "clip_vit_s14, or open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    return tower


def stock(study: Study, config: StudyConfig, progress: Progress) -> list[Stock]:
    """Return what a study makes and keeps, and how much of it the user's cache has. Nothing is made."""
    shop = Workshop(config, progress)
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    complete: set[Spec] = set()
    for spec in _needs(_lines(study, shop)):
        total = len(_images(spec)[1]) if isinstance(spec, RankingSpec) else 1
        there = shop.count(spec) if complete.issuperset(needs(spec)) else 0
        complete |= {spec} if there == total else set()
        key = _describe(spec)
        cached, missing = counts.get(key, (0, 0))
        counts[key] = cached + there, missing + total - there
    return [Stock(*key, *count) for key, count in counts.items()]


def answer(
    study: Study,
    config: StudyConfig,
    known: Sequence[Record],
    progress: Progress,
    tower: Tower | None = None,
    folder: Path | None = None,
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept. ``tower`` is the config's where it is loaded
    already; it is brought to the config's device and precision. ``folder`` is for outcomes of a run that is stopped.

    Raises:
        ValueError: a tower without text tower, or something that can't be made.
    """
    shop = Workshop(config, progress, tower)
    cases = _lines(study, shop)
    specs = _needs(cases)
    shop.scores = {spec.golden.score for spec in specs if isinstance(spec, RankingSpec)}
    with progress.task(f"study {study.name}, steps", len(specs) + len(cases)) as update:
        # All before the first is measured: predictors know their tower by the weights as loaded.
        for done, spec in enumerate(specs, start=1):
            shop.make(spec)
            update(done)
        every = [(dataset, [shop.line(line) for line in lines]) for dataset, lines in cases]
        for done, (dataset, ready) in enumerate(every, start=len(specs) + 1):
            bench, (dense, *others) = _judge(shop, dataset, ready, known, folder)
            records = sum(others, dense)
            for part in (records, *(halves(records) if config.halves else ())):
                left = iter(part)
                [base], *parts = [list(islice(left, len(own))) for own in (dense, *others)]
                rows = compare_lines([(o.labels, o.group, own) for o, own in zip(ready, parts, strict=True)], base)
                table = StudyTable(title=_title(study, shop, base), dense=base, rows=rows)
                yield table, records if part is records else []
            bench.view_of(dataset).outcomes.forget()  # records are written by now
            update(done)


def _lines(study: Study, shop: Workshop) -> list[tuple[Dataset, list[StudyLine]]]:
    """Return the datasets that a study can do something with, and its lines on each.

    Raises:
        ValueError: no dataset has the labels that it needs, or one is judged by images that tokens are learned from.
    """
    config, datasets = shop.config, [get_dataset(name) for name in shop.config.datasets]
    usable = [dataset for dataset in datasets if dataset.labelled or not study.labels]
    for dataset in datasets:
        if dataset not in usable:
            shop.progress.say(f"left out: {dataset.name} has no labels, which study {study.name} needs")
        elif study.tunes:
            require_apart(dataset, config.split)
    if not usable:
        require_labels(datasets[0], f"study {study.name}")
    if config.split == FINAL:
        usable = [dataset.released() for dataset in usable]
    config = replace(config, datasets=tuple(dataset.name for dataset in usable))
    cases = [StudyCase(config, shop.tower, dataset, config.keeps or study.keeps, shop.progress) for dataset in usable]
    return [(case.dataset, list(study.lines(case))) for case in cases]


def _needs(cases: Sequence[tuple[Dataset, list[StudyLine]]]) -> list[Spec]:
    return list(dict.fromkeys(spec for _, lines in cases for line in lines for spec in needs(line)))


def _title(study: Study, shop: Workshop, dense: Record) -> str:
    top1 = f"; dense {100 * dense.correct.mean():.1f} %" if dense.labelled else ""
    images = f"{dense.dataset} ({judged_on(dense)}, {dense.image_count} images)"
    return f"{study.title}: {images}, {shop.tower.name}, {dense.dtype}{top1}"


def _judge(
    shop: Workshop, dataset: Dataset, lines: Sequence[ReadyLine], known: Sequence[Record], folder: Path | None
) -> tuple[Bench, list[list[Record]]]:
    """Return the bench, and records: the dense model's, then each line's. Lines without prompts are judged at once."""
    config, tower = shop.config, shop.tower
    assert tower.clip is not None
    plan = Plan(
        models=(config.model,), methods=(), datasets=(dataset.name,), limit=config.limit, split=config.split,
        seed=config.fit.seed, device=config.device, dtype=config.dtype, batches=config.batches,
    )  # fmt: skip
    dense = shop.make(ModelSpec(DENSE, 1.0))
    rows = [dense, *(row for line in lines for row in line.rows)]
    bench = Bench(plan, tower.clip, rows, tower.tag, shop.weights, shop.progress, folder=folder)
    # Other seeds cost the same as the first.
    first = costs([dense, *(line.rows[0] for line in lines)], plan.latency_rounds, shop.progress)
    bench.costs = {row.key: first[line.rows[0].key] for line in lines for row in line.rows}
    bench.costs |= {dense.key: first[dense.key]}
    plain = [dense, *(row for line in lines if not line.prompts for row in line.rows)]
    judged = iter(bench.judge(dataset, Tuning(seed=plan.seed), plain, {}, known))
    records = [[next(judged)]]
    for line in lines:
        tuned = _judge_tuned(bench, dataset, line, known) if line.prompts else [next(judged) for _ in line.rows]
        records.append(tuned)
    return bench, records


def _judge_tuned(bench: Bench, dataset: Dataset, line: ReadyLine, known: Sequence[Record]) -> list[Record]:
    """Judge each row of a line by its prompts; what it costs is counted once."""
    first = replace(line.rows[0], vit=line.prompts[0].vit)
    bench.prompted_costs = {}
    if first.prompted:
        cost = costs([first], {}, bench.progress)[first.key]
        bench.prompted_costs = {row.key: cost for row in line.rows}
    records = []
    for row, own in zip(line.rows, line.prompts, strict=True):
        own.vit.to(bench.plan.device, DTYPES[bench.plan.dtype])
        records += bench.judge(dataset, tuning_of(own.file), [row], {row.key: own}, known)
    return records
