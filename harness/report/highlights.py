"""Which row is nearest to dense at equal cost, in a sentence and a table; plots of fidelity and accuracy by cost."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

from harness.base.table import UNMEASURED, Cell, Table, count_of, estimate_cell, figure
from harness.records.averages import Average, Level, cost_of, fidelity_ps, labels, levels, tower_of
from harness.records.metrics import METRICS, Metric
from harness.records.record import DENSE, GOLDEN, RANDOM, UNREDUCED, Record, differing
from harness.records.statistics import CLEAR, FLIPPED, Interval, exact, tail, together
from harness.report.charts import Chart, Dot, Plot
from harness.report.tables import RATIO, Group, describe_runtimes
from zoo.deploy.runtime import RUNTIMES

TOP1, DISTANCE = METRICS["top1"], METRICS["cosine_distance"]
# Conditions that are equal on all datasets of a standing, beside the tower.
_ALIKE = (
    *("tag", "weights_sha256", "image_size", "device", "device_name", "precision", "threads"),
    *("torch", "timm", "version"),
)


def cost_interval(row: Average, batch: int | None) -> Interval | None:
    """Return a row's multiply-adds, or its time at a batch size over dense's; None if not measured."""
    if batch is None:  # another runtime saves none
        gflops = None if row.method in RUNTIMES else row.mean("gflops")
        return None if gflops is None else exact(gflops)
    timed = next((each for each in row.latency if each.batch == batch), None)
    return None if timed is None else exact(1.0) if row.method == DENSE else timed.ratio


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Rows at the lowest equal cost, on each dataset of a tower under the same conditions; without random pruning."""

    groups: Sequence[Group]  # one per dataset, those without labels first
    levels: Sequence[Level]  # of each group, of the same target and cost

    @cached_property
    def names(self) -> dict[str, str]:
        """Labels of rows by identity."""
        return labels([row for level in self.levels for row in level.rows])

    @cached_property
    def _clear(self) -> frozenset[tuple[str, frozenset[str]]]:
        """Pairs of rows that clearly differ in 1 - cosine, by dataset and both identities, all judged together."""
        p_values: dict[tuple[str, frozenset[str]], float | None] = {}
        for group, level in zip(self.groups, self.levels, strict=True):
            pairs = list(combinations(level.rows, 2))
            keys = [(group.name, frozenset((a.identity, b.identity))) for a, b in pairs]
            p_values |= zip(keys, fidelity_ps(pairs, DISTANCE), strict=True)
        return together(p_values).clear

    def further(self, group: Group, row: Average) -> bool:
        """Tell whether a row is clearly further from dense than the nearest one on a dataset."""
        nearest = self.levels[self.groups.index(group)].rows[0]
        return (group.name, frozenset((nearest.identity, row.identity))) in self._clear

    @property
    def cost(self) -> str:
        """Cost of the rows, in words."""
        batch, dense = self.levels[0].batch, self.groups[0].rows[0]
        cost, whole = cost_of(self.levels[0].target, batch) or 0, dense.method == DENSE and dense.mean("gflops")
        if batch is not None:
            return f"{100 * cost:.0f} % of dense's time at batch {batch}"
        return f"{100 * cost / whole:.0f} % of dense's multiply-adds" if whole else f"{cost:.2f} GFLOPs"

    def sentence(self) -> str:
        """Say on which datasets which row is nearest to dense, with all others clearly further."""
        places: dict[tuple[str, ...], list[int]] = {}  # of datasets, by the rows that aren't clearly further
        for at, (group, level) in enumerate(zip(self.groups, self.levels, strict=True)):
            near = sorted(self.names[row.identity] for row in level.rows if not self.further(group, row))
            places.setdefault(tuple(near) if len(near) < len(level.rows) else (), []).append(at)
        clauses = []
        for names, positions in sorted(places.items(), key=lambda item: (len(item[0]) != 1, -len(item[1]))):
            datasets = [self.groups[at].first.dataset for at in positions]
            listed = list_words(datasets)
            if len(names) == 1:
                first, second, *_ = self.levels[positions[0]].rows
                value = f"{DISTANCE.heading} {_show_distance(first)}{f' on {datasets[0]}' if datasets[1:] else ''}"
                clauses.append(
                    f"{names[0]} stays nearest to dense on {listed} ({value}, "
                    f"against {_show_distance(second)} of {self.names[second.identity]})"
                )
            elif names:
                clauses.append(f"{list_words(names)} may each be nearest on {listed}")
            else:
                clauses.append(f"no method is clearly nearest to dense on {listed}")
        return f"At {self.cost}, {'; '.join(clauses)}."

    @cached_property
    def _batch(self) -> int:
        """Batch size of the times that are shown, 0 without times."""
        rows = [row for group in self.groups for row in group.rows]
        return self.levels[0].batch or max((timed.batch for row in rows for timed in row.latency), default=0)

    def dense_sentence(self) -> str:
        """Say which dense row is the fastest beside the nearest reduced one; nothing without times of several."""
        group, nearest = self.groups[0], self.levels[0].rows[0]
        rows = [row for row in group.rows if row.method in UNREDUCED]
        timed = [(time.estimate, time, row) for row in rows if (time := cost_interval(row, self._batch or None))]
        if not self._batch or len(timed) < 2:
            return ""
        _, time, fastest = min(timed, key=lambda each: each[0])
        place = f"at batch {self._batch}"
        if fastest.method == DENSE:
            return f"No other runtime of the dense model is faster {place}."
        ratio, reduced = (estimate_cell(each, "{:.2f}".format) for each in (time, cost_interval(nearest, self._batch)))
        return (
            f"Without reduction, {fastest.first.label} is the fastest: {ratio} of dense's time {place}, "
            f"{DISTANCE.heading} {_show_distance(fastest)} on {group.first.dataset}; "
            f"{self.names[nearest.identity]} above takes {reduced}."
        )

    def table(self) -> Table:
        """Lay the rows out beside the unreduced ones, a column of 1 - cosine per dataset."""
        by_dataset, known = dict[str, dict[str, Average]](), dict[str, Average]()  # rows by identity
        for group, level in zip(self.groups, self.levels, strict=True):
            shown = [*(row for row in group.rows if row.method in UNREDUCED), *level.rows]
            by_dataset[group.name] = {row.identity: row for row in shown}
            for row in shown:
                known.setdefault(row.identity, row)
        rows, batch = list(known.values()), self._batch
        scored = next((group for group in self.groups if group.first.labelled), None)

        def cells(row: Average) -> Iterator[Cell]:
            yield Cell(self.names.get(row.identity, row.first.label), row.first.label)
            yield figure(row.mean("gflops"), ".2f")
            for group in self.groups:
                there = by_dataset[group.name].get(row.identity)
                cell = UNMEASURED if there is None else _show_distance(there)
                values = None if there is None else there.per_image(DISTANCE.name)
                text = f"{cell}" if values is None else f"{cell}; {DISTANCE.text(tail(values))}"
                yield Cell(text, cell.value, CLEAR if there is not None and self.further(group, there) else "")
            if scored is not None:
                there = by_dataset[scored.name].get(row.identity)
                yield UNMEASURED if there is None else estimate_cell(there.estimate(TOP1), TOP1.text)
            if batch:
                yield Cell("1") if row.method == DENSE else estimate_cell(cost_interval(row, batch), "{:.2f}".format)

        heads = ["Method", "GFLOPs", *(f"{DISTANCE.heading}, {group.first.dataset}" for group in self.groups)]
        heads += [f"{TOP1.heading}, {scored.first.dataset}"] if scored else []
        heads += [f"Batch {batch}, {RATIO}"] if batch else []
        images = list_words([f"{group.first.image_count} images of {group.first.dataset}" for group in self.groups])
        missing = list_words(list(dict.fromkeys(name for level in self.levels for name in level.missing)))
        first = self.groups[0].first
        caption = [
            f"{DISTANCE.fidelity}, nearest first, {CLEAR} clearly further than the nearest ({FLIPPED}, Holm, 5 %)",
            f"{images}; 95 % intervals, then behind the semicolon the 95 % quantile over images",
            f"{RATIO}: time by the dense model's" if batch else "",
            describe_runtimes(rows),
            f"not at this cost, or not on every dataset: {missing}" if missing else "",
            f"{first.device_name}, {first.precision}, {count_of(first.threads, 'thread')}",
        ]
        return Table.of(
            f"{tower_of(first)} at {self.cost}",
            heads,
            [list(cells(row)) for row in rows],
            words=("Method",),
            wide=heads[3:],
            legend=f"{CLEAR} clearly further from dense than the nearest",
            caption="; ".join(filter(None, caption)),
        )


def standings(groups: Sequence[Group]) -> list[Standing]:
    """Return how rows without training stand per tower and conditions, at equal GFLOPs and at equal times.

    Of a dataset with several groups, such as splits, the one with the most images counts.
    """
    largest: dict[Hashable, Group] = {}
    for group in groups:
        first = group.first
        if not first.shots and not any(row.first.recovered for row in group.rows):
            place = (_conditions(first), first.dataset)
            if largest.setdefault(place, group).first.image_count < first.image_count:
                largest[place] = group
    lowest: dict[Hashable, list[tuple[Group, Level]]] = {}
    for group in sorted(largest.values(), key=lambda group: group.first.labelled):
        rows = [row for row in group.rows if row.method not in (GOLDEN, RANDOM) and not row.first.control]
        for batch, level in {level.batch: level for level in levels(rows) if len(level.rows) > 1}.items():
            lowest.setdefault((_conditions(group.first), batch, level.target.identity), []).append((group, level))
    return [
        Standing(groups=[group for group, _ in pairs], levels=[level for _, level in pairs])
        for pairs in lowest.values()
    ]


def _conditions(record: Record) -> tuple[Hashable, ...]:
    return (tower_of(record), *(getattr(record, name) for name in _ALIKE))


def headline(every: Sequence[Standing]) -> list[str]:
    """Say for each of `standings` which row is nearest to dense, with the conditions in which they differ."""
    names = ("tower", *_ALIKE)
    conditions = [dict(zip(names, _conditions(standing.groups[0].first), strict=True)) for standing in every]
    unlike = [name for name in differing(conditions) if name not in ("tag", "weights_sha256")]
    places = [", ".join(str(values[name]) for name in unlike) for values in conditions]
    sentences = [" ".join(filter(None, (own.sentence(), own.dense_sentence()))) for own in every]
    return [": ".join(filter(None, pair)) for pair in zip(places, sentences, strict=True)]


def list_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _show_distance(row: Average) -> Cell:
    return estimate_cell(row.estimate(DISTANCE), DISTANCE.text)


def plots_of(groups: Sequence[Group]) -> list[Plot]:
    """Return plots of each quality against each cost, the largest batch first, with a chart per group that has both."""
    batches = sorted({timed.batch for group in groups for row in group.rows for timed in row.latency}, reverse=True)
    plots = []
    for batch, metric in product((*batches, None), (metric for metric in METRICS.values() if metric.plotted)):
        cost = "GFLOPs" if batch is None else f"time at batch {batch}"
        charts = [chart for group in groups if (chart := _chart(group, metric, batch, cost)).series.keys() - {DENSE}]
        title = f"{f'{TOP1.title} to dense' if metric == TOP1 else metric.title} against {cost}"
        if charts:
            name = f"{metric.plotted}_{'gflops' if batch is None else f'ratio_batch{batch}'}"
            plots.append(Plot(name=name, title=title, charts=charts))
    return plots


def _chart(group: Group, metric: Metric, batch: int | None, cost: str) -> Chart:
    """Plot distance to dense, or the paired difference to it in top-1, of rows that have an interval."""
    names, top1 = labels(group.rows), metric == TOP1
    series = dict[str, list[Dot]]()
    for row in sorted(group.rows, key=lambda row: (row.method != DENSE, names[row.identity], row.keep)):
        price, value = cost_interval(row, batch), row.estimate(METRICS["diff_to_dense"] if top1 else metric)
        if top1 and row.method == DENSE:
            value = exact(0.0)
        if price is not None and isinstance(value, Interval):
            height = Interval(*(100 * end for end in value)) if top1 else value
            series.setdefault(names[row.identity], []).append(Dot(price, height, label=f"{100 * row.keep:.3g} %"))
    for name, dots in series.items():  # keep rates below 100 % stand at the ends of a line
        ends = (dots[0].label, dots[-1].label) if dots[0].label != "100 %" else ()
        series[name] = [dot if dot.label in ends else dot._replace(label="") for dot in dots]
    what = f"{TOP1.title} to dense, points" if top1 else f"{metric.heading} to dense"
    return Chart(
        title=group.short,
        alt=f"{what} against {cost}, {group.name}: {', '.join(series)}.",
        x_label="GFLOPs per image" if batch is None else f"{cost}, × dense",
        y_label=what,
        series=series,
        level=0.0 if top1 else None,
        log=not top1,
    )
