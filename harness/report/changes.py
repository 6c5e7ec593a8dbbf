"""What differs between two records of one row: beyond bounds, for `check`; by a test, between two runs."""

import json
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.base.table import NOT_MEASURED, Cell, Shown, Table, json_values
from harness.records.averages import describe_uncounted, judged_on, protocol, tower_of
from harness.records.metrics import METRICS, Measured, Metric
from harness.records.record import MATCHED, Record, measured_alike, read_run
from harness.records.statistics import (
    CLEAR,
    FLIPPED,
    MCNEMAR,
    Interval,
    discordant,
    mark_note,
    paired_difference,
    paired_mean,
    paired_p,
    sign_flip,
    together,
)
from harness.report.tables import count_of

COUNTED = ("uncounted_operators", "tokens_per_block")  # fields in which nothing may vary
ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs. The weights' hash doesn't: that it differs is said.
_ROW = (*("dataset", "split", "model", "tag", "method", "keep"), *("shots", "tuning", "prompt_tokens", "seed"))
_TABLE = ("dataset", "split", "tag", "shots", "tuning", "prompt_tokens")
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
# Conditions that must agree for anything else to be comparable; all others are only told.
FIXED = ("weights_sha256", "dtype", "image_size", "golden_images")
_CAPTION = (
    "what isn't the same in A and B; B - A on the same images with a 95 % paired bootstrap interval over images where "
    "known; time to dense where its interval, the furthest that those of A and B allow, excludes 0; "
)
_NAMED = 12  # rows of one run alone that a line names
SHOWN_DIGITS = 5e-5  # half of the last digit that a table shows


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far quantities may move. What is counted may not move at all.

    The images are the same, so only rounding moves the others: the bounds let float32 on another processor pass
    and show bfloat16 in its place.

    Attributes:
        answers: difference in the number of right answers, either way.
        flips: images whose answer changed, either way, which in the number of right ones may cancel
            out; and difference in the number of answers that are dense's, too.
        cosine: difference in mean cosines: to dense, and in the margin.
        divergence: difference in mean KL to dense, in nats, and in neighbours that are dense's, too.
        probe: difference in any direction of the mean feature, which isn't relative to dense.
        tau: difference in Kendall's tau, which must also stay in the expected 95 % interval.
        slower: factor on the expected ratio of time to dense, which the least of the ratio's
            interval may not exceed; None not to judge latency. Faster is never wrong.
    """

    answers: int = 1
    flips: int = 2
    cosine: float = 5e-4
    divergence: float = 2e-3
    probe: float = 2e-4
    tau: float = 2e-3
    slower: float | None = 1.5

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            least, what = (1, "factor from 1, such as 1.5") if name == "slower" else (0, "number from 0")
            if value is not None and not value >= least:
                raise ValueError(f"--{name} {value}: expected a {what}")


# To show every difference; time always differs.
EXACT = Tolerances(
    answers=0, flips=0, cosine=SHOWN_DIGITS, divergence=SHOWN_DIGITS, probe=1e-5, tau=SHOWN_DIGITS, slower=None
)


class Movement(NamedTuple):
    """A quantity of a row that isn't what it was."""

    quantity: str
    then: Any  # None of a row that wasn't there
    now: Any  # None where it wasn't measured
    by: Interval | float | None = None  # now minus then, where that says something
    allowed: str = "nothing"  # how much it may move, in words
    p_value: float | None = None  # that it didn't change


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row, measured twice."""

    then: Record
    now: Record

    def differing(self, names: Sequence[str], *, known: bool = False) -> list[Movement]:
        """Return the fields and metrics that differ; with ``known`` only of what both have."""
        then, now = (
            [r.mean(name) if name in METRICS else getattr(r, name) for name in names] for r in (self.then, self.now)
        )
        values = map(Movement, names, then, now)
        return [one for one in values if one.then != one.now and not (known and None in (one.then, one.now))]

    @cached_property
    def other_images(self) -> str | None:
        """Say why the answers can't be paired by image; None if they can."""
        images = self.differing(_IMAGES) or self.differing(["images_sha256"], known=True)
        return "; ".join(f"{one.quantity} {one.then!r} and {one.now!r}" for one in images) or None

    def change(self, name: str) -> tuple[Interval | float, float | None] | None:
        """Return a metric's value of now minus then, and the p-value that it didn't change.

        The interval is a 95 % paired bootstrap over images; without a value per image there is neither interval nor
        p-value. None unless both have the metric of the same images.
        """
        then, now = self.then.mean(name), self.now.mean(name)
        if self.other_images or then is None or now is None:
            return None
        a, b, groups = self.then.per_image(name), self.now.per_image(name), self.then.groups
        if a is None or b is None:
            return (now - then, None) if self.then.golden_images == self.now.golden_images else None
        if name == "top1":
            return paired_difference(b > 0, a > 0, 0), paired_p(b > 0, a > 0)
        return paired_mean(b, a, 0, groups), sign_flip(b - a, 0, groups)

    @property
    def conditions(self) -> list[Movement]:
        """Conditions that differ."""
        golden = ("golden_images",) if all("tau" in record.metrics for record in (self.then, self.now)) else ()
        differing = self.differing((*_SOFTWARE, *_MACHINE, "weights_sha256", *golden))
        return [*differing, *self.differing(["image_size"], known=True)]

    def counted(self) -> Iterator[Movement]:
        """Yield settings that differ, one by one, and costs that were counted: nothing in them may vary.

        How a keep rate was found is no setting of what is measured at it.
        """
        then, now = self.then.method_config, self.now.method_config
        settings = (Movement(n, then.get(n, ABSENT), now.get(n, ABSENT)) for n in {**then, **now} if n != MATCHED)
        yield from (one for one in settings if one.then != one.now)
        names = (*(name for name, metric in METRICS.items() if metric.bound == "exact"), *COUNTED)
        for one in self.differing(names):
            if one.then is not None:
                numbers = isinstance(one.then, int | float) and isinstance(one.now, int | float)
                yield one._replace(by=one.now - one.then if numbers else None)

    def times(self, alike: Sequence[str]) -> Iterator[tuple[str, Interval, Interval]]:
        """Yield the ratios to the dense model's time, by batch size, where these conditions are alike.

        Each was timed in turns with its dense model, so a busier machine cancels out.
        """
        times = {} if self.differing(alike) else {entry.batch: entry.ratio for entry in self.now.latency}
        for entry in self.then.latency:
            if entry.ratio is not None and (now := times.get(entry.batch)) is not None:
                yield f"time to dense, batch {entry.batch}", entry.ratio, now


def describe_conditions(
    pairs: Sequence[Pair], words: tuple[str, str], skip: Collection[str] = (), alike: Sequence[str] = _MACHINE
) -> list[str]:
    """Say which conditions differ, and in how many rows; and why times aren't compared, for which some are alike."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        for one in pair.conditions:
            if one.quantity not in skip:
                then, now = map(movement_text, (one.then, one.now))
                counts[f"{one.quantity}: {then} {words[0]}, {now} {words[1]}"] += 1
        if pair.then.latency and (other := pair.differing(alike)):
            counts[f"latency isn't judged: another {' and '.join(one.quantity for one in other)}"] += 1
        elif len(pair.then.latency) > len(pair.now.latency):
            counts["latency isn't judged: it wasn't measured"] += 1
    return [f"{w} ({count} of {len(pairs)} rows)" if count < len(pairs) else w for w, count in counts.items()]


def find_movements(then: Record | None, now: Record | None, bounds: Tolerances) -> Iterator[Movement]:
    """Yield what moved further than it may in a row; a row that is new, or gone, moved as a whole."""
    if then is None or now is None:
        yield Movement("row", then and "measured", now and "measured")
        return
    pair = Pair(then=then, now=now)
    yield from (one for one in pair.conditions if one.quantity in FIXED)
    yield from pair.counted()
    if pair.other_images:
        yield Movement("images", pair.other_images, None)
    else:
        yield from _answers(pair, bounds)
        yield from _near(then, now, bounds)
    if (factor := bounds.slower) is not None:
        for quantity, before, here in pair.times(["device"]):
            if here.low > (most := factor * before.estimate):
                by = here.estimate - before.estimate
                yield Movement(quantity, before.estimate, here.estimate, by, f"up to {most:.2f}")


def _answers(pair: Pair, bounds: Tolerances) -> Iterator[Movement]:
    """Compare answers image by image."""
    if not (pair.then.labelled and pair.now.labelled):
        return
    correct = pair.then.correct, pair.now.correct
    lost, won, _ = discordant(*correct)
    then, now = (int(own.sum()) for own in correct)
    if abs(won - lost) > bounds.answers:
        yield Movement("images right", then, now, now - then, f"±{bounds.answers}")
    if won + lost > bounds.flips:
        yield Movement("answers flipped", 0, f"{lost} lost, {won} won", won + lost, f"{bounds.flips}")


def _near(then: Record, now: Record, bounds: Tolerances) -> Iterator[Movement]:
    """Compare what rounding may move; of several numbers the one that moved most."""
    limits = [
        (name, own.mean, now.mean(name), *_limits(METRICS[name], own, then.image_count, bounds))
        for name, own in then.metrics.items()
        if name in METRICS and METRICS[name].bound not in ("", "exact")
    ]
    if (probe := then.feature_probe) is not None:
        here = now.feature_probe
        most = 0 if here is None else int(np.abs(np.subtract(here, probe)).argmax())
        found = None if here is None else here[most]
        ends = probe[most] - bounds.probe, probe[most] + bounds.probe, f"±{bounds.probe:g}"
        limits.append(("feature_probe", probe[most], found, *ends))
    for name, value, found, low, high, words in limits:
        if found is None or not low <= found <= high:
            by = None if found is None else found - value
            yield Movement(name.replace("_", " "), value, found, by, words)


def _limits(metric: Metric, then: Measured, images: int, bounds: Tolerances) -> tuple[float, float, str]:
    """Return how low and how high a metric's mean may be, and the same in words."""
    by = getattr(bounds, metric.bound) if isinstance(metric.bound, str) else metric.bound
    if metric.bound == "flips":  # of images, and half of one for rounding
        by = (by + 0.5) / images
    low, high = then.mean - by, then.mean + by
    if metric.bound != "tau" or then.low is None or then.high is None:
        return low, high, f"±{by:.4f}" if metric.bound == "flips" else f"±{by:g}"
    # It also has to stay in the expected interval. The golden row's has no width, and rounding is no news.
    low, high = min(max(then.low, low), then.mean - SHOWN_DIGITS), max(min(then.high, high), then.mean + SHOWN_DIGITS)
    return low, high, f"{low:.4f} to {high:.4f}"


def find_changes(pair: Pair) -> Iterator[Movement]:
    """Yield what differs in a row of two runs, and every metric that isn't counted; time only where it is clear."""
    yield from pair.counted()
    if pair.other_images:
        yield Movement("images", pair.other_images, None)
    for name, metric in METRICS.items():
        if metric.bound == "exact" or not (metric.bound or metric.stored):  # counted, or a difference itself
            continue
        if (change := pair.change(name)) is not None:
            by, p_value = change
            yield Movement(name, pair.then.mean(name), pair.now.mean(name), by, p_value=p_value)
    for quantity, then, now in pair.times(_MACHINE):
        by = Interval(now.estimate - then.estimate, now.low - then.high, now.high - then.low)
        if by.low > 0 or by.high < 0:
            yield Movement(quantity, then.estimate, now.estimate, by)


def compare_runs(a: Path, b: Path) -> Shown:
    """Tell what changed between two runs; of each row the newest record counts.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: a run can't be read.
    """
    row, runs = attrgetter(*_ROW, "recovered"), [read_run(path) for path in (a, b)]
    ours, theirs = ({row(record): record for record in run} for run in runs)
    pairs = [Pair(then=record, now=theirs[key]) for key, record in ours.items() if key in theirs]
    groups: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((tower_of(pair.then), *attrgetter(*_TABLE)(pair.then)), []).append(pair)
    notes = describe_conditions(pairs, ("in A", "in B"))
    notes += filter(None, [describe_uncounted(*(record for pair in pairs for record in (pair.then, pair.now)))])
    for run, every, newest in zip("AB", runs, (ours, theirs), strict=True):
        if older := len(set(map(measured_alike, every))) - len(newest):
            many = count_of(older, "older record")
            notes.append(f"left out of {run}: {many} of its rows, with other conditions or settings")
    lines = [f"A: {a}", f"B: {b}", f"{len(pairs)} {'row is' if len(pairs) == 1 else 'rows are'} in both runs", *notes]
    alone = [[own[key] for key in own if key not in other] for own, other in ((ours, theirs), (theirs, ours))]
    for run, records in zip("AB", alone, strict=True):
        if records:
            more = f" and {len(records) - _NAMED} more" if records[_NAMED:] else ""
            lines.append(f"only in {run}: {', '.join(map(_name, records[:_NAMED]))}{more}")
    tables, moved = list[Table](), list[dict[str, Any]]()
    for own in groups.values():
        found = [(at, one) for at, pair in enumerate(own) for one in find_changes(pair)]
        p_values: dict[str, dict[int, float | None]] = {}
        for at, one in found:
            p_values.setdefault(one.quantity, {})[at] = one.p_value
        tests, cells = {name: together(family) for name, family in p_values.items()}, list[list[Cell]]()
        for at, one in found:
            then, test, by = own[at].then, tests[one.quantity], one.by
            if by in (0, (0, 0, 0)):
                continue
            name = f"{then.label} {100 * then.keep:.4g} %" + (f", seed {then.seed}" if then.shots else "")
            text = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*by) if isinstance(by, Interval) else movement_text(by)
            words = (name, one.quantity.replace("_", " "), movement_text(one.then), movement_text(one.now))
            cells.append([*map(Cell, words), Cell(text, mark=test.mark(at))])
            values = {name: getattr(then, name) for name in _ROW}
            values |= {"quantity": one.quantity, "a": one.then, "b": one.now, "difference": by}
            moved.append(values | {"p_value": one.p_value, "p_value_holm": test.adjusted.get(at)})
        tables += [_table(own, cells)] if cells else []
    facts = {f"only_in_{run}": list(map(_name, own)) for run, own in zip("ab", alone, strict=True)}
    data = json_values({"a": str(a), "b": str(b), "rows": len(pairs), "moved": moved, "notes": notes} | facts)
    return Shown(parts=(*lines, *tables), data=data)


def _table(pairs: Sequence[Pair], cells: Sequence[Sequence[Cell]]) -> Table:
    """Lay out what differs in the rows of a dataset."""
    first, heads = pairs[0].then, ("method", "quantity", "A", "B", "B - A")
    images = " or ".join(map(str, sorted({record.image_count for p in pairs for record in (p.then, p.now)})))
    test = f"{MCNEMAR} of top1, {FLIPPED} of the others"
    return Table.of(
        f"{first.dataset} ({judged_on(first)}, {images} images; {protocol(first)}), {tower_of(first)}",
        heads,
        cells,
        words=heads[:-1],
        legend=f"{CLEAR} clear change at 5 %, all rows of a quantity judged together",
        caption=_CAPTION + mark_note(test, "the rows of each quantity"),
    )


def _name(record: Record) -> str:
    learned = f", {protocol(record)}, seed {record.seed}" if record.shots else ""
    return f"{record.model}.{record.tag} on {record.dataset} {record.split}{learned}"


def movement_text(value: object) -> str:
    """Show a value, of a hash the first digits."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= SHOWN_DIGITS else f"{value:.1e}"
    plain = value if isinstance(value, str) else NOT_MEASURED if value is None else json.dumps(value)
    return plain[:12] if re.fullmatch(r"[0-9a-f]{16,}", plain) else plain
