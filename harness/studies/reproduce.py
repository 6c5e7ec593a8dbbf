"""The paper's tables and figures: which line of ours is which row, and ours beside what the paper printed.

The paper's numbers are in ``paper.json``; what isn't known of them is None, never guessed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from harness.base.table import NOT_MEASURED, Table, figure, json_values
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.records.averages import Average, tower_of
from harness.records.record import DENSE
from harness.records.statistics import Interval, bootstrap_mean, exact, wilson_interval
from harness.studies.answer import StudyRow, StudyTable
from harness.studies.case import StudyCase
from harness.studies.questions import (
    WAYS,
    architectures,
    comma,
    early,
    four_points,
    percent,
    points,
    scores,
    transfer,
    tuning,
)
from harness.studies.study import PREDICTED, Study, StudyConfig, StudyLine, paper_tables, study
from zoo.core.learned import ARCHITECTURES
from zoo.core.reducer import METHODS, configure

MODEL = "clip_vit_b16.openai"
GENERAL = "imagenet"
JUDGED = "<judged>"  # in a label, stands for the dataset that is judged
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}
DEPTH = 12  # of a tower on which methods are asked whether they predict
WITHOUT_PREDICTOR = sorted(
    name
    for name, cls in METHODS.items()
    if cls.by_default and configure(name, {"keep": 0.5}, DEPTH).predictor_block(DEPTH) is None
)
STAGED = ("evit", "avit", "tome", "clsattn", "random")
FOUR_STAGES = (196 - 4 * 20) / 196  # keep rate of Table 4, 20 of 196 patches dropped at each block
TOP_100 = 0.51  # of 196 patches: 100
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)


# How a measure and a comparison of it are shown, and its unit.
MEASURES = {
    "top1": (".1f", "+.1f", "percent"),
    "match": (".1f", "+.1f", "percent"),
    "gflops": (".2f", ".3f", "1e9 multiply-adds"),
    "latency": (".3g", ".3f", "ms per image"),
}
MEAN = "mean"  # over all datasets
RATIOS = ("gflops", "latency")  # compared by dividing


def read(measure: str, row: Average, reference: Average | None = None) -> Interval | None:
    """Read a measure of a line, or compare the line with a ``reference``; None where nothing was measured.

    The result is a mean over seeds with a 95 % interval. Times are of the largest batch, with quartiles, or the ratio
    to dense in the same rounds.
    """
    if measure == "top1":
        right = row.shares if reference is None else row.shares - reference.shares
        if reference is None and len(row.records) == 1:
            return _percent(*wilson_interval(right))
        return _percent(*bootstrap_mean(right))
    if measure == "match":
        match = row.measured("match_at_k")
        return None if reference or match is None else _percent(match.mean, match.low, match.high)
    if measure == "gflops":
        count, other = row.mean("gflops"), 1.0 if reference is None else reference.mean("gflops")
        return None if count is None or other is None else exact(count / other)
    last = max(row.first.latency, key=lambda entry: entry.batch, default=None)
    if last is None or reference is not None:
        return None if last is None else last.ratio
    return Interval(*(ms / last.batch for ms in (last.median_ms, last.q1_ms, last.q3_ms)))


def _percent(*shares: float | None) -> Interval:
    return Interval(*(100 * share for share in shares if share is not None))


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row as the paper has it, or one of ours beside those: an entry of ``rows`` in ``paper.json``."""

    name: str  # heading
    columns: tuple[str, ...]  # datasets of the table
    labels: dict[str, str] = field(default_factory=dict)  # of the study's first such line; `JUDGED`: the judged dataset
    method: str | None = None  # the records'; ``dense`` without labels is the dense model
    keep: int | None = None  # the records', in percent; None for any
    against: str | None = None  # name of an earlier row that this one is compared with
    measure: str = "top1"  # what is read off, of `MEASURES`
    values: Sequence[float] = ()  # the paper's, by column, those that we know
    mean: float | None = None  # over the columns as printed, None where we don't know it
    source: str = ""  # table or figure; none where we know nothing of the row

    @property
    def by_dataset(self) -> dict[str, float]:
        """The paper's values that we know."""
        return dict(zip(self.columns, self.values, strict=False))

    def mean_over(self, datasets: Sequence[str]) -> float | None:
        """Return the mean over some of the paper's datasets, None unless each is known; of others the printed mean."""
        if not set(datasets) < set(self.columns):
            return self.mean
        known = [self.by_dataset.get(name) for name in datasets]
        return None if not known or None in known else float(np.mean(np.array(known, float)))

    def lines(self, tables: Mapping[str, StudyTable]) -> dict[str, Average]:
        """Return what was measured of the first line that fits the row, by dataset; none where no line fits."""
        if not self.labels and self.method == DENSE:  # which is a line of no study
            return {name: Average(records=(table.dense,)) for name, table in tables.items()}
        every = {name: [row for row in table.rows if self._fits(row, name)] for name, table in tables.items()}
        return {name: rows[0].average for name, rows in every.items() if rows}

    def _fits(self, row: StudyRow, dataset: str) -> bool:
        labels, first = {name: value.replace(JUDGED, dataset) for name, value in self.labels.items()}, row.records[0]
        keeps, methods = (None, round(100 * first.keep)), (None, first.method)
        return labels.items() <= row.labels.items() and self.method in methods and self.keep in keeps


def paper_rows(name: str, config: StudyConfig, depth: int) -> list[PaperRow]:
    """Return the rows of a table, some of which stand for several, in a tower of ``depth`` blocks."""
    variants = {
        "datasets": [{"dataset": dataset} for dataset in config.datasets],
        "networks": [{"network": arch} for arch in ARCHITECTURES if arch not in ("mlp", "transformer")],
        "others": [
            {"method": method, "percent": percent(keep)}
            for method, keep in product(WITHOUT_PREDICTOR, config.keeps or ())
        ],
    }
    block, page = config.golden.block, paper_tables()[name]
    common = {"all": " + ".join(config.datasets), "width": config.fit.width, "block": block, "once": block + 1}
    if name == "table7":
        common["best"] = comma(four_points(depth)[0])
    rows = []
    for entry in page["rows"]:
        for variant in variants[entry["each"]] if "each" in entry else [{}]:
            words = common | variant
            labels = {label: value.format(**words) for label, value in entry.get("labels", {}).items()}
            fields = {key: value for key, value in entry.items() if key != "each"}
            fields |= {"name": entry["name"].format(**words), "labels": labels, "columns": page["columns"]}
            rows.append(PaperRow(**fields))
    return rows


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table or measured figure: a study under the paper's conditions."""

    study: Study
    keeps: tuple[float, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of ``StudyConfig`` that are this table's
    joint: bool = False  # made of all datasets at once, as lines learn from other datasets
    plot: tuple[str, ...] = ()  # columns of a figure: the x axis, then what tells series apart
    general: str | None = None  # dataset whose predictor serves the others, too, which need nothing to learn from then

    def conditions(self, config: StudyConfig) -> StudyConfig:
        """Return a config with the table's own settings and keep rates."""
        return replace(config, keeps=self.keeps, **self.changes)

    def groups(self, config: StudyConfig) -> list[StudyConfig]:
        """Split a study by dataset, each with its own predictors, unless it is joint."""
        return [config] if self.joint else [replace(config, datasets=(name,)) for name in config.datasets]


@study("Methods that drop as many tokens at the same four blocks", (FOUR_STAGES,))
def stages(on: StudyCase) -> Iterator[StudyLine]:
    """Which method chooses best what goes, where and how much being the same?

    The dataset's own predictor is there if it has images for one, then ImageNet's.
    """
    at = four_points(on.depth)[0]
    sources = [on.dataset.images_of] if all(len(on.dataset.split(split)) for split in ("train", "val")) else []
    sources += [GENERAL] if GENERAL in on.config.datasets else []
    steps: dict[str, Any] = {"reduce_at": at, "schedule": "linear"}
    for keep in on.keeps:
        for source in dict.fromkeys(sources):
            models = on.predicted(on.predictors(on.golden(block=at[0]), [source]), keep, **steps)
            yield StudyLine({"method": PREDICTED, "fitted on": source}, models, keep)
        for method in STAGED:
            yield StudyLine({"method": method}, on.baseline(method, keep, **steps), keep)


@study("Cost of Patch Ranking", (0.6, 0.5))
def cost(on: StudyCase) -> Iterator[StudyLine]:
    """How much cheaper is a pruned tower, in multiply-adds and in time?"""
    predictors = on.predictors(on.golden(), [on.dataset.images_of])
    for keep in on.keeps:
        models = on.predicted(predictors, keep)
        yield StudyLine({"model": models[0].model}, models, keep)


@study(
    "Methods at equal GFLOPs, and Patch Ranking with learned tokens (paper: Figure 1)",
    (0.9, 0.8, 0.7, 0.6, 0.5),
    tunes=True,
)
def curves(on: StudyCase) -> Iterator[StudyLine]:
    """Is Patch Ranking ahead of other methods for the same cost, and how far ahead once it is tuned?"""
    predictors = on.predictors(on.golden())
    for keep in on.keeps:
        patchrank = on.predicted(predictors, keep)
        yield StudyLine({"for": percent(keep), "method": PREDICTED}, patchrank, keep)
        for method in WITHOUT_PREDICTOR:
            labels = {"for": percent(keep), "method": method}
            yield StudyLine(labels, on.baseline(method, keep, cost=patchrank[0]), keep)
    for way, tokens in WAYS.items():
        for keep in (1.0, *on.keeps) if tokens else ():
            model = on.untuned(keep)
            labels = {"for": percent(keep), "method": model.method, "tuned": way}
            yield on.tuned_line(labels, model, way, on.tuned(model, tokens=tokens))


OWN = {"own_predictors": True}
# Table 3 reports no accuracy, so few images will do.
COST = {"batches": (1, 32), "seeds": 1, "limit": 64, "train_limit": 64}
TABLES = {
    "figure1": PaperTable(study=curves, keeps=curves.keeps, changes=OWN, plot=("GFLOPs", "method", "tuned")),
    "figure5": PaperTable(study=early, keeps=(0.9, 0.8, 0.7, 0.6, 0.5), plot=("keep", "ranking")),
    "table1": PaperTable(study=scores, keeps=(0.8, 0.7, 0.6, 0.5, TOP_100)),
    "table2": PaperTable(study=transfer, keeps=(0.5,), joint=True),
    "table3": PaperTable(study=cost, keeps=cost.keeps, changes=COST),
    "table4": PaperTable(study=stages, keeps=stages.keeps, joint=True, general=GENERAL),
    "table5": PaperTable(study=tuning, keeps=(0.6,), changes=OWN),
    "table6": PaperTable(study=architectures, keeps=(0.6,)),
    "table7": PaperTable(study=points, keeps=(0.6,), changes=OWN),
}


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates with the interval that follows from theirs."""
    estimates, lows, highs = np.array(intervals).T
    mean, count = estimates.mean(), len(intervals)
    below, above = np.linalg.norm(estimates - lows), np.linalg.norm(highs - estimates)
    return Interval(float(mean), float(mean - below / count), float(mean + above / count))


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """What was measured for a row, and what the paper has, by dataset and as `MEAN` over all of them."""

    row: PaperRow
    unit: str
    ours: dict[str, Interval]
    to: dict[str, Interval]  # against the row's reference
    paper: dict[str, float | None]
    paper_to: float | None  # the mean against that of the row's reference

    def lines(self, datasets: Sequence[str], *, comparable: bool) -> Iterator[list[str]]:
        """Lay out ours, the paper's and, of figures that may be compared, the difference."""
        (form, relative, _), to = MEASURES[self.row.measure], self.to.get(MEAN)
        columns = [(self.ours.get(name), self.paper.get(name)) for name in (*datasets, MEAN)]
        by = _text(to, relative)
        yield [self.row.name, "ours", *(_text(ours, form) for ours, _ in columns), self.row.against or "", by]
        if not self.row.source:
            return
        yield ["", "paper", *(figure(theirs, form) for _, theirs in columns), "", figure(self.paper_to, relative)]
        off = [_minus(ours, theirs if comparable else None, form) for ours, theirs in columns]
        off += ["", _minus(to, self.paper_to, relative)]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]


def _text(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, *ends = (format(number, form) for number in value)
    return text if {*ends} == {text} else f"{text} [{', '.join(ends)}]"


def _minus(ours: Interval | None, theirs: float | None, form: str) -> str:
    return figure(None if ours is None or theirs is None else ours.estimate - theirs, f"+{form.removeprefix('+')}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper with what we measured, on all datasets done so far."""

    name: str
    tower: str
    results: Sequence[PaperResult]
    images: dict[str, int]  # number of judged images by dataset, in order

    @property
    def differences(self) -> list[str]:
        """Which of tower and data aren't the paper's; without any, figures may be compared."""
        alike = {"tower": self.tower == MODEL, "data": set(self.images) <= set(paper_tables()[self.name]["columns"])}
        return [what for what, same in alike.items() if not same]

    def table(self) -> Table:
        """Lay out what we have of each row, what the paper has, and the difference, with remarks and sources."""
        on = ", ".join(f"{name} ({count} images)" for name, count in self.images.items())
        title, other = f"{paper_tables()[self.name]['title']}; ours: {self.tower}, {on}", " and ".join(self.differences)
        if other:
            title += f"; NOT the paper's {other}: what differs is no failed reproduction"
        rows, sections = list[list[str]](), []
        for result in self.results:
            sections.append(len(rows))
            rows += result.lines([*self.images], comparable=not other)
        sources = sorted({result.row.source for result in self.results if result.row.source})
        notes = [*paper_tables()[self.name]["notes"], f"The paper's figures are from: {'; '.join(sources)}."]
        heads, words = ("", "whose", *self.images, MEAN, "compared with", "by"), {"", "whose", "compared with"}
        return Table.of(
            title, heads, rows, words=words, wide=set(self.images),
            caption=NOTES, sections=frozenset(sections), notes=notes,
        )  # fmt: skip

    def data(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        fields = {"name": self.name, "tower": self.tower, "images_by_dataset": self.images, "rows": self.results}
        values: dict[str, Any] = json_values({**fields, "comparable": not self.differences})
        return values


def compare_rows(name: str, config: StudyConfig, tables: Sequence[StudyTable]) -> Comparison:
    """Put what a study measured on some datasets beside the paper's rows."""
    by_dataset, dense = {table.dense.dataset: table for table in tables}, tables[0].dense
    results: dict[str, PaperResult] = {}
    lines: dict[str, dict[str, Average]] = {}
    for row in paper_rows(name, config, len(dense.tokens_per_block or ())):
        bases, reference = lines.get(row.against or "", {}), results.get(row.against or "")
        fitting = lines[row.name] = row.lines(by_dataset)
        ours = {dataset: read(row.measure, line) for dataset, line in fitting.items()}
        to = {name: read(row.measure, line, bases[name]) for name, line in fitting.items() if name in bases}
        mean, base = row.mean_over([*by_dataset]), None if reference is None else reference.paper[MEAN]
        paper_to = None
        if mean is not None and base is not None:
            paper_to = mean / base if row.measure in RATIOS else mean - base
        results[row.name] = PaperResult(
            row=row, unit=MEASURES[row.measure][2], ours=_add_mean(ours, by_dataset), to=_add_mean(to, by_dataset),
            paper={**row.by_dataset, MEAN: mean}, paper_to=paper_to,
        )  # fmt: skip
    images = {dataset: table.dense.image_count for dataset, table in by_dataset.items()}
    return Comparison(name=name, tower=tower_of(dense), results=[*results.values()], images=images)


def _add_mean(values: Mapping[str, Interval | None], datasets: Collection[str]) -> dict[str, Interval]:
    """Return what was measured, with the mean where each dataset has a value."""
    measured = {name: value for name, value in values.items() if value is not None}
    return measured | ({MEAN: mean_of([*measured.values()])} if measured and len(measured) == len(datasets) else {})


def require_readable(names: Sequence[str], table: PaperTable) -> None:
    """Refuse datasets that can't be read or lack a split that is needed, by one ValueError that names each.

    Datasets that the predictor of the table's ``general`` dataset serves need a test split only.
    """
    problems = []
    for name in names:
        served = table.general in names and name != table.general
        try:
            dataset = get_dataset(name)
            lacking = [split for split in USES if not len(dataset.split(split)) and (split == "test" or not served)]
            problems += [f"dataset {name!r} has no {split} images, which {USES[split]}" for split in lacking]
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
