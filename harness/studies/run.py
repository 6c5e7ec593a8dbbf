"""Find studies by name and make them: judge their lines on each dataset, and lay out tables."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Table, json_values, points
from harness.base.table import figure as number
from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.datasets.few_shot import require_apart, require_labels
from harness.measure.bench import Bench
from harness.measure.cost import costs
from harness.measure.plan import Plan, tuning_of
from harness.measure.rows import Variant
from harness.models.towers import Tower
from harness.records.averages import Average, fidelity_difference, judged_on, row_p, uncounted
from harness.records.conditions import DENSE, DTYPES, Tuning
from harness.records.metrics import METRICS
from harness.records.record import Record, refuse_mixed
from harness.records.statistics import (
    FLIPPED,
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    bootstrap_mean,
    mark_note,
    mean_interval,
    together,
)
from harness.report.writers import markdown
from harness.studies import predictors, pruning, tuning
from harness.studies.spec import PredictorSpec, RankingSpec, Study, StudyCase, StudyConfig, StudyLine
from harness.studies.workshop import ReadyLine, Spec, Workshop, get_tower, judged_dataset, needs
from zoo.core.messages import expected

LISTED = "patchrank study --help"  # shows all studies
NOTES = (
    "1 - cosine of the features to dense, and top-1 in %, mean over seeds (least to most); differences, of top-1 in "
    "points, on the same images, with 95 % paired bootstrap intervals over images of the mean over seeds, one "
    "comparison at a time. Tau and match at k: agreement with the golden ranking that the line aims at, k being the "
    "patches kept."
)
SEED_NOTES = "Over seeds: the difference to first with Student's 95 % t interval over seeds instead."
# Differences that are tested, a family each, by the row's field; their columns.
DIFFERENCES = {"distance_to_first": "1 - cos to first", "to_dense": "to dense", "to_first": "to first"}
_LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # lines may differ in
_MEANS = ("top1", "gflops", "cosine_distance", "tau", "match_at_k")
# Columns that narrower terminals do without.
_WIDE = ("GFLOPs", "over seeds", "tau", "match@k (chance)")
_FORMS = dict.fromkeys(_WIDE, FORMS[:1]) | dict.fromkeys(("top-1", "to dense", "to first"), FORMS[:2])


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
    """Things of one kind that a study takes: images of rankings, predictors, prompts, or rows."""

    kind: str
    of: str  # in words
    cached: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One line of a study with what was measured on one dataset.

    Differences are means over seeds on the same images; there is none of top-1 without labels, and none to itself.
    """

    labels: dict[str, str]  # what distinguishes it, by column
    group: float | str  # lines are compared with the first of the same group
    average: Average  # its records, one per seed
    differences: Mapping[str, tuple[Interval, float | None]]  # by name in `DIFFERENCES`, with the p-value
    # top-1 to first with Student's t interval over seeds, where both lines were tuned from the same
    over_seeds: Interval | None = None

    def difference(self, name: str) -> Interval | None:
        """Return a difference by its name in `DIFFERENCES`."""
        return self.differences.get(name, (None,))[0]

    @property
    def records(self) -> tuple[Record, ...]:
        """One per seed."""
        return self.average.records


def compare_lines(
    lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record
) -> list[StudyRow]:
    """Compare lines (labels, group, a record per seed) with the dense model and with the first.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    base, first_of, rows = _average([dense]), dict[float | str, Average](), []
    for labels, group, records in lines:
        row = _average(records)
        first = first_of.setdefault(group, row)
        others = {"to_dense": base} | ({} if first is row else {"to_first": first})
        differences: dict[str, tuple[Interval, float | None]] = {}
        for name, other in others.items() if dense.labelled else ():
            differences[name] = bootstrap_mean(_share(row) - _share(other), seed=0), row_p(row, other)
        if first is not row and (apart := fidelity_difference(row, first, METRICS["cosine_distance"])) is not None:
            differences["distance_to_first"] = apart
        own = None if first is row else _over_seeds(records, first.records)
        rows.append(StudyRow(labels=labels, group=group, average=row, differences=differences, over_seeds=own))
    return rows


def _average(records: Sequence[Record]) -> Average:
    return Average(records=tuple(records), top1=None, to_dense=None)


def _share(row: Average) -> NDArray[np.float64]:
    """Return (image_count,) for what share of the seeds each image was right."""
    return row.hits / len(row.records)


def _over_seeds(records: Sequence[Record], first: Sequence[Record]) -> Interval | None:
    seeds = [[r.seed for r in group if r.tuning is not None] for group in (records, first)]
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        return None
    return mean_interval([float(a.correct.mean() - b.correct.mean()) for a, b in zip(records, first, strict=True)])


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """What a study measured on one dataset: the dense model's record, and a row per line."""

    title: str
    dense: Record
    rows: Sequence[StudyRow]

    def families(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by row."""
        every = {name: [row.differences.get(name, (None, None))[1] for row in self.rows] for name in DIFFERENCES}
        return {name: together(dict(enumerate(p_values))) for name, p_values in every.items()}

    def table(self) -> Table:
        """Lay it out; differences that are clear when their column is judged together have marks.

        Columns of what wasn't measured are left out.
        """
        labels = list(dict.fromkeys(name for row in self.rows for name in row.labels))
        families = self.families()
        lines = []
        for at, row in enumerate(self.rows):
            cells = {name: Cell(row.labels.get(name, "")) for name in labels} | _cells(row)
            for name, family in families.items():
                head = DIFFERENCES[name]
                cells[head] = Cell(cells[head], cells[head].value, family.mark(at))
            lines.append(cells)
        heads = [head for head in lines[0] if any(line[head] != UNMEASURED for line in lines)]
        several = any(len(row.records) > 1 for row in self.rows)
        tests = [FLIPPED] if not self.dense.labelled else [SIGN_FLIP if several else MCNEMAR, FLIPPED]
        lacking = uncounted(self.dense, *(row.records[0] for row in self.rows))
        notes = [f"{NOTES} {mark_note(' or '.join(tests), 'all of a column')}.", *([f"{lacking}."] if lacking else [])]
        begins = {row.group: at for at, row in reversed(list(enumerate(self.rows)))}
        return Table(
            title=self.title,
            caption=" ".join(notes),
            columns=[Column(heading=head, left=head in labels, forms=_FORMS.get(head, FORMS)) for head in heads],
            rows=[[line[head] for head in heads] for line in lines],
            sections=frozenset(begins.values()),
        )

    def markdown(self) -> str:
        """Return it as a Markdown section, without marks and caption."""
        table = self.table()
        return markdown([replace(table, caption="", rows=[list(map(Cell, row)) for row in table.rows])])

    def data(self) -> dict[str, Any]:
        """Return it as JSON values, with what was measured but has no column."""
        families = self.families()
        lines = [
            {
                "labels": row.labels,
                "asked": row.group,
                "seeds": len(row.records),
                **{name: row.difference(name) for name in DIFFERENCES},
                "over_seeds": row.over_seeds,
                "p": {name: p for name, (_, p) in row.differences.items()},
                "p_holm": {name: family.adjusted.get(at) for name, family in families.items()},
                **_means(row.average),
            }
            for at, row in enumerate(self.rows)
        ]
        about = {"dataset": self.dense.dataset, "split": self.dense.split, "title": self.title}
        dense = _means(_average([self.dense]))
        values: dict[str, Any] = json_values(
            {**about, "images": self.dense.image_count, "dense": dense, "lines": lines}
        )
        return values


def _means(row: Average) -> dict[str, Any]:
    match = row.measured("match_at_k")
    chance = None if match is None else match.chance
    return {"keep": row.keep, **{name: row.mean(name) for name in _MEANS}, "match_chance": chance}


def _cells(row: StudyRow) -> dict[str, Cell]:
    """Return a row's figures by heading."""
    mean = row.average.mean
    top1 = [100 * right for record in row.records if (right := record.mean("top1")) is not None]
    spread = f" ({min(top1):.1f}–{max(top1):.1f})" if len(top1) > 1 else ""
    match = row.average.measured("match_at_k")
    apart = row.difference("distance_to_first")
    distance = "" if apart is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*apart)
    return {
        "keep": Cell(f"{100 * row.records[0].keep:.3g}"),
        "GFLOPs": number(mean("gflops"), ".3f"),
        "1 - cos": number(mean("cosine_distance"), ".4f"),
        "1 - cos to first": UNMEASURED if apart is None else Cell(distance, apart.estimate),
        "top-1": Cell(f"{np.mean(top1):.1f}{spread}") if top1 else UNMEASURED,
        "to dense": points(row.difference("to_dense")),
        "to first": points(row.difference("to_first")),
        "over seeds": points(row.over_seeds),
        "tau": number(mean("tau"), ".3f"),
        "match@k (chance)": Cell(f"{match.mean:.2f} ({match.chance:.2f})") if match else UNMEASURED,
    }


def cases(study: Study, shop: Workshop) -> dict[str, tuple[Dataset, list[StudyLine]]]:
    """Return the datasets that a study can do something with, and its lines on each.

    Raises:
        ValueError: no dataset has the labels that it needs, or one is judged by images that tokens are learned from.
    """
    config, usable = shop.config, []
    datasets = [judged_dataset(config, name) for name in config.datasets]
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
    shop = Workshop(config, tower or get_tower(config.model), progress, known)
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


def stock(study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress) -> list[Stock]:
    """Return what a study takes. Nothing is made: caches are asked, and ``known`` records."""
    shop = Workshop(config, get_tower(config.model), progress, known)
    found = cases(study, shop)
    there: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for spec in dict.fromkeys(spec for _, lines in found.values() for line in lines for spec in needs(line)):
        cached, every = shop.cached(spec)
        there[describe(spec)] += cached
        total[describe(spec)] += every
    # All before the first is brought to the bench, as in a run.
    ready = {name: _ready(shop, lines) if known else [] for name, (_, lines) in found.items()}
    for name, (dataset, lines) in found.items():
        key = "rows", f"{name} {config.split}"
        total[key] = 1 + sum(len(line.models) for line in lines)
        there[key] = _count_known(shop, dataset, lines, ready[name], known) if known else 0
    return [Stock(*key, there[key], total[key] - there[key]) for key in total]


def _ready(shop: Workshop, lines: Sequence[StudyLine]) -> list[ReadyLine]:
    """Make the lines that nothing is missing for: all without prompts or none of them, rows with prompts one by one."""

    def whole(line: StudyLine) -> bool:
        return all(there == total for there, total in map(shop.cached, needs(line))) and shop.solved(line)

    plain = [line for line in lines if not line.prompts]
    tuned = [
        replace(line, models=(model,), prompts=(prompts,))
        for line in lines
        for model, prompts in zip(line.models, line.prompts, strict=False)
    ]
    return shop.lines([*(plain if all(map(whole, plain)) else []), *filter(whole, tuned)])


def _count_known(
    shop: Workshop, dataset: Dataset, lines: Sequence[StudyLine], ready: Sequence[ReadyLine], known: Sequence[Record]
) -> int:
    """Return how many rows have records already; those without prompts are measured together."""
    bench = _bench(shop, dataset, ready)
    plain = [bench.rows[0], *(row for line in ready if not line.prompts for row in line.rows)]
    whole = len(plain) == 1 + sum(len(line.models) for line in lines if not line.prompts)
    again = whole and bench.reusable(dataset, Tuning(seed=bench.plan.seed), plain, {}, known) is not None
    tuned = [(line.rows[0], line.prompts[0]) for line in ready if line.prompts]
    left = [bench.reusable(dataset, tuning_of(own.file), [row], {row.key: own}, known) for row, own in tuned]
    return (len(plain) if again else 0) + sum(one is not None for one in left)


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
