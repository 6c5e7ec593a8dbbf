"""Measure the paper's tables and figures: ours beside its own, with intervals and drawings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.apps.show import ShowConfig, find_subjects, show
from harness.base.table import FORMS, NOT_MEASURED, Cell, Column, Table, json_values
from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.datasets.few_shot import turns
from harness.golden.budget import passes_of
from harness.models.towers import load_tower
from harness.records.conditions import DENSE
from harness.records.record import Record
from harness.records.statistics import Interval, bootstrap_mean, wilson_interval
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.patches import PatchSheet
from harness.report.writers import markdown
from harness.studies.dry_run import Step
from harness.studies.paper import (
    GFLOPS,
    LATENCY,
    MATCH,
    TOP1,
    UNPRUNED,
    Picture,
    Printed,
    Reproduction,
    Row,
    printed,
)
from harness.studies.run import Sheet, make
from harness.studies.workshop import StudyConfig

MODEL = "clip_vit_b16.openai"
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)
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


def _latency(records: Sequence[Record]) -> Interval | None:
    """Return the time per image of the largest batch, with its quartiles."""
    if not (times := records[0].latency):
        return None
    last = max(times, key=lambda entry: entry.batch)
    return Interval(*(time / last.batch for time in (last.median_ms, last.q1_ms, last.q3_ms)))


def _ratio(records: Sequence[Record], _reference: Sequence[Record]) -> Interval | None:
    """Return the time as ratio to the dense model's in the same rounds."""
    if not (times := records[0].latency):
        return None
    last = max(times, key=lambda entry: entry.batch)
    if last.ratio_to_dense is None or last.ratio_low is None or last.ratio_high is None:
        return None
    return Interval(last.ratio_to_dense, last.ratio_low, last.ratio_high)


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
class Result:
    """What was measured for a row."""

    row: Row
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

    recipe: Reproduction
    tower: str
    results: tuple[Result, ...]
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
        rows: list[list[Cell]] = []
        sections = []
        for one in self.results:
            sections.append(len(rows))
            rows += [[Cell(text) for text in line] for line in self._lines(one)]
        own = [Column(heading=name, forms=FORMS[:1]) for name in self.datasets]
        names = ("", "whose", "compared with")
        row, whose, against = (Column(heading=head, left=True) for head in names)
        return Table(
            title=self.title,
            caption=NOTES,
            columns=[row, whose, *own, Column(heading="mean"), against, Column(heading="by")],
            rows=rows,
            sections=frozenset(sections),
        )

    def _lines(self, one: Result) -> Iterator[list[str]]:
        form, relative = MEASURES[one.row.measure].form, MEASURES[one.row.measure].relative
        mean, to = self.mean(one.ours), self.mean(one.to)
        name = one.row.name
        if one.row.empty and not one.ours:
            name = f"{name} ({one.row.empty})"
        ours = [_interval(one.ours.get(dataset), form) for dataset in self.datasets]
        against = one.row.against or ""
        yield [name, "ours", *ours, _interval(mean, form), against, _interval(to, relative)]
        if one.paper is None:
            return
        values = [one.paper.values.get(dataset) for dataset in self.datasets]
        theirs, theirs_to = one.paper.mean_over(self.datasets), one.paper_to(self.datasets)
        means = [_number(value, form) for value in (*values, theirs)]
        yield ["", "paper", *means, "", _number(theirs_to, relative)]
        signed = f"+{form}"
        off = [NOT_MEASURED] * len(means)
        if not self.differences:
            own = [*(one.ours.get(dataset) for dataset in self.datasets), mean]
            pairs = zip(own, (*values, theirs), strict=True)
            off = [_difference(*pair, signed) for pair in pairs]
        off += ["", _difference(to, theirs_to, f"+{relative.removeprefix('+')}")]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]

    def markdown(self) -> str:
        """Return it as a Markdown section with remarks and sources."""
        sources = sorted({one.paper.source for one in self.results if one.paper is not None})
        source = f"The paper's figures are from: {'; '.join(sources)}."
        return markdown([replace(self.table(), notes=[*self.recipe.notes, source])], level=2)


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, *ends = (format(number, form) for number in value)
    return text if {*ends} == {text} else f"{text} [{', '.join(ends)}]"


def _difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    return _number(None if ours is None or theirs is None else ours.estimate - theirs, form)


def compared(recipe: Reproduction, config: StudyConfig, depth: int, tower: str, sheets: Sequence[Sheet]) -> Comparison:
    """Put what a study measured on some datasets beside the paper's rows."""
    by_dataset = {sheet.dense.dataset: sheet for sheet in sheets}
    paper_rows = printed(recipe.name)
    results = []
    records: dict[str, dict[str, Sequence[Record]]] = {}
    for row in recipe.rows(config, depth):
        measure = MEASURES[row.measure]
        own = records[row.name] = _records(row, by_dataset)
        others = records.get(row.against or "", {})
        ours = {name: measure.read(part) for name, part in own.items()}
        both = own.keys() & others.keys()
        to = {name: measure.compare(own[name], others[name]) for name in own if name in both}
        shares = [_cost_ratio(part, [by_dataset[name].dense]) for name, part in own.items()]
        counted = [share.estimate for share in shares if share is not None]
        results.append(
            Result(
                row=row,
                ours={name: value for name, value in ours.items() if value is not None},
                to={name: value for name, value in to.items() if value is not None},
                paper=paper_rows.get(row.name),
                reference=paper_rows.get(row.against or ""),
                share=sum(counted) / len(counted) if counted else None,
            )
        )
    images = {name: sheet.dense.image_count for name, sheet in by_dataset.items()}
    return Comparison(recipe=recipe, tower=tower, results=tuple(results), images=images)


def _records(row: Row, sheets: Mapping[str, Sheet]) -> dict[str, Sequence[Record]]:
    """Return the records that a row is made of, by dataset; none where no line fits."""
    if not row.labels and row.group is None:
        # The dense model is a line of no study; other such rows are methods that aren't built.
        return {name: [sheet.dense] for name, sheet in sheets.items() if row.method == "dense"}
    lines = {
        name: next((e.records for e in sheet.entries if row.fits(e, name)), None) for name, sheet in sheets.items()
    }
    return {name: records for name, records in lines.items() if records is not None}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return rows by dataset and as mean, ours and the paper's, as JSON values."""
    names, rows = comparison.datasets, []
    for one in comparison.results:
        mean = comparison.mean(one.ours)
        paper = one.paper and {
            "by_dataset": {name: one.paper.values.get(name) for name in names},
            "mean": one.paper.mean_over(names),
            "mean_compared": one.paper_to(names),
            "source": one.paper.source,
        }
        row = {
            "name": one.row.name,
            "measure": one.row.measure,
            "unit": MEASURES[one.row.measure].unit,
            "compared_with": one.row.against,
            "ours": {"by_dataset": one.ours, "mean": mean, "compared_by_dataset": one.to},
            "paper": paper,
            "gflops_share_of_dense": one.share,
            "missing_because": one.row.empty or None,
        }
        rows.append(row)
    about = {
        "name": comparison.recipe.name,
        "title": comparison.title,
        "tower": comparison.tower,
        "images_by_dataset": comparison.images,
        "comparable": not comparison.differences,
    }
    values: dict[str, Any] = json_values({**about, "rows": rows})
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


def under_its_conditions(recipe: Reproduction, config: StudyConfig) -> StudyConfig:
    """Return a config with a table's own settings, and its keep rates unless the config has others.

    Raises:
        ValueError: keep rates that the table can't have.
    """
    datasets = config.datasets[:1] if recipe.single else config.datasets
    return replace(config, keeps=recipe.rates(config.keeps), datasets=datasets, **recipe.changes)


def produce(
    recipe: Reproduction, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Measure what a table needs and ``known`` lacks; see ``harness.studies.run.make``."""
    for part in recipe.groups(config):
        yield from make(recipe.study, part, known, progress)


def shown(picture: Picture, config: StudyConfig) -> ShowConfig:
    """Return how a picture is drawn under a study's conditions; ValueError for unfit keep rates."""
    block = config.golden.block if picture.block is None else picture.block
    golden = replace(config.golden, block=block)
    return ShowConfig(keeps=picture.rates(config.keeps), left=picture.rankings, golden=golden)


def draw_picture(
    picture: Picture, config: StudyConfig, datasets: Sequence[Dataset], images: int, out: Path, progress: Progress
) -> PatchSheet:
    """Draw a few test images of each dataset, drawn once and for all, as a PNG."""
    how = shown(picture, config)
    places = [f"{one.name}:test:{at}" for one in datasets for at in turns(one.split("test").labels)[:images]]
    return show(config.model, find_subjects(places), how, out, progress=progress, device=config.device)


def picture_steps(picture: Picture, config: StudyConfig, datasets: Sequence[Dataset], images: int) -> list[Step]:
    """Return what drawing takes: golden rankings that aren't kept, and a pass for each keep rate."""
    how = shown(picture, config)
    passes = passes_of(how.golden, load_tower(config.model).vit) + len(how.keeps)
    counts = {one.name: min(images, len(one.split("test"))) for one in datasets}
    return [
        Step(kind="draw images", of=f"{name} test", total=count, cached=0, images=count, passes=round(count * passes))
        for name, count in counts.items()
    ]
