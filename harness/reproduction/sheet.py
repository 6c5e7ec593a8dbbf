"""Our figures beside the paper's: by dataset, as mean, and against the row's reference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from harness.records import Record
from harness.reproduction.base import Reproduction, Row
from harness.reproduction.cells import difference, interval, number
from harness.reproduction.measures import MEASURES, RATIOS, mean_of
from harness.reproduction.paper import Printed, printed
from harness.statistics import Interval
from harness.studies.config import StudyConfig
from harness.studies.sheet import NOT_MEASURED, Sheet

MODEL = "clip_vit_b16.openai"
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)
OTHER = "NOT the paper's {}: what differs is no failed reproduction"


@dataclass(frozen=True, kw_only=True)
class Found:
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
        found: rows.
        images: judged images by dataset.
        same: whether tower and datasets are the paper's, so that figures may be compared.
    """

    recipe: Reproduction
    tower: str
    datasets: tuple[str, ...]
    found: tuple[Found, ...]
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
        return heads, [line for one in self.found for line in self._lines(one)]

    def _lines(self, one: Found) -> Iterator[list[str]]:
        measure, against = MEASURES[one.row.measure], one.row.against or ""
        form, relative = measure.form, measure.relative
        all_there = set(one.ours) == set(self.datasets)
        mean = mean_of(list(one.ours.values())) if one.ours and all_there else None
        to = (
            mean_of(list(one.to.values())) if one.to and set(one.to) == set(self.datasets) else None
        )
        ours = [interval(one.ours.get(name), form) for name in self.datasets]
        name = (
            one.row.name if one.ours or not one.row.empty else f"{one.row.name} ({one.row.empty})"
        )
        yield [name, "ours", *ours, interval(mean, form), against, interval(to, relative)]
        if one.paper is None:
            return
        values = [one.paper.values.get(name) for name in self.datasets]
        theirs, theirs_to = one.paper_mean(self.datasets), one.paper_to(self.datasets)
        shown = [number(value, form) for value in values]
        yield ["", "paper", *shown, number(theirs, form), "", number(theirs_to, relative)]
        signed = f"+{form}" if self.same else ""
        off = [
            difference(one.ours.get(name), value, signed)
            for name, value in zip(self.datasets, values, strict=True)
        ]
        by = difference(to, theirs_to, f"+{relative.removeprefix('+')}")
        off += [difference(mean, theirs, signed), "", by]
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
        sources = sorted({one.paper.source for one in self.found if one.paper is not None})
        told = f"- The paper's figures are from: {'; '.join(sources)}."
        return "\n".join([f"## {self.title}", "", *body, "", NOTES, "", *notes, told, ""])


def compared(
    recipe: Reproduction, config: StudyConfig, depth: int, tower: str, sheets: Sequence[Sheet]
) -> Comparison:
    """Put what a study found on some datasets beside the paper's rows.

    Args:
        recipe: the table or figure.
        config: on what it was made.
        depth: blocks of the tower.
        tower: its name.
        sheets: one per dataset, at least one.
    """
    by_dataset = {sheet.dense.dataset: sheet for sheet in sheets}
    known = printed(recipe.name)
    found = []
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
        paper, reference = known.get(row.name), known.get(row.against or "")
        told: dict[str, Any] = {"paper": paper, "reference": reference}
        told["share"] = _share(row, records, by_dataset)
        found.append(Found(row=row, ours=ours, to=to, **told))
    datasets = tuple(by_dataset)
    return Comparison(
        recipe=recipe,
        tower=tower,
        datasets=datasets,
        found=tuple(found),
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
    if not row.labels and row.asked is None:  # a method that isn't built
        return {}
    found = {
        name: next((e.records for e in sheet.entries if row.fits(e, name)), None)
        for name, sheet in sheets.items()
    }
    return {name: records for name, records in found.items() if records is not None}
