"""How far quantities of two records may move, what moved, and how that is shown."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.base.table import NOT_MEASURED, Shown, Table
from harness.records.metrics import METRICS, Measured, Metric
from harness.records.record import MATCHED, Record
from harness.report.changes import Change
from harness.report.groups import count_of

# Conditions that must agree for anything else to be comparable; all others are only told.
_FIXED = ("weights_sha256", "dtype", "image_size", "golden_images")
_SETTING = "method_config."
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
    """A quantity of a row that isn't as expected."""

    quantity: str
    expected: Any  # None of a row that nothing was expected of
    now: Any  # None where it wasn't measured
    by: float | None = None  # now minus expected, where that says something
    allowed: str = "nothing"  # how much it may move, in words


class CheckedRow(NamedTuple):
    """One row, measured."""

    tower: str  # dense name with its weight tag
    dataset: str
    row: str  # method with keep rate and options
    then: Record | None  # what is expected; None of a new row
    now: Record | None  # None where the row can't be made any more
    file: Path  # that holds what is expected


def other_conditions(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """Say which conditions differ that may, machine and software, and in how many rows."""
    counts: Counter[str] = Counter()
    for then, now in pairs:
        for one in Change(a=then, b=now).conditions:
            if one.name not in (*_FIXED, "git_commit") and not one.name.startswith(_SETTING):
                counts[f"{one.name}: {one.a} expected, {one.b} now"] += 1
        if then.device != now.device and then.latency:
            counts["latency isn't judged, as the device is another one"] += 1
        elif len(then.latency) > len(now.latency):
            counts["latency isn't judged, as it wasn't measured"] += 1
    few = {words: f" ({count} of {len(pairs)} rows)" for words, count in counts.items() if count < len(pairs)}
    return [words + few.get(words, "") for words in counts]


def find_movements(then: Record | None, now: Record | None, bounds: Tolerances) -> Iterator[Movement]:
    """Yield what moved in a row; a row that is new, or gone, moved as a whole."""
    if then is None or now is None:
        yield Movement("row", then and "measured", now and "measured")
        return
    change = Change(a=then, b=now)
    for one in change.conditions:
        # How a keep rate was found is no setting of what is measured at it.
        if one.name in _FIXED or (one.name.startswith(_SETTING) and one.name != f"{_SETTING}{MATCHED}"):
            yield Movement(one.name.removeprefix(_SETTING), one.a, one.b)
    for one in change.costs:
        numbers = isinstance(one.a, int | float) and isinstance(one.b, int | float)
        yield Movement(*one, one.b - one.a if numbers else None)
    if change.other_images:
        yield Movement("images", change.other_images, None)
    else:
        yield from _answers(change, bounds)
        yield from _near(then, now, bounds)
    if bounds.slower is not None and then.device == now.device:
        yield from _slower(then, now, bounds.slower)


def _answers(change: Change, bounds: Tolerances) -> Iterator[Movement]:
    """Compare answers image by image."""
    if (answers := change.answers) is None:
        return
    lost, won = answers
    then, now = (int(record.correct.sum()) for record in (change.a, change.b))
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
        ends = probe[most] - bounds.probe, probe[most] + bounds.probe, f"±{bounds.probe:g}"
        limits.append(("feature_probe", probe[most], None if here is None else here[most], *ends))
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


def _slower(then: Record, now: Record, factor: float) -> Iterator[Movement]:
    """Compare ratios to the dense model's time in the same run."""
    times = {entry.batch: entry.ratio for entry in now.latency}
    for entry in then.latency:
        before, here = entry.ratio, times.get(entry.batch)
        if before is not None and here is not None and here.low > factor * before.estimate:
            a, b = before.estimate, here.estimate
            yield Movement(f"time to dense, batch {entry.batch}", a, b, b - a, f"up to {factor * a:.2f}")


def show_verdict(
    checked: Sequence[CheckedRow], bounds: Tolerances, notes: Sequence[str], *, update: bool = False
) -> Shown:
    """Lay out what moved, a table per tower; with ``update`` nothing is judged."""
    moved = [(one[:3], each) for one in checked for each in find_movements(one.then, one.now, bounds)]
    what = "changed" if update else "moved"
    heads = ("row", "quantity", "expected", "now", f"{what} by", "allowed")
    lines: dict[str, list[tuple[str, ...]]] = {}
    for (tower, dataset, row), one in moved:
        values = map(_text, (one.expected, one.now, one.by))
        lines.setdefault(tower, []).append((f"{dataset} {row}", one.quantity, *values, one.allowed))
    tables = [Table.of(f"{what}: {tower}", heads, rows, words=heads) for tower, rows in lines.items()]
    hit = len({place for place, _ in moved})
    where = f"{len(moved)} {'quantity' if len(moved) == 1 else 'quantities'} {what} in {hit} of {len(checked)} rows"
    passed = f"check passed: nothing moved in {count_of(len(checked), 'row')}"
    summary = f"expectation written: {where}" if update else f"check failed: {where}" if moved else passed
    keys = ("tower", "dataset", "row", *Movement._fields)
    data = {
        "passed": update or not moved,
        "updated": update,
        "rows": len(checked),
        "moved": [dict(zip(keys, (*place, *each), strict=True)) for place, each in moved],
        "notes": list(notes),
    }
    return Shown(parts=(*tables, *notes, summary), data=data, code=0 if update or not moved else 1)


def _text(value: object) -> str:
    """Show a value, of a hash the first digits."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= SHOWN_DIGITS else f"{value:.1e}"
    plain = value if isinstance(value, str) else NOT_MEASURED if value is None else json.dumps(value)
    return plain[:12] if re.fullmatch(r"[0-9a-f]{16,}", plain) else plain
