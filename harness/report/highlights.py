"""What a reader asks first: what is saved without a clear loss, what wins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.records.averages import Average, Judgement, fidelity_ps, labels, row_p, tower_of
from harness.records.conditions import DENSE, GOLDEN, RANDOM
from harness.records.metrics import METRICS, Metric
from harness.records.statistics import Interval, together
from harness.report.groups import Group, count_of

Verdict = Literal["front", "open", "beaten"]
TOP1 = METRICS["top1"]
NAMED, _ROWS = 6, 24  # sets, methods or tables, and rows, that are named in a sentence
SAME = 1.01  # costs nearer than this are one: else the cheapest by a hair could never be beaten


def qualities() -> dict[Metric, tuple[str, str]]:
    """Return what rows are judged by at a cost: what it is, and what is said of a row that has more of it."""
    return {metric: metric.quality for metric in METRICS.values() if metric.quality is not None}


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

    def of(self, row: Average) -> Standing | None:
        """Return where a row stands; None where it lacks the cost."""
        return next((one for one in self.standings if one.row.identity == row.identity), None)

    @property
    def contenders(self) -> dict[str, list[Standing]]:
        """Standings of each method that takes part: not the dense model, the golden ranking or random pruning."""
        methods: dict[str, list[Standing]] = {}
        for one in self.standings:
            if one.row.method not in (DENSE, GOLDEN, RANDOM):
                methods.setdefault(one.row.label, []).append(one)
        return methods

    @property
    def unbeaten(self) -> list[str]:
        """Methods of which a row isn't beaten."""
        return [name for name, own in self.contenders.items() if any(one.verdict != "beaten" for one in own)]


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
    conditions: str
    saving: str  # about the row that costs least of those without a clear loss to dense
    winners: Sequence[str]  # on the fronts, and those that are clearly beaten; a cost each
    least: Average | None  # what `saving` is about
    fronts: Sequence[Front]  # of fidelity and of top-1, by GFLOPs and the ratio of time at each batch size


def highlights(group: Group) -> Highlights:
    """Say a group in short, from its records alone."""
    first, names = group.first, labels(group.rows)
    least, saving = _saving(group, names)
    every = fronts(group)
    seeds = len(group.rows[0].records)
    return Highlights(
        group=group,
        conditions=f"{first.image_count} images{f', mean of {seeds} seeds' if seeds > 1 else ''}; {first.device_name}, "
        f"{first.device}, {first.dtype}, {count_of(first.threads, 'thread')}",
        saving=saving,
        winners=[_winners(front, names) for front in every],
        least=least,
        fronts=every,
    )


def headline(short: Sequence[Highlights]) -> list[str]:
    """Say which method is clearly ahead, at which cost and on which sets, or that none is.

    A method is clearly ahead in a group if every row of the others is clearly beaten and not every one of its own is.
    Rows are judged by nearness to dense where it was measured, and by time where it was, at the largest batch size.
    """
    verdicts: dict[tuple[str, Metric, Cost], list[tuple[str, Front, Highlights]]] = {}  # by the method that is ahead
    for one in short:
        decisive = [front for front in one.fronts if len(front.contenders) > 1]
        if decisive:
            front = max(decisive, key=lambda front: (front.metric != TOP1, front.cost.batch or 0))
            ahead = front.unbeaten[0] if len(front.unbeaten) == 1 else ""
            verdicts.setdefault((ahead, front.metric, front.cost), []).append((_set_name(one, short), front, one))
    lines = []
    for (ahead, metric, cost), own in sorted(verdicts.items(), key=lambda one: not one[0][0]):
        where = list_words([name for name, _, _ in own])
        by = f"{qualities()[metric][0].lower()} by {cost.words}"
        if not ahead:
            methods = list(dict.fromkeys(name for _, front, _ in own for name in front.unbeaten))
            rows = list_words(methods)
            lines.append(f"No method is clearly ahead on {where}: in {by}, rows of {rows} are unbeaten.")
            continue
        lines.append(f"{ahead} is clearly ahead on {where}, in {by}.")
    return lines


def _set_name(one: Highlights, short: Sequence[Highlights]) -> str:
    """Return what a group is called in a sentence: the dataset, and what tells it from others."""
    first = one.group.first
    towers = {tower_of(other.group.first) for other in short if other.group.first.dataset == first.dataset}
    words = [tower_of(first) if len(towers) > 1 else "", one.group.name.partition("; ")[2]]
    more = ", ".join(filter(None, words))
    return f"{first.dataset} ({more})" if more else first.dataset


def list_words(names: Sequence[str]) -> str:
    """List names in a sentence; beyond the first few, say how many more there are."""
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def front_notes(stood: Sequence[Standing], names: Mapping[str, str]) -> dict[Verdict, str]:
    """Say which rows are on the front, which may be, and which clearly aren't."""
    ordered = sorted(stood, key=lambda one: one.cost.estimate)
    words = {"front": "On the front", "open": "Beside it, not clearly", "beaten": "Clearly beaten"}
    every: dict[Verdict, list[str]] = {}
    for one in ordered:
        by = "" if one.by is None else f" (by {row_name(one.by, names)})"
        every.setdefault(one.verdict, []).append(f"{row_name(one.row, names)}{by}")
    order: tuple[Verdict, ...] = ("front", "open", "beaten")
    return {verdict: f"{words[verdict]}: {list_rows(every[verdict])}." for verdict in order if verdict in every}


def row_name(row: Average, names: Mapping[str, str]) -> str:
    """Return what a row is called in a sentence."""
    name = names[row.identity]
    return name if row.method == DENSE else f"{name} {100 * row.keep:.3g} %"


def list_rows(rows: Sequence[str]) -> str:
    """List names of rows, the first of them."""
    more = f" and {len(rows) - _ROWS} more (`report --json` has all)" if len(rows) > _ROWS else ""
    return f"{', '.join(rows[:_ROWS])}{more}"


def _winners(front: Front, names: Mapping[str, str]) -> str:
    notes = front_notes(front.standings, names)
    parts = [notes.get("front"), notes.get("beaten", "None is clearly beaten.")]
    return f"{qualities()[front.metric][0]} by {front.cost.words}: {' '.join(filter(None, parts))}"


def _saving(group: Group, names: Mapping[str, str]) -> tuple[Average | None, str]:
    """Say which row is cheapest without a clear loss; random pruning, the control, is never it."""
    rows, family = group.rows, group.family
    dense = next((row for row in rows if row.method == DENSE), None)
    if dense is None:
        return None, "There is no dense row, so no loss to it can be told."
    if dense.top1 is None:
        return None, "The images have no labels, so no loss of accuracy can be told."
    whole = dense.mean("gflops")
    if family is None or whole is None:
        return None, "No row has both a difference to dense and counted GFLOPs."
    cheaper = [
        row
        for row in rows
        if row.to_dense is not None and row.method != RANDOM and (row.mean("gflops") or whole) < whole
    ]
    if not cheaper:
        return None, "No row with a difference to dense has fewer GFLOPs."
    without_loss = [row for row in cheaper if not _loses(row, family)]
    if not without_loss:
        return None, "Every row with fewer GFLOPs is less accurate than dense by its interval or the test."
    fewest = min(row.mean("gflops") for row in without_loss)
    alike = [row for row in without_loss if row.mean("gflops") <= SAME * fewest]
    least = max(alike, key=lambda row: row.mean("top1"))
    assert least.to_dense is not None
    spent = least.mean("gflops")
    points, low, high = (100 * number for number in least.to_dense)
    text = (
        f"Fewest GFLOPs without a clear loss to dense ({100 * dense.top1.estimate:.1f} %): {row_name(least, names)}, "
        f"{points:+.1f} points [{low:+.1f}, {high:+.1f}], {spent:.2f} GFLOPs, {100 * (1 - spent / whole):.0f} % fewer"
    )
    for timed in least.latency:
        if timed.ratio is not None:
            ratio, low, high = timed.ratio
            text += f"; {ratio:.2f} of dense's time at batch {timed.batch} [{low:.2f}, {high:.2f}]"
    return least, f"{text}. No clear loss isn't no loss: {family.note}."


def _loses(row: Average, family: Judgement) -> bool:
    """Tell a row that is less accurate by all rows judged together, or by its interval alone.

    The second finds more: to overlook a loss is the worse mistake here.
    """
    assert row.to_dense is not None
    return row.to_dense.high < 0 or (bool(family.mark(row)) and row.to_dense.estimate < 0)
