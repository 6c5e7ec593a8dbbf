"""What a reader asks first of a group: what is saved without a clear loss, and what wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.averages import Average, Judged, judged, labels
from harness.plots.accuracy import front_notes, judge, row_name
from harness.report.front import SAME, Standing
from harness.report.groups import Group, counted
from harness.statistics import minimum_detectable_difference
from harness.variants import DENSE


@dataclass(frozen=True, kw_only=True)
class Highlights:
    """A group in short.

    Attributes:
        group: which.
        conditions: what it was measured on.
        saving: about the row that costs least of those without a clear loss to dense.
        fronts: about rows on the Pareto fronts and those that are clearly beaten, by cost.
        least: that row; None where there is none.
        stood: where rows stand by each cost, as `judge` returns it.
    """

    group: Group
    conditions: str
    saving: str
    fronts: Sequence[str]
    least: Average | None
    stood: Mapping[str, Sequence[Standing]]


def highlights(group: Group) -> Highlights:
    """Say a group in short, from its records alone."""
    first, named = group.first, labels(group.rows)
    least, saving = _saving(group.rows, named)
    stood = judge(group)
    seeds = len(group.rows[0].records)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    return Highlights(
        group=group,
        conditions=f"{first.image_count} images{over}; {first.device_name}, {first.device}, "
        f"{first.dtype}, {counted(first.threads, 'thread')}",
        saving=saving,
        fronts=[_front(cost, each, named) for cost, each in stood.items()],
        least=least,
        stood=stood,
    )


def _saving(rows: Sequence[Average], named: Mapping[str, str]) -> tuple[Average | None, str]:
    dense = next((row for row in rows if row.method == DENSE), None)
    together = judged(rows)
    if dense is None:
        return None, "There is no dense row, so no loss to it can be told."
    whole = dense.mean("gflops")
    if together is None or whole is None:
        return None, "No row has both a difference to dense and counted GFLOPs."
    cheaper = [
        row for row in rows if row.to_dense is not None and (row.mean("gflops") or whole) < whole
    ]
    if not cheaper:
        return None, "No row with a difference to dense has fewer GFLOPs."
    found = [row for row in cheaper if not _lost(row, together)]
    if not found:
        return (
            None,
            "Every row with fewer GFLOPs is less accurate than dense by its interval or the test.",
        )
    fewest = min(row.mean("gflops") for row in found)
    alike = [row for row in found if row.mean("gflops") <= SAME * fewest]
    least = max(alike, key=lambda row: row.top1.estimate)
    return least, _told(least, dense, together, row_name(least, named))


def _lost(row: Average, together: Judged) -> bool:
    """Tell a row that is less accurate by all rows judged together, or by its interval alone.

    The second finds more, as a loss that goes unseen is the worse mistake here.
    """
    assert row.to_dense is not None
    return row.to_dense.high < 0 or (bool(together.mark(row)) and row.to_dense.estimate < 0)


def _told(row: Average, dense: Average, together: Judged, name: str) -> str:
    assert row.to_dense is not None
    estimate, low, high = (100 * number for number in row.to_dense)
    spent, whole = row.mean("gflops"), dense.mean("gflops")
    text = (
        f"Fewest GFLOPs without a clear loss to dense ({100 * dense.top1.estimate:.1f} %): {name}, "
        f"{estimate:+.1f} points [{low:+.1f}, {high:+.1f}], {spent:.2f} GFLOPs, "
        f"{100 * (1 - spent / whole):.0f} % fewer"
    )
    for timed in row.latency:
        if timed.ratio_to_dense is not None:
            text += (
                f"; {timed.ratio_to_dense:.2f} of dense's time at batch {timed.batch} "
                f"[{timed.ratio_low:.2f}, {timed.ratio_high:.2f}]"
            )
    return f"{text}.{_unseen(row, dense, together)}"


def _unseen(row: Average, dense: Average, together: Judged) -> str:
    """Say what loss so many images may hide; nothing of several seeds, or of a clear gain."""
    if together.mark(row) or len(dense.records) > 1:
        return ""
    truth = dense.first.correct
    apart = float((row.first.correct != truth).mean())
    found = minimum_detectable_difference(truth.size, apart)
    if found is None:
        told = int((row.first.correct != truth).sum())
        return f" Just one of the two is right on {counted(told, 'image')}, too few to show a loss."
    return (
        f" No clear loss isn't no loss: {truth.size} images show one of {100 * found:.1f} points "
        "in four of five cases."
    )


def _front(cost: str, stood: Sequence[Standing], named: Mapping[str, str]) -> str:
    batch = cost.partition("ratio_batch")[2]
    notes = [n for n in front_notes(stood, named) if not n.startswith("Beside")]
    if all(one.by is None for one in stood):
        notes.append("None is clearly beaten.")
    return f"By {f'time at batch {batch}' if batch else 'GFLOPs'}: {' '.join(notes)}"
