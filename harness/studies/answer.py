"""Answers of studies: lines are judged on each dataset, and stand in a table beside dense and beside each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from harness.base.table import UNMEASURED, Cell, Table, estimate_cell
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import FINAL
from harness.datasets.few_shot import require_labels, require_unseen
from harness.learning.prompts import tuning_of
from harness.measure.bench import Bench
from harness.measure.plan import costs
from harness.measure.rows import Variant
from harness.measure.settings import Plan
from harness.records.averages import Average, describe_uncounted, fidelity_difference, judged_on, row_p, tower_of
from harness.records.metrics import METRICS
from harness.records.record import GOLDEN, Record, Tuning, refuse_mixed
from harness.records.statistics import (
    FLIPPED,
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    bootstrap_mean,
    exact,
    mark_note,
    mean_interval,
    together,
)
from harness.report.charts import Chart, Dot
from harness.studies.case import StudyCase, StudyInventory
from harness.studies.foreground import PROBE_SPLITS, fit_judge
from harness.studies.study import Study, StudyConfig, StudyLine
from zoo.core.digests import fingerprint
from zoo.core.settings import torch_dtype
from zoo.loading.towers import load_tower

NOTES = (
    "1 - cosine of the features to dense, and top-1 in %, mean over seeds; differences, of top-1 in points, on the "
    "same images, with 95 % paired bootstrap intervals over images of the mean over seeds, one comparison at a time. "
    "Tau and match at k: agreement with the golden ranking that the line aims at, k being the patches kept."
)
SEED_NOTES = "Over seeds: the difference to first with Student's 95 % t interval over seeds."
PATCH_NOTES = (
    "Per patch: 1 - cosine to dense, mean over patches. IoU: of the foreground in %, by a linear probe of single "
    "patches fitted to dense's features, and by one fitted to the row's own; differences in points."
)
# Differences that are tested, a family each, with the metric compared.
TESTED = {
    "distance_to_first": "cosine_distance", "to_dense": "top1", "to_first": "top1",
    "patches_to_first": "patch_distance", "iou_to_first": "foreground_iou", "own_iou_to_first": "foreground_iou_own",
}  # fmt: skip
DIFFERENCES = TESTED | {"over_seeds": "top1"}  # that of top-1 to first, where both lines were tuned from the same seeds
MEANS = (
    *("top1", "gflops", "cosine_distance", "tau", "match_at_k"),
    *("patch_distance", "foreground_iou", "foreground_iou_own"),
)
# Headings of metrics and differences, as they stand in a table.
HEADS = {
    "gflops": "GFLOPs", "cosine_distance": "1 - cos", "distance_to_first": "1 - cos to first",
    "patch_distance": "per patch", "patches_to_first": "per patch to first",
    "foreground_iou": "IoU", "iou_to_first": "IoU to first",
    "foreground_iou_own": "own IoU", "own_iou_to_first": "own IoU to first",
    "top1": "top-1", "to_dense": "to dense", "to_first": "to first", "over_seeds": "over seeds",
    "tau": "tau", "match_at_k": "match@k, %",
}  # fmt: skip
# Narrower terminals do without these.
WIDE = ("GFLOPs", "over seeds", "tau", "match@k, %", "per patch to first", "IoU to first", "own IoU to first")
ROOMY = ("top-1", "to dense", "to first")
LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # conditions that lines may differ in


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One line of a study with what was measured on one dataset.

    Differences are means over seeds on the same images; there is none of top-1 without labels, and none to itself.
    """

    labels: dict[str, str]  # what distinguishes it, by column
    group: float | str  # lines are compared with the first of the same group
    average: Average  # its records, one per seed
    differences: Mapping[str, tuple[Interval, float | None]]  # by name in `DIFFERENCES`, with the p-value

    @property
    def records(self) -> tuple[Record, ...]:
        """One per seed."""
        return self.average.records

    def difference(self, name: str) -> Interval | None:
        """Return a difference by its name in `DIFFERENCES`."""
        return self.differences.get(name, (None,))[0]

    def cell(self, name: str) -> Cell:
        """Show a metric, or a difference with its interval."""
        if name not in DIFFERENCES:
            return estimate_cell(self.average.mean(name), METRICS[name].text)
        form = f"+{METRICS[DIFFERENCES[name]].form}"
        return estimate_cell(self.difference(name), lambda value: format(value, form).removesuffix("%"))


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """What a study measured on one dataset: the dense model's record, and a row per line."""

    title: str
    dense: Record
    rows: Sequence[StudyRow]

    @classmethod
    def of(
        cls, title: str, dense: Record, lines: Iterable[tuple[dict[str, str], float | str, Sequence[Record]]]
    ) -> "StudyTable":
        """Compare lines (labels, group, a record per seed) with the dense model and with the first of their group.

        Raises:
            ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
        """
        lines = list(lines)
        refuse_mixed([dense, *(record for _, _, records in lines for record in records)], varying=LEARNED)
        base, first_of, rows = Average(records=(dense,)), dict[float | str, Average](), []
        for labels, group, records in lines:
            row = Average(records=tuple(records))
            first = first_of.setdefault(group, row)
            rows.append(StudyRow(labels=labels, group=group, average=row, differences=_differences(row, first, base)))
        top1 = f"; dense {100 * dense.correct.mean():.1f} %" if dense.labelled else ""
        if (iou := dense.mean("foreground_iou")) is not None:
            top1 += f"; dense IoU {100 * iou:.1f} %"
        return cls(
            title=f"{title}: {_images(dense)}, {tower_of(dense)}, {dense.precision}{top1}", dense=dense, rows=rows
        )

    def families(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by row."""
        every = {name: [row.differences.get(name, (None, None))[1] for row in self.rows] for name in TESTED}
        return {name: together(dict(enumerate(p_values))) for name, p_values in every.items()}

    def table(self) -> Table:
        """Lay out the rows; differences that are clear when their column is judged together have marks.

        Columns of what wasn't measured are left out.
        """
        labels = list(dict.fromkeys(name for row in self.rows for name in row.labels))
        columns = {name: [Cell(row.labels.get(name, "")) for row in self.rows] for name in labels}
        columns["keep"] = [Cell(f"{100 * row.average.keep:.3g}") for row in self.rows]
        families = self.families()
        for name, head in HEADS.items():
            cells = [row.cell(name) for row in self.rows]
            if name in TESTED:
                cells = [Cell(cell, cell.value, families[name].mark(at)) for at, cell in enumerate(cells)]
            columns[head] = cells
        columns = {head: cells for head, cells in columns.items() if any(cell != UNMEASURED for cell in cells)}
        several = any(len(row.records) > 1 for row in self.rows)
        tests = [*([SIGN_FLIP if several else MCNEMAR] if self.dense.labelled else []), FLIPPED]
        uncounted = describe_uncounted(self.dense, *(row.records[0] for row in self.rows))
        notes = [NOTES]
        notes += [note for head, note in (("over seeds", SEED_NOTES), ("per patch", PATCH_NOTES)) if head in columns]
        notes += [f"{mark_note(' or '.join(tests), 'all of a column')}.", *([f"{uncounted}."] if uncounted else [])]
        begins = {row.group: at for at, row in reversed(list(enumerate(self.rows)))}
        rows = list(zip(*columns.values(), strict=True))
        return Table.of(
            self.title, list(columns), rows, words=labels, wide=WIDE, roomy=ROOMY,
            caption=" ".join(notes), sections=frozenset(begins.values()),
        )  # fmt: skip

    def chart(self, x: str, *series: str, accuracy: bool = False) -> Chart:
        """Draw 1 - cosine to dense, or the difference of top-1 where lines lack it, against a column of numbers.

        With ``accuracy`` it is top-1 in any case. Lines with the same labels in the columns ``series`` are joined;
        those without an x are left out.
        """
        distance = METRICS["cosine_distance"]
        near = not accuracy and all(row.average.mean(distance.name) is not None for row in self.rows)
        dots: dict[str, list[Dot]] = {}
        for row in self.rows:
            at = {"keep": 100 * row.average.keep, "GFLOPs": row.average.mean("gflops"), **row.labels}[x]
            y = row.average.estimate(distance) if near else row.difference("to_dense")
            if at is None or not isinstance(y, Interval):
                continue
            height = y if near else Interval(*(100 * end for end in y))
            name = " ".join(filter(None, (row.labels.get(column) for column in series)))
            dots.setdefault(name, []).append(Dot(exact(float(at)), height))
        y_label = "1 - cosine to dense" if near else "top-1 to dense, points"
        return Chart(title=_images(self.dense), x_label=x, y_label=y_label, series=dots, log=near)

    def lines(self) -> list[dict[str, Any]]:
        """Return the rows for CSV and JSON; numbers have six digits, None stands for no measurement.

        Without features per patch there are no columns of them.
        """
        families, lines = self.families(), []
        patches = any(row.average.mean("patch_distance") is not None for row in self.rows)
        common = {name: getattr(self.dense, name) for name in ("dataset", "split", "image_count", "precision")}
        for at, row in enumerate(self.rows):
            match = row.average.measured("match_at_k")
            figures: dict[str, Any] = {"keep": row.average.keep} | {name: row.average.mean(name) for name in MEANS}
            figures["match_chance"] = None if match is None else match.chance
            for name in DIFFERENCES:
                ends = row.difference(name) or [None] * 3
                figures |= zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
            figures |= {f"{name}_p_holm": family.adjusted.get(at) for name, family in families.items()}
            figures = {
                name: None if value is None else float(f"{value:.6g}")
                for name, value in figures.items()
                if patches or not ("patch" in name or "iou" in name)
            }
            lines.append(common | row.labels | {"group": row.group, "seeds": len(row.records)} | figures)
        return lines


def _differences(row: Average, first: Average, dense: Average) -> dict[str, tuple[Interval, float | None]]:
    """Compare a row with the dense model by top-1, and with the first of its group."""
    differences: dict[str, tuple[Interval, float | None]] = {}
    references = {"to_dense": dense} | ({} if first is row else {"to_first": first})
    for name, reference in references.items() if dense.first.labelled else ():
        differences[name] = bootstrap_mean(row.shares - reference.shares), row_p(row, reference)
    if first is row:
        return differences
    for name, metric in TESTED.items():
        if metric != "top1" and (difference := fidelity_difference(row, first, METRICS[metric])) is not None:
            differences[name] = difference
    seeds, first_seeds = ([record.seed for record in line.records if record.tuning] for line in (row, first))
    if seeds == first_seeds and len(seeds) > 1:
        pairs = zip(row.records, first.records, strict=True)
        differences["over_seeds"] = mean_interval([float(a.correct.mean() - b.correct.mean()) for a, b in pairs]), None
    return differences


def _images(dense: Record) -> str:
    return f"{dense.dataset} ({judged_on(dense)}, {dense.image_count} images)"


def take_inventory(study: Study, config: StudyConfig, progress: Progress) -> list[dict[str, Any]]:
    """Count the rankings, predictors and prompts of a study that the user's cache has and lacks; make nothing."""
    counts: dict[tuple[str, str], list[int]] = {}
    for case in _cases(study, config, progress, partial(StudyInventory, counts=counts)):
        list(study.lines(case))
    return [
        {"kind": kind, "of": subject, "cached": cached, "missing": missing}
        for (kind, subject), (cached, missing) in counts.items()
    ]


def answer(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress, folder: Path | None = None
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept. ``folder`` is for outputs of a run that is
    stopped.

    Raises:
        ValueError: a tower without text tower, or something that can't be made.
    """
    cases = _cases(study, config, progress)
    with progress.task(f"study {study.name}, datasets", len(cases)) as update:
        # All is made before the first is measured: predictors know their tower by the weights as loaded.
        every = [list(study.lines(case)) for case in cases]
        for done, (case, lines) in enumerate(zip(cases, every, strict=True), start=1):
            bench, dense = _bench(case, lines, study.foreground, known, folder)
            plain = {dense.key: dense} | {row.key: row for line in lines if not line.prompts for row in line.rows}
            judged = bench.judge(Tuning(seed=bench.plan.seed), list(plain.values()), {})
            by_key = dict(zip(plain, judged, strict=True))
            records = [
                _judge_tuned(bench, line) if line.prompts else [by_key[row.key] for row in line.rows] for line in lines
            ]
            rows = [(line.labels, line.group, group) for line, group in zip(lines, records, strict=True)]
            yield StudyTable.of(study.title, judged[0], rows), [judged[0], *chain.from_iterable(records)]
            bench.outputs.forget()  # records are written by now
            update(done)


def _cases(
    study: Study, config: StudyConfig, progress: Progress, make: Callable[..., StudyCase] = StudyCase
) -> list[StudyCase]:
    """Return the datasets that a study can do something with, each as a case.

    Raises:
        ValueError: no dataset has the labels that it needs, or one is judged by images that tokens are learned from.
    """
    tower, datasets = load_tower(config.model), [get_dataset(name) for name in config.datasets]
    tower.require_clip()
    usable = [dataset for dataset in datasets if dataset.labelled or not study.labels]
    for dataset in datasets:
        if dataset not in usable:
            progress.say(f"left out: {dataset.name} has no labels, which study {study.name} needs")
        elif study.tunes:
            require_unseen(dataset, config.split)
    if study.foreground and config.split in PROBE_SPLITS:
        raise ValueError(f"--split {config.split}: probes of foreground are fitted or chosen by it; expected test")
    if not usable:
        require_labels(datasets[0], f"study {study.name}")
    if config.split == FINAL:
        usable = [dataset.released() for dataset in usable]
    config = replace(config, datasets=tuple(dataset.name for dataset in usable))
    weights, keeps, made = fingerprint(tower.vit), config.keeps or study.keeps, dict[Any, Any]()
    return [make(config, tower, weights, dataset, keeps, progress, made) for dataset in usable]


def _bench(
    case: StudyCase, lines: Sequence[StudyLine], foreground: bool, known: Sequence[Record], folder: Path | None
) -> tuple[Bench, Variant]:
    """Return a bench of the dense model and all lines that knows what they cost, and the dense model."""
    config = case.config
    plan = Plan(
        models=(config.model,), methods=(), datasets=(case.dataset.name,), limit=config.limit, split=config.split,
        seed=config.fit.seed, device=config.device, precision=config.precision, batches=config.batches,
    )  # fmt: skip
    dense = case.untuned(1.0)
    rows = [dense, *{row.key: row for line in lines for row in line.rows}.values()]
    real_rows = [row for row in rows if row.method != GOLDEN]
    fit_probes = partial(fit_judge, case.dataset, real_rows, case.tower.preprocess, case.progress)
    bench = Bench(
        plan, case.dataset, case.tower, rows, case.weights, case.progress, known,
        folder=folder, fit_probes=fit_probes if foreground else None,
    )  # fmt: skip
    # Other seeds cost the same as the first.
    first = costs([dense, *(line.rows[0] for line in lines)], plan.timed_batches, plan.rounds, case.progress)
    bench.costs = {row.key: first[line.rows[0].key] for line in lines for row in line.rows}
    bench.costs |= {dense.key: first[dense.key]}
    return bench, dense


def _judge_tuned(bench: Bench, line: StudyLine) -> list[Record]:
    """Judge each row of a line by its prompts; what it costs is counted once."""
    first = replace(line.rows[0], vit=line.prompts[0].vit)
    bench.prompted_costs = {}
    if first.prompted:
        cost = costs([first], (), 0, bench.progress)[first.key]
        bench.prompted_costs = {row.key: cost for row in line.rows}
    records = []
    for row, tuned in zip(line.rows, line.prompts, strict=True):
        tuned.vit.to(bench.plan.device, torch_dtype(bench.plan.precision))
        records += bench.judge(tuning_of(tuned.file), [row], {row.key: tuned})
    return records
