"""Which row is nearest to dense, or most accurate, at each cost: in sentences, as figures and as plots."""

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any, NamedTuple

from harness.base.table import UNMEASURED, Cell, Table, figure, json_values
from harness.records.averages import (
    Average,
    Level,
    fidelity_ps,
    labels,
    levels,
    mean_difference,
    time_ratio,
    tower_of,
)
from harness.records.metrics import METRICS, Metric
from harness.records.record import DENSE, GOLDEN, OPTIMIZED, RANDOM, UNREDUCED
from harness.records.statistics import CLEAR, FLIPPED, Interval, Together, together
from harness.report.charts import Chart, Dot, Plot
from harness.report.groups import Group, count_of
from harness.report.tables import describe_note, estimate_cell, keep_cell

TOP1, DISTANCE = METRICS["top1"], METRICS["cosine_distance"]
DRAWN = 6  # groups that are drawn, the first, unless all are asked for: a chart takes a while
# What the images of several datasets were judged under, by one tower.
_ALIKE = (
    *("tag", "weights_sha256", "image_size", "device", "device_name", "dtype", "threads"),
    *("torch", "timm", "version"),
)
_APART = {*UNREDUCED, GOLDEN, RANDOM}  # no methods to choose from; random pruning is a control
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
        if self.batch is None:  # an optimised model saves none
            gflops = None if row.method == OPTIMIZED else row.mean("gflops")
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


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Rows at the lowest equal cost, on each dataset of a tower under the same conditions; without random pruning."""

    groups: Sequence[Group]  # one per dataset, those without labels first
    levels: Sequence[Level]  # of each group, of the same target and cost

    @cached_property
    def names(self) -> dict[str, str]:
        """What rows are called, by identity."""
        return labels([row for level in self.levels for row in level.rows])

    @cached_property
    def judged(self) -> Together[tuple[str, frozenset[str]]]:
        """Differences in 1 - cosine between all pairs of rows, by dataset and both identities, judged together."""
        p_values: dict[tuple[str, frozenset[str]], float | None] = {}
        for group, level in zip(self.groups, self.levels, strict=True):
            pairs = list(combinations(level.rows, 2))
            keys = [(group.name, frozenset((a.identity, b.identity))) for a, b in pairs]
            p_values |= zip(keys, fidelity_ps(pairs, DISTANCE), strict=True)
        return together(p_values)

    def further(self, group: Group, row: Average) -> bool:
        """Tell whether a row is clearly further from dense than the nearest one on a dataset."""
        nearest = self.levels[self.groups.index(group)].rows[0]
        return (group.name, frozenset((nearest.identity, row.identity))) in self.judged.clear

    @property
    def cost(self) -> str:
        """What the rows cost, in words."""
        target, batch, dense = self.levels[0].target, self.levels[0].batch, self.groups[0].rows[0]
        if batch is not None:
            return f"{100 * (time_ratio(target.latency, batch) or 0):.0f} % of dense's time at batch {batch}"
        whole = dense.mean("gflops") if dense.method == DENSE else None
        own = target.mean("gflops")
        return f"{100 * own / whole:.0f} % of dense's multiply-adds" if whole else f"{own:.2f} GFLOPs"

    def sentence(self) -> str:
        """Say which row is nearest to dense where the others are clearly further, and where none is."""
        places: dict[tuple[str, ...], list[int]] = {}
        for at, (group, level) in enumerate(zip(self.groups, self.levels, strict=True)):
            level_set = sorted(self.names[row.identity] for row in level.rows if not self.further(group, row))
            places.setdefault(tuple(level_set if len(level_set) < len(level.rows) else ()), []).append(at)
        clauses = []
        for near, found in sorted(places.items(), key=lambda one: (len(one[0]) != 1, -len(one[1]))):
            sets = list_words([self.groups[at].first.dataset for at in found])
            if len(near) == 1:
                first, second, *_ = self.levels[found[0]].rows
                where = f" on {self.groups[found[0]].first.dataset}" if len(found) > 1 else ""
                clauses.append(
                    f"{near[0]} stays nearest to dense on {sets} ({DISTANCE.heading} {_value(first)}{where}, "
                    f"against {_value(second)} of {self.names[second.identity]})"
                )
            elif near:
                clauses.append(f"{list_words(near)} are level on {sets}")
            else:
                clauses.append(f"no method is clearly nearest to dense on {sets}")
        return f"At {self.cost}, {'; '.join(clauses)}."

    def table(self) -> Table:
        """Lay the rows out beside the unreduced ones, a column of 1 - cosine per dataset."""
        first = self.groups[0]
        unreduced = [row for row in first.rows if row.method in UNREDUCED]
        rows = [*unreduced, *self.levels[0].rows]
        beside = {id(group): {row.identity: row for row in group.rows} for group in self.groups}

        def cells(row: Average) -> Iterator[Cell]:
            yield Cell(self.names.get(row.identity, row.label), row.label)
            yield figure(row.mean("gflops"), ".2f")
            for group in self.groups:
                own = beside[id(group)].get(row.identity)
                cell = UNMEASURED if own is None else _value(own)
                clear = own is not None and self.further(group, own)
                yield Cell(cell, cell.value, CLEAR if clear else "")
            if scored is not None:
                own = beside[id(scored)].get(row.identity)
                yield UNMEASURED if own is None else estimate_cell(own.top1, TOP1.text)
            for batch in batches[-1:]:
                ratio = Cost(batch=batch).of(row)
                yield Cell("1") if row.method == DENSE else estimate_cell(ratio, "{:.2f}".format)

        scored = next((group for group in self.groups if group.first.labelled), None)
        batches = sorted({timed.batch for row in rows for timed in row.latency})
        heads = ["Method", "GFLOPs", *(f"{DISTANCE.heading}, {group.first.dataset}" for group in self.groups)]
        heads += [f"{TOP1.heading}, {scored.first.dataset}"] if scored else []
        heads += [f"Batch {batch}, × dense" for batch in batches[-1:]]
        images = list_words([f"{one.first.image_count} images of {one.first.dataset}" for one in self.groups])
        missing = list_words(self.levels[0].missing)
        about = [
            f"{DISTANCE.fidelity}, nearest first, {CLEAR} clearly further than the nearest ({FLIPPED}, Holm, 5 %)",
            f"{images}; 95 % intervals",
            "× dense: time by the dense model's" if batches else "",
            describe_note(rows, None),
            f"not at this cost: {missing}" if missing else "",
            f"{first.first.device_name}, {first.first.dtype}, {count_of(first.first.threads, 'thread')}",
        ]
        return Table.of(
            f"{tower_of(first.first)} at {self.cost}",
            heads,
            [list(cells(row)) for row in rows],
            words=("Method",),
            caption="; ".join(filter(None, about)),
        )


def standings(groups: Sequence[Group]) -> list[Standing]:
    """Return how rows without training stand per tower and conditions, at equal GFLOPs and at equal times.

    Of a dataset with several groups, such as splits, the one with the most images counts.
    """
    alike: dict[Hashable, dict[str, Group]] = {}
    for group in groups:
        first = group.first
        if first.shots or any(row.first.recovered for row in group.rows):
            continue
        own = alike.setdefault(tuple(getattr(first, name) for name in _ALIKE), {})
        if first.dataset not in own or own[first.dataset].first.image_count < first.image_count:
            own[first.dataset] = group
    found = []
    for own in alike.values():
        lowest: dict[tuple[int | None, str], list[tuple[Group, Level]]] = {}
        for group in sorted(own.values(), key=lambda group: group.first.labelled):
            rows = [row for row in group.rows if row.method != RANDOM]
            for batch, level in {level.batch: level for level in levels(rows)}.items():
                lowest.setdefault((batch, level.target.identity), []).append((group, level))
        for pairs in lowest.values():
            found.append(Standing(groups=[group for group, _ in pairs], levels=[level for _, level in pairs]))
    return found


def brief_tables(groups: Sequence[Group]) -> list[Table]:
    """Return a table per `standings`."""
    return [standing.table() for standing in standings(groups)]


def headline(groups: Sequence[Group]) -> list[str]:
    """Say for each of `standings` which row is nearest to dense."""
    every = standings(groups)
    towers = [tower_of(one.groups[0].first) for one in every]
    return [
        f"{tower}: {one.sentence()}" if len(set(towers)) > 1 else one.sentence()
        for tower, one in zip(towers, every, strict=True)
    ]


def list_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _value(row: Average) -> Cell:
    return estimate_cell(row.estimate(DISTANCE), DISTANCE.text)


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
