"""What a reader asks first: what is saved without a clear loss, what wins, what is missing."""

import functools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.measure.plan import Plan
from harness.measure.times import LatencyRecord
from harness.records.averages import Average, Judged, fidelity_ps, labels, row_p, tower_of
from harness.records.conditions import DENSE, GOLDEN, RANDOM
from harness.records.metrics import METRICS, Metric
from harness.records.record import Record, Times
from harness.records.statistics import Interval, minimum_detectable_difference, together
from harness.report.groups import Group, Grouped, counted, shot_columns

Verdict = Literal["front", "open", "beaten"]
TOP1 = METRICS["top1"]
NAMED, _ROWS = 6, 24  # sets, methods or tables, and rows, that are named in a sentence
SAME = 1.01  # costs nearer than this are one: else the cheapest by a hair could never be beaten

# Flags, the fields that they decide, and what they are if nothing is said.
_CONDITIONS = (
    ("--split", "split", Plan.split),
    ("--limit", "image_count", str(Plan.limit)),
    ("--device", "device", Plan.device),
    ("--dtype", "dtype", Plan.dtype),
)


@dataclass(frozen=True)
class Cost:
    """What rows may cost: multiply-adds, time over dense's, or milliseconds per image."""

    kind: Literal["gflops", "ratio", "ms"]
    batch: int | None = None  # size of the one that was timed; None of multiply-adds

    @property
    def name(self) -> str:
        """Its name in files and data, such as ``ratio_batch32``."""
        return self.kind if self.batch is None else f"{self.kind}_batch{self.batch}"

    @property
    def heading(self) -> str:
        """What a column of it is called."""
        return METRICS["gflops"].heading if self.batch is None else f"time, batch {self.batch}"

    @property
    def words(self) -> str:
        """What it is in a sentence."""
        return "GFLOPs" if self.batch is None else f"time at batch {self.batch}"

    def of(self, row: Average) -> Interval | None:
        """Return a row's cost with its interval; None where it wasn't measured."""
        if self.kind == "gflops":
            gflops = row.mean("gflops")
            return None if gflops is None else exact(gflops)
        timed = next((each for each in row.latency if each.batch == self.batch), None)
        if timed is None:
            return None
        if self.kind == "ms":
            return Interval(*(n / timed.batch for n in (timed.median_ms, timed.q1_ms, timed.q3_ms)))
        return exact(1.0) if row.method == DENSE else ratio_of(timed)


def qualities() -> dict[Metric, tuple[str, str]]:
    """Return what rows are judged by at a cost: what it is, and what is said of a row that has more of it."""
    return {metric: metric.quality for metric in METRICS.values() if metric.quality is not None}


def exact(value: float) -> Interval:
    """Return a value as an interval of no width."""
    return Interval(value, value, value)


def ratio_of(timed: Times | LatencyRecord) -> Interval | None:
    """Return the ratio to dense with its interval; None where it wasn't measured."""
    ends = (timed.ratio_to_dense, timed.ratio_low, timed.ratio_high)
    return None if None in ends else Interval(*ends)  # type: ignore[arg-type]  # none is None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a row stands.

    Attributes:
        verdict: ``beaten``: the best of the rows that cost no more, within 1 %, intervals taken at
            their worse ends, is clearly better. ``front``: it isn't, and by the estimates no row is
            as cheap and as good and better in one of the two. ``open``: neither; the images or
            timings are too few to say. Random pruning, the control, is never on the front.
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

    @functools.cached_property
    def _by_row(self) -> dict[str, Standing]:
        return {one.row.identity: one for one in self.standings}

    def of(self, row: Average) -> Standing | None:
        """Return where a row stands; None where it lacks the cost."""
        return self._by_row.get(row.identity)


@dataclass(frozen=True, kw_only=True)
class Highlights:
    """A group in short."""

    group: Group
    conditions: str
    saving: str  # about the row that costs least of those without a clear loss to dense
    winners: Sequence[str]  # on the fronts, and those that are clearly beaten; a cost each
    least: Average | None  # what `saving` is about
    fronts: Sequence[Front]  # of fidelity and of top-1, by GFLOPs, the ratio of time and ms at each batch size

    @property
    def trusted(self) -> list[Front]:
        """The fronts without those by ms, which hold the machine's own swings, too."""
        return [front for front in self.fronts if front.cost.kind != "ms"]


@dataclass(frozen=True)
class _Rivals:
    """Rows with a cost and the metric; of each the best one that costs no more and may beat it."""

    rows: Sequence[tuple[Average, Interval, float]]  # with the cost, and the quality: more is better
    best: Mapping[int, int]  # by the places of both
    pairs: int  # of a row and one that costs no more and is better by the estimates: all that may beat

    @classmethod
    def of(cls, rows: Sequence[Average], cost: Callable[[Average], Interval | None], metric: Metric) -> "_Rivals":
        known = [
            (row, price, good)
            for row in rows
            if (price := cost(row)) is not None and (good := quality(row, metric)) is not None
        ]
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
        return cls(known, best, pairs)


def standings(
    rows: Sequence[Average], cost: Callable[[Average], Interval | None], metric: Metric = TOP1
) -> list[Standing]:
    """Judge every row that has a cost and the metric.

    Clearly better is what the test of two rows, `averages.row_p` or `averages.fidelity_ps`, says on
    the same images, at 5 % by Holm over all pairs of a row and one that could beat it. Of each row
    only the best of these is tested, so that tests are as many as rows; the others count as not clear.
    """
    return _standings([_Rivals.of(rows, cost, metric)], metric)[0]


def _standings(every: Sequence[_Rivals], metric: Metric) -> list[list[Standing]]:
    """Judge the same rows by several costs; two rows are tested once."""
    asked: dict[tuple[str, str], tuple[Average, Average]] = {}
    for one in every:
        for worse, better in one.best.items():
            pair = one.rows[better][0], one.rows[worse][0]
            asked[pair[0].identity, pair[1].identity] = pair
    pairs = list(asked.values())
    tests = [row_p(a, b) for a, b in pairs] if metric == TOP1 else fidelity_ps(pairs, metric)
    return [_placed(one, dict(zip(asked, tests, strict=True))) for one in every]


def _placed(rivals: _Rivals, p_values: Mapping[tuple[str, str], float | None]) -> list[Standing]:
    rows, best = rivals.rows, rivals.best
    tested = {at: p_values[rows[by][0].identity, rows[at][0].identity] for at, by in best.items()}
    beaten = together(tested, of=rivals.pairs).clear
    front = _front_of(
        {at: (price.estimate, good) for at, (row, price, good) in enumerate(rows) if row.method != RANDOM}
    )
    return [
        Standing(
            row=row,
            cost=price,
            verdict="beaten" if at in beaten else "front" if at in front else "open",
            by=rows[best[at]][0] if at in beaten else None,
        )
        for at, (row, price, _) in enumerate(rows)
    ]


def quality(row: Average, metric: Metric) -> float | None:
    """Return a row's metric with the sign that makes more of it better."""
    value = row.mean(metric.name)
    return None if value is None else float(-value if metric.better == "lower" else value)


def _front_of(points: Mapping[int, tuple[float, float]]) -> set[int]:
    """Return which (cost, quality) no other is as cheap and good as, and better in one."""
    front: set[int] = set()
    best, at_cost = float("-inf"), float("-inf")
    for at, (cost, good) in sorted(points.items(), key=lambda p: (p[1][0], -p[1][1])):
        if good > best or (good == best and cost == at_cost):
            front.add(at)
            best, at_cost = good, cost
    return front


def fronts(group: Group) -> list[Front]:
    """Return where rows stand in each quality by each cost that at least two of them have."""
    batches = sorted({timed.batch for row in group.rows for timed in row.latency})
    costs = [Cost("gflops"), *(Cost(kind, b) for kind in ("ratio", "ms") for b in batches)]
    every = [
        Front(cost=cost, standings=stood, metric=metric)
        for metric in qualities()
        for cost, stood in zip(
            costs, _standings([_Rivals.of(group.rows, cost.of, metric) for cost in costs], metric), strict=True
        )
    ]
    return [front for front in every if len(front.standings) > 1]


def highlights(group: Group) -> Highlights:
    """Say a group in short, from its records alone."""
    first, names = group.first, labels(group.rows)
    least, saving = _saving(group, names)
    every = fronts(group)
    seeds = len(group.rows[0].records)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    return Highlights(
        group=group,
        conditions=f"{first.image_count} images{over}; {first.device_name}, {first.device}, "
        f"{first.dtype}, {counted(first.threads, 'thread')}",
        saving=saving,
        winners=[_winners(front, names) for front in every if front.cost.kind != "ms"],
        least=least,
        fronts=every,
    )


def headline(short: Sequence[Highlights]) -> list[str]:
    """Say which method is clearly ahead, at which cost and on which sets, or that none is.

    A method is clearly ahead in a group if every row of the others is clearly beaten and not every
    one of its own is. Rows are judged by nearness to dense where it was measured, and by time where
    it was, at the largest batch size; random pruning, golden rankings and the dense model take no part.
    """
    verdicts: dict[tuple[str, Metric, Cost], list[Highlights]] = {}  # by the method that is ahead, if one is
    unbeaten: dict[tuple[Metric, Cost], dict[str, None]] = {}  # where none is
    for one in short:
        if (front := _decisive(one)) is None:
            continue
        methods = _unbeaten(front)
        ahead = methods[0] if len(methods) == 1 else ""
        verdicts.setdefault((ahead, front.metric, front.cost), []).append(one)
        if not ahead:
            unbeaten.setdefault((front.metric, front.cost), {}).update(dict.fromkeys(methods))
    names = _sets(short)
    return [
        _ahead(
            metric, cost, [ahead] if ahead else list(unbeaten[metric, cost]), [(names[o.group.name], o) for o in own]
        )
        for (ahead, metric, cost), own in sorted(verdicts.items(), key=lambda one: not one[0][0])
    ]


def _decisive(one: Highlights) -> Front | None:
    """Return the front that a group is judged by; None where there are no two methods."""

    def worth(front: Front) -> tuple[bool, bool, int]:
        return front.metric != TOP1, front.cost.kind == "ratio", front.cost.batch or 0

    fronts = [front for front in one.trusted if len(_contenders(front)) > 1]
    return max(fronts, key=worth, default=None)


def _contenders(front: Front) -> dict[str, list[Standing]]:
    methods: dict[str, list[Standing]] = {}
    for one in front.standings:
        if one.row.method not in (DENSE, GOLDEN, RANDOM):
            methods.setdefault(one.row.label, []).append(one)
    return methods


def _unbeaten(front: Front) -> tuple[str, ...]:
    return tuple(name for name, own in _contenders(front).items() if any(one.verdict != "beaten" for one in own))


def _sets(short: Sequence[Highlights]) -> dict[str, str]:
    """Return what groups are called in a sentence, by heading: the dataset, and what tells it from others."""
    names = {}
    for one in short:
        same = [other.group for other in short if other.group.first.dataset == one.group.first.dataset]
        towers = dict.fromkeys(tower_of(group.first) for group in same)
        _, _, apart = one.group.name.partition("; ")
        words = [*([tower_of(one.group.first)] if len(towers) > 1 else []), *([apart] if apart else [])]
        more = f" ({', '.join(words)})" if words else ""
        names[one.group.name] = f"{one.group.first.dataset}{more}"
    return names


def _ahead(metric: Metric, cost: Cost, methods: Sequence[str], groups: Sequence[tuple[str, Highlights]]) -> str:
    where = listed([name for name, _ in groups], NAMED, "set")
    by = f"{qualities()[metric][0].lower()} by {cost.words}"
    if len(methods) != 1:
        return (
            f"No method is clearly ahead on {where}: in {by}, rows of {listed(methods, NAMED, 'method')} are unbeaten."
        )
    [method], figures = methods, []
    for name, one in groups[:NAMED]:
        front = next(f for f in one.trusted if (f.metric, f.cost) == (metric, cost))
        best = min((s for s in _contenders(front)[method] if s.verdict != "beaten"), key=lambda s: s.cost.estimate)
        figures.append(f"on {name} {_figures(best, metric, cost, labels(one.group.rows))}")
    return f"{method} is clearly ahead on {where}, in {by}: {'; '.join(figures)}."


def _figures(one: Standing, metric: Metric, cost: Cost, names: Mapping[str, str]) -> str:
    """Say what a row costs and how far from dense it is by the metric, with intervals."""
    row, near = one.row, one.row.estimate(metric)
    if metric == TOP1 and row.to_dense is not None:
        estimate, low, high = (100 * number for number in row.to_dense)
        distance = f"{estimate:+.1f} points of top-1 [{low:+.1f}, {high:+.1f}]"
    else:
        ends = [metric.text(number) for number in near] if isinstance(near, Interval) else [metric.text(near)]
        distance = f"{metric.heading} {ends[0]}{f' [{ends[1]}, {ends[2]}]' if len(ends) > 1 else ''}"
    spent = f"{one.cost.estimate:.2f}"
    if cost.kind == "ratio":
        spent = f"{spent} of dense's time [{one.cost.low:.2f}, {one.cost.high:.2f}]"
    else:
        spent = f"{spent} GFLOPs"
    return f"{row_name(row, names)} takes {spent}, {distance} from dense"


def listed(names: Sequence[str], most: int, noun: str, comma: str = ", ") -> str:
    """List names in a sentence; beyond ``most``, say how many more there are."""
    if len(names) > most:
        return f"{comma.join(names[:most])} and {counted(len(names) - most, f'more {noun}')}"
    return " and ".join(filter(None, [comma.join(names[:-1]), *names[-1:]]))


def front_notes(stood: Sequence[Standing], names: Mapping[str, str]) -> list[str]:
    """Say which rows are on the front, which may be, and which clearly aren't."""
    ordered = sorted(stood, key=lambda one: one.cost.estimate)
    notes = []
    for verdict, words in (("front", "On the front"), ("open", "Beside it, not clearly")):
        if rows := [one.row for one in ordered if one.verdict == verdict]:
            notes.append(f"{words}: {row_names(rows, names)}.")
    losers = [f"{row_name(one.row, names)} (by {row_name(one.by, names)})" for one in ordered if one.by is not None]
    return [*notes, f"Clearly beaten: {_first_of(losers)}."] if losers else notes


def row_name(row: Average, names: Mapping[str, str]) -> str:
    """Return what a row is called in a sentence."""
    name = names[row.identity]
    return name if row.method == DENSE else f"{name} {100 * row.keep:.3g} %"


def row_names(rows: Iterable[Average], names: Mapping[str, str]) -> str:
    """List rows."""
    return _first_of([row_name(row, names) for row in rows])


def _first_of(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - _ROWS} more (`report --json` has all)" if len(rows) > _ROWS else ""
    return f"{', '.join(rows[:_ROWS])}{more}"


def _winners(front: Front, names: Mapping[str, str]) -> str:
    notes = [n for n in front_notes(front.standings, names) if not n.startswith("Beside")]
    if all(one.by is None for one in front.standings):
        notes.append("None is clearly beaten.")
    return f"{qualities()[front.metric][0]} by {front.cost.words}: {' '.join(notes)}"


def _saving(group: Group, names: Mapping[str, str]) -> tuple[Average | None, str]:
    """Say which row is cheapest without a clear loss; random pruning, the control, is never it."""
    rows, family = group.rows, group.judged
    dense = next((row for row in rows if row.method == DENSE), None)
    if dense is None:
        return None, "There is no dense row, so no loss to it can be told."
    if dense.top1 is None:
        return None, "The images have no labels, so no loss of accuracy can be told."
    whole = dense.mean("gflops")
    if family is None or whole is None:
        return None, "No row has both a difference to dense and counted GFLOPs."
    judged = [row for row in rows if row.to_dense is not None and row.method != RANDOM]
    cheaper = [row for row in judged if (row.mean("gflops") or whole) < whole]
    if not cheaper:
        return None, "No row with a difference to dense has fewer GFLOPs."
    without_loss = [row for row in cheaper if not _loses(row, family)]
    if not without_loss:
        words = "Every row with fewer GFLOPs is less accurate than dense by its interval or the"
        return None, f"{words} test."
    fewest = min(row.mean("gflops") for row in without_loss)
    alike = [row for row in without_loss if row.mean("gflops") <= SAME * fewest]
    least = max(alike, key=lambda row: row.mean("top1"))
    return least, _about(least, dense, family, row_name(least, names))


def _loses(row: Average, family: Judged) -> bool:
    """Tell a row that is less accurate by all rows judged together, or by its interval alone.

    The second finds more: to overlook a loss is the worse mistake here.
    """
    assert row.to_dense is not None
    return row.to_dense.high < 0 or (bool(family.mark(row)) and row.to_dense.estimate < 0)


def _about(row: Average, dense: Average, family: Judged, name: str) -> str:
    assert row.to_dense is not None
    assert dense.top1 is not None
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
    return f"{text}.{_hidden_loss(row, dense, family)}"


def _hidden_loss(row: Average, dense: Average, family: Judged) -> str:
    """Say what loss so many images may hide; nothing of several seeds, or of a clear gain."""
    if family.mark(row) or len(dense.records) > 1:
        return ""
    truth = dense.first.correct
    apart = row.first.correct != truth
    least = minimum_detectable_difference(truth.size, float(apart.mean()))
    if least is None:
        images = counted(int(apart.sum()), "image")
        return f" Just one of the two is right on {images}, too few to show a loss."
    return (
        f" No clear loss isn't no loss: {truth.size} images show one of {100 * least:.1f} points in four of five cases."
    )


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A plot that records lack the figures for."""

    title: str
    groups: Sequence[str]  # headings of those that lack it
    why: str
    command: str  # what measures it


def missing(report: Grouped, *, traced: bool) -> list[Missing]:
    """Return what none of a group's rows has, one entry per subject."""
    groups = report.groups
    no_rankings = "there were no golden rankings, or no methods that rank"
    no_traces = "no traces lie beside the records"
    labelled = [group for group in groups if group.first.labelled]
    one_number = [] if shot_columns(report) else labelled
    shots = ["--shots", "0", "1", "2", "4", "8", "16"]
    lacking: tuple[tuple[str, str, Sequence[Group], list[str]], ...] = (
        ("Top-1 against GFLOPs", "multiply-adds weren't counted", _without(groups, "gflops"), []),
        (
            "Top-1 against time",
            "nothing was timed",
            [group for group in groups if not any(row.latency for row in group.rows)],
            ["--batches", "1", "32"],
        ),
        ("Kendall τ against keep rate", no_rankings, _without(groups, "tau"), ["--methods", GOLDEN, *_methods(groups)]),
        ("Tokens per block", "they weren't recorded", _without(groups, "tokens_per_block"), []),
        ("Top-1 by shots", "there is one number of shots only", one_number, shots),
        ("Agreement of rankings, and kept patches", no_traces, [] if traced else labelled, ["--fresh"]),
    )
    return [
        Missing(title=title, groups=[group.name for group in those], why=why, command=_command(those, flags))
        for title, why, those, flags in lacking
        if those
    ]


def _without(groups: Sequence[Group], field: str) -> list[Group]:
    """Return the groups in which no record has a metric, or a field."""

    def lacks(record: Record) -> bool:
        return field not in record.metrics and getattr(record, field, None) is None

    return [group for group in groups if all(lacks(r) for row in group.rows for r in row.records)]


def _methods(groups: Sequence[Group]) -> list[str]:
    """Return the methods that take part, without dense and golden."""
    every = dict.fromkeys(row.method for group in groups for row in group.rows)
    return [method for method in every if method not in (DENSE, GOLDEN)]


def _command(groups: Sequence[Group], flags: Sequence[str]) -> str:
    """Return a command for towers, datasets and keep rates of the groups."""
    first = [group.first for group in groups]
    keeps = {row.keep for group in groups for row in group.rows if row.method != DENSE}
    words = ["--models", *dict.fromkeys(tower_of(record) for record in first)]
    words += ["--datasets", *dict.fromkeys(record.dataset for record in first)]
    if keeps:
        words += ["--keeps", *(f"{keep:.3g}" for keep in sorted(keeps, reverse=True))]
    if "--shots" not in flags and (shots := sorted({record.shots for record in first})) != [0]:
        words += ["--shots", *map(str, shots)]
    for flag, field, usual in _CONDITIONS:
        values = {str(getattr(record, field)) for record in first}
        if len(values) == 1 and values != {usual}:
            words += [flag, *values]
    return f"patchrank compare {shlex.join([*words, *flags])}"
