"""Find studies by name and make them: judge their lines on each dataset, and lay out tables."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.console.table import FORMS, UNMEASURED, Cell, Column, Table, json_values, points
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.measure.bench import Bench
from harness.measure.cost import costs
from harness.measure.plan import Plan, tuning_of
from harness.measure.rows import Variant
from harness.models.towers import Tower, load_tower
from harness.records.averages import uncounted
from harness.records.conditions import DENSE, DTYPES, Tuning
from harness.records.record import Record, refuse_mixed
from harness.records.statistics import (
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    bootstrap_mean,
    mark_note,
    mean_interval,
    paired_p,
    together,
)
from harness.report.writers import markdown
from harness.studies import predictors, pruning, tuning
from harness.studies.workshop import Line, Study, StudyConfig, Workshop
from zoo.reducer import expected

LISTED = "patchrank study --help"  # shows all studies
NOTES = (
    "Top-1 in %, mean over seeds (least to most); differences in points on the same images, with "
    "95 % paired bootstrap intervals over images of the mean over seeds, one comparison at a time. "
    "1 - cosine: of the features to dense. Tau and match at k: agreement with the golden ranking that the line "
    "aims at, k being the patches kept."
)
SEED_NOTES = "Over seeds: the difference to first with Student's 95 % t interval over seeds instead."
_LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # lines may differ in
_MEANS = ("keep", "top1", "gflops", "cosine_distance", "tau", "match_at_k", "match_chance")
# Columns that narrower terminals do without.
_WIDE = ("GFLOPs", "over seeds", "1 - cosine", "tau", "match@k (chance)")
_FORMS = dict.fromkeys(_WIDE, FORMS[:1]) | {"to dense": FORMS[:2]}


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
    """One line of a study with what was measured on one dataset."""

    labels: dict[str, str]  # what distinguishes it, by column
    group: float | str  # lines are compared with the first of the same group
    records: Sequence[Record]  # one per seed
    to_dense: Interval  # top-1, mean over seeds, minus that of the dense model
    to_first: Interval | None  # the same against the first line; None for the first itself
    p_dense: float  # exact p-value that it is as often right as the dense model
    p_first: float | None  # the same against the first line; None for the first itself
    # the difference to first with Student's t interval over seeds, where both lines were tuned
    # from the same seeds
    over_seeds: Interval | None = None

    def mean(self, field: str) -> float | None:
        """Return the mean over seeds of a field of ``Record``, None where one lacks it."""
        values = [getattr(record, field) for record in self.records]
        return None if None in values else float(np.mean(values))


def entries(lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record) -> list[Entry]:
    """Compare lines (labels, group, a record per seed) with the dense model and with the first.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    first_of: dict[float | str, Sequence[Record]] = {}
    compared = []
    for labels, group, records in lines:
        right = _hits(records) / len(records)
        entry = Entry(
            labels=labels, group=group, records=records,
            to_dense=bootstrap_mean(right - dense.correct, seed=0), to_first=None,
            p_dense=_p(records, [dense]), p_first=None,
        )  # fmt: skip
        if (first := first_of.setdefault(group, records)) is not records:
            entry = replace(
                entry,
                to_first=bootstrap_mean(right - _hits(first) / len(first), seed=0),
                p_first=_p(records, first),
                over_seeds=_over_seeds(records, first),
            )
        compared.append(entry)
    return compared


def _hits(records: Sequence[Record]) -> NDArray[np.int64]:
    """Return (image_count,) for how many seeds each image was right."""
    counts: NDArray[np.int64] = np.sum([record.correct for record in records], axis=0)
    return counts


def _p(records: Sequence[Record], others: Sequence[Record]) -> float:
    return paired_p(_hits(records), _hits(others), len(records), len(others))


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
        lines = list(enumerate(self.entries))
        return {
            "to dense": together({at: entry.p_dense for at, entry in lines}),
            "to first": together({at: entry.p_first for at, entry in lines}),
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
            for head, family in families.items():
                cells[head] = Cell(cells[head], cells[head].value, family.mark(at))
            lines.append(cells)
        heads = [head for head in lines[0] if any(line[head] != UNMEASURED for line in lines)]
        columns = [Column(heading=head, left=head in labels, forms=_FORMS.get(head, FORMS)) for head in heads]
        rows = [[line[head] for head in heads] for line in lines]
        starts = frozenset(at for at, entry in enumerate(self.entries) if entry.to_first is None)
        several = any(len(entry.records) > 1 for entry in self.entries)
        note = mark_note(SIGN_FLIP if several else MCNEMAR, "all of a column")
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
                "top1_to_dense": entry.to_dense,
                "top1_to_first": entry.to_first,
                "top1_to_first_over_seeds": entry.over_seeds,
                "p_to_dense": entry.p_dense,
                "p_to_dense_holm": families["to dense"].adjusted[at],
                "p_to_first": entry.p_first,
                "p_to_first_holm": families["to first"].adjusted.get(at),
                **{name: entry.mean(name) for name in _MEANS},
            }
            for at, entry in enumerate(self.entries)
        ]
        about = {
            "dataset": self.dense.dataset,
            "split": self.dense.split,
            "title": self.title,
            "images": self.dense.image_count,
            "dense": {name: getattr(self.dense, name) for name in _MEANS},
        }
        values: dict[str, Any] = json_values({**about, "lines": lines})
        return values


def _cells(entry: Entry) -> dict[str, Cell]:
    """Return a line's figures by heading."""
    top1 = [100 * float(record.correct.mean()) for record in entry.records]
    spread = f" ({min(top1):.1f}–{max(top1):.1f})" if len(top1) > 1 else ""
    match, chance = entry.mean("match_at_k"), entry.mean("match_chance")
    unmatched = match is None or chance is None
    return {
        "keep": Cell(f"{100 * entry.records[0].keep:.3g}"),
        "GFLOPs": _number(entry.mean("gflops"), ".3f"),
        "top-1": Cell(f"{np.mean(top1):.1f}{spread}"),
        "to dense": points(entry.to_dense),
        "to first": points(entry.to_first),
        "over seeds": points(entry.over_seeds),
        "1 - cosine": _number(entry.mean("cosine_distance"), ".4f"),
        "tau": _number(entry.mean("tau"), ".3f"),
        "match@k (chance)": UNMEASURED if unmatched else Cell(f"{match:.2f} ({chance:.2f})"),
    }


def _number(value: float | None, form: str) -> Cell:
    return UNMEASURED if value is None else Cell(format(value, form), value)


def make(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    datasets = [get_dataset(name) for name in config.datasets]
    shop = Workshop(config, tower_with_text(config.model), progress)
    # All before the first is measured: predictors know their tower by the weights as loaded.
    lines_of = {dataset.name: lines(study, shop, dataset) for dataset in datasets}
    for dataset in datasets:
        own = lines_of[dataset.name]
        records = _judged(bench_of(shop, dataset, own), dataset, own, known)
        (dense,), *others = records
        judged = [(one.labels, one.group, part) for one, part in zip(own, others, strict=True)]
        images = f"{dense.dataset} ({dense.split}, {dense.image_count} images)"
        conditions = f"{shop.tower.name}, {dense.dtype}; dense {100 * dense.correct.mean():.1f} %"
        title = f"{study.title}: {images}, {conditions}"
        sheet = Sheet(title=title, dense=dense, entries=entries(judged, dense))
        yield sheet, [record for group in records for record in group]


def lines(study: Study, shop: Workshop, dataset: Dataset) -> list[Line]:
    """Return the lines of a study on a dataset."""
    return list(study.lines(shop, dataset, shop.config.keeps or study.keeps))


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
        cost = costs([first], (), 1, bench.progress)[first.key]
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
    first = costs(rows, plan.batches, plan.rounds, bench.progress)
    same = {row.key: first[line.rows[0].key] for line in lines for row in line.rows}
    return {dense.key: first[dense.key]} | same
