"""Find studies by name and make them: judge their lines on each dataset, and lay out tables."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Table, json_values, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import FINAL, Dataset
from harness.datasets.few_shot import require_labels
from harness.measure.bench import Bench
from harness.measure.cost import costs
from harness.measure.plan import Plan, tuning_of
from harness.measure.rows import Variant
from harness.models.towers import Tower, load_tower
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
from harness.studies.workshop import Line, Study, StudyConfig, Workshop
from zoo.core.messages import expected

LISTED = "patchrank study --help"  # shows all studies
NOTES = (
    "1 - cosine of the features to dense, and top-1 in %, mean over seeds (least to most); differences, of top-1 in "
    "points, on the same images, with 95 % paired bootstrap intervals over images of the mean over seeds, one "
    "comparison at a time. Tau and match at k: agreement with the golden ranking that the line aims at, k being the "
    "patches kept."
)
SEED_NOTES = "Over seeds: the difference to first with Student's 95 % t interval over seeds instead."
DISTANCE = METRICS["cosine_distance"]
# Differences that are tested, a family each, by the entry's field; their columns.
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


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a study with what was measured on one dataset.

    Differences are means over seeds on the same images; of top-1 they are None without labels, and
    those against the first line None for that line itself. ``p`` has the p-value of each difference
    in `DIFFERENCES` that there is.
    """

    labels: dict[str, str]  # what distinguishes it, by column
    group: float | str  # lines are compared with the first of the same group
    row: Average  # its records, one per seed
    to_dense: Interval | None = None  # top-1 minus that of the dense model
    to_first: Interval | None = None  # the same against the first line
    distance_to_first: Interval | None = None  # 1 - cosine minus that of the first line
    p: Mapping[str, float | None] = field(default_factory=dict)
    # the difference to first with Student's t interval over seeds, where both lines were tuned
    # from the same seeds
    over_seeds: Interval | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """One per seed."""
        return self.row.records


def entries(lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record) -> list[Entry]:
    """Compare lines (labels, group, a record per seed) with the dense model and with the first.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    base = _average([dense])
    first_of: dict[float | str, Average] = {}
    compared = []
    for labels, group, records in lines:
        row = _average(records)
        first = first_of.setdefault(group, row)
        others = {"to_dense": base} | ({} if first is row else {"to_first": first})
        p: dict[str, float | None] = {}
        differences: dict[str, Interval | None] = {}
        if dense.labelled:
            for name, other in others.items():
                differences[name] = bootstrap_mean(_share(row) - _share(other), seed=0)
                p[name] = row_p(row, other)
        if first is not row and (apart := fidelity_difference(row, first, DISTANCE)) is not None:
            differences["distance_to_first"], p["distance_to_first"] = apart
        over_seeds = None if first is row else _over_seeds(records, first.records)
        compared.append(Entry(labels=labels, group=group, row=row, p=p, over_seeds=over_seeds, **differences))
    return compared


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
class Sheet:
    """What a study measured on one dataset: the dense model's record, and an entry per line."""

    title: str
    dense: Record
    entries: Sequence[Entry]

    def judged(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by line."""
        return {
            name: together({at: entry.p.get(name) for at, entry in enumerate(self.entries)}) for name in DIFFERENCES
        }

    def table(self) -> Table:
        """Lay it out; differences that are clear when their column is judged together have marks.

        Columns of what wasn't measured are left out.
        """
        labels = list(dict.fromkeys(name for entry in self.entries for name in entry.labels))
        families = self.judged()
        lines = []
        for at, entry in enumerate(self.entries):
            cells = {name: Cell(entry.labels.get(name, "")) for name in labels} | _cells(entry)
            for name, family in families.items():
                head = DIFFERENCES[name]
                cells[head] = Cell(cells[head], cells[head].value, family.mark(at))
            lines.append(cells)
        heads = [head for head in lines[0] if any(line[head] != UNMEASURED for line in lines)]
        columns = [Column(heading=head, left=head in labels, forms=_FORMS.get(head, FORMS)) for head in heads]
        rows = [[line[head] for head in heads] for line in lines]
        begins = {entry.group: at for at, entry in reversed(list(enumerate(self.entries)))}
        starts = frozenset(begins.values())
        several = any(len(entry.records) > 1 for entry in self.entries)
        tests = [FLIPPED] if not self.dense.labelled else [SIGN_FLIP if several else MCNEMAR, FLIPPED]
        note = mark_note(" or ".join(tests), "all of a column")
        lacking = uncounted(self.dense, *(entry.records[0] for entry in self.entries))
        caption = f"{NOTES} {note}.{f' {lacking}.' if lacking else ''}"
        return Table(title=self.title, caption=caption, columns=columns, rows=rows, sections=starts)

    def markdown(self) -> str:
        """Return it as a Markdown section, without marks and caption."""
        table = self.table()
        rows = [[Cell(cell) for cell in row] for row in table.rows]
        return markdown([replace(table, caption="", rows=rows)])

    def data(self) -> dict[str, Any]:
        """Return it as JSON values, with what was measured but has no column."""
        families = self.judged()
        lines = [
            {
                "labels": entry.labels,
                "asked": entry.group,
                "seeds": len(entry.records),
                **{name: getattr(entry, name) for name in (*DIFFERENCES, "over_seeds")},
                "p": entry.p,
                "p_holm": {name: family.adjusted.get(at) for name, family in families.items()},
                **_means(entry.row),
            }
            for at, entry in enumerate(self.entries)
        ]
        about = {
            "dataset": self.dense.dataset,
            "split": self.dense.split,
            "title": self.title,
            "images": self.dense.image_count,
            "dense": _means(_average([self.dense])),
        }
        values: dict[str, Any] = json_values({**about, "lines": lines})
        return values


def _means(row: Average) -> dict[str, Any]:
    match = row.measured("match_at_k")
    chance = None if match is None else match.chance
    return {"keep": row.keep, **{name: row.mean(name) for name in _MEANS}, "match_chance": chance}


def _cells(entry: Entry) -> dict[str, Cell]:
    """Return a line's figures by heading."""
    mean = entry.row.mean
    top1 = [100 * right for record in entry.records if (right := record.mean("top1")) is not None]
    spread = f" ({min(top1):.1f}–{max(top1):.1f})" if len(top1) > 1 else ""
    match = entry.row.measured("match_at_k")
    return {
        "keep": Cell(f"{100 * entry.records[0].keep:.3g}"),
        "GFLOPs": _number(mean("gflops"), ".3f"),
        "1 - cos": _number(mean("cosine_distance"), ".4f"),
        DIFFERENCES["distance_to_first"]: _difference(entry.distance_to_first),
        "top-1": Cell(f"{np.mean(top1):.1f}{spread}") if top1 else UNMEASURED,
        DIFFERENCES["to_dense"]: points(entry.to_dense),
        DIFFERENCES["to_first"]: points(entry.to_first),
        "over seeds": points(entry.over_seeds),
        "tau": _number(mean("tau"), ".3f"),
        "match@k (chance)": Cell(f"{match.mean:.2f} ({match.chance:.2f})") if match else UNMEASURED,
    }


def _difference(interval: Interval | None) -> Cell:
    if interval is None:
        return UNMEASURED
    value, low, high = (format(number, "+.4f") for number in interval)
    return Cell(f"{value} [{low}, {high}]", interval.estimate)


def _number(value: float | None, form: str) -> Cell:
    return UNMEASURED if value is None else Cell(format(value, form), value)


def make(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress, tower: Tower | None = None
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept. ``tower`` is the config's where it is loaded
    already; it is brought to the config's device and precision.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    datasets = _datasets(study, config, progress)
    config = replace(config, datasets=tuple(dataset.name for dataset in datasets))
    shop = Workshop(config, tower or tower_with_text(config.model), progress, known)
    # All before the first is measured: predictors know their tower by the weights as loaded.
    lines_of = {dataset.name: lines(study, shop, dataset) for dataset in datasets}
    for dataset in datasets:
        own = lines_of[dataset.name]
        records = _judged(bench_of(shop, dataset, own), dataset, own, known)
        (dense,), *others = records
        judged = [(one.labels, one.group, part) for one, part in zip(own, others, strict=True)]
        images = f"{dense.dataset} ({judged_on(dense)}, {dense.image_count} images)"
        conditions = f"{shop.tower.name}, {dense.dtype}"
        conditions += f"; dense {100 * dense.correct.mean():.1f} %" if dense.labelled else ""
        title = f"{study.title}: {images}, {conditions}"
        sheet = Sheet(title=title, dense=dense, entries=entries(judged, dense))
        yield sheet, [record for group in records for record in group]


def dataset_of(config: StudyConfig, name: str) -> Dataset:
    """Return a dataset, its split ``final`` released where the study judges by it."""
    dataset = get_dataset(name)
    return dataset.released() if config.split == FINAL else dataset


def _datasets(study: Study, config: StudyConfig, progress: Progress) -> list[Dataset]:
    """Return the datasets that a study can do something with, and say which it can't."""
    datasets = [dataset_of(config, name) for name in config.datasets]
    if not study.labels:
        return datasets
    unlabelled = [dataset for dataset in datasets if not dataset.labelled]
    if len(unlabelled) == len(datasets):
        require_labels(unlabelled[0], f"study {study.name}")
    for dataset in unlabelled:
        progress.say(f"left out: {dataset.name} has no labels, which study {study.name} needs")
    return [dataset for dataset in datasets if dataset.labelled]


def lines(study: Study, shop: Workshop, dataset: Dataset) -> list[Line]:
    """Return the lines of a study on a dataset.

    Raises:
        ValueError: keep rates that share a name, which has whole percents.
    """
    found = list(study.lines(shop, dataset, shop.config.keeps or study.keeps))
    named: dict[str, Variant] = {}
    for row in (row for line in found for row in line.rows):
        other = named.setdefault(row.key, row)
        if other.keep != row.keep:
            raise ValueError(
                f"--keeps: {other.keep:g} and {row.keep:g} are both called {row.key!r}; "
                "give keep rates that differ in whole percents"
            )
    return found


def tower_with_text(model: str) -> Tower:
    """Load a tower that has a text tower; ValueError if it has none."""
    tower = load_tower(model)
    if tower.clip is None:
        raise ValueError(
            f"{tower.name} has no text tower here, so accuracy can't be judged; use --model "
            "clip_vit_s14, or open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    return tower


def bench_of(shop: Workshop, dataset: Dataset, lines: Sequence[Line]) -> Bench:
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


def plain_rows(bench: Bench, lines: Sequence[Line]) -> list[Variant]:
    """Return the dense model and the rows of lines without prompts, which are judged at once."""
    return [bench.rows[0], *(row for line in lines if not line.prompts for row in line.rows)]


def _judged(bench: Bench, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]) -> list[list[Record]]:
    """Return the dense model's record, and then those of each line."""
    bench.costs = _costs(bench, lines)
    tuning = Tuning(seed=bench.plan.seed)
    plain = iter(bench.judged(dataset, tuning, plain_rows(bench, lines), {}, known))
    records = [[next(plain)]]
    for line in lines:
        if line.prompts:
            records.append(_tuned(bench, dataset, line, known))
        else:
            records.append([next(plain) for _ in line.rows])
    return records


def _tuned(bench: Bench, dataset: Dataset, line: Line, known: Sequence[Record]) -> list[Record]:
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


def _costs(bench: Bench, lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Count, and maybe time, one row of each line; its other seeds cost the same."""
    dense, plan = bench.rows[0], bench.plan
    rows = [dense, *(line.rows[0] for line in lines)]
    first = costs(rows, plan.latency_rounds, bench.progress)
    same = {row.key: first[line.rows[0].key] for line in lines for row in line.rows}
    return {dense.key: first[dense.key]} | same
