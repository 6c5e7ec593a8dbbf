"""What a reader asks first, in sentences and plots: what is saved without a clear loss, what wins at which cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from harness.records.averages import Average, fidelity_ps, labels, row_p, tower_of
from harness.records.conditions import DENSE, GOLDEN, RANDOM
from harness.records.metrics import METRICS, Metric
from harness.records.statistics import Interval, together
from harness.report.charts import Chart, Dot, Plot
from harness.report.groups import Group
from harness.report.tables import short_heading

T = TypeVar("T")

Verdict = Literal["front", "open", "beaten"]
TOP1 = METRICS["top1"]
_ROWS = 24  # that are named in a sentence
DRAWN = 6  # groups that are drawn, the first, unless all are asked for: a chart takes a while
_LABELLED = 24  # dots of a chart that have their keep rates beside them; of more, the ends of each series
_NAMES = {"top1": "accuracy", "cosine_distance": "fidelity"}  # of files of plots
_RATIO = "time, × dense"  # an axis
SAME = 1.01  # costs nearer than this are one: else the cheapest by a hair could never be beaten


def qualities() -> list[Metric]:
    """Return what rows are judged by at a cost."""
    return [metric for metric in METRICS.values() if metric.quality is not None]


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


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a row stands.

    Attributes:
        verdict: ``beaten``: the best of the rows that cost no more, within 1 %, intervals taken at their worse ends, is
            clearly better. ``front``: it isn't, and by the estimates no row is as cheap and as good and better in one
            of the two. ``open``: neither; the images or timings are too few to say. Random pruning, the control, is
            never on the front.
        by: the row that clearly beats it.
    """

    row: Average
    cost: Interval
    verdict: Verdict
    by: Average | None = None


@dataclass(frozen=True, kw_only=True)
class Front:
    """Rows of a group by one cost: standings of each row that has it, at least two."""

    cost: Cost
    standings: Sequence[Standing]
    metric: Metric = TOP1  # that they are judged by, of `qualities`

    @property
    def name(self) -> str:
        """Its name in files and data: that of the cost, and of the metric if it isn't top-1."""
        return self.cost.name if self.metric == TOP1 else f"{self.metric.name}_{self.cost.name}"


Priced = list[tuple[Average, Interval, float]]  # rows with their cost and quality, of which more is better


def standings(
    rows: Sequence[Average], costs: Sequence[Callable[[Average], Interval | None]], metric: Metric = TOP1
) -> list[list[Standing]]:
    """Judge, by each cost, every row that has it and the metric.

    Clearly better is what the test of two rows, `averages.row_p` or `averages.fidelity_ps`, says on the same images, at
    5 % by Holm over all pairs of a row and one that could beat it. Of each row only the best of these is tested, and
    two rows once, so that tests are as many as rows; the others count as not clear.
    """
    priced: list[Priced] = [
        [(row, price, good) for row in rows if (price := cost(row)) and (good := _quality(row, metric)) is not None]
        for cost in costs
    ]
    rivals = [_rivals(known) for known in priced]
    asked = {
        (known[by][0].identity, known[at][0].identity): (known[by][0], known[at][0])
        for known, (best, _) in zip(priced, rivals, strict=True)
        for at, by in best.items()
    }
    pairs = list(asked.values())
    tests = [row_p(a, b) for a, b in pairs] if metric == TOP1 else fidelity_ps(pairs, metric)
    p_values = dict(zip(asked, tests, strict=True))
    judged = []
    for known, (best, count) in zip(priced, rivals, strict=True):
        tested = {at: p_values[known[by][0].identity, known[at][0].identity] for at, by in best.items()}
        beaten, front = together(tested, of=count).clear, _front(known)
        judged.append(
            [
                Standing(
                    row=row,
                    cost=price,
                    verdict="beaten" if at in beaten else "front" if at in front else "open",
                    by=known[best[at]][0] if at in beaten else None,
                )
                for at, (row, price, _) in enumerate(known)
            ]
        )
    return judged


def _quality(row: Average, metric: Metric) -> float | None:
    """Return a row's metric with the sign that makes more of it better."""
    value = row.mean(metric.name)
    return None if value is None else float(-value if metric.better == "lower" else value)


def _rivals(known: Priced) -> tuple[dict[int, int], int]:
    """Return of each row the best one that may beat it, by their places, and how many pairs could be such."""
    lows, highs = (np.array([getattr(price, end) for _, price, _ in known]) for end in ("low", "high"))
    goods = np.array([good for _, _, good in known])
    control = np.array([row.method == RANDOM for row, _, _ in known], dtype=np.bool_)
    best, pairs = {}, 0
    for at, (_, spent, good) in enumerate(known):
        rivals = np.flatnonzero((highs <= SAME * spent.low) & (goods > good) & ~control)
        pairs += len(rivals)
        if len(rivals):
            equal = rivals[goods[rivals] == goods[rivals].max()]
            best[at] = int(equal[lows[equal].argmin()])  # of equally good ones the cheapest, then the first
    return best, pairs


def _front(known: Priced) -> set[int]:
    """Return the places of rows that no other is as cheap and good as, and better in one; never the control."""
    front: set[int] = set()
    best, at_cost = float("-inf"), float("-inf")
    points = [(price.estimate, good, at) for at, (row, price, good) in enumerate(known) if row.method != RANDOM]
    for cost, good, at in sorted(points, key=lambda point: (point[0], -point[1])):
        if good > best or (good == best and cost == at_cost):
            front.add(at)
            best, at_cost = good, cost
    return front


def fronts(group: Group) -> list[Front]:
    """Return where rows stand in each quality by each cost that at least two of them have."""
    costs = [Cost(), *map(Cost, sorted({timed.batch for row in group.rows for timed in row.latency}))]
    every = [
        Front(cost=cost, standings=own, metric=metric)
        for metric in qualities()
        for cost, own in zip(costs, standings(group.rows, [cost.of for cost in costs], metric), strict=True)
    ]
    return [front for front in every if len(front.standings) > 1]


@dataclass(frozen=True, kw_only=True)
class Highlights:
    """A group in short."""

    group: Group
    saving: str  # about the row that costs least of those without a clear loss to dense
    winners: Sequence[str]  # on the fronts, and those that are clearly beaten; a cost each
    least: Average | None  # what `saving` is about
    fronts: Sequence[Front]  # of fidelity and of top-1, by GFLOPs and the ratio of time at each batch size


def highlights(group: Group) -> Highlights:
    """Say a group in short, from its records alone."""
    names, every = labels(group.rows), fronts(group)
    least, saving = _saving(group, names)
    winners = [
        f"{front.metric.quality} by {front.cost.words}: {describe_standings(front.standings, names)}"
        for front in every
        if front.metric.quality is not None
    ]
    return Highlights(group=group, saving=saving, winners=winners, least=least, fronts=every)


def headline(short: Sequence[Highlights]) -> list[str]:
    """Say which method is clearly ahead, at which cost and on which sets, or that none is.

    A method is clearly ahead in a group if every row of the others is clearly beaten and not every one of its own is.
    Rows are judged by nearness to dense where it was measured, and by time where it was, at the largest batch size. The
    dense model, the golden ranking and random pruning take no part.
    """
    verdicts: dict[tuple[str, str], dict[str, list[str]]] = {}  # unbeaten methods by set, by who is ahead in what
    for one in short:
        for front in sorted(one.fronts, key=lambda front: (front.metric != TOP1, front.cost.batch or 0), reverse=True):
            stood = [own for own in front.standings if own.row.method not in (DENSE, GOLDEN, RANDOM)]
            if front.metric.quality is None or len({own.row.label for own in stood}) < 2:
                continue
            unbeaten = list(dict.fromkeys(own.row.label for own in stood if own.verdict != "beaten"))
            what = f"{front.metric.quality.lower()} by {front.cost.words}"
            ahead = unbeaten[0] if len(unbeaten) == 1 else ""
            verdicts.setdefault((ahead, what), {}).setdefault(_set_name(one, short), []).extend(unbeaten)
            break
    lines = []
    for (ahead, what), sets in sorted(verdicts.items(), key=lambda one: not one[0][0]):
        where = list_words(list(sets))
        rows = list_words(list(dict.fromkeys(name for own in sets.values() for name in own)))
        lines.append(
            f"{ahead} is clearly ahead on {where}, in {what}."
            if ahead
            else f"No method is clearly ahead on {where}: in {what}, rows of {rows} are unbeaten."
        )
    return lines


def _set_name(one: Highlights, short: Sequence[Highlights]) -> str:
    """Return what a group is called in a sentence: the dataset, and what tells it from others."""
    first = one.group.first
    towers = {tower_of(other.group.first) for other in short if other.group.first.dataset == first.dataset}
    words = [tower_of(first) if len(towers) > 1 else "", one.group.name.partition("; ")[2]]
    more = ", ".join(filter(None, words))
    return f"{first.dataset} ({more})" if more else first.dataset


def list_words(names: Sequence[str], most: int = 6) -> str:
    """List names in a sentence; beyond the first few, say how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def describe_standings(stood: Sequence[Standing], names: Mapping[str, str]) -> str:
    """Say which rows are on the front, and which are clearly beaten and by which, the cheapest first."""
    ordered = sorted(stood, key=lambda one: one.cost.estimate)
    front = [row_name(one.row, names) for one in ordered if one.verdict == "front"]
    beaten = [f"{row_name(one.row, names)} (by {row_name(one.by, names)})" for one in ordered if one.by is not None]
    first = f"On the front: {list_words(front, _ROWS)}. " if front else ""
    return first + (f"Clearly beaten: {list_words(beaten, _ROWS)}." if beaten else "None is clearly beaten.")


def row_name(row: Average, names: Mapping[str, str]) -> str:
    """Return what a row is called in a sentence."""
    name = names[row.identity]
    return name if row.method == DENSE else f"{name} {100 * row.keep:.3g} %"


def _saving(group: Group, names: Mapping[str, str]) -> tuple[Average | None, str]:
    """Say which row is cheapest without a clear loss; random pruning, the control, is never it.

    A loss is clear by all rows judged together, or by the row's own interval: to overlook one is the worse mistake.
    """
    family, dense = group.family, next((row for row in group.rows if row.method == DENSE), None)
    whole = None if dense is None else dense.mean("gflops")
    if dense is None or dense.top1 is None or whole is None or family is None:
        return None, "No loss of accuracy can be told: it takes labels, GFLOPs and a dense row."
    cheaper = [
        (row, row.to_dense, spent)
        for row in group.rows
        if row.to_dense is not None and row.method != RANDOM and (spent := row.mean("gflops") or whole) < whole
    ]
    if not cheaper:
        return None, "No row with a difference to dense has fewer GFLOPs."
    kept = [one for one in cheaper if one[1].high >= 0 and not (family.mark(one[0]) and one[1].estimate < 0)]
    if not kept:
        return None, "Every row with fewer GFLOPs is less accurate than dense by its interval or the test."
    fewest = min(spent for _, _, spent in kept)
    alike = [one for one in kept if one[2] <= SAME * fewest]
    least, difference, spent = max(alike, key=lambda one: one[0].mean("top1"))
    points, low, high = (100 * number for number in difference)
    text = (
        f"Fewest GFLOPs without a clear loss to dense ({100 * dense.top1.estimate:.1f} %): {row_name(least, names)}, "
        f"{points:+.1f} points [{low:+.1f}, {high:+.1f}], {spent:.2f} GFLOPs, {100 * (1 - spent / whole):.0f} % fewer"
    )
    for timed in least.latency:
        if timed.ratio is not None:
            ratio, low, high = timed.ratio
            text += f"; {ratio:.2f} of dense's time at batch {timed.batch} [{low:.2f}, {high:.2f}]"
    return least, f"{text}. No clear loss isn't no loss: {family.note}."


def plots_of(short: Sequence[Highlights]) -> list[Plot]:
    """Return the plots of groups that there are figures for: fidelity and top-1 against each cost, and tau."""
    tau = [chart for one in short if (chart := _tau_chart(one.group)) is not None]
    title = f"{METRICS['tau'].heading} against keep rate"
    return [*_quality_plots(short), *([Plot(name="tau_keep", title=title, charts=tau)] if tau else [])]


def _quality_plots(short: Sequence[Highlights]) -> list[Plot]:
    """Return fidelity and top-1 against each cost, a chart per group in which two rows have both."""
    fronts: dict[tuple[int, int], list[tuple[Group, Front]]] = {}
    for one in short:
        for front in one.fronts:
            # The time that a user waits comes first, at the largest batch size.
            place = qualities().index(front.metric), -(front.cost.batch or 0)
            fronts.setdefault(place, []).append((one.group, front))
    plots = []
    for _, own in sorted(fronts.items(), key=lambda item: item[0]):
        front = own[0][1]
        name = f"{_NAMES.get(front.metric.name, front.metric.name)}_{front.cost.name}"
        if charts := [chart for one in own if (chart := _quality_chart(*one)).series]:
            plots.append(Plot(name=name, title=_title(front), charts=charts, axis=_axis(front)))
    return plots


def _axis(front: Front) -> str:
    return front.cost.words if front.cost.batch is None else f"{front.cost.words}, ratio to dense"


def _title(front: Front) -> str:
    name = f"{short_heading(TOP1)} to dense" if front.metric == TOP1 else front.metric.heading
    return f"{name[0].upper()}{name[1:]} against {_axis(front)}"


def _quality_chart(group: Group, front: Front) -> Chart:
    """Plot distance to dense, or the paired difference to it in top-1."""
    names, top1 = labels(group.rows), front.metric == TOP1

    def height(row: Average) -> Interval | None:
        if not top1:
            estimate = row.estimate(front.metric)
            return estimate if isinstance(estimate, Interval) else None
        difference = exact(0.0) if row.method == DENSE else row.to_dense
        return None if difference is None else Interval(*(100 * number for number in difference))

    heights = {one.row.identity: high for one in front.standings if (high := height(one.row)) is not None}
    rows = sorted(
        (one for one in front.standings if one.row.identity in heights),
        key=lambda one: (one.row.method != DENSE, names[one.row.identity], one.row.keep),
    )
    ends = dict[str, list[str]]()
    for one in rows:
        ends.setdefault(names[one.row.identity], []).append(one.row.identity)
    named = {key for keys in ends.values() for key in (keys if len(rows) <= _LABELLED else (keys[0], keys[-1]))}

    def dot(one: Standing) -> Dot:
        label = f"{100 * one.row.keep:.3g}" if one.row.method != DENSE and one.row.identity in named else ""
        return Dot(one.cost, heights[one.row.identity], one.verdict == "beaten", label)

    note = describe_standings(rows, names)
    return Chart(
        title=group.name,
        alt=f"{_title(front)}, {group.name}: {len(rows)} rows. {note}",
        x_label=f"{front.cost.words} per image" if front.cost.batch is None else _RATIO,
        y_label=f"{short_heading(TOP1)} to dense, points" if top1 else f"{front.metric.heading} to dense",
        series=_series(rows, lambda one: names[one.row.identity], dot),
        level=next((heights[one.row.identity].estimate for one in rows if one.row.method == DENSE), None),
        front=sorted((one.cost.estimate, heights[one.row.identity].estimate) for one in rows if one.verdict == "front"),
        log=not top1,
        aside=RANDOM,
        notes=[note],
    )


def _tau_chart(group: Group) -> Chart | None:
    names, heading = labels(group.rows), METRICS["tau"].heading
    taus = [
        (row, tau)
        for row in sorted(group.rows, key=lambda row: (names[row.identity], row.keep))
        if row.method != GOLDEN and isinstance(tau := row.estimate(METRICS["tau"]), Interval)
    ]
    if not taus:
        return None
    series = _series(taus, lambda one: names[one[0].identity], lambda one: Dot(exact(100 * one[0].keep), one[1]))
    means = {name: sum(dot.y.estimate for dot in own) / len(own) for name, own in series.items()}
    best = max(means, key=lambda name: means[name])
    ticks = sorted({100 * row.keep for row, _ in taus})
    return Chart(
        title=group.name,
        alt=f"{heading} against keep rate, {group.name}: {len(series)} methods; "
        f"{best} agrees most with the golden ranking, {means[best]:.2f} on average.",
        x_label="keep rate, %",
        y_label=f"{heading} to golden",
        series=series,
        level=0.0,
        ticks={tick: f"{tick:.3g}" for tick in ticks} if len(ticks) <= 6 else None,
    )


def _series(rows: Sequence[T], name: Callable[[T], str], dot: Callable[[T], Dot]) -> dict[str, list[Dot]]:
    """Return a dot per row, by the name of its series."""
    series: dict[str, list[Dot]] = {}
    for row in rows:
        series.setdefault(name(row), []).append(dot(row))
    return series
