"""Which row is nearest to dense, or most accurate, at each cost: in sentences, as figures and as plots."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

from harness.base.table import UNMEASURED, Cell, Table, json_values
from harness.records.averages import Average, labels, mean_difference
from harness.records.metrics import METRICS, Metric
from harness.records.record import DENSE, GOLDEN, RANDOM
from harness.records.statistics import Interval
from harness.report.charts import Chart, Dot, Plot
from harness.report.groups import Group
from harness.report.tables import estimate_cell, keep_cell

TOP1 = METRICS["top1"]
DRAWN = 6  # groups that are drawn, the first, unless all are asked for: a chart takes a while
_APART = {DENSE, GOLDEN, RANDOM}  # no methods to choose from; random pruning is a control
_NAMES = {"top1": "accuracy", "cosine_distance": "fidelity"}  # of files of plots


@dataclass(frozen=True)
class Cost:
    """What rows may cost: multiply-adds, or time over dense's at a batch size."""

    batch: int | None = None  # None: multiply-adds

    @property
    def name(self) -> str:
        """Its name in files and data, such as ``ratio_batch32``."""
        return "gflops" if self.batch is None else f"ratio_batch{self.batch}"

    @property
    def words(self) -> str:
        """What it is in a sentence."""
        return "GFLOPs" if self.batch is None else f"time at batch {self.batch}"

    def text(self, value: Interval) -> str:
        """Format a cost."""
        if self.batch is None:
            return f"{value.estimate:.2f} GFLOPs"
        return f"{estimate_cell(value, '{:.2f}'.format)} of dense's time at batch {self.batch}"

    def of(self, row: Average) -> Interval | None:
        """Return a row's cost with its interval; None where it wasn't measured."""
        if self.batch is None:
            gflops = row.mean("gflops")
            return None if gflops is None else exact(gflops)
        timed = next((each for each in row.latency if each.batch == self.batch), None)
        return None if timed is None else exact(1.0) if row.method == DENSE else timed.ratio


def exact(value: float) -> Interval:
    """Return a value as an interval of no width."""
    return Interval(value, value, value)


class Step(NamedTuple):
    """A row that is better than all others that cost no more."""

    row: Average
    cost: Interval
    second: Average | None  # the best row of another method that costs no more


@dataclass(frozen=True, kw_only=True)
class Front:
    """The steps of a group by one metric and cost, costs rising, by the estimates."""

    group: Group
    metric: Metric  # whose ``quality`` says what is best
    cost: Cost
    steps: Sequence[Step]

    @property
    def name(self) -> str:
        """Its name in files and data."""
        return f"{_NAMES.get(self.metric.name, self.metric.name)}_{self.cost.name}"

    @property
    def rivals(self) -> bool:
        """Whether there is more than one method."""
        return len({row.method for row in self.group.rows} - _APART) > 1

    def sentence(self, where: str = "") -> str:
        """Say which method is best at the least cost at which there is another one, with the intervals of both."""
        row, cost, second = next((step for step in self.steps if step.second is not None), self.steps[0])
        names, text = labels(self.group.rows), f"{self.metric.heading}: {self._value(row)}"
        if second is not None:
            text += f" against {self._value(second)} of {names[second.identity]}"
        return f"At {self.cost.text(cost)}, {names[row.identity]} is {self.metric.quality}{where} ({text})."

    def rows(self) -> Iterator[list[Cell]]:
        """Yield a table's row per step, see `best_table`."""
        names = labels(self.group.rows)
        what = f"{self.metric.quality}: {self.metric.heading}"
        for row, cost, second in self.steps:
            yield [
                *(Cell(what, what), Cell(self.cost.text(cost), cost.estimate)),
                *(Cell(names[row.identity], names[row.identity]), keep_cell(row.keep), self._value(row)),
                *(
                    (Cell(names[second.identity], names[second.identity]), self._value(second))
                    if second
                    else (UNMEASURED, UNMEASURED)
                ),
            ]

    def _value(self, row: Average) -> Cell:
        return estimate_cell(row.estimate(self.metric), self.metric.text)

    def data(self) -> list[dict[str, Any]]:
        """Return the steps as JSON values."""
        return [
            {
                "model": step.row.first.model,
                "cost": json_values(step.cost),
                self.metric.name: json_values(step.row.estimate(self.metric)),
                "against": step.second and step.second.first.model,
            }
            for step in self.steps
        ]


def fronts(group: Group) -> list[Front]:
    """Return where a group's rows stand, by each quality and cost, the time that a user waits first."""
    batches = sorted({timed.batch for row in group.rows for timed in row.latency}, reverse=True)
    found = [
        Front(group=group, metric=metric, cost=cost, steps=_steps(group.rows, metric, cost))
        for metric in METRICS.values()
        if metric.quality
        for cost in (*map(Cost, batches), Cost())
    ]
    return [front for front in found if front.steps]


def _steps(rows: Sequence[Average], metric: Metric, cost: Cost) -> list[Step]:
    sign = 1 if metric.better == "lower" else -1
    known = [
        (price, sign * row.mean(metric.name), row)
        for row in rows
        if row.method not in _APART and row.has(metric) and (price := cost.of(row)) is not None
    ]
    known.sort(key=lambda one: (round(one[0].estimate, 2), one[1]))  # costs that are printed alike are alike
    steps: list[Step] = []
    best = float("inf")
    for price, value, row in known:
        if value < best:
            best = value
            most = round(price.estimate, 2)
            others = [one for one in known if round(one[0].estimate, 2) <= most and one[2].method != row.method]
            second = min(others, key=lambda one: one[1], default=(None, None, None))[2]
            steps.append(Step(row, price, second))
        elif steps[-1].second is None and row.method != steps[-1].row.method:
            steps.append(Step(steps[-1].row, price, row))  # from here on there is another method
    return steps


def best_table(own: Sequence[Front]) -> Table:
    """Lay out the fronts of a group: from each cost on the row that is best of all that cost no more."""
    return Table.of(
        own[0].group.name,
        ["What", "From", "Method", "Keep", "Value", "Other method", "Its best value"],
        [cells for front in own for cells in front.rows()],
        words=("What", "From", "Method", "Other method"),
        roomy=("Its best value",),
        caption="the best row of all that cost no more, by the estimates, and the best one of another method; "
        "values with 95 % intervals; random pruning, a control, is left out",
        sections=frozenset(accumulate(len(front.steps) for front in own)),
    )


def headline(every: Sequence[Front]) -> list[str]:
    """Say for each set which method is best, by the first front of its group; nothing where there is one method."""
    first = {front.group.name: front for front in reversed(every)}
    shown = [front for front in every if first[front.group.name] is front and front.rivals]
    return [front.sentence(f" on {front.group.short}") for front in shown]


def plots_of(every: Sequence[Front]) -> list[Plot]:
    """Return a plot of each quality against each cost, with a chart per group in which rows have intervals.

    Random pruning is in it, too.
    """
    plots: dict[tuple[str, str], list[Chart]] = {}
    for front in sorted(every, key=lambda front: -(front.cost.batch or 0)):
        if (chart := _chart(front)).series:
            plots.setdefault((front.name, _title(front)), []).append(chart)
    return [Plot(name=name, title=title, charts=charts) for (name, title), charts in plots.items()]


def _title(front: Front) -> str:
    name = f"{TOP1.title} to dense" if front.metric == TOP1 else front.metric.title
    return f"{name} against {front.cost.words}"


def _over_fits(rows: Sequence[Average]) -> dict[str, Average]:
    """Return by identity each row, or the mean of those that differ from it in nothing but the predictor fitted."""
    alike: dict[str, list[Average]] = {}
    for row in rows:
        settings = {name: value for name, value in row.config.items() if name != "predictor"}
        alike.setdefault(json.dumps([row.first.model, row.label, row.keep, settings], sort_keys=True), []).append(row)
    dense, means = next((row for row in rows if row.method == DENSE), None), dict[str, Average]()
    for fits in alike.values():
        mean = fits[0]
        if len(fits) > 1:
            mean = Average(records=tuple(record for row in fits for record in row.records), top1=None)
            if dense is not None and dense.top1 is not None:
                beside = replace(dense, records=dense.records * len(fits))
                mean = replace(mean, to_dense=mean_difference(mean, beside))
        means |= {row.identity: mean for row in fits}
    return means


def _chart(front: Front) -> Chart:
    """Plot distance to dense, or the paired difference to it in top-1."""
    means, top1 = _over_fits(front.group.rows), front.metric == TOP1
    rows = list({row.identity: row for row in means.values()}.values())
    names = labels(rows)

    def height(row: Average) -> Interval | None:
        if top1:
            difference = exact(0.0) if row.method == DENSE else row.to_dense
            return None if difference is None else Interval(*(100 * number for number in difference))
        estimate = row.estimate(front.metric)
        return estimate if isinstance(estimate, Interval) else None

    series = dict[str, list[Dot]]()
    for row in sorted(rows, key=lambda row: (row.method != DENSE, names[row.identity], row.keep)):
        if (cost := front.cost.of(row)) is not None and (value := height(row)) is not None:
            series.setdefault(names[row.identity], []).append(Dot(cost, value, label=f"{100 * row.keep:.3g} %"))
    for name, dots in series.items():  # keep rates stand at the ends of a line
        last = len(dots) - 1
        series[name] = [d if at in (0, last) and name != DENSE else d._replace(label="") for at, d in enumerate(dots)]
    return Chart(
        title=front.group.short,
        alt=f"{_title(front)}, {front.group.name}. {front.sentence()}",
        x_label="GFLOPs per image" if front.cost.batch is None else f"{front.cost.words}, × dense",
        y_label=f"{TOP1.title} to dense, points" if top1 else f"{front.metric.heading} to dense",
        series=series,
        level=0.0 if top1 else None,
        front=[
            (step.cost.estimate, high.estimate)
            for step in front.steps
            if (high := height(means[step.row.identity])) is not None
        ],
        log=not top1,
        aside=RANDOM,
    )
