"""Measure the paper's tables and figures: ours beside its own, with intervals and drawings."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.table import Table

from harness.console.table import json_values
from harness.console.terminal import Progress
from harness.records.record import Record
from harness.records.statistics import Interval, bootstrap_mean
from harness.report.drawing import INK, OPTIONS, STYLES, saved
from harness.studies.paper import (
    GFLOPS,
    LATENCY,
    MATCH,
    TOP1,
    Printed,
    Reproduction,
    Row,
    printed,
)
from harness.studies.run import NOT_MEASURED, Sheet, make
from harness.studies.workshop import StudyConfig

MODEL = "clip_vit_b16.openai"
UNITS = {TOP1: "percent", MATCH: "percent", GFLOPS: "1e9 multiply-adds", LATENCY: "ms per image"}
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)
OTHER = "NOT the paper's {}: what differs is no failed reproduction"


Series = dict[str, list[tuple[float, Interval]]]  # by method: place on the axis, mean loss


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A way to read records of one line, one per seed.

    Attributes:
        read: their mean over seeds with a 95 % interval; None where it wasn't measured.
        compare: that of one line against another, None likewise.
        form: how a number of it is written, by ``format``.
        relative: how one against another is written.
    """

    read: Callable[[Sequence[Record]], Interval | None]
    compare: Callable[[Sequence[Record], Sequence[Record]], Interval | None]
    form: str
    relative: str


def _right(records: Sequence[Record]) -> np.ndarray:
    """Return (images,) float, for what share of the seeds each image was right."""
    right: np.ndarray = np.mean([record.correct for record in records], axis=0)
    return right


def _top1(records: Sequence[Record]) -> Interval:
    if len(records) == 1:
        one = records[0]
        return Interval(*(100 * share for share in (one.top1, one.top1_low, one.top1_high)))
    return _percent(bootstrap_mean(_right(records), seed=0))


def _lost(records: Sequence[Record], reference: Sequence[Record]) -> Interval:
    return _percent(bootstrap_mean(_right(records) - _right(reference), seed=0))


def _percent(interval: Interval) -> Interval:
    return Interval(*(100 * number for number in interval))


def _match(records: Sequence[Record]) -> Interval | None:
    if any(record.match_at_k is None for record in records):
        return None
    names = ("match_at_k", "match_low", "match_high")
    ends = [np.mean([getattr(record, name) for record in records]) for name in names]
    return Interval(*(100 * float(end) for end in ends))


def _gflops(records: Sequence[Record]) -> Interval | None:
    count = records[0].gflops
    return None if count is None else Interval(count, count, count)


def _latency(records: Sequence[Record]) -> Interval | None:
    """Return the time per image of the largest batch, with its quartiles."""
    times = records[0].latency
    if not times:
        return None
    last = max(times, key=lambda entry: entry.batch)
    spread = (last.median_ms, last.q1_ms, last.q3_ms)
    return Interval(*(time / last.batch for time in spread))


def _nothing(_records: Sequence[Record], _reference: Sequence[Record]) -> None:
    return None


def _cost_ratio(records: Sequence[Record], reference: Sequence[Record]) -> Interval | None:
    ours, theirs = _gflops(records), _gflops(reference)
    if ours is None or theirs is None:
        return None
    share = ours.estimate / theirs.estimate
    return Interval(share, share, share)


def _ratio(records: Sequence[Record], _reference: Sequence[Record]) -> Interval | None:
    """Return the time as ratio to the dense model's in the same rounds."""
    times = records[0].latency
    if not times:
        return None
    last = max(times, key=lambda entry: entry.batch)
    if last.ratio_to_dense is None or last.ratio_low is None or last.ratio_high is None:
        return None
    return Interval(last.ratio_to_dense, last.ratio_low, last.ratio_high)


MEASURES = {
    TOP1: Measure(read=_top1, compare=_lost, form=".1f", relative="+.1f"),
    MATCH: Measure(read=_match, compare=_nothing, form=".1f", relative="+.1f"),
    GFLOPS: Measure(read=_gflops, compare=_cost_ratio, form=".2f", relative=".3f"),
    LATENCY: Measure(read=_latency, compare=_ratio, form=".3g", relative=".3f"),
}
RATIOS = (GFLOPS, LATENCY)  # compared by dividing


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates with the interval that follows from theirs."""
    count = len(intervals)
    mean = sum(one.estimate for one in intervals) / count
    below = sum((one.estimate - one.low) ** 2 for one in intervals) ** 0.5 / count
    above = sum((one.high - one.estimate) ** 2 for one in intervals) ** 0.5 / count
    return Interval(mean, mean - below, mean + above)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a row came to.

    Attributes:
        row: the row.
        ours: by dataset, those that were measured.
        to: likewise, against the row's reference.
        paper: what the paper has; None where we know nothing of the row.
        reference: likewise, of the row's reference.
        share: multiply-adds as share of the dense tower's; None where not counted.
    """

    row: Row
    ours: dict[str, Interval] = field(default_factory=dict)
    to: dict[str, Interval] = field(default_factory=dict)
    paper: Printed | None = None
    reference: Printed | None = None
    share: float | None = None

    def paper_mean(self, datasets: Sequence[str]) -> float | None:
        """Return the paper's mean, over these datasets if they are all its own."""
        return _mean(self.paper, datasets)

    def paper_to(self, datasets: Sequence[str]) -> float | None:
        """Return the paper's mean against that of the row's reference, likewise."""
        ours, theirs = _mean(self.paper, datasets), _mean(self.reference, datasets)
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.row.measure in RATIOS else ours - theirs


def _mean(row: Printed | None, datasets: Sequence[str]) -> float | None:
    if row is None:
        return None
    return row.mean_over(datasets) if set(datasets) <= set(row.columns) else row.mean


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper with what we measured, on all datasets done so far.

    Attributes:
        recipe: the table or figure.
        tower: name of the tower.
        datasets: those that were judged, in order.
        results: rows.
        images: judged images by dataset.
        same: whether tower and datasets are the paper's, so that figures may be compared.
    """

    recipe: Reproduction
    tower: str
    datasets: tuple[str, ...]
    results: tuple[Result, ...]
    images: dict[str, int]
    same: bool

    @property
    def title(self) -> str:
        """Say what is compared, and whether it may be."""
        on = ", ".join(f"{name} ({self.images[name]} images)" for name in self.datasets)
        text = f"{self.recipe.title}; ours: {self.tower}, {on}"
        other = "tower" if self.tower != MODEL else ""
        if not set(self.datasets) <= set(self.recipe.datasets):
            other = " and ".join(filter(None, (other, "data")))
        return f"{text}; {OTHER.format(other)}" if other else text

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return heads, and for each row what we have, the paper's and the difference."""
        heads = ["", "whose", *self.datasets, "mean", "compared with", "by"]
        return heads, [line for one in self.results for line in self._lines(one)]

    def _lines(self, one: Result) -> Iterator[list[str]]:
        measure, against = MEASURES[one.row.measure], one.row.against or ""
        form, relative = measure.form, measure.relative
        all_there = set(one.ours) == set(self.datasets)
        mean = mean_of(list(one.ours.values())) if one.ours and all_there else None
        all_compared = one.to and set(one.to) == set(self.datasets)
        to = mean_of(list(one.to.values())) if all_compared else None
        ours = [_interval(one.ours.get(name), form) for name in self.datasets]
        name = one.row.name
        if one.row.empty and not one.ours:
            name = f"{name} ({one.row.empty})"
        yield [name, "ours", *ours, _interval(mean, form), against, _interval(to, relative)]
        if one.paper is None:
            return
        values = [one.paper.values.get(name) for name in self.datasets]
        theirs, theirs_to = one.paper_mean(self.datasets), one.paper_to(self.datasets)
        shown = [_cell(value, form) for value in values]
        yield ["", "paper", *shown, _cell(theirs, form), "", _cell(theirs_to, relative)]
        signed = f"+{form}" if self.same else ""
        off = [
            _difference(one.ours.get(name), value, signed)
            for name, value in zip(self.datasets, values, strict=True)
        ]
        by = _difference(to, theirs_to, f"+{relative.removeprefix('+')}")
        off += [_difference(mean, theirs, signed), "", by]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]

    def table(self) -> Table:
        """Lay it out for the terminal."""
        table = Table(title=self.title, caption=NOTES)
        heads, rows = self.cells()
        for place, head in enumerate(heads):
            left = place < 2 or head == "compared with"
            table.add_column(head, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            if row[0]:
                table.add_section()
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return it as a Markdown section, with the sources and what is to be known."""
        heads, rows = self.cells()
        line = ["---", "---", *["---:"] * (len(heads) - 2)]
        body = ["| " + " | ".join(cells) + " |" for cells in (heads, line, *rows)]
        notes = [f"- {note}" for note in self.recipe.notes]
        sources = sorted({one.paper.source for one in self.results if one.paper is not None})
        source = f"- The paper's figures are from: {'; '.join(sources)}."
        return "\n".join([f"## {self.title}", "", *body, "", NOTES, "", *notes, source, ""])


def _cell(value: float | None, form: str) -> str:
    """Show a number, or that there is none."""
    return NOT_MEASURED if value is None else format(value, form)


def _interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, low, high = (format(number, form) for number in value)
    return text if low == text == high else f"{text} [{low}, {high}]"


def _difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    """Return ours minus theirs; nothing where there is no form, for they can't be compared."""
    if ours is None or theirs is None or not form:
        return NOT_MEASURED
    return format(ours.estimate - theirs, form)


def compared(
    recipe: Reproduction, config: StudyConfig, depth: int, tower: str, sheets: Sequence[Sheet]
) -> Comparison:
    """Put what a study found on some datasets beside the paper's rows."""
    by_dataset = {sheet.dense.dataset: sheet for sheet in sheets}
    paper_rows = printed(recipe.name)
    results = []
    records: dict[str, dict[str, Sequence[Record]]] = {}
    for row in recipe.rows(config, depth):
        measure = MEASURES[row.measure]
        records[row.name] = _records(row, by_dataset)
        ours, to = {}, {}
        for name, own in records[row.name].items():
            if (value := measure.read(own)) is not None:
                ours[name] = value
            if row.against is None or name not in records[row.against]:
                continue
            if (value := measure.compare(own, records[row.against][name])) is not None:
                to[name] = value
        results.append(
            Result(
                row=row,
                ours=ours,
                to=to,
                paper=paper_rows.get(row.name),
                reference=paper_rows.get(row.against or ""),
                share=_share(row, records, by_dataset),
            )
        )
    datasets = tuple(by_dataset)
    return Comparison(
        recipe=recipe,
        tower=tower,
        datasets=datasets,
        results=tuple(results),
        images={name: sheet.dense.image_count for name, sheet in by_dataset.items()},
        same=tower == MODEL and set(datasets) <= set(recipe.datasets),
    )


def _share(
    row: Row,
    records: Mapping[str, Mapping[str, Sequence[Record]]],
    sheets: Mapping[str, Sheet],
) -> float | None:
    """Return the mean over datasets of a row's multiply-adds by the dense tower's."""
    counted = [
        (own[0].gflops, sheets[name].dense.gflops) for name, own in records[row.name].items()
    ]
    shares = [ours / dense for ours, dense in counted if ours is not None and dense is not None]
    return sum(shares) / len(shares) if shares else None


def _records(row: Row, sheets: Mapping[str, Sheet]) -> dict[str, Sequence[Record]]:
    """Return the records that a row is made of, by dataset; none where no line fits."""
    if row.is_dense:
        return {name: [sheet.dense] for name, sheet in sheets.items()}
    if not row.labels and row.group is None:  # a method that isn't built
        return {}
    lines = {
        name: next((e.records for e in sheet.entries if row.fits(e, name)), None)
        for name, sheet in sheets.items()
    }
    return {name: records for name, records in lines.items() if records is not None}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return rows by dataset and as mean, ours and the paper's."""
    values: dict[str, Any] = json_values(
        {
            "name": comparison.recipe.name,
            "title": comparison.title,
            "tower": comparison.tower,
            "images_by_dataset": comparison.images,
            "comparable": comparison.same,
            "rows": [_row_data(one, comparison.datasets) for one in comparison.results],
        }
    )
    return values


def _row_data(one: Result, datasets: tuple[str, ...]) -> dict[str, Any]:
    paper = None
    if one.paper is not None:
        paper = {
            "by_dataset": {name: one.paper.values.get(name) for name in datasets},
            "mean": one.paper_mean(datasets),
            "mean_compared": one.paper_to(datasets),
            "source": one.paper.source,
        }
    whole = set(one.ours) == set(datasets)
    ours = {
        "by_dataset": one.ours,
        "mean": mean_of(list(one.ours.values())) if one.ours and whole else None,
        "compared_by_dataset": one.to,
    }
    return {
        "name": one.row.name,
        "measure": one.row.measure,
        "unit": UNITS[one.row.measure],
        "compared_with": one.row.against,
        "ours": ours,
        "paper": paper,
        "gflops_share_of_dense": one.share,
        "missing_because": one.row.empty or None,
    }


def series(comparison: Comparison) -> tuple[Series, Series]:
    """Return our points and the paper's by method: place, ascending, and mean loss over datasets.

    The paper's have no interval.
    """
    ours: Series = {}
    paper: Series = {}
    for one in comparison.results:
        method, comma, _ = one.row.name.partition(", ")
        if not comma:
            continue
        place = comparison.recipe.place(one.row, one.share)
        if place is not None and set(one.to) == set(comparison.datasets):
            ours.setdefault(method, []).append((place, mean_of(list(one.to.values()))))
        place, lost = (
            comparison.recipe.paper_place(one.row, None),
            one.paper_to(comparison.datasets),
        )
        if place is not None and lost is not None:
            paper.setdefault(method, []).append((place, Interval(lost, lost, lost)))
    for points in (*ours.values(), *paper.values()):
        points.sort(key=lambda point: point[0])
    return ours, paper


def draw(comparison: Comparison) -> bytes:
    """Return an SVG, the same bytes for the same figures; the paper's lines are dashed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ours, paper = series(comparison)
    names = list(dict.fromkeys([*ours, *paper]))
    with mpl.rc_context(OPTIONS):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(textwrap.fill(comparison.title, 76), fontsize="small")
        axes.set_xlabel(comparison.recipe.axis)
        axes.set_ylabel("top-1 against unpruned, points")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        for place, name in enumerate(names):
            style = STYLES[place % len(STYLES)]
            _line(axes, ours.get(name, []), style, f"{name}, ours", dashed=False)
            _line(axes, paper.get(name, []), style, f"{name}, paper", dashed=True)
        figure.legend(loc="outside right upper")
        return saved(figure, "svg")


def _line(
    axes: Any,
    points: Sequence[tuple[float, Interval]],
    style: tuple[str, str],
    label: str,
    *,
    dashed: bool,
) -> None:
    if not points:
        return
    places = [place for place, _ in points]
    values = [value.estimate for _, value in points]
    bars = [
        [value.estimate - value.low for _, value in points],
        [value.high - value.estimate for _, value in points],
    ]
    colour, marker = style
    axes.errorbar(
        places, values, yerr=None if dashed else bars, color=colour, marker=marker, markersize=6,
        markerfacecolor="none" if dashed else colour, linestyle="--" if dashed else "-",
        capsize=2.5, linewidth=1.4, elinewidth=0.9, label=label,
    )  # fmt: skip


def under_its_conditions(recipe: Reproduction, config: StudyConfig) -> StudyConfig:
    """Return a table's own keep rates and settings on top of those that were asked for."""
    datasets = config.datasets[:1] if recipe.single else config.datasets
    return replace(config, keeps=recipe.keeps, datasets=datasets, **recipe.changes)


def produce(
    recipe: Reproduction, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Measure what a table needs and ``known`` lacks.

    Yields:
        What the study found on a dataset, and the records behind it.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    for part in recipe.groups(config):
        yield from make(recipe.study, part, known, progress)
