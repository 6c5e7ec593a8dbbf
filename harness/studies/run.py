"""Find studies by name and make them: judge their lines on each dataset, and lay out tables."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.datasets.few_shot import require_apart, require_labels
from harness.measure.bench import Bench, measured_here
from harness.measure.cost import costs
from harness.measure.plan import Plan, tuning_of
from harness.measure.rows import Variant
from harness.models.towers import Tower
from harness.records.averages import judged_on
from harness.records.conditions import DENSE, DTYPES, Tuning
from harness.records.record import Record
from harness.studies import predictors, pruning, tuning
from harness.studies.spec import PredictorSpec, RankingSpec, Study, StudyCase, StudyConfig, StudyLine
from harness.studies.tables import StudyTable, compare_lines
from harness.studies.workshop import ReadyLine, Spec, Workshop, get_tower, needs, open_dataset
from zoo.core.messages import expected

LISTED = "patchrank study --help"  # shows all studies


@functools.cache
def list_studies() -> dict[str, Study]:
    """Return all studies by name, sorted."""
    values = vars(predictors) | vars(pruning) | vars(tuning)
    studies = {one.name: one for one in values.values() if isinstance(one, Study)}
    return dict(sorted(studies.items()))


def get_study(name: str, tools: Sequence[str] = ()) -> Study:
    """Return the study of that name; ValueError with near names, other ``tools``' too, if there is none."""
    studies = list_studies()
    if name not in studies:
        raise ValueError(f"study {name!r}: {expected(name, [*studies, *tools], shown_by=LISTED)}")
    return studies[name]


class Stock(NamedTuple):
    """Things of one kind that a study takes: images of rankings, predictors or prompts."""

    kind: str
    of: str  # in words
    cached: int
    missing: int


def cases(study: Study, shop: Workshop) -> dict[str, tuple[Dataset, list[StudyLine]]]:
    """Return the datasets that a study can do something with, and its lines on each.

    Raises:
        ValueError: no dataset has the labels that it needs, or one is judged by images that tokens are learned from.
    """
    config, usable = shop.config, []
    datasets = [open_dataset(config, name) for name in config.datasets]
    for dataset in datasets:
        if dataset.labelled or not study.labels:
            usable.append(dataset)
        else:
            shop.progress.say(f"left out: {dataset.name} has no labels, which study {study.name} needs")
    if not usable:
        require_labels(datasets[0], f"study {study.name}")
    shop.config = config = replace(config, datasets=tuple(dataset.name for dataset in usable))
    found = {}
    for dataset in usable:
        if study.tunes:
            require_apart(dataset, config.split)
        case = StudyCase(config, shop.tower, dataset, config.keeps or study.keeps, shop.progress)
        found[dataset.name] = dataset, list(study.lines(case))
    return found


def make(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress, tower: Tower | None = None
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept. ``tower`` is the config's where it is loaded
    already; it is brought to the config's device and precision.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    shop = Workshop(config, tower or get_tower(config.model), progress)
    here = measured_here(Plan(methods=(), device=config.device, dtype=config.dtype), shop.tower.tag, shop.weights)
    shop.records = [r for r in known if all(getattr(r, name) == value for name, value in here.items())]
    found = list(cases(study, shop).values())
    specs = list(dict.fromkeys(spec for _, lines in found for line in lines for spec in needs(line)))
    with progress.task(f"study {study.name}, steps", len(specs) + len(found)) as update:
        # All before the first is measured: predictors know their tower by the weights as loaded.
        for done, _ in enumerate(shop.make(specs), start=1):
            update(done)
        every = [(dataset, shop.lines(lines)) for dataset, lines in found]
        for done, (dataset, own) in enumerate(every, start=len(specs) + 1):
            yield _measure(study, shop, dataset, own, known)
            update(done)


def _measure(
    study: Study, shop: Workshop, dataset: Dataset, own: Sequence[ReadyLine], known: Sequence[Record]
) -> tuple[StudyTable, list[Record]]:
    records = _judge(_bench(shop, dataset, own), dataset, own, known)
    (dense,), *others = records
    images = f"{dense.dataset} ({judged_on(dense)}, {dense.image_count} images)"
    conditions = f"{shop.tower.name}, {dense.dtype}"
    conditions += f"; dense {100 * dense.correct.mean():.1f} %" if dense.labelled else ""
    lines = [(one.labels, one.group, part) for one, part in zip(own, others, strict=True)]
    title = f"{study.title}: {images}, {conditions}"
    table = StudyTable(title=title, dense=dense, rows=compare_lines(lines, dense))
    return table, [record for group in records for record in group]


def _bench(shop: Workshop, dataset: Dataset, lines: Sequence[ReadyLine]) -> Bench:
    """Bring the dense model and the lines of a dataset to the bench, in this order."""
    config, tower = shop.config, shop.tower
    assert tower.clip is not None
    dense = Variant(model=tower.arch, method=DENSE, keep=1.0, vit=tower.vit, config={})
    plan = Plan(
        models=(config.model,), methods=(), datasets=(dataset.name,), limit=config.limit,
        split=config.split, seed=config.fit.seed, device=config.device, dtype=config.dtype,
        batches=config.batches,
    )  # fmt: skip
    rows = [dense, *(row for line in lines for row in line.rows)]
    return Bench(plan, tower.clip, rows, tower.tag, shop.weights, shop.progress)


def _judge(bench: Bench, dataset: Dataset, lines: Sequence[ReadyLine], known: Sequence[Record]) -> list[list[Record]]:
    """Return the dense model's record, and then those of each line; lines without prompts are judged at once."""
    dense = bench.rows[0]
    # Other seeds cost the same as the first.
    first = costs([dense, *(line.rows[0] for line in lines)], bench.plan.latency_rounds, bench.progress)
    bench.costs = {row.key: first[line.rows[0].key] for line in lines for row in line.rows} | {
        dense.key: first[dense.key]
    }
    plain = [dense, *(row for line in lines if not line.prompts for row in line.rows)]
    judged = iter(bench.judged(dataset, Tuning(seed=bench.plan.seed), plain, {}, known))
    records = [[next(judged)]]
    for line in lines:
        if line.prompts:
            records.append(_judge_tuned(bench, dataset, line, known))
        else:
            records.append([next(judged) for _ in line.rows])
    return records


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
        records += bench.judged(dataset, tuning_of(own.file), [row], {row.key: own}, known)
    return records


def stock(study: Study, config: StudyConfig, progress: Progress) -> list[Stock]:
    """Return what a study makes and keeps, and how much of it the user's cache has. Nothing is made."""
    shop = Workshop(config, get_tower(config.model), progress)
    there: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    every = [line for _, lines in cases(study, shop).values() for line in lines]
    for spec in dict.fromkeys(spec for line in every for spec in needs(line)):
        cached, count = shop.cached(spec)
        there[describe(spec)] += cached
        total[describe(spec)] += count
    return [Stock(*key, there[key], total[key] - there[key]) for key in total]


def describe(spec: Spec) -> tuple[str, str]:
    """Return the kind of thing that a spec describes, and what it is of."""
    if isinstance(spec, RankingSpec):
        by = "" if spec.prompts is None else " by the tuned tower"
        return "rankings", f"{spec.dataset} {spec.split}{by}: {spec.golden.describe()}"
    if isinstance(spec, PredictorSpec):
        first = spec.train[0]
        by = "" if first.prompts is None else " by the tuned tower"
        names = " + ".join(one.dataset for one in spec.train)
        return "predictors", f"{spec.recipe.arch} {spec.recipe.width} on {names}{by}: {first.golden.describe()}"
    model = spec.model
    name = DENSE if model.method == DENSE else f"{model.method}{round(100 * model.keep)}"
    return "prompts", f"{spec.recipe.tokens} for {name} on {spec.dataset}"
