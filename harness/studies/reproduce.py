"""The paper's tables and figures: which line of ours is which row, and ours beside what the paper printed.

The paper's numbers are in ``paper.json``; what isn't known of them is None, never guessed.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.apps.show import ShowConfig, find_subject, show
from harness.base.table import NOT_MEASURED, Table, figure, json_values
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import turns
from harness.records.record import DENSE, Record
from harness.records.statistics import Interval, bootstrap_mean, exact, wilson_interval
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.pictures import PatchSheet
from harness.report.writers import markdown
from harness.studies.questions import (
    WAYS,
    WITHOUT_PREDICTOR,
    architectures,
    baselines,
    comma,
    early,
    four_points,
    percent,
    points,
    scores,
    transfer,
    tuning,
)
from harness.studies.spec import PREDICTED, Study, StudyCase, StudyConfig, StudyLine, study, tuned_line
from harness.studies.tables import StudyRow, StudyTable
from harness.studies.workshop import Stock, answer, stock
from zoo.core.predictor import ARCHITECTURES

MODEL = "clip_vit_b16.openai"
GENERAL = "imagenet"
JUDGED = "<judged>"  # in a label, stands for the dataset that is judged
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}
STAGED = ("evit", "avit", "tome", "clsattn", "random")
FOUR_STAGES = (196 - 4 * 20) / 196  # keep rate of Table 4, 20 of 196 patches dropped at each block
TOP_100 = 0.51  # of 196 patches: 100
DENSE_GFLOPS = 17.58  # 1e9 multiply-adds of ViT-B/16 at 224, by our count, as are those of figure1's rows
PICTURES = {"figure3": None, "figure4": 0}  # the block that patches are removed before; None for the study's own
PICTURE_KEEPS = (0.9, 0.7, 0.5)
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)


class Printed(NamedTuple):
    """One row of the paper."""

    values: dict[str, float]  # by dataset; those that we know
    mean: float | None  # over ``columns`` as printed, None where we don't know it
    columns: tuple[str, ...]  # datasets of the row's table
    source: str  # table or figure

    def mean_over(self, datasets: Sequence[str]) -> float | None:
        """Return the mean over some of the paper's datasets, None unless each is known; of others the printed mean."""
        if not set(datasets) < set(self.columns):
            return self.mean
        if not datasets or any(name not in self.values for name in datasets):
            return None
        return sum(self.values[name] for name in datasets) / len(datasets)


class PaperPage(NamedTuple):
    """What is known of a table or figure of the paper."""

    title: str
    notes: tuple[str, ...]  # remarks on the paper's figures, or on ours
    datasets: tuple[str, ...]
    axis: str  # what a figure is drawn along
    rows: list[dict[str, Any]]  # in order: which line of ours each is, and what the paper printed


@functools.cache
def paper(name: str) -> PaperPage:
    """Return what is known of a table or figure."""
    content = json.loads(Path(__file__).with_name("paper.json").read_text("utf-8"))
    page = content["tables"][name]
    columns = tuple(content["columns"][page["columns"]])
    return PaperPage(page["title"], tuple(page["notes"]), columns, page.get("axis", ""), page["rows"])


class Measure(NamedTuple):
    """How to read the records of one line, one per seed, or to compare them with another's if these are given.

    Either is a mean over seeds with a 95 % interval, None where it wasn't measured.
    """

    read: Callable[..., Interval | None]
    form: str  # of a number
    relative: str  # of a comparison
    unit: str


def _right(records: Sequence[Record]) -> np.ndarray:
    """Return (images,) float, for what share of the seeds each image was right."""
    right: np.ndarray = np.mean([record.correct for record in records], axis=0)
    return right


def _percent(*shares: float) -> Interval:
    return Interval(*(100 * float(share) for share in shares))


def _top1(records: Sequence[Record], reference: Sequence[Record] | None = None) -> Interval:
    if reference is not None:
        return _percent(*bootstrap_mean(_right(records) - _right(reference), seed=0))
    if len(records) == 1:
        hits = records[0].correct
        return _percent(float(hits.mean()), *wilson_interval(int(hits.sum()), hits.size))
    return _percent(*bootstrap_mean(_right(records), seed=0))


def _match(records: Sequence[Record], reference: Sequence[Record] | None = None) -> Interval | None:
    values = [record.interval("match_at_k") for record in records]
    return None if reference or None in values else _percent(*np.mean(np.array(values, float), axis=0))


def _gflops(records: Sequence[Record], reference: Sequence[Record] | None = None) -> Interval | None:
    """Return the multiply-adds, by those of a reference where there is one."""
    count, other = (1.0 if own is None else own[0].mean("gflops") for own in (records, reference))
    return None if count is None or other is None else exact(count / other)


def _latency(records: Sequence[Record], reference: Sequence[Record] | None = None) -> Interval | None:
    """Return the time per image in the largest batch with its quartiles, or its ratio to dense in the same rounds."""
    last = max(records[0].latency or (), key=lambda entry: entry.batch, default=None)
    if last is None or reference is not None:
        return None if last is None else last.ratio
    return Interval(*(ms / last.batch for ms in (last.median_ms, last.q1_ms, last.q3_ms)))


MEASURES = {
    "top1": Measure(_top1, ".1f", "+.1f", "percent"),
    "match": Measure(_match, ".1f", "+.1f", "percent"),
    "gflops": Measure(_gflops, ".2f", ".3f", "1e9 multiply-adds"),
    "latency": Measure(_latency, ".3g", ".3f", "ms per image"),
}
RATIOS = ("gflops", "latency")  # compared by dividing


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row as the paper has it, or one of ours beside those."""

    name: str  # heading; the paper's figures go by it
    labels: dict[str, str]  # of the study's line, `JUDGED` for the dataset that is judged; the first such line is taken
    method: str | None = None  # the records'; ``dense`` without labels is the dense model
    keep: int | None = None  # the records', in percent; None for any
    against: str | None = None  # name of an earlier row that this one is compared with
    measure: str = "top1"  # what is read off, of `MEASURES`
    empty: str = ""  # why there is nothing of ours
    place: float | None = None  # on a figure's axis; None for the share of the dense tower's multiply-adds
    paper_place: float | None = None  # of the paper's point; None for no such point
    printed: Printed | None = None  # None where we know nothing of the row

    def records(self, tables: Mapping[str, StudyTable]) -> dict[str, Sequence[Record]]:
        """Return the records that the row is made of, by dataset; none where no line fits."""
        if not self.labels and self.method == DENSE:  # which is a line of no study
            return {name: [table.dense] for name, table in tables.items()}
        every = {name: [row for row in table.rows if self._fits(row, name)] for name, table in tables.items()}
        return {name: rows[0].records for name, rows in every.items() if rows}

    def _fits(self, row: StudyRow, dataset: str) -> bool:
        labels, first = {name: value.replace(JUDGED, dataset) for name, value in self.labels.items()}, row.records[0]
        return (
            labels.items() <= row.labels.items()
            and self.method in (None, first.method)
            and self.keep in (None, round(100 * first.keep))
        )


def paper_rows(name: str, config: StudyConfig, depth: int) -> list[PaperRow]:
    """Return the rows of a table, some of which stand for several, in a tower of ``depth`` blocks."""
    every = {
        "datasets": [{"dataset": dataset} for dataset in config.datasets],
        "networks": [{"network": arch} for arch in ARCHITECTURES if arch not in ("mlp", "transformer")],
        "others": [
            {"method": method, "percent": percent(keep)}
            for method, keep in product(WITHOUT_PREDICTOR, config.keeps or ())
        ],
    }
    block = config.golden.block
    common = {"all": " + ".join(config.datasets), "width": config.fit.width, "block": block, "once": block + 1}
    if name == "table7":
        common["best"] = comma(four_points(depth)[0])
    rows, columns = [], paper(name).datasets
    for row in paper(name).rows:
        if row.get("depth", 0) > depth or ("several" in row and len(config.datasets) < 2):
            continue
        needed = row.get("needs", config.datasets[0])
        known = ("method", "keep", "against", "measure", "place", "paper_place")
        facts: dict[str, Any] = {key: row[key] for key in known if key in row}
        facts["empty"] = "" if needed in config.datasets else f"needs {needed} among --dataset"
        if "gflops" in row:
            facts["paper_place"] = row["gflops"] / DENSE_GFLOPS
        if "source" in row:
            values = dict(zip(columns, row.get("values", ()), strict=False))
            mean = row["mean"] if "mean" in row else sum(values.values()) / len(values)
            facts["printed"] = Printed(values, mean, columns, row["source"])
        for one in every[row["each"]] if "each" in row else [{}]:
            words = common | one
            labels = {label: value.format(**words) for label, value in row.get("labels", {}).items()}
            rows.append(PaperRow(name=row["name"].format(**words), labels=labels, **facts))
    return rows


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table or measured figure: a study under the paper's conditions."""

    name: str
    study: Study
    keeps: tuple[float, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of ``StudyConfig`` that are this table's
    joint: bool = False  # made of all datasets at once, as lines learn from other datasets
    single: bool = False  # the first dataset will do
    general: str | None = None  # dataset whose predictor serves the others, too, which need nothing to learn from then

    def conditions(self, config: StudyConfig) -> StudyConfig:
        """Return a config with the table's own settings and keep rates."""
        datasets = config.datasets[:1] if self.single else config.datasets
        return replace(config, keeps=self.keeps, datasets=datasets, **self.changes)

    def groups(self, config: StudyConfig) -> list[StudyConfig]:
        """Split a study by dataset, each with its own predictors, unless it is joint."""
        return [config] if self.joint else [replace(config, datasets=(name,)) for name in config.datasets]


@study("Methods that drop as many tokens at the same four blocks", (FOUR_STAGES,))
def stages(on: StudyCase) -> Iterator[StudyLine]:
    """Which method chooses best what goes, where and how much being the same?

    The dataset's own predictor is there if it has images for one, then ImageNet's.
    """
    at = four_points(on.depth)[0]
    own = [on.dataset.images_of] if all(len(on.dataset.split(split)) for split in ("train", "val")) else []
    general = [GENERAL] if GENERAL in on.config.datasets else []
    steps: dict[str, Any] = {"reduce_at": at, "schedule": "linear"}
    for keep in on.keeps:
        for source in dict.fromkeys([*own, *general]):
            models = on.predicted(on.predictors(on.golden(block=at[0]), [source]), keep, **steps)
            yield StudyLine({"method": PREDICTED, "fitted on": source}, models, keep)
        for method in STAGED:
            yield StudyLine({"method": method}, on.baseline(method, keep, **steps), keep)


@study("Cost of Patch Ranking", (0.6, 0.5))
def cost(on: StudyCase) -> Iterator[StudyLine]:
    """How much cheaper is a pruned tower, in multiply-adds and in time?"""
    predictors = on.predictors(on.golden(), [on.dataset.images_of])
    for keep in on.keeps:
        yield StudyLine({"model": lambda row: row.model}, on.predicted(predictors, keep), keep)


@study(
    "Methods at equal GFLOPs, and Patch Ranking with learned tokens (paper: Figure 1)",
    (0.9, 0.8, 0.7, 0.6, 0.5),
    tunes=True,
)
def curves(on: StudyCase) -> Iterator[StudyLine]:
    """Is Patch Ranking ahead of other methods for the same cost, and how far ahead once it is tuned?"""
    yield from baselines.lines(on)
    for way, tokens in WAYS.items():
        for keep in (1.0, *on.keeps) if tokens else ():
            model = on.untuned(keep)
            labels = {"for": percent(keep), "method": model.method, "tuned": way}
            yield tuned_line(labels, model, way, on.tuned(model, tokens=tokens))


OWN = {"own_predictors": True}
# Table 3 reports no accuracy, so few images will do.
COST = {"batches": (1, 32), "seeds": 1, "limit": 64, "train_limit": 64}
TABLES = {
    one.name: one
    for one in (
        PaperTable(name="figure1", study=curves, keeps=curves.keeps, changes=OWN),
        PaperTable(name="figure5", study=early, keeps=(0.9, 0.8, 0.7, 0.6, 0.5)),
        PaperTable(name="table1", study=scores, keeps=(0.8, 0.7, 0.6, 0.5, TOP_100)),
        PaperTable(name="table2", study=transfer, keeps=(0.5,), joint=True),
        PaperTable(name="table3", study=cost, keeps=cost.keeps, changes=COST, single=True),
        PaperTable(name="table4", study=stages, keeps=stages.keeps, joint=True, general=GENERAL),
        PaperTable(name="table5", study=tuning, keeps=(0.6,), changes=OWN),
        PaperTable(name="table6", study=architectures, keeps=(0.6,)),
        PaperTable(name="table7", study=points, keeps=(0.6,), changes=OWN),
    )
}


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates with the interval that follows from theirs."""
    estimates, lows, highs = np.array(intervals).T
    mean, count = estimates.mean(), len(intervals)
    below, above = np.linalg.norm(estimates - lows), np.linalg.norm(highs - estimates)
    return Interval(float(mean), float(mean - below / count), float(mean + above / count))


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """What was measured for a row."""

    row: PaperRow
    ours: dict[str, Interval]  # by dataset, those that were measured
    to: dict[str, Interval]  # by dataset, against the row's reference
    reference: Printed | None  # the paper's row that this one is compared with, None where we know nothing of it
    share: float | None  # multiply-adds by the dense tower's; None where not counted

    def paper_to(self, datasets: Sequence[str]) -> float | None:
        """Return the paper's mean over datasets against that of the row's reference."""
        ours, theirs = (None if one is None else one.mean_over(datasets) for one in (self.row.printed, self.reference))
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.row.measure in RATIOS else ours - theirs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper with what we measured, on all datasets done so far."""

    name: str
    tower: str
    results: tuple[PaperResult, ...]
    images: dict[str, int]  # number of judged images by dataset, in order

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of those that were judged."""
        return tuple(self.images)

    @property
    def differences(self) -> list[str]:
        """Which of tower and data aren't the paper's; without any, figures may be compared."""
        alike = {"tower": self.tower == MODEL, "data": set(self.datasets) <= set(paper(self.name).datasets)}
        return [what for what, same in alike.items() if not same]

    @property
    def title(self) -> str:
        """Name what is compared, and tell whether it may be."""
        on = ", ".join(f"{name} ({count} images)" for name, count in self.images.items())
        text, other = f"{paper(self.name).title}; ours: {self.tower}, {on}", " and ".join(self.differences)
        return f"{text}; NOT the paper's {other}: what differs is no failed reproduction" if other else text

    def mean(self, values: Mapping[str, Interval]) -> Interval | None:
        """Return the mean over datasets, None unless each has a value."""
        return mean_of(list(values.values())) if set(values) == set(self.datasets) else None

    def table(self) -> Table:
        """Lay out what we have of each row, what the paper has, and the difference."""
        heads = ("", "whose", *self.datasets, "mean", "compared with", "by")
        rows: list[list[str]] = []
        sections = []
        for one in self.results:
            sections.append(len(rows))
            rows += self._lines(one)
        words, wide = {"", "whose", "compared with"}, set(self.datasets)
        about: dict[str, Any] = {"caption": NOTES, "sections": frozenset(sections)}
        return Table.of(self.title, heads, rows, words=words, wide=wide, **about)

    def _lines(self, one: PaperResult) -> Iterator[list[str]]:
        form, relative = MEASURES[one.row.measure].form, MEASURES[one.row.measure].relative
        own, to = [*map(one.ours.get, self.datasets), self.mean(one.ours)], self.mean(one.to)
        name = one.row.name + (f" ({one.row.empty})" if one.row.empty and not one.ours else "")
        yield [name, "ours", *(_interval(each, form) for each in own), one.row.against or "", _interval(to, relative)]
        if one.row.printed is None:
            return
        theirs = [*map(one.row.printed.values.get, self.datasets), one.row.printed.mean_over(self.datasets)]
        theirs_to = one.paper_to(self.datasets)
        yield ["", "paper", *(figure(value, form) for value in theirs), "", figure(theirs_to, relative)]
        off = [NOT_MEASURED] * len(own)
        if not self.differences:
            off = [_difference(*pair, f"+{form}") for pair in zip(own, theirs, strict=True)]
        off += ["", _difference(to, theirs_to, f"+{relative.removeprefix('+')}")]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]

    def markdown(self) -> str:
        """Return it as a Markdown section with remarks and sources."""
        sources = sorted({one.row.printed.source for one in self.results if one.row.printed is not None})
        source = f"The paper's figures are from: {'; '.join(sources)}."
        return markdown([replace(self.table(), notes=[*paper(self.name).notes, source])], level=2)

    def data(self) -> dict[str, Any]:
        """Return rows by dataset and as mean, ours and the paper's, as JSON values."""
        rows = [
            {
                "name": one.row.name,
                "measure": one.row.measure,
                "unit": MEASURES[one.row.measure].unit,
                "compared_with": one.row.against,
                "ours": {"by_dataset": one.ours, "mean": self.mean(one.ours), "compared_by_dataset": one.to},
                "paper": one.row.printed
                and {
                    "by_dataset": {name: one.row.printed.values.get(name) for name in self.datasets},
                    "mean": one.row.printed.mean_over(self.datasets),
                    "mean_compared": one.paper_to(self.datasets),
                    "source": one.row.printed.source,
                },
                "gflops_share_of_dense": one.share,
                "missing_because": one.row.empty or None,
            }
            for one in self.results
        ]
        about = {"name": self.name, "title": self.title, "tower": self.tower, "images_by_dataset": self.images}
        values: dict[str, Any] = json_values({**about, "comparable": not self.differences, "rows": rows})
        return values


def _interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, *ends = (format(number, form) for number in value)
    return text if {*ends} == {text} else f"{text} [{', '.join(ends)}]"


def _difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    return figure(None if ours is None or theirs is None else ours.estimate - theirs, form)


def compare_rows(
    target: PaperTable, config: StudyConfig, depth: int, tower: str, tables: Sequence[StudyTable]
) -> Comparison:
    """Put what a study measured on some datasets beside the paper's rows."""
    by_dataset = {table.dense.dataset: table for table in tables}
    results: dict[str, PaperResult] = {}
    records: dict[str, dict[str, Sequence[Record]]] = {}
    for row in paper_rows(target.name, config, depth):
        read, others = MEASURES[row.measure].read, records.get(row.against or "", {})
        own = records[row.name] = row.records(by_dataset)
        ours = {name: read(part) for name, part in own.items()}
        to = {name: read(part, others[name]) for name, part in own.items() if name in others}
        shares = [_gflops(part, [by_dataset[name].dense]) for name, part in own.items()]
        counted = [share.estimate for share in shares if share is not None]
        results[row.name] = PaperResult(
            row=row,
            ours={name: value for name, value in ours.items() if value is not None},
            to={name: value for name, value in to.items() if value is not None},
            reference=results[row.against].row.printed if row.against in results else None,
            share=sum(counted) / len(counted) if counted else None,
        )
    images = {name: table.dense.image_count for name, table in by_dataset.items()}
    return Comparison(name=target.name, tower=tower, results=tuple(results.values()), images=images)


def series(comparison: Comparison) -> dict[str, list[Dot]]:
    """Return mean losses over datasets by "METHOD, ours" and "METHOD, paper", along the axis.

    The paper's points are hollow and have no interval. A line begins at the unpruned tower, the first row, unless it
    has a dense row of its own.
    """
    unpruned, *others = comparison.results
    starts = _dots(comparison, unpruned)
    lines: dict[str, list[Dot]] = {}
    for one in others:
        method, _, _ = one.row.name.rpartition(", ")
        for whose, dot in _dots(comparison, one).items():
            begins = one.row.method == DENSE or whose not in starts
            lines.setdefault(f"{method}, {whose}", [] if begins else [starts[whose]]).append(dot)
    return {name: sorted(line, key=lambda dot: dot.x) for name, line in lines.items()}


def _dots(comparison: Comparison, one: PaperResult) -> dict[str, Dot]:
    """Return a row's points, ours and the paper's, as far as they are known."""
    lost = one.paper_to(comparison.datasets)
    losses = {"ours": comparison.mean(one.to), "paper": None if lost is None else exact(lost)}
    if one.row.against is None:  # the unpruned tower
        losses = dict.fromkeys(losses, exact(0.0))
    places = {"ours": one.share if one.row.place is None else one.row.place, "paper": one.row.paper_place}
    known = {whose: (place, losses[whose]) for whose, place in places.items() if place is not None}
    return {w: Dot(x=exact(x), y=y, hollow=w == "paper") for w, (x, y) in known.items() if y is not None}


def draw(comparison: Comparison) -> bytes:
    """Return an SVG, the same bytes for the same figures; the paper's lines are dashed."""
    lines = series(comparison)
    methods = list(dict.fromkeys(name.rpartition(", ")[0] for name in lines))
    styles = {}
    for name in lines:
        method, _, whose = name.rpartition(", ")
        styles[name] = Style(*STYLES[methods.index(method) % len(STYLES)], "-" if whose == "ours" else "--")
    chart = Chart(
        title=comparison.title, alt="", x_label=paper(comparison.name).axis,
        y_label="top-1 against unpruned, points", series=lines, level=0,
    )  # fmt: skip
    return render([chart], styles)


def produce(
    target: PaperTable, config: StudyConfig, known: Sequence[Record], progress: Progress, folder: Path | None = None
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Measure what a table needs and ``known`` lacks; see ``harness.studies.workshop.answer``."""
    groups = target.groups(config)
    with progress.task(f"study reproduce {target.name}", len(groups)) as update:
        for done, part in enumerate(groups, start=1):
            yield from answer(target.study, part, known, progress, folder=folder)
            update(done)


def draw_picture(
    name: str, config: StudyConfig, datasets: Sequence[Dataset], images: int, out: Path, progress: Progress
) -> PatchSheet:
    """Draw the patches that rankings keep of a few test images of each dataset, drawn once and for all, as a PNG."""
    block = PICTURES[name]
    golden = config.golden if block is None else replace(config.golden, block=block)
    how = ShowConfig(keeps=PICTURE_KEEPS, left=("golden", "clsattn"), golden=golden)
    places = [f"{one.name}:test:{at}" for one in datasets for at in turns(one.split("test").labels)[:images]]
    return show(
        config.model, [find_subject(place) for place in places], how, out, progress=progress, device=config.device
    )


def readable(names: Sequence[str], table: PaperTable | None) -> tuple[list[Dataset], dict[str, Exception]]:
    """Return the datasets that can be read and lack no split that is needed, and what is wrong with others.

    Pictures, and datasets that the predictor of a table's ``general`` one serves, need a test split only.
    """
    datasets: list[Dataset] = []
    failures: dict[str, Exception] = {}
    for name in names:
        served = table is not None and table.general in names and name != table.general
        try:
            dataset = get_dataset(name)
            for split, use in USES.items():
                if (split == "test" or not (table is None or served)) and not len(dataset.split(split)):
                    raise ValueError(f"dataset {name!r} has no {split} images, which {use}")
            datasets.append(dataset)
        except (OSError, ValueError) as error:
            failures[name] = error
    return datasets, failures


def take_stock(name: str, config: StudyConfig, images: int, progress: Progress) -> list[Stock]:
    """Return what a table takes and how much of it is cached; of a picture ``images`` of each dataset."""
    table = TABLES.get(name)
    if table is None:
        counts = {one: min(images, len(get_dataset(one).split("test"))) for one in config.datasets}
        return [Stock("images", f"{one} test", 0, count) for one, count in counts.items()]
    groups = table.groups(config) if config.datasets else []
    return [step for group in groups for step in stock(table.study, group, progress)]
