"""What changed between two runs: their rows in pairs, and what of each pair may be compared."""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from harness.base.table import Cell, Shown, Table, estimate_cell, figure, json_values
from harness.records.averages import describe_uncounted, judged_on, protocol, tower_of
from harness.records.metrics import METRICS, Metric
from harness.records.record import Record, measured_alike, read_run
from harness.records.statistics import (
    CLEAR,
    FLIPPED,
    MCNEMAR,
    Interval,
    Together,
    discordant,
    mark_note,
    paired_difference,
    paired_mean,
    paired_p,
    sign_flip,
    together,
)

TOP1 = METRICS["top1"]
COUNTED = ("uncounted_operators", "tokens_per_block")  # fields in which nothing may vary
ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs. The weights' hash doesn't: that it differs is said.
_ROW = (*("dataset", "split", "model", "tag", "method", "keep"), *("shots", "tuning", "prompt_tokens", "seed"))
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
_CAPTION = (
    "B minus A, of each beside its own dense model, with a 95 % paired bootstrap interval over images where known; "
    "batch: ratio to dense of B over A's, with an interval that covers at least 90 %; "
)
_NAMED = 12  # rows of one run alone that a line names


class Difference(NamedTuple):
    """A value that isn't the same in both runs; what is None there was not measured."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        a, b = (str(v)[:16] if self.name.endswith("_sha256") else v for v in (self.a, self.b))
        a, b = (v if v == ABSENT else "none" if v is None else json.dumps(v) for v in (a, b))
        return f"{self.name} {a} in A, {b} in B"


def _differences(a: Record, b: Record, names: Sequence[str], *, known: bool = False) -> list[Difference]:
    """Return the fields and metrics that differ; with ``known`` only of what both have."""
    values = (Difference(n, *(r.mean(n) if n in METRICS else getattr(r, n) for r in (a, b))) for n in names)
    return [one for one in values if one.a != one.b and not (known and None in (one.a, one.b))]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row in two runs."""

    a: Record
    b: Record

    @cached_property
    def other_images(self) -> str | None:
        """Say why the answers can't be paired by image; None if they can."""
        images = _differences(self.a, self.b, _IMAGES)
        images = images or _differences(self.a, self.b, ["images_sha256"], known=True)
        return "; ".join(f"{one.name} {one.a!r} in A, {one.b!r} in B" for one in images) or None

    def per_image(self, metric: Metric) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return A's and B's values of a metric on the same images; None unless both have them."""
        a, b = (None if self.other_images else record.per_image(metric.name) for record in (self.a, self.b))
        return None if a is None or b is None else (a > 0, b > 0) if metric == TOP1 else (a, b)

    @property
    def answers(self) -> tuple[int, int] | None:
        """How many images only A got right, and only B; None unless both say it of the same images."""
        correct = self.per_image(TOP1)
        return None if correct is None else discordant(*correct)[:2]

    def change(self, metric: Metric) -> Interval | float | None:
        """Return a metric's value of B minus A's; None unless both have it of the same images.

        The interval is a 95 % paired bootstrap over images, where both have a value per image.
        """
        if (values := self.per_image(metric)) is not None:
            a, b = values
            return paired_difference(b, a, 0) if metric == TOP1 else paired_mean(b, a, seed=0, groups=self.a.groups)
        same = not self.other_images and self.a.golden_images == self.b.golden_images
        then, now = self.a.mean(metric.name), self.b.mean(metric.name)
        return None if then is None or now is None or not same else now - then

    def change_p(self, metric: Metric) -> float | None:
        """Return the p-value that a metric didn't change; None without values per image."""
        if (values := self.per_image(metric)) is None:
            return None
        a, b = values
        return paired_p(b, a) if metric == TOP1 else sign_flip(b - a, seed=0, groups=self.a.groups)

    @property
    def latency(self) -> dict[int, Interval]:
        """B's ratio to its dense model over A's to its own by batch size; empty unless machine and precision are one.

        Each of the two was timed in turns with its dense model, so a busier machine cancels out. The ends are the
        furthest that both 95 % intervals allow, which covers at least 90 %.
        """
        if _differences(self.a, self.b, _MACHINE):
            return {}
        before, after = (
            {entry.batch: entry.ratio for entry in record.latency if entry.ratio is not None and entry.ratio.low}
            for record in (self.a, self.b)
        )
        return {
            batch: Interval(b.estimate / a.estimate, b.low / a.high, b.high / a.low)
            for batch, b in after.items()
            if (a := before.get(batch))
        }

    @property
    def costs(self) -> list[Difference]:
        """Costs that A has and that aren't B's; they are counted, so nothing may vary."""
        names = (*(name for name, metric in METRICS.items() if metric.bound == "exact"), *COUNTED)
        return [one for one in _differences(self.a, self.b, names) if one.a is not None]

    @property
    def conditions(self) -> list[Difference]:
        """Conditions that differ, the method's settings among them one by one."""
        ours, theirs = self.a.method_config, self.b.method_config
        settings = [
            Difference(f"method_config.{name}", a, b)
            for name in dict.fromkeys([*ours, *theirs])
            if (a := ours.get(name, ABSENT)) != (b := theirs.get(name, ABSENT))
        ]
        golden = ("golden_images",) if all("tau" in record.metrics for record in (self.a, self.b)) else ()
        differing = _differences(self.a, self.b, (*_SOFTWARE, *_MACHINE, "weights_sha256", *golden))
        return [*differing, *_differences(self.a, self.b, ["image_size"], known=True), *settings]


class RunChanges(NamedTuple):
    """Two runs: rows that both have, in A's order, and rows that the other lacks."""

    pairs: list[Change]
    only_a: list[Record]
    only_b: list[Record]


class ChangeGroup(NamedTuple):
    """The pairs of one dataset, split, tower and tuning, judged together in each metric."""

    pairs: list[Change]
    families: dict[Metric, Together[int]]


def pair_runs(a: Sequence[Record], b: Sequence[Record]) -> RunChanges:
    """Pair the rows of two runs.

    A run may have a row several times, under several conditions. Those most alike are paired, and none twice: first by
    images, then settings, weights, machine and software, then the newer.
    """
    weighty = (_IMAGES, ("method_config",), ("weights_sha256",), _MACHINE, _SOFTWARE)
    # Of records that are measured under the same conditions the last counts.
    ours, theirs = (list({measured_alike(one): one for one in run}.values()) for run in (a, b))
    row = attrgetter(*_ROW, "recovered")
    near = [
        ([not _differences(one, other, names) for names in weighty], i, j)
        for i, one in enumerate(ours)
        for j, other in enumerate(theirs)
        if row(one) == row(other)
    ]
    partner: dict[int, int] = {}
    for _, i, j in sorted(near, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return RunChanges(
        [Change(a=ours[i], b=theirs[partner[i]]) for i in sorted(partner)],
        [one for i, one in enumerate(ours) if i not in partner],
        [one for j, one in enumerate(theirs) if j not in partner.values()],
    )


def judge_changes(pairs: Sequence[Change]) -> list[ChangeGroup]:
    """Share pairs out to tables, and judge each metric of a table's rows together."""
    groups: dict[Hashable, list[Change]] = {}
    for pair in pairs:
        row = pair.a
        key = (row.dataset, row.split, tower_of(row), row.shots, row.tuning, row.prompt_tokens)
        groups.setdefault(key, []).append(pair)
    return [
        ChangeGroup(own, {m: together({at: pair.change_p(m) for at, pair in enumerate(own)}) for m in _changing(own)})
        for own in groups.values()
    ]


def _changing(pairs: Sequence[Change]) -> list[Metric]:
    """Return the metrics that both of some pair have, top-1 first."""
    both = {name for pair in pairs for name in pair.a.metrics.keys() & pair.b.metrics.keys()}
    return [one for one in (TOP1, *METRICS.values()) if one.change and one.name in both]


def changes_data(runs: RunChanges, groups: Sequence[ChangeGroup]) -> dict[str, Any]:
    """Return the pairs with what may be compared, and rows of one run, as JSON values."""

    def name(record: Record) -> dict[str, Any]:
        return {name: getattr(record, name) for name in _ROW}

    pairs = []
    for group in groups:
        for at, pair in enumerate(group.pairs):
            metrics = {
                metric.name: {
                    **{"a": pair.a.mean(metric.name), "b": pair.b.mean(metric.name)},
                    **{"difference": pair.change(metric), "p_value": family.alone.get(at)},
                    "p_value_holm": family.adjusted.get(at),
                }
                for metric, family in group.families.items()
            }
            facts: dict[str, Any] = {"metrics": metrics, "costs": pair.costs, "conditions": pair.conditions}
            facts |= {"only_a_only_b_right": pair.answers, "other_images": pair.other_images}
            facts["time_ratio_by_batch"] = pair.latency
            pairs.append(name(pair.a) | facts)
    alone = {"only_in_a": [name(one) for one in runs.only_a], "only_in_b": [name(one) for one in runs.only_b]}
    data: dict[str, Any] = json_values({"pairs": pairs, **alone})
    return data


def notes(runs: RunChanges) -> Iterator[str]:
    """Say in words what is not the same in both runs, and what is therefore not compared."""
    pairs = len(runs.pairs)
    yield f"{pairs} {'row is' if pairs == 1 else 'rows are'} in both runs"
    for condition, count in Counter(str(one) for pair in runs.pairs for one in pair.conditions).items():
        yield f"conditions differ: {condition} ({_share(count, pairs)})"
    for pair in runs.pairs:
        if pair.other_images:
            yield f"{_name(pair.a)}: accuracy not compared, images or prompts differ: {pair.other_images}"
        yield from (f"{_name(pair.a)}: cost differs: {cost}" for cost in pair.costs if cost.b is not None)
    if lost := describe_uncounted(*(record for pair in runs.pairs for record in (pair.a, pair.b))):
        yield lost
    timed = [pair for pair in runs.pairs if pair.a.latency and pair.b.latency]
    if apart := sum(bool(_differences(pair.a, pair.b, _MACHINE)) for pair in timed):
        same = "the same device, device_name, dtype, threads and batch"
        yield f"latency not compared ({_share(apart, pairs)}): it takes {same}"
    for run, alone in zip("AB", runs[1:], strict=True):
        if alone:
            more = f" and {len(alone) - _NAMED} more" if alone[_NAMED:] else ""
            yield f"only in {run}: {', '.join(map(_name, alone[:_NAMED]))}{more}"


def _share(count: int, pairs: int) -> str:
    return "every row" if count == pairs else f"{count} of {pairs} rows"


def _name(record: Record) -> str:
    learned = f", {protocol(record)}, seed {record.seed}" if record.shots else ""
    return f"{record.model}.{record.tag} on {record.dataset} {record.split}{learned}"


def changes_table(group: ChangeGroup) -> Table:
    """Lay out a column per metric, of B minus A."""
    pairs, families = group
    first, runs = pairs[0].a, [(pair.a, pair.b) for pair in pairs]
    columns = {"method": [Cell(a.label) for a, _ in runs], "keep": [figure(100 * a.keep, ".4g") for a, _ in runs]}
    if len({a.seed for a, _ in runs}) > 1:
        columns["seed"] = [figure(a.seed, "d") for a, _ in runs]
    if TOP1 in families:
        for run, own in zip("AB", zip(*runs, strict=True), strict=True):
            columns[f"top-1 {run}, %"] = [figure(record.mean("top1"), ".1%") for record in own]
    narrow = {*columns, *(metric.heading for metric in list(families)[:1])}
    for metric, family in families.items():
        text = partial(metric.text, form=metric.change)
        cells = [estimate_cell(pair.change(metric), text) for pair in pairs]
        columns[metric.heading] = [Cell(cell, cell.value, family.mark(at)) for at, cell in enumerate(cells)]
    costs = [[figure(record.mean("gflops"), ".3f") for record in pair] for pair in runs]
    columns["GFLOPs"] = [a if a.value == b.value else Cell(f"{a} → {b}", b.value) for a, b in costs]
    for batch in sorted({batch for pair in pairs for batch in pair.latency}):
        ratios = (pair.latency.get(batch) for pair in pairs)
        columns[f"batch {batch}, to dense"] = [estimate_cell(ratio, "{:.2f}".format) for ratio in ratios]
    images = " or ".join(map(str, sorted({record.image_count for pair in runs for record in pair})))
    test = f"{MCNEMAR} of top-1, {FLIPPED} of the others"
    return Table.of(
        f"{first.dataset} ({judged_on(first)}, {images} images; {protocol(first)}), {tower_of(first)}",
        list(columns),
        list(zip(*columns.values(), strict=True)),
        words=("method",),
        wide=columns.keys() - narrow - {"GFLOPs"},
        legend=f"{CLEAR} clear change at 5 %, the rows of a column judged together",
        caption=_CAPTION + mark_note(test, "the rows of each column"),
    )


def compare_runs(a: Path, b: Path) -> Shown:
    """Tell what changed between two runs.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: a run can't be read.
    """
    runs = pair_runs(read_run(a), read_run(b))
    groups = judge_changes(runs.pairs)
    lines = [f"A: {a}", f"B: {b}", *notes(runs)]
    return Shown(
        parts=(*lines, *map(changes_table, groups)), data={"a": str(a), "b": str(b), **changes_data(runs, groups)}
    )
