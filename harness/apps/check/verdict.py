"""What moved between expected records and those measured now, and how far it may."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from harness.apps.check.cases import CheckRow
from harness.base.table import NOT_MEASURED, Cell, Column, Shown, Table
from harness.base.terminal import printable
from harness.records.conditions import MATCHED
from harness.records.metrics import METRICS, Measured, Metric
from harness.records.record import Record
from harness.report.changes import COUNTED, Change
from harness.report.writers import markdown, markdown_text

SHOWN_DIGITS = 5e-5  # half of the last digit that a table shows
# What must agree for anything else to be comparable; all other conditions are only told.
_FIXED = ("weights_sha256", "dtype", "image_size", "golden_images")
_SETTING = "method_config."
_HEADS = ("row", "quantity", "expected", "now", "moved by", "allowed")
_DIGITS = 12  # of a hash
MEANS = ("images", "flips", "cosine", "divergence", "probe", "tau")  # all of ``Tolerances`` but time


@dataclass(frozen=True, kw_only=True)
class CheckedRow:
    """One row, measured."""

    tower: str  # dense name with its weight tag
    dataset: str
    row: CheckRow  # with what is expected
    now: Record | None  # None where the row can't be made any more

    @property
    def place(self) -> tuple[str, str, str]:
        """Tower, dataset and row: what no other outcome has."""
        return self.tower, self.dataset, self.row.name


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far quantities may move. What is counted may not move at all.

    The images are the same, so the only excuse is rounding. docs/check.md says how far it moved
    things where it was tried, and that bfloat16 in float32's place is seen.

    Attributes:
        images: difference in the number of right answers, either way.
        flips: images whose answer changed, either way, which in the number of right ones may cancel
            out; and difference in the number of answers that are dense's, too.
        cosine: difference in mean cosines: to dense, and in the margin.
        divergence: difference in mean KL to dense, in nats, and in neighbours that are dense's, too.
        probe: difference in any direction of the mean feature, which isn't relative to dense.
        tau: difference in Kendall's tau, which must also stay in the expected 95 % interval.
        slower: factor on the expected ratio of time to dense, which the least of the ratio's
            interval may not exceed; None not to judge latency. Faster is never wrong.
    """

    images: int = 1
    flips: int = 2
    cosine: float = 5e-4
    divergence: float = 2e-3
    probe: float = 2e-4
    tau: float = 2e-3
    slower: float | None = 1.5

    def __post_init__(self) -> None:
        for name in MEANS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected a number from 0")
        if self.slower is not None and not self.slower >= 1:
            raise ValueError(f"--slower {self.slower:g}: expected a factor from 1, such as 1.5")


# To show every difference; time always differs.
EXACT = Tolerances(
    images=0, flips=0, cosine=SHOWN_DIGITS, divergence=SHOWN_DIGITS, probe=1e-5, tau=SHOWN_DIGITS, slower=None
)


@dataclass(frozen=True, kw_only=True)
class Movement:
    """A quantity of a row that isn't as expected."""

    tower: str = ""  # dense name with its weight tag
    dataset: str = ""
    row: str = ""  # method with keep rate and options
    quantity: str
    expected: Any  # None of a row that nothing was expected of
    now: Any  # None where it wasn't measured
    by: float | None = None  # now minus expected, where that says something
    allowed: str = "nothing"  # how much it may move, in words


def find_movements(outcome: CheckedRow, bounds: Tolerances) -> list[Movement]:
    """Return what moved in a row; a row that is new, or gone, moved as a whole."""
    tower, dataset, row = outcome.place
    return [
        replace(one, tower=tower, dataset=dataset, row=row)
        for one in _compare_records(outcome.row.record, outcome.now, bounds)
    ]


def _compare_records(then: Record | None, now: Record | None, bounds: Tolerances) -> Iterator[Movement]:
    if then is None or now is None:
        there = [None if record is None else "measured" for record in (then, now)]
        yield Movement(quantity="row", expected=there[0], now=there[1])
        return
    change = Change(a=then, b=now)
    yield from _exact(change)
    if change.other_images:
        yield Movement(quantity="images", expected=change.other_images, now=None)
    else:
        if change.labelled:
            yield from _answers(change, bounds)
        yield from _near(change, bounds)
    if bounds.slower is not None and then.device == now.device:
        yield from _slower(then, now, bounds.slower)


def other_conditions(then: Record, now: Record) -> list[str]:
    """Say which conditions differ that may: machine and software."""
    words = [
        f"{one.name}: {one.a} expected, {one.b} now"
        for one in Change(a=then, b=now).conditions
        if one.name not in (*_FIXED, "git_commit") and not one.name.startswith(_SETTING)
    ]
    if then.device != now.device and then.latency:
        words.append("latency isn't judged, as the device is another one")
    return words


def _exact(change: Change) -> Iterator[Movement]:
    """Compare settings, weights and what is counted."""
    for one in change.conditions:
        # How a keep rate was found is no setting of what is measured at it.
        if one.name in _FIXED or (one.name.startswith(_SETTING) and one.name != f"{_SETTING}{MATCHED}"):
            yield Movement(quantity=one.name.removeprefix(_SETTING), expected=one.a, now=one.b)
    for one in change.costs:
        numbers = isinstance(one.a, (int, float)) and isinstance(one.b, (int, float))
        by = one.b - one.a if numbers else None
        yield Movement(quantity=one.name, expected=one.a, now=one.b, by=by)
    for name in (*METRICS, *COUNTED):
        if name in METRICS and METRICS[name].bound != "exact":
            continue
        then, now = (getattr(r, name, None) if name in COUNTED else r.mean(name) for r in (change.a, change.b))
        if then is not None and now is None:
            yield Movement(quantity=name, expected=then, now=None)


def _answers(change: Change, bounds: Tolerances) -> Iterator[Movement]:
    """Compare answers image by image."""
    assert change.answers is not None
    lost, won = change.answers
    then, now = int(change.a.correct.sum()), int(change.b.correct.sum())
    if abs(won - lost) > bounds.images:
        allowed = f"±{bounds.images}"
        yield Movement(quantity="images right", expected=then, now=now, by=now - then, allowed=allowed)
    if won + lost > bounds.flips:
        both, name, most = f"{lost} lost, {won} won", "answers flipped", f"{bounds.flips}"
        yield Movement(quantity=name, expected=0, now=both, by=won + lost, allowed=most)


def _near(change: Change, bounds: Tolerances) -> Iterator[Movement]:
    """Compare what rounding may move; of several numbers the one that moved most."""
    for metric in METRICS.values():
        then, now = change.a.metrics.get(metric.name), change.b.mean(metric.name)
        if metric.bound in ("", "exact") or then is None:
            continue
        by = getattr(bounds, metric.bound) if isinstance(metric.bound, str) else metric.bound
        if metric.bound == "flips":  # of images, and half of one for rounding
            by = (by + 0.5) / change.a.image_count
        yield from _beyond(metric.name, then.mean, now, *_find_bounds(then, metric, by))
    probe, other = change.a.feature_probe, change.b.feature_probe
    if probe is not None and other is None:
        yield from _beyond("feature_probe", probe, None, 0, 0, f"±{bounds.probe:g}")
    elif probe is not None and other is not None:
        before, here = max(zip(probe, other, strict=True), key=lambda pair: abs(pair[1] - pair[0]))
        ends = before - bounds.probe, before + bounds.probe
        yield from _beyond("feature_probe", before, here, *ends, f"±{bounds.probe:g}")


def _beyond(name: str, then: Any, now: Any, low: float, high: float, allowed: str) -> Iterator[Movement]:
    """Say that a value is missing, or out of its bounds."""
    if now is None or not low <= now <= high:
        by = None if now is None else now - then
        yield Movement(quantity=name.replace("_", " "), expected=then, now=now, by=by, allowed=allowed)


def _find_bounds(then: Measured, metric: Metric, by: float) -> tuple[float, float, str]:
    """Return how low and how high a metric's mean may be, and the same in words."""
    value = then.mean
    if metric.bound == "flips":
        return value - by, value + by, f"±{by:.4f}"
    if metric.bound != "tau" or then.low is None or then.high is None:
        return value - by, value + by, f"±{by:g}"
    # It also has to stay in the expected interval. The golden row's has no width, and rounding is
    # no news.
    low = min(max(then.low, value - by), value - SHOWN_DIGITS)
    high = max(min(then.high, value + by), value + SHOWN_DIGITS)
    return low, high, f"{low:.4f} to {high:.4f}"


def _slower(then: Record, now: Record, factor: float) -> Iterator[Movement]:
    """Compare ratios to the dense model's time in the same run."""
    times = {entry.batch: entry.ratio for entry in now.latency}
    for entry in then.latency:
        before, here = entry.ratio, times.get(entry.batch)
        if before is None or here is None or here.low <= factor * before.estimate:
            continue
        yield Movement(
            quantity=f"time to dense, batch {entry.batch}",
            expected=before.estimate,
            now=here.estimate,
            by=here.estimate - before.estimate,
            allowed=f"up to {factor * before.estimate:.2f}",
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found."""

    rows: int  # how many were compared
    moved: tuple[Movement, ...]  # in the rows' order
    notes: tuple[str, ...] = ()  # conditions that differ and may, and what wasn't compared
    update: bool = False  # whether the expectation is written anew, so that nothing is judged

    @property
    def summary(self) -> str:
        """Say in one line what came out."""
        rows = f"{self.rows} {'row' if self.rows == 1 else 'rows'}"
        hit = len({(one.tower, one.dataset, one.row) for one in self.moved})
        what = "quantity" if len(self.moved) == 1 else "quantities"
        if self.update:
            return f"expectation written: {len(self.moved)} {what} changed in {hit} of {rows}"
        if not self.moved:
            return f"check passed: nothing moved in {rows}"
        return f"check failed: {len(self.moved)} {what} moved in {hit} of {rows}"

    def shown(self) -> Shown:
        """Lay it out for the terminal, 80 characters wide or more."""
        code = 1 if self.moved and not self.update else 0
        return Shown(parts=(*self.tables(), *self.notes, self.summary), data=self.data(), code=code)

    def data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "passed": self.update or not self.moved,
            "updated": self.update,
            "rows": self.rows,
            "moved": [asdict(one) for one in self.moved],
            "notes": list(self.notes),
        }

    def markdown(self) -> str:
        """Lay it out for a comment or a job's summary."""
        lines = [f"### {markdown_text(self.summary)}", ""]
        lines += [markdown([each], 4) for each in self.tables()]
        return "\n".join([*lines, *(f"- {markdown_text(note)}" for note in self.notes), ""])

    def tables(self) -> list[Table]:
        """Return what moved, a table per tower."""
        what = "changed" if self.update else "moved"
        heads = _HEADS[:-1] if self.update else _HEADS  # nothing is allowed where nothing is judged
        return [
            Table(
                title=f"{what}: {tower}",
                columns=[Column(heading=h, left=h in _HEADS[:2], fold=True) for h in heads],
                rows=[_cells(one)[: len(heads)] for one in group],
            )
            for tower, group in groupby(self.moved, lambda one: one.tower)
        ]


def _cells(one: Movement) -> list[Cell]:
    by = NOT_MEASURED if one.by is None else _format_change(one.by)
    then, now = (_text(one.quantity, value) for value in (one.expected, one.now))
    return [*map(Cell, (f"{one.dataset} {one.row}", one.quantity, then, now, by, one.allowed))]


def _text(quantity: str, value: object) -> str:
    """Show a value: runs of equal numbers of tokens once, hashes by their first digits."""
    if value is None:
        return "absent" if quantity == "row" else NOT_MEASURED
    if quantity == "tokens_per_block" and isinstance(value, (tuple, list)):
        runs = ((count, len(list(run))) for count, run in groupby(value))
        return " ".join(f"{count}×{times}" if times > 1 else f"{count}" for count, times in runs)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, str):
        plain = printable(value)
        return plain[:_DIGITS] if quantity in ("weights_sha256", "predictor") else plain
    return json.dumps(value)


def _format_change(number: float) -> str:
    """Show a difference, with more digits where it is small."""
    if isinstance(number, int):
        return f"{number:+d}"
    return f"{number:+.4f}" if abs(number) >= SHOWN_DIGITS else f"{number:+.1e}"
