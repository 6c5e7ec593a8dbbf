"""Which methods stay nearest to dense on images that nothing was chosen by, on several towers, at equal GFLOPs?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness.apps.compare import compare
from harness.base.hints import describe_error
from harness.base.table import UNMEASURED, Cell, Table
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.measure.rows import make_row, usual_methods
from harness.measure.settings import Plan
from harness.records.averages import CLOSE, Average, averages, cost_of, level_of, tower_of
from harness.records.metrics import METRICS
from harness.records.record import DENSE, GOLDEN, Record
from harness.records.statistics import Interval, paired_ratio
from zoo.core.reducer import METHODS
from zoo.loading.towers import load_tower

MATCH_TO = "clsattn"  # method whose GFLOPs the others meet
AGAINST = "tome"  # method that others' distances are divided by
DISTANCE = METRICS["cosine_distance"]


def judge(
    plan: Plan, known: Sequence[Record], progress: Progress, folder: Path | None = None
) -> Iterator[list[Record]]:
    """Yield the records of each tower and dataset; methods and datasets that a tower can't have are left out.

    A plan without methods takes the usual ones.

    Raises:
        ValueError: an unknown name, or a tower without the method whose cost is to be met.
    """
    asked = plan.methods or tuple(name for name in usual_methods() if name != GOLDEN)  # its rankings would read it
    for model in plan.models:
        tower, methods = load_tower(model), [DENSE]
        for method in dict.fromkeys((plan.match_to, *asked)):
            try:
                if method in METHODS:
                    make_row(tower, method, {"keep": max(plan.keeps)})
            except (ValueError, FileNotFoundError) as error:
                if method == plan.match_to:
                    raise
                progress.say(f"{method} is left out of {model}: {describe_error(error)}")
            else:
                methods.append(method)
        datasets = [name for name in plan.datasets if tower.clip is not None or not get_dataset(name).labelled]
        if left_out := [name for name in plan.datasets if name not in datasets]:
            progress.say(f"{', '.join(left_out)}: left out of {model}, which has no text tower to judge their classes")
        part = replace(plan, models=(model,), methods=tuple(dict.fromkeys(methods)), datasets=tuple(datasets))
        yield from compare(part, known, progress, release=True, folder=folder)


class SetDistance(NamedTuple):
    """1 - cosine to dense of one method on one set of images, at the GFLOPs of another method."""

    tower: str
    at: float  # keep rate of the method whose GFLOPs are met
    method: str
    extra_gflops: float  # by which share the method costs more
    dataset: str
    images: int
    cosine_distance: float
    ratio: Interval | None  # of the distance to that of `AGAINST` on the same images

    @property
    def column(self) -> str:
        """The set of images and their number."""
        return f"{self.dataset} ({self.images})"

    @property
    def label(self) -> str:
        """The method, and its cost where it can't go down to the other's."""
        return self.method + (f" at {self.extra_gflops:+.0%}" if abs(self.extra_gflops) > CLOSE / 2 else "")

    @property
    def cell(self) -> Cell:
        """The distance, and the ratio behind it."""
        text = DISTANCE.text(self.cosine_distance)
        if self.ratio is not None:
            text += ", x{:.2f} [{:.2f}, {:.2f}]".format(*self.ratio)
        return Cell(text, self.cosine_distance)


def distances(groups: Sequence[Sequence[Record]], match_to: str) -> list[SetDistance]:
    """Return the distances of all methods; ``groups`` are records of one tower and dataset each."""
    entries = []
    for group in groups:
        rows, (tower, first) = averages(group), (tower_of(group[0]), group[0])
        for target in (row for row in rows if row.method == match_to):
            level = level_of(rows, target)
            nearest = {row.method: row for row in (*level.rows, *level.missing.values())}
            for method, row in nearest.items():
                extra, mean = (cost_of(row) or 0) / (cost_of(target) or 1) - 1, row.mean(DISTANCE.name)
                assert mean is not None
                ratio = _ratio(row, nearest.get(AGAINST))
                images = (first.dataset, first.image_count)
                entries.append(SetDistance(tower, target.keep, method, extra, *images, mean, ratio))
    return entries


def _ratio(row: Average, against: Average | None) -> Interval | None:
    values = row.per_image(DISTANCE.name)
    base = None if against is None else against.per_image(DISTANCE.name)
    if values is None or base is None or row is against or not min(base) > 0:  # no number is a multiple of no distance
        return None
    return paired_ratio(values, base, row.first.groups)


def summarise(groups: Sequence[Sequence[Record]], match_to: str) -> Table:
    """Lay out `distances` by tower, cost and method, a column for each set of images."""
    lines: dict[tuple[str, float, str], dict[str, SetDistance]] = {}
    entries = distances(groups, match_to)
    for entry in entries:
        lines.setdefault((entry.tower, entry.at, entry.method), {})[entry.column] = entry
    towers, sets = (list(dict.fromkeys(getattr(entry, name) for entry in entries)) for name in ("tower", "column"))

    def place(key: tuple[str, float, str]) -> tuple[float, ...]:
        """Sort by tower, then costs falling, then the sum of distances."""
        return towers.index(key[0]), -key[1], sum(entry.cosine_distance for entry in lines[key].values())

    order, cells = sorted(lines, key=place), []
    for tower, keep, method in order:
        line = lines[tower, keep, method]
        label = next(reversed(line.values())).label
        shown = (line[name].cell if name in line else UNMEASURED for name in sets)
        cells.append([tower, f"{100 * keep:g} %", label, *shown])
    starts = {at for at in range(1, len(order)) if order[at][:2] != order[at - 1][:2]}
    return Table.of(
        f"1 - cosine to dense at the GFLOPs of {match_to}",
        ["tower", "at", "method", *sets],
        cells,
        words={"tower", "method"},
        sections=frozenset(starts),
        caption=f"at: keep rate of {match_to}; behind a distance its ratio to that of {AGAINST} on the same images and "
        "its 95 % paired bootstrap interval over photographs; at +X %: the method can't go down to this cost",
    )
