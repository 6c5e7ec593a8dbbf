"""Which methods stay nearest to dense on images that nothing was chosen by, on several towers, at equal GFLOPs?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.apps.compare import compare
from harness.base.hints import describe_error
from harness.base.table import UNMEASURED, Cell, Table
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.measure.plan import Plan
from harness.measure.rows import make_row, usual_methods
from harness.records.averages import CLOSE, Average, averages, cost_of, level_of, tower_of
from harness.records.metrics import METRICS
from harness.records.record import DENSE, GOLDEN, Record
from harness.records.statistics import paired_ratio
from zoo.core.reducer import METHODS
from zoo.loading.towers import load_tower

MATCH_TO = "clsattn"  # method whose GFLOPs the others meet
AGAINST = "tome"  # method that others' distances are divided by
DISTANCE = METRICS["cosine_distance"]


def judge(
    plan: Plan, known: Sequence[Record], progress: Progress, folder: Path | None = None
) -> Iterator[list[Record]]:
    """Yield the records of each tower and dataset; a tower goes without methods and datasets that it can't have.

    A plan without methods is of the usual ones.

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
        own = replace(plan, models=(model,), methods=tuple(dict.fromkeys(methods)), datasets=tuple(datasets))
        yield from compare(own, known, progress, release=True, folder=folder)


def summarise(groups: Sequence[Sequence[Record]], match_to: str) -> Table:
    """Lay out 1 - cosine to dense by tower, cost and method, a column for each set of images.

    ``groups`` are records of one tower and dataset each. Behind a distance stands its ratio to that of `AGAINST`.
    """
    sets = list(dict.fromkeys(_set_of(group) for group in groups))
    cells: dict[tuple[str, float, str], dict[str, Cell]] = {}
    costs: dict[tuple[str, float, str], float] = {}
    for group in groups:
        rows = averages(group)
        for target in (row for row in rows if row.method == match_to):
            level = level_of(rows, target)
            nearest = {row.method: row for row in (*level.rows, *level.missing.values())}
            for method, row in nearest.items():
                key = (tower_of(group[0]), target.keep, method)
                costs[key] = (cost_of(row) or 0) / (cost_of(target) or 1)
                cells.setdefault(key, {})[_set_of(group)] = _cell(row, nearest.get(AGAINST))
    towers = [tower for tower, *_ in cells]

    def place(key: tuple[str, float, str]) -> tuple[float, ...]:
        """Sort by tower, then costs falling, then the sum of distances."""
        return towers.index(key[0]), -key[1], sum(float(cell.value or 0) for cell in cells[key].values())

    order, lines = sorted(cells, key=place), []
    for tower, keep, method in order:
        own, off = cells[tower, keep, method], costs[tower, keep, method] - 1
        name = f"{method} at {off:+.0%}" if abs(off) > CLOSE / 2 else method
        lines.append([tower, f"{100 * keep:g} %", name, *(own.get(one, UNMEASURED) for one in sets)])
    starts = {at for at in range(1, len(order)) if order[at][:2] != order[at - 1][:2]}
    return Table.of(
        f"1 - cosine to dense at the GFLOPs of {match_to}",
        ["tower", "at", "method", *sets],
        lines,
        words={"tower", "method"},
        sections=frozenset(starts),
        caption=f"at: keep rate of {match_to}; behind a distance its ratio to that of {AGAINST} on the same images and "
        "its 95 % paired bootstrap interval over photographs; at +X %: the method can't go down to this cost",
    )


def _cell(row: Average, against: Average | None) -> Cell:
    mean, values = row.mean(DISTANCE.name), row.per_image(DISTANCE.name)
    other = None if against is None else against.per_image(DISTANCE.name)
    if values is None or other is None or row is against or not min(other) > 0:  # of no distance nothing is a multiple
        return Cell(DISTANCE.text(mean), mean)
    ratio, low, high = paired_ratio(values, other, row.first.groups)
    return Cell(f"{DISTANCE.text(mean)}, x{ratio:.2f} [{low:.2f}, {high:.2f}]", mean)


def _set_of(group: Sequence[Record]) -> str:
    return f"{group[0].dataset} ({group[0].image_count})"
