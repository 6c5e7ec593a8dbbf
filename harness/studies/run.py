"""Find studies by name and make them: judge their lines on each dataset, and lay out tables."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from harness.console.table import json_values
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
from harness.studies import predictors, pruning, tuning
from harness.studies.workshop import Line, Study, StudyConfig, Workshop
from zoo.reducer import expected

LISTED = "patchrank study list"  # shows all studies
NOT_MEASURED = "–"
_LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # lines may differ in
NOTES = (
    "Top-1 in %, mean over seeds (least to most); differences in points on the same images, with "
    "95 % paired bootstrap intervals over images of the mean over seeds, one comparison at a time. "
    "Cosine to dense features. Tau and match at k: agreement with the golden ranking that the line "
    "aims at, k being the patches kept."
)
SEED_NOTES = (
    "Over seeds: the difference to first with Student's 95 % t interval over seeds instead."
)


@functools.cache
def list_studies() -> dict[str, Study]:
    """Return all studies by name, sorted."""
    studies = [
        value
        for module in (predictors, pruning, tuning)
        for value in vars(module).values()
        if isinstance(value, Study)
    ]
    return {one.name: one for one in sorted(studies, key=lambda one: one.name)}


def get_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        ValueError: no study has it.
    """
    studies = list_studies()
    if name not in studies:
        raise ValueError(f"study {name!r}: {expected(name, studies, shown_by=LISTED)}")
    return studies[name]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a study with what was measured on one dataset.

    Attributes:
        labels: what distinguishes it, by column.
        group: what the line stands for; it is compared with the first of the same.
        records: one per seed.
        to_dense: top-1, mean over seeds, minus that of the dense model.
        to_first: the same against the first line; None for the first itself.
        p_dense: exact p-value that it is as often right as the dense model, see
            `judging.paired_p`.
        p_first: the same against the first line; None for the first itself.
        over_seeds: the difference to first with Student's t interval over seeds, where both lines
            were tuned from the same seeds.
    """

    labels: dict[str, str]
    group: float | str
    records: Sequence[Record]
    to_dense: Interval
    to_first: Interval | None
    p_dense: float
    p_first: float | None
    over_seeds: Interval | None = None

    def mean(self, field: str) -> float | None:
        """Return the mean over seeds of a field of ``Record``, None where one lacks it."""
        values = [getattr(record, field) for record in self.records]
        return None if None in values else float(np.mean(values))


def entries(
    lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record
) -> list[Entry]:
    """Compare lines with the dense model and with the first line of their keep rate.

    Args:
        lines: labels, what they stand for and records, each in the order of its seeds.
        dense: the dense model's record.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    first_of: dict[float | str, Sequence[Record]] = {}
    compared = []
    for labels, group, records in lines:
        begins = group not in first_of
        first = first_of.setdefault(group, records)
        right, reference = _hits(records) / len(records), _hits(first) / len(first)
        compared.append(
            Entry(
                labels=labels,
                group=group,
                records=records,
                to_dense=bootstrap_mean(right - dense.correct, seed=0),
                to_first=None if begins else bootstrap_mean(right - reference, seed=0),
                p_dense=_p(records, [dense]),
                p_first=None if begins else _p(records, first),
                over_seeds=None if begins else _over_seeds(records, first),
            )
        )
    return compared


def _hits(records: Sequence[Record]) -> NDArray[np.int64]:
    """(image_count,) for how many seeds each image was right."""
    counts: NDArray[np.int64] = np.sum([record.correct for record in records], axis=0)
    return counts


def _p(records: Sequence[Record], others: Sequence[Record]) -> float:
    return paired_p(_hits(records), _hits(others), len(records), len(others))


def _over_seeds(records: Sequence[Record], first: Sequence[Record]) -> Interval | None:
    seeds = [[r.seed for r in group if r.tuning is not None] for group in (records, first)]
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        return None
    return mean_interval([a.top1 - b.top1 for a, b in zip(records, first, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The table of one study on one dataset.

    Attributes:
        study: name of the study.
        title: what it is about, and on what.
        dense: the dense model's record.
        entries: its lines.
    """

    study: str
    title: str
    dense: Record
    entries: Sequence[Entry]

    def cells(self, *, marked: bool = False) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows as text, columns that nothing was measured for left out.

        ``marked``: differences that are clear with all of their column judged together are.
        """
        labels = list(dict.fromkeys(name for entry in self.entries for name in entry.labels))
        columns: dict[str, Callable[[Entry], str]] = {
            name: lambda entry, name=name: entry.labels.get(name, "")  # type: ignore[misc]
            for name in labels
        }
        columns |= _COLUMNS
        rows = [[show(entry) for show in columns.values()] for entry in self.entries]
        for head, family in self.judged().items() if marked else ():
            at = list(columns).index(head)
            for number, row in enumerate(rows):
                row[at] = row[at].replace(" ", family.mark(number) or " ", 1)
        kept = [i for i in range(len(columns)) if any(row[i] != NOT_MEASURED for row in rows)]
        heads = list(columns)
        return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]

    def judged(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by line."""
        lines = list(enumerate(self.entries))
        return {
            "to dense": together({at: entry.p_dense for at, entry in lines}),
            "to first": together({at: entry.p_first for at, entry in lines}),
        }

    def table(self) -> Table:
        """Lay it out for the terminal, with marks."""
        several = any(len(entry.records) > 1 for entry in self.entries)
        note = mark_note(SIGN_FLIP if several else MCNEMAR, "all of a column")
        table = Table(title=self.title, caption=f"{NOTES} {note}.{self._uncounted()}")
        heads, rows = self.cells(marked=True)
        for head in heads:
            table.add_column(head, justify="right" if head in _COLUMNS else "left", no_wrap=True)
        for entry, row in zip(self.entries, rows, strict=True):
            if entry.to_first is None:
                table.add_section()
            table.add_row(*row)
        return table

    def _uncounted(self) -> str:
        """Say which operators the multiply-adds lack."""
        text = uncounted(self.dense, *(entry.records[0] for entry in self.entries))
        return f" {text}." if text else ""

    def data(self) -> dict[str, Any]:
        """Return it as JSON values: what was measured, whether or not the table has a column."""
        place = {"dataset": self.dense.dataset, "split": self.dense.split, "title": self.title}
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
        dense = {name: getattr(self.dense, name) for name in _MEANS}
        measured = {"images": self.dense.image_count, "dense": dense, "lines": lines}
        values: dict[str, Any] = json_values(place | measured)
        return values

    def markdown(self) -> str:
        """Return it as a Markdown section, without marks."""
        heads, rows = self.cells()
        line = ["---:" if head in _COLUMNS else "---" for head in heads]
        body = ["| " + " | ".join(cells) + " |" for cells in (heads, line, *rows)]
        return "\n".join([f"### {self.title}", "", *body, ""])


_MEANS = ("keep", "top1", "gflops", "cosine_to_dense", "tau", "match_at_k", "match_chance")


def _top1(entry: Entry) -> str:
    values = [100 * record.top1 for record in entry.records]
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _points(difference: Interval | None) -> str:
    if difference is None:
        return NOT_MEASURED
    estimate, low, high = (100 * number for number in difference)
    return f"{estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


def _number(field: str, form: str) -> Callable[[Entry], str]:
    def show(entry: Entry) -> str:
        value = entry.mean(field)
        return NOT_MEASURED if value is None else format(value, form)

    return show


def _match(entry: Entry) -> str:
    value, chance = entry.mean("match_at_k"), entry.mean("match_chance")
    return NOT_MEASURED if value is None or chance is None else f"{value:.2f} ({chance:.2f})"


_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "keep": lambda entry: f"{100 * entry.records[0].keep:.3g}",
    "GFLOPs": _number("gflops", ".3f"),
    "top-1": _top1,
    "to dense": lambda entry: _points(entry.to_dense),
    "to first": lambda entry: _points(entry.to_first),
    "over seeds": lambda entry: _points(entry.over_seeds),
    "cosine": _number("cosine_to_dense", ".4f"),
    "tau": _number("tau", ".3f"),
    "match@k (chance)": _match,
}


def make(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Judge the lines of a study on each dataset.

    Rankings and predictors that are missing are made first, and kept.

    Yields:
        The table of a dataset, and the records behind it.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    datasets = [get_dataset(name) for name in config.datasets]
    shop = Workshop(config, tower_with_text(config.model), progress)
    # All before the first is measured: predictors know their tower by the weights as loaded.
    lines_of = {dataset.name: lines(study, shop, dataset) for dataset in datasets}
    for dataset in datasets:
        bench = bench_of(shop, dataset, lines_of[dataset.name])
        records = _judged(bench, dataset, lines_of[dataset.name], known)
        sheet = _sheet(study, lines_of[dataset.name], records, shop)
        yield sheet, [record for group in records for record in group]


def lines(study: Study, shop: Workshop, dataset: Dataset) -> list[Line]:
    """Return the lines of a study on a dataset.

    Raises:
        ValueError: a model that can't be made.
    """
    return list(study.lines(shop, dataset, shop.config.keeps or study.keeps))


def tower_with_text(model: str) -> Tower:
    """Load a tower that has a text tower.

    Raises:
        ValueError: an unknown name, or a tower without one.
    """
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
        models=(config.model,),
        methods=(),
        datasets=(dataset.name,),
        limit=config.limit,
        split=config.split,
        seed=config.fit.seed,
        device=config.device,
        dtype=config.dtype,
        batches=config.batches,
    )
    rows = [dense, *(row for line in lines for row in line.rows)]
    return Bench.around(plan, tower.clip, rows, tower.tag, shop.weights, shop.progress)


def plain_rows(bench: Bench, lines: Sequence[Line]) -> list[Variant]:
    """Return the dense model and the rows of lines without prompts, which are judged at once."""
    return [bench.rows[0], *(row for line in lines if not line.prompts for row in line.rows)]


def _judged(
    bench: Bench, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]
) -> list[list[Record]]:
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


def _sheet(
    study: Study, lines: Sequence[Line], records: Sequence[Sequence[Record]], shop: Workshop
) -> Sheet:
    judged = [(one.labels, one.group, own) for one, own in zip(lines, records[1:], strict=True)]
    first = records[0][0]
    title = (
        f"{study.title}: {first.dataset} ({first.split}, {first.image_count} images), "
        f"{shop.tower.name}, {first.dtype}; dense {100 * first.top1:.1f} %"
    )
    return Sheet(study=study.name, title=title, dense=first, entries=entries(judged, first))
