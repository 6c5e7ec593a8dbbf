"""What a study measured on a dataset: its lines beside the dense model and beside each other, as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.table import FORMS, UNMEASURED, Cell, Column, Table, figure, points
from harness.records.averages import Average, describe_uncounted, fidelity_difference, judged_on, row_p
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
from harness.report.charts import Chart, Dot

NOTES = (
    "1 - cosine of the features to dense, and top-1 in %, mean over seeds (least to most); differences, of top-1 in "
    "points, on the same images, with 95 % paired bootstrap intervals over images of the mean over seeds, one "
    "comparison at a time. Tau and match at k: agreement with the golden ranking that the line aims at, k being the "
    "patches kept."
)
SEED_NOTES = "Over seeds: the difference to first with Student's 95 % t interval over seeds."
PATCH_NOTES = (
    "Per patch: 1 - cosine to dense, mean over patches. IoU: of the foreground in %, by a linear probe of single "
    "patches fitted to dense's features, and by one fitted to the row's own; differences in points."
)
# Differences that are tested, a family each, by the row's field; their columns.
DIFFERENCES = {
    "distance_to_first": "1 - cos to first", "to_dense": "to dense", "to_first": "to first",
    "patches_to_first": "per patch to first", "iou_to_first": "IoU to first", "own_iou_to_first": "own IoU to first",
}  # fmt: skip
# Those of metrics with values per image, but top-1.
_METRICS = {
    "distance_to_first": METRICS["cosine_distance"], "patches_to_first": METRICS["patch_distance"],
    "iou_to_first": METRICS["foreground_iou"], "own_iou_to_first": METRICS["foreground_iou_own"],
}  # fmt: skip
_LEARNED = ("shots", "tuning", "prompt_tokens", "seed")  # lines may differ in
_MEANS = (
    *("top1", "gflops", "cosine_distance", "tau", "match_at_k"),
    *("patch_distance", "foreground_iou", "foreground_iou_own"),
)
# Columns that narrower terminals do without.
_FORMS = dict.fromkeys(("GFLOPs", "over seeds", "tau", "match@k (chance)", *list(DIFFERENCES.values())[3:]), FORMS[:1])
_FORMS |= dict.fromkeys(("top-1", "to dense", "to first"), FORMS[:2])


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One line of a study with what was measured on one dataset.

    Differences are means over seeds on the same images; there is none of top-1 without labels, and none to itself.
    """

    labels: dict[str, str]  # what distinguishes it, by column
    group: float | str  # lines are compared with the first of the same group
    average: Average  # its records, one per seed
    differences: Mapping[str, tuple[Interval, float | None]]  # by name in `DIFFERENCES`, with the p-value
    # top-1 to first with Student's t interval over seeds, where both lines were tuned from the same
    over_seeds: Interval | None = None

    def difference(self, name: str) -> Interval | None:
        """Return a difference by its name in `DIFFERENCES`."""
        return self.differences.get(name, (None,))[0]

    @property
    def records(self) -> tuple[Record, ...]:
        """One per seed."""
        return self.average.records

    def cells(self) -> dict[str, Cell]:
        """Return the figures by heading."""
        mean, match = self.average.mean, self.average.measured("match_at_k")
        top1 = [100 * right for record in self.records if (right := record.mean("top1")) is not None]
        spread = f" ({min(top1):.1f}–{max(top1):.1f})" if len(top1) > 1 else ""
        iou, own_iou = (None if (own := mean(f"foreground_iou{end}")) is None else 100 * own for end in ("", "_own"))
        return {
            "keep": Cell(f"{100 * self.records[0].keep:.3g}"),
            "GFLOPs": figure(mean("gflops"), ".3f"),
            "1 - cos": figure(mean("cosine_distance"), ".4f"),
            "1 - cos to first": _further(self.difference("distance_to_first")),
            "per patch": figure(mean("patch_distance"), ".4f"),
            "per patch to first": _further(self.difference("patches_to_first")),
            "IoU": figure(iou, ".1f"),
            "IoU to first": points(self.difference("iou_to_first")),
            "own IoU": figure(own_iou, ".1f"),
            "own IoU to first": points(self.difference("own_iou_to_first")),
            "top-1": Cell(f"{np.mean(top1):.1f}{spread}") if top1 else UNMEASURED,
            "to dense": points(self.difference("to_dense")),
            "to first": points(self.difference("to_first")),
            "over seeds": points(self.over_seeds),
            "tau": figure(mean("tau"), ".3f"),
            "match@k (chance)": Cell(f"{match.mean:.2f} ({match.chance:.2f})") if match else UNMEASURED,
        }


def _further(difference: Interval | None) -> Cell:
    """Show a difference of two distances."""
    if difference is None:
        return UNMEASURED
    return Cell("{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference), difference.estimate)


def compare_lines(
    lines: Sequence[tuple[dict[str, str], float | str, Sequence[Record]]], dense: Record
) -> list[StudyRow]:
    """Compare lines (labels, group, a record per seed) with the dense model and with the first.

    Raises:
        ValueError: conditions other than what was learned differ; see `records.refuse_mixed`.
    """
    refuse_mixed([dense, *(r for _, _, records in lines for r in records)], varying=_LEARNED)
    base, first_of, rows = _average([dense]), dict[float | str, Average](), []
    for labels, group, records in lines:
        row = _average(records)
        first = first_of.setdefault(group, row)
        others = {"to_dense": base} | ({} if first is row else {"to_first": first})
        differences: dict[str, tuple[Interval, float | None]] = {}
        for name, other in others.items() if dense.labelled else ():
            differences[name] = bootstrap_mean(_share(row) - _share(other), seed=0), row_p(row, other)
        for name, metric in _METRICS.items():
            if first is not row and (apart := fidelity_difference(row, first, metric)) is not None:
                differences[name] = apart
        own = None if first is row else _over_seeds(records, first.records)
        rows.append(StudyRow(labels=labels, group=group, average=row, differences=differences, over_seeds=own))
    return rows


def _average(records: Sequence[Record]) -> Average:
    return Average(records=tuple(records))


def _share(row: Average) -> NDArray[np.float64]:
    """Return (image_count,) for what share of the seeds each image was right."""
    return row.hits / len(row.records)


def _over_seeds(records: Sequence[Record], first: Sequence[Record]) -> Interval | None:
    seeds = [[r.seed for r in group if r.tuning is not None] for group in (records, first)]
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        return None
    return mean_interval([float(a.correct.mean() - b.correct.mean()) for a, b in zip(records, first, strict=True)])


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """What a study measured on one dataset: the dense model's record, and a row per line."""

    title: str
    dense: Record
    rows: Sequence[StudyRow]

    def families(self) -> dict[str, Together[int]]:
        """Return the p-values of each column of differences, a family each, by row."""
        every = {name: [row.differences.get(name, (None, None))[1] for row in self.rows] for name in DIFFERENCES}
        return {name: together(dict(enumerate(p_values))) for name, p_values in every.items()}

    def table(self) -> Table:
        """Lay it out; differences that are clear when their column is judged together have marks.

        Columns of what wasn't measured are left out.
        """
        labels = list(dict.fromkeys(name for row in self.rows for name in row.labels))
        families = self.families()
        lines = []
        for at, row in enumerate(self.rows):
            cells = {name: Cell(row.labels.get(name, "")) for name in labels} | row.cells()
            for name, head in DIFFERENCES.items():
                cells[head] = Cell(cells[head], cells[head].value, families[name].mark(at))
            lines.append(cells)
        heads = [head for head in lines[0] if any(line[head] != UNMEASURED for line in lines)]
        several = any(len(row.records) > 1 for row in self.rows)
        tests = [*([SIGN_FLIP if several else MCNEMAR] if self.dense.labelled else []), FLIPPED]
        lacking = describe_uncounted(self.dense, *(row.records[0] for row in self.rows))
        seeds = [SEED_NOTES] if "over seeds" in heads else []
        seeds += [PATCH_NOTES] if "per patch" in heads else []
        notes = [NOTES, *seeds, f"{mark_note(' or '.join(tests), 'all of a column')}."]
        notes += [f"{lacking}."] if lacking else []
        begins = {row.group: at for at, row in reversed(list(enumerate(self.rows)))}
        return Table(
            title=self.title,
            caption=" ".join(notes),
            columns=[Column(heading=head, left=head in labels, forms=_FORMS.get(head, FORMS)) for head in heads],
            rows=[[line[head] for head in heads] for line in lines],
            sections=frozenset(begins.values()),
        )

    def chart(self, x: str, *series: str, accuracy: bool = False) -> Chart:
        """Draw 1 - cosine to dense, or the difference of top-1 where lines lack it, against a column of numbers.

        With ``accuracy`` it is top-1 in any case. Lines with the same labels in the columns ``series`` are joined;
        those without an x are left out.
        """
        distance = METRICS["cosine_distance"]
        near = not accuracy and all(row.average.mean(distance.name) is not None for row in self.rows)
        dots: dict[str, list[Dot]] = {}
        for row in self.rows:
            at = (row.labels | row.cells())[x]
            y = row.average.estimate(distance) if near else row.difference("to_dense")
            if at == UNMEASURED or not isinstance(y, Interval):
                continue
            height = y if near else Interval(*(100 * end for end in y))
            name = " ".join(filter(None, (row.labels.get(column) for column in series)))
            dots.setdefault(name, []).append(Dot(Interval(*[float(at)] * 3), height))
        y_label = "1 - cosine to dense" if near else "top-1 to dense, points"
        images = f"{self.dense.dataset} ({judged_on(self.dense)}, {self.dense.image_count} images)"
        return Chart(title=images, x_label=x, y_label=y_label, series=dots, log=near)

    def lines(self) -> list[dict[str, Any]]:
        """Return its rows as CSV and JSON have them; numbers have six digits, None is what wasn't measured.

        Without features per patch there are no columns of them.
        """
        families, lines = self.families(), []
        patches = any(row.average.mean("patch_distance") is not None for row in self.rows)
        about = {name: getattr(self.dense, name) for name in ("dataset", "split", "image_count", "dtype")}
        for at, row in enumerate(self.rows):
            match = row.average.measured("match_at_k")
            figures: dict[str, Any] = {"keep": row.average.keep} | {name: row.average.mean(name) for name in _MEANS}
            figures["match_chance"] = None if match is None else match.chance
            for name in (*DIFFERENCES, "over_seeds"):
                interval = row.over_seeds if name == "over_seeds" else row.difference(name)
                figures |= zip((name, f"{name}_low", f"{name}_high"), interval or [None] * 3, strict=True)
            figures |= {f"{name}_p_holm": family.adjusted.get(at) for name, family in families.items()}
            figures = {
                name: None if value is None else float(f"{value:.6g}")
                for name, value in figures.items()
                if patches or not ("patch" in name or "iou" in name)
            }
            lines.append(about | row.labels | {"group": row.group, "seeds": len(row.records)} | figures)
        return lines
