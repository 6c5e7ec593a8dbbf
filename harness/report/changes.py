"""Differences between two records of one row: beyond bounds, for `check`; by intervals, between two runs."""

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.base.table import NOT_MEASURED, Shown, Table, count_of, json_values
from harness.records.averages import describe_uncounted, judged_on, protocol, tower_of
from harness.records.metrics import METRICS, SHOWN_DIGITS, Metric, MetricValue, Tolerance
from harness.records.record import MATCHED, Record, measured_alike, read_run
from harness.records.statistics import Interval, discordant, paired_difference, paired_mean
from zoo.core.settings import check_fields

COUNTED = ("uncounted_operators", "tokens_per_block")  # fields in which nothing may vary
ABSENT = "(absent)"  # value of a setting that a run's method didn't have, unlike null
# Fields by which a row is the same in both runs. Weights may differ, which is told.
_ROW = (*("dataset", "split", "model", "tag", "method", "keep"), *("shots", "tuning", "prompt_tokens", "seed"))
_TABLE = ("dataset", "split", "tag", "shots", "tuning", "prompt_tokens")
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "precision", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
# Conditions that must agree; differences in all others are only told.
FIXED = ("weights_sha256", "precision", "image_size", "golden_images")
_HEADS = ("method", "quantity", "A", "B", "B - A")
_CAPTION = (
    "what isn't the same in A and B; B - A on the same images with a 95 % paired bootstrap interval over images where "
    "known; time to dense where its interval, the furthest that those of A and B allow, excludes 0"
)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far quantities may move; counted ones may not move at all.

    The images are the same, so only rounding moves measured quantities: the bounds let float32 on another processor
    pass and show bfloat16.
    """

    answers: int = 1  # right answers more or fewer
    flips: int = 2  # images whose answer changed, or agrees with dense's no longer; they may cancel out in `answers`
    cosine: float = 5e-4  # of mean cosines: to dense, and in the margin
    divergence: float = 2e-3  # of mean KL to dense, in nats, and of the share of dense's neighbours
    probe: float = 2e-4  # of any direction of the mean feature, which isn't relative to dense
    tau: float = 2e-3  # of Kendall's tau, which must also stay in the expected 95 % interval
    # Factor on the expected ratio of time to dense, below which the ratio's interval must begin; inf not to judge
    # latency. Faster is never wrong.
    slower: float = 1.5

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self) if field.name != "slower"]
        check_fields(self, **dict.fromkeys(names, "[0, inf)"), slower="[1, inf]")

    def of(self, metric: Metric) -> Tolerance | None:
        """Return a metric's tolerance with these settings; None for counted and unchecked metrics."""
        tolerance = None if metric.counted else metric.tolerance
        if tolerance is None or not tolerance.setting:
            return tolerance
        return replace(tolerance, by=getattr(self, tolerance.setting))


# To show every difference; time always differs.
EXACT = Tolerances(
    answers=0, flips=0, cosine=SHOWN_DIGITS, divergence=SHOWN_DIGITS, probe=1e-5, tau=SHOWN_DIGITS, slower=math.inf
)


class Movement(NamedTuple):
    """A quantity of a row that has changed."""

    quantity: str
    then: Any  # JSON value; None of a new row
    now: Any  # JSON value; None if not measured
    by: Interval | float | None = None  # now minus then, of numbers
    allowed: str = "nothing"  # movement, in words


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row, measured twice."""

    then: Record
    now: Record

    def differing(self, names: Sequence[str], *, known: bool = False) -> list[Movement]:
        """Return the fields and metrics that differ; with ``known`` only those that both records have."""
        moved = []
        for name in names:
            then, now = (r.mean(name) if name in METRICS else getattr(r, name) for r in (self.then, self.now))
            if then != now and not (known and None in (then, now)):
                moved.append(Movement(name, then, now))
        return moved

    @cached_property
    def other_images(self) -> str | None:
        """Say why the answers can't be paired by image; None if they can."""
        images = self.differing(_IMAGES) or self.differing(["images_sha256"], known=True)
        return "; ".join(f"{name} {then!r} and {now!r}" for name, then, now, *_ in images) or None

    def change(self, name: str) -> Interval | float | None:
        """Return a metric's mean of now minus then, with a 95 % paired bootstrap over images where they have values.

        None unless both records have the metric of the same images.
        """
        then, now = self.then.mean(name), self.now.mean(name)
        if self.other_images or then is None or now is None:
            return None
        a, b = self.then.per_image(name), self.now.per_image(name)
        if a is None or b is None:
            return now - then if self.then.golden_images == self.now.golden_images else None
        return paired_difference(b > 0, a > 0) if name == "top1" else paired_mean(b, a, self.then.groups)

    @property
    def conditions(self) -> list[Movement]:
        """Conditions that differ."""
        golden = ("golden_images",) if all("tau" in record.metrics for record in (self.then, self.now)) else ()
        differing = self.differing((*_SOFTWARE, *_MACHINE, "weights_sha256", *golden))
        return [*differing, *self.differing(["image_size"], known=True)]

    def counted(self) -> Iterator[Movement]:
        """Yield costs and settings that differ, in which nothing may vary, without the search of a keep rate."""
        then, now = self.then.method_config, self.now.method_config
        settings = (Movement(n, then.get(n, ABSENT), now.get(n, ABSENT)) for n in {**then, **now} if n != MATCHED)
        yield from (setting for setting in settings if setting.then != setting.now)
        names = (*(name for name, metric in METRICS.items() if metric.counted), *COUNTED)
        for cost in self.differing(names):
            if cost.then is not None:
                numbers = isinstance(cost.then, int | float) and isinstance(cost.now, int | float)
                yield cost._replace(by=cost.now - cost.then if numbers else None)

    def times(self, alike: Sequence[str]) -> Iterator[tuple[str, Interval, Interval]]:
        """Yield the ratios to the dense model's time, by batch size, if the conditions ``alike`` are equal.

        A model is timed in turns with its dense model, so a busier machine cancels out.
        """
        times = {} if self.differing(alike) else {entry.batch: entry.ratio for entry in self.now.latency}
        for entry in self.then.latency:
            if entry.ratio is not None and (now := times.get(entry.batch)) is not None:
                yield f"time to dense, batch {entry.batch}", entry.ratio, now


def describe_conditions(
    pairs: Sequence[Pair], words: tuple[str, str], skip: Sequence[str] = (), alike: Sequence[str] = _MACHINE
) -> list[str]:
    """Say which conditions differ, in how many rows, and why times aren't compared, which need ``alike`` conditions."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        for condition, then, now, *_ in pair.conditions:
            if condition not in skip:
                counts[f"{condition}: {movement_text(then)} {words[0]}, {movement_text(now)} {words[1]}"] += 1
        if pair.then.latency and (unlike := pair.differing(alike)):
            counts[f"latency isn't judged: another {' and '.join(moved.quantity for moved in unlike)}"] += 1
        elif len(pair.then.latency) > len(pair.now.latency):
            counts["latency isn't judged: it wasn't measured"] += 1
    return [f"{w} ({count} of {len(pairs)} rows)" if count < len(pairs) else w for w, count in counts.items()]


def find_movements(then: Record | None, now: Record | None, bounds: Tolerances) -> Iterator[Movement]:
    """Yield the quantities of a row that moved further than allowed; a new or missing row moved as a whole."""
    if then is None or now is None:
        yield Movement("row", then and "measured", now and "measured")
        return
    pair = Pair(then=then, now=now)
    yield from (condition for condition in pair.conditions if condition.quantity in FIXED)
    yield from pair.counted()
    if pair.other_images:
        yield Movement("images", pair.other_images, None)
    else:
        if then.labelled and now.labelled:
            lost, won, _ = discordant(then.correct, now.correct)
            right = int(then.correct.sum())
            if abs(won - lost) > bounds.answers:
                yield Movement("images right", right, right + won - lost, won - lost, f"±{bounds.answers}")
            if won + lost > bounds.flips:
                yield Movement("answers flipped", 0, f"{lost} lost, {won} won", won + lost, f"{bounds.flips}")
        yield from _moved_means(then, now, bounds)
    for quantity, before, here in pair.times(["device"]):
        if here.low > (most := bounds.slower * before.estimate):
            by = here.estimate - before.estimate
            yield Movement(quantity, before.estimate, here.estimate, by, f"up to {most:.2f}")


def _moved_means(then: Record, now: Record, bounds: Tolerances) -> Iterator[Movement]:
    """Yield the means that moved further than their tolerance, or weren't measured."""
    compared = [
        (name, expected, now.mean(name), tolerance)
        for name, expected in then.metrics.items()
        if name in METRICS and (tolerance := bounds.of(METRICS[name])) is not None
    ]
    if (probe := then.feature_probe) is not None:
        moved = now.feature_probe
        most = 0 if moved is None else int(np.abs(np.subtract(moved, probe)).argmax())
        mean = None if moved is None else moved[most]
        compared.append(("feature_probe", MetricValue(mean=probe[most]), mean, Tolerance(by=bounds.probe)))
    for name, expected, mean, tolerance in compared:
        low, high, words = tolerance.limits(expected, then.image_count)
        if mean is None or not low <= mean <= high:
            by = None if mean is None else mean - expected.mean
            yield Movement(name.replace("_", " "), expected.mean, mean, by, words)


def find_changes(pair: Pair) -> Iterator[Movement]:
    """Yield the differences in a row of two runs: all metrics, counted ones and times only if they differ clearly."""
    yield from pair.counted()
    if pair.other_images:
        yield Movement("images", pair.other_images, None)
    for name, metric in METRICS.items():
        if metric.counted or not (metric.tolerance or metric.stored):  # without both it is a difference itself
            continue
        if (by := pair.change(name)) is not None:
            yield Movement(name, pair.then.mean(name), pair.now.mean(name), by)
    for quantity, then, now in pair.times(_MACHINE):
        by = Interval(now.estimate - then.estimate, now.low - then.high, now.high - then.low)
        if by.low > 0 or by.high < 0:
            yield Movement(quantity, then.estimate, now.estimate, by)


def compare_runs(a: Path, b: Path) -> Shown:
    """Tell the changes between two runs; of each row the newest record counts. Raises as `read_run`."""
    row, runs = attrgetter(*_ROW, "recovered"), [read_run(path) for path in (a, b)]
    before, after = ({row(record): record for record in run} for run in runs)
    groups: dict[Hashable, list[Pair]] = {}
    for key, record in before.items():
        if key in after:
            group = (tower_of(record), *attrgetter(*_TABLE)(record))
            groups.setdefault(group, []).append(Pair(then=record, now=after[key]))
    pairs = [pair for group_pairs in groups.values() for pair in group_pairs]
    notes = describe_conditions(pairs, ("in A", "in B"))
    notes += filter(None, [describe_uncounted(*(record for pair in pairs for record in (pair.then, pair.now)))])
    alone = {}
    for name, run, newest, partners in (("A", runs[0], before, after), ("B", runs[1], after, before)):
        if older := len(set(map(measured_alike, run))) - len(newest):
            many = count_of(older, "older record")
            notes.append(f"left out of {name}: {many} of its rows, with other conditions or settings")
        alone[name] = [_name(record) for key, record in newest.items() if key not in partners]
    lines = [f"A: {a}", f"B: {b}", f"{len(pairs)} {'row is' if len(pairs) == 1 else 'rows are'} in both runs", *notes]
    lines += [f"only in {run}: {', '.join(names)}" for run, names in alone.items() if names]
    tables, moved = list[Table](), list[dict[str, object]]()
    for group_pairs in groups.values():
        cells, first = list[list[str]](), group_pairs[0].then
        for record, change in ((pair.then, change) for pair in group_pairs for change in find_changes(pair)):
            quantity, then, now, by, _ = change
            if by in (0, (0, 0, 0)):
                continue
            name = f"{record.label} {100 * record.keep:.4g} %" + (f", seed {record.seed}" if record.shots else "")
            text = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*by) if isinstance(by, Interval) else movement_text(by)
            cells.append([name, quantity.replace("_", " "), movement_text(then), movement_text(now), text])
            values = {name: getattr(record, name) for name in _ROW}
            moved.append(values | {"quantity": quantity, "a": then, "b": now, "difference": by})
        counts = sorted({record.image_count for pair in group_pairs for record in (pair.then, pair.now)})
        images = " or ".join(map(str, counts))
        title = f"{first.dataset} ({judged_on(first)}, {images} images; {protocol(first)}), {tower_of(first)}"
        tables += [Table.of(title, _HEADS, cells, words=_HEADS[:-1], caption=_CAPTION)] if cells else []
    data = {"a": str(a), "b": str(b), "rows": len(pairs), "moved": moved, "notes": notes}
    data |= {"only_in_a": alone["A"], "only_in_b": alone["B"]}
    return Shown(parts=(*lines, *tables), data=json_values(data))


def _name(record: Record) -> str:
    learned = f", {protocol(record)}, seed {record.seed}" if record.shots else ""
    return f"{record.model}.{record.tag} on {record.dataset} {record.split}{learned}"


def movement_text(value: object) -> str:
    """Show a value, of a hash the first digits."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= SHOWN_DIGITS else f"{value:.1e}"
    plain = value if isinstance(value, str) else NOT_MEASURED if value is None else json.dumps(value)
    return plain[:12] if re.fullmatch(r"[0-9a-f]{16,}", plain) else plain
