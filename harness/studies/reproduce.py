"""Measure the paper's tables and figures: ours beside its own, with intervals and drawings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.apps.show import ShowConfig, find_subjects, show
from harness.base.table import NOT_MEASURED, Table, figure, json_values
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import turns
from harness.records.conditions import DENSE
from harness.records.record import Record, Times
from harness.records.statistics import Interval, bootstrap_mean, wilson_interval
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.patches import PatchSheet
from harness.report.writers import markdown
from harness.studies.paper import (
    GFLOPS,
    LATENCY,
    MATCH,
    TOP1,
    UNPRUNED,
    PaperPicture,
    PaperRow,
    PaperTable,
    Printed,
    printed,
)
from harness.studies.run import Stock, make, stock
from harness.studies.spec import StudyConfig
from harness.studies.tables import StudyTable

MODEL = "clip_vit_b16.openai"
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}
OTHER = "NOT the paper's {}: what differs is no failed reproduction"


class Measure(NamedTuple):
    """How to read the records of one line, one per seed, and to compare them with another's.

    Both return a mean over seeds with a 95 % interval, None where it wasn't measured. ``form`` and
    ``relative`` are how a number and a comparison are written.
    """

    read: Callable[[Sequence[Record]], Interval | None]
    compare: Callable[[Sequence[Record], Sequence[Record]], Interval | None]
    form: str
    relative: str
    unit: str


def _right(records: Sequence[Record]) -> np.ndarray:
    """Return (images,) float, for what share of the seeds each image was right."""
    right: np.ndarray = np.mean([record.correct for record in records], axis=0)
    return right


def _percent(*shares: float) -> Interval:
    return Interval(*(100 * float(share) for share in shares))


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


def _top1(records: Sequence[Record]) -> Interval:
    if len(records) == 1:
        hits = records[0].correct
        return _percent(float(hits.mean()), *wilson_interval(int(hits.sum()), hits.size))
    return _percent(*bootstrap_mean(_right(records), seed=0))


def _lost(records: Sequence[Record], reference: Sequence[Record]) -> Interval:
    return _percent(*bootstrap_mean(_right(records) - _right(reference), seed=0))


def _match(records: Sequence[Record]) -> Interval | None:
    values = [record.interval("match_at_k") for record in records]
    return None if None in values else _percent(*np.mean(np.array(values, float), axis=0))


def _gflops(records: Sequence[Record]) -> Interval | None:
    count = records[0].mean("gflops")
    return None if count is None else _exact(count)


def _cost_ratio(records: Sequence[Record], reference: Sequence[Record]) -> Interval | None:
    ours, theirs = records[0].mean("gflops"), reference[0].mean("gflops")
    return None if ours is None or theirs is None else _exact(ours / theirs)


def _times(records: Sequence[Record]) -> Times | None:
    """Return the times of the largest batch."""
    return max(records[0].latency or (), key=lambda entry: entry.batch, default=None)


def _latency(records: Sequence[Record]) -> Interval | None:
    """Return the time per image, with its quartiles."""
    if (last := _times(records)) is None:
        return None
    return Interval(*(time / last.batch for time in (last.median_ms, last.q1_ms, last.q3_ms)))


def _ratio(records: Sequence[Record], _reference: Sequence[Record]) -> Interval | None:
    """Return the time as ratio to the dense model's in the same rounds."""
    last = _times(records)
    return None if last is None else last.ratio


MEASURES = {
    TOP1: Measure(_top1, _lost, ".1f", "+.1f", "percent"),
    MATCH: Measure(_match, lambda _records, _reference: None, ".1f", "+.1f", "percent"),
    GFLOPS: Measure(_gflops, _cost_ratio, ".2f", ".3f", "1e9 multiply-adds"),
    LATENCY: Measure(_latency, _ratio, ".3g", ".3f", "ms per image"),
}
RATIOS = (GFLOPS, LATENCY)  # compared by dividing


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
    ours: dict[str, Interval] = field(default_factory=dict)  # by dataset, those that were measured
    to: dict[str, Interval] = field(default_factory=dict)  # by dataset, against the row's reference
    paper: Printed | None = None  # None where we know nothing of the row
    # the paper's row that this one is compared with, None likewise
    reference: Printed | None = None
    # multiply-adds as share of the dense tower's; None where not counted
    share: float | None = None

    def paper_to(self, datasets: Sequence[str]) -> float | None:
        """Return the paper's mean over datasets against that of the row's reference."""
        if self.paper is None or self.reference is None:
            return None
        ours, theirs = self.paper.mean_over(datasets), self.reference.mean_over(datasets)
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.row.measure in RATIOS else ours - theirs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper with what we measured, on all datasets done so far."""

    recipe: PaperTable
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
        tower = [] if self.tower == MODEL else ["tower"]
        return tower if set(self.datasets) <= set(self.recipe.datasets) else [*tower, "data"]

    @property
    def title(self) -> str:
        """Name what is compared, and tell whether it may be."""
        on = ", ".join(f"{name} ({count} images)" for name, count in self.images.items())
        text = f"{self.recipe.title}; ours: {self.tower}, {on}"
        other = " and ".join(self.differences)
        return f"{text}; {OTHER.format(other)}" if other else text

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
        if one.paper is None:
            return
        theirs = [*map(one.paper.values.get, self.datasets), one.paper.mean_over(self.datasets)]
        theirs_to = one.paper_to(self.datasets)
        yield ["", "paper", *(figure(value, form) for value in theirs), "", figure(theirs_to, relative)]
        comparable = not self.differences
        off = [_difference(*pair, f"+{form}") if comparable else NOT_MEASURED for pair in zip(own, theirs, strict=True)]
        off += ["", _difference(to, theirs_to, f"+{relative.removeprefix('+')}")]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]

    def markdown(self) -> str:
        """Return it as a Markdown section with remarks and sources."""
        sources = sorted({one.paper.source for one in self.results if one.paper is not None})
        source = f"The paper's figures are from: {'; '.join(sources)}."
        return markdown([replace(self.table(), notes=[*self.recipe.notes, source])], level=2)


def _interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, *ends = (format(number, form) for number in value)
    return text if {*ends} == {text} else f"{text} [{', '.join(ends)}]"


def _difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    return figure(None if ours is None or theirs is None else ours.estimate - theirs, form)


def compare_rows(
    recipe: PaperTable, config: StudyConfig, depth: int, tower: str, tables: Sequence[StudyTable]
) -> Comparison:
    """Put what a study measured on some datasets beside the paper's rows."""
    by_dataset = {table.dense.dataset: table for table in tables}
    paper_rows, results = printed(recipe.name), []
    records: dict[str, dict[str, Sequence[Record]]] = {}
    for row in recipe.rows(config, depth):
        measure, others = MEASURES[row.measure], records.get(row.against or "", {})
        own = records[row.name] = _records(row, by_dataset)
        ours = {name: measure.read(part) for name, part in own.items()}
        to = {name: measure.compare(part, others[name]) for name, part in own.items() if name in others}
        shares = [_cost_ratio(part, [by_dataset[name].dense]) for name, part in own.items()]
        counted = [share.estimate for share in shares if share is not None]
        results.append(
            PaperResult(
                row=row,
                ours={name: value for name, value in ours.items() if value is not None},
                to={name: value for name, value in to.items() if value is not None},
                paper=paper_rows.get(row.name),
                reference=paper_rows.get(row.against or ""),
                share=sum(counted) / len(counted) if counted else None,
            )
        )
    images = {name: table.dense.image_count for name, table in by_dataset.items()}
    return Comparison(recipe=recipe, tower=tower, results=tuple(results), images=images)


def _records(row: PaperRow, tables: Mapping[str, StudyTable]) -> dict[str, Sequence[Record]]:
    """Return the records that a row is made of, by dataset; none where no line fits."""
    if not row.labels and row.group is None:
        # The dense model is a line of no study; other such rows are methods that aren't built.
        return {name: [table.dense] for name, table in tables.items() if row.method == DENSE}
    found = {name: next((own for own in table.rows if row.fits(own, name)), None) for name, table in tables.items()}
    return {name: own.records for name, own in found.items() if own is not None}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return rows by dataset and as mean, ours and the paper's, as JSON values."""
    names = comparison.datasets
    rows = [
        {
            "name": one.row.name,
            "measure": one.row.measure,
            "unit": MEASURES[one.row.measure].unit,
            "compared_with": one.row.against,
            "ours": {"by_dataset": one.ours, "mean": comparison.mean(one.ours), "compared_by_dataset": one.to},
            "paper": one.paper
            and {
                "by_dataset": {name: one.paper.values.get(name) for name in names},
                "mean": one.paper.mean_over(names),
                "mean_compared": one.paper_to(names),
                "source": one.paper.source,
            },
            "gflops_share_of_dense": one.share,
            "missing_because": one.row.empty or None,
        }
        for one in comparison.results
    ]
    about = {"name": comparison.recipe.name, "title": comparison.title, "tower": comparison.tower}
    comparable = not comparison.differences
    values: dict[str, Any] = json_values(
        {**about, "images_by_dataset": comparison.images, "comparable": comparable, "rows": rows}
    )
    return values


def series(comparison: Comparison) -> dict[str, list[Dot]]:
    """Return mean losses over datasets by "METHOD, ours" and "METHOD, paper", along the axis.

    The paper's points are hollow and have no interval. A line begins at the unpruned tower, unless
    it has a dense row of its own.
    """
    lines: dict[str, list[Dot]] = {}
    begun: set[str] = set()
    starts: dict[str, float | None] = {}
    for one in comparison.results:
        method, comma, _ = one.row.name.partition(", ")
        place = one.share if one.row.place is None else one.row.place
        if one.row.name == UNPRUNED.name:
            starts = {"ours": place, "paper": one.row.paper_place}
        if not comma:
            continue
        begun |= {method} if one.row.method == DENSE else set()
        if place is not None and (mean := comparison.mean(one.to)) is not None:
            lines.setdefault(f"{method}, ours", []).append(Dot(x=_exact(place), y=mean))
        place, lost = one.row.paper_place, one.paper_to(comparison.datasets)
        if place is not None and lost is not None:
            point = Dot(x=_exact(place), y=_exact(lost), hollow=True)
            lines.setdefault(f"{method}, paper", []).append(point)
    for name, line in lines.items():
        method, _, whose = name.rpartition(", ")
        if method not in begun and (start := starts.get(whose)) is not None:
            line.append(Dot(x=_exact(start), y=_exact(0.0), hollow=whose == "paper"))
    return {name: sorted(line, key=lambda point: point.x) for name, line in lines.items()}


def draw(comparison: Comparison) -> bytes:
    """Return an SVG, the same bytes for the same figures; the paper's lines are dashed."""
    lines = series(comparison)
    methods = list(dict.fromkeys(name.rpartition(", ")[0] for name in lines))
    styles = {
        name: Style(*STYLES[methods.index(method) % len(STYLES)], "-" if own == "ours" else "--")
        for name in lines
        for method, _, own in [name.rpartition(", ")]
    }
    chart = Chart(
        title=comparison.title, alt="", x_label=comparison.recipe.axis,
        y_label="top-1 against unpruned, points", series=lines, level=0,
    )  # fmt: skip
    return render([chart], styles)


def produce(
    recipe: PaperTable, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Measure what a table needs and ``known`` lacks; see ``harness.studies.run.make``."""
    groups = recipe.groups(config)
    with progress.task(f"study reproduce {recipe.name}", len(groups)) as update:
        for done, part in enumerate(groups, start=1):
            yield from make(recipe.study, part, known, progress)
            update(done)


def stock_of(recipe: PaperTable, config: StudyConfig, known: Sequence[Record], progress: Progress) -> list[Stock]:
    """Return what a table takes, and how much of it is there; see ``harness.studies.run.stock``."""
    return [one for part in recipe.groups(config) for one in stock(recipe.study, part, known, progress)]


def show_config(picture: PaperPicture, config: StudyConfig) -> ShowConfig:
    """Return how a picture is drawn under a study's conditions; ValueError for unfit keep rates."""
    block = config.golden.block if picture.block is None else picture.block
    golden = replace(config.golden, block=block)
    return ShowConfig(keeps=picture.rates(config.keeps), left=picture.rankings, golden=golden)


def draw_picture(
    picture: PaperPicture, config: StudyConfig, datasets: Sequence[Dataset], images: int, out: Path, progress: Progress
) -> PatchSheet:
    """Draw a few test images of each dataset, drawn once and for all, as a PNG."""
    how = show_config(picture, config)
    places = [f"{one.name}:test:{at}" for one in datasets for at in turns(one.split("test").labels)[:images]]
    return show(config.model, find_subjects(places), how, out, progress=progress, device=config.device)


def readable(
    names: Sequence[str], splits: Sequence[SplitName] = tuple(USES), general: str | None = None
) -> tuple[list[Dataset], dict[str, Exception]]:
    """Return the datasets that can be read and lack none of the splits, and what is wrong with others.

    Beside a ``general`` dataset, whose predictor serves the others, these need a test split only.
    """
    datasets: list[Dataset] = []
    failures: dict[str, Exception] = {}
    for name in names:
        try:
            dataset = get_dataset(name)
            for split in splits:
                served = split != "test" and general in names and name != general
                if not len(dataset.split(split)) and not served:
                    raise ValueError(f"dataset {name!r} has no {split} images, which {USES[split]}")
            datasets.append(dataset)
        except (OSError, ValueError) as error:
            failures[name] = error
    return datasets, failures
