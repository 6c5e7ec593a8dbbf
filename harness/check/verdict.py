"""What moved between expected records and those measured now, and how far it may."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from harness.check.cases import Row
from harness.console.table import Cell, Column, Part, Shown, Table
from harness.records.record import Latency, Metric, Record, metrics
from harness.report.changes import Change, exact
from harness.report.writers import markdown, markdown_text

SHOWN_DIGITS = 5e-5  # half of the last digit that a table shows
# What must agree for anything else to be comparable; all other conditions are only told.
_FIXED = ("weights_sha256", "dtype", "image_size", "golden_images")
_SETTING = "method_config."
# Without the last where nothing is judged.
_HEADS = ("row", "quantity", "expected", "now", "moved by", "allowed")
_ABSENT = "–"
_DIGITS = 12  # of a hash


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row, measured.

    Attributes:
        tower: dense name with its weight tag.
        dataset: its name.
        row: what it is, with what is expected.
        now: what was measured; None where the row can't be made any more.
    """

    tower: str
    dataset: str
    row: Row
    now: Record | None

    @property
    def place(self) -> tuple[str, str, str]:
        """Tower, dataset and row: what no other outcome has."""
        return self.tower, self.dataset, self.row.name


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far quantities may move. What is counted may not move at all.

    The images are the same, so the only excuse is rounding. docs/check.md says how far it moved
    things where it was tried, and that bfloat16 in float32's place is seen.

    Attributes:
        images: difference in the number of right answers, either way.
        flips: images whose answer went from right to wrong or back; they may cancel out in the
            number, so that is bounded apart.
        cosine: difference in mean cosines: to dense, and in the margin between the own class and
            the best other.
        tau: difference in Kendall's tau, which must also stay in the expected 95 % interval.
        slower: factor on the expected ratio of time to dense, which the least of the ratio's
            interval may not exceed; None not to judge latency. Faster is never wrong.
    """

    images: int = 1
    flips: int = 2
    cosine: float = 5e-4
    tau: float = 2e-3
    slower: float | None = 1.5

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("images", "flips", "cosine", "tau"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected a number from 0")
        if self.slower is not None and not self.slower >= 1:
            raise ValueError(f"--slower {self.slower:g}: expected a factor from 1, such as 1.5")


# To show every difference; time always differs.
EXACT = Bounds(images=0, flips=0, cosine=SHOWN_DIGITS, tau=SHOWN_DIGITS, slower=None)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A quantity of a row that isn't as expected.

    Attributes:
        tower: dense name with weight tag.
        dataset: its name.
        row: method with keep rate and options.
        quantity: what moved.
        expected: its value; None of a row that nothing was expected of.
        now: its value; None where it wasn't measured.
        by: now minus expected, where that says something.
        allowed: how much it may move, in words.
    """

    tower: str
    dataset: str
    row: str
    quantity: str
    expected: Any
    now: Any
    by: float | None = None
    allowed: str = "nothing"


def moved(outcome: Outcome, bounds: Bounds) -> list[Moved]:
    """Return what moved in a row; a row that is new, or gone, moved as a whole."""
    then, now = outcome.row.record, outcome.now
    where: dict[str, Any] = dict(zip(("tower", "dataset", "row"), outcome.place, strict=True))
    if then is None or now is None:
        there = [None if record is None else "measured" for record in (then, now)]
        return [Moved(**where, quantity="row", expected=there[0], now=there[1])]
    change = Change(a=then, b=now)
    found = [*_exact(change)]
    if change.other_images:
        found.append(("images", change.other_images, None, None, "nothing"))
    else:
        found += [*_answers(change, bounds), *_near(change, bounds)]
    if bounds.slower is not None and then.device == now.device:
        found += _slower(then, now, bounds.slower)
    names = ("quantity", "expected", "now", "by", "allowed")
    return [Moved(**where, **dict(zip(names, one, strict=True))) for one in found]


def differing(then: Record, now: Record) -> list[str]:
    """Say which conditions differ that may: machine and software."""
    words = [
        f"{one.name}: {one.a} expected, {one.b} now"
        for one in Change(a=then, b=now).conditions
        if one.name not in (*_FIXED, "git_commit") and not one.name.startswith(_SETTING)
    ]
    if then.device != now.device and then.latency:
        words.append("latency isn't judged, as the device is another one")
    return words


_Found = tuple[str, Any, Any, float | None, str]


def _exact(change: Change) -> Iterator[_Found]:
    """Compare settings, weights and what is counted."""
    for one in change.conditions:
        if one.name in _FIXED or one.name.startswith(_SETTING):
            yield one.name.removeprefix(_SETTING), one.a, one.b, None, "nothing"
    for one in change.costs:
        numbers = isinstance(one.a, (int, float)) and isinstance(one.b, (int, float))
        yield one.name, one.a, one.b, one.b - one.a if numbers else None, "nothing"
    for name in exact(change.a):
        then, now = getattr(change.a, name), getattr(change.b, name)
        if then is not None and now is None:
            yield name, then, None, None, "nothing"


def _answers(change: Change, bounds: Bounds) -> Iterator[_Found]:
    """Compare answers image by image."""
    answers = change.answers
    assert answers is not None
    lost, won = answers
    then, now = int(change.a.correct.sum()), int(change.b.correct.sum())
    if abs(won - lost) > bounds.images:
        yield "images right", then, now, now - then, f"±{bounds.images}"
    if won + lost > bounds.flips:
        both = f"{lost} lost, {won} won"
        yield "answers flipped", 0, both, won + lost, f"{bounds.flips}"


def _near(change: Change, bounds: Bounds) -> Iterator[_Found]:
    """Compare what rounding may move."""
    for metric in metrics(type(change.a)).values():
        if metric.bound in ("", "exact"):
            continue
        then, now = (getattr(record, metric.name) for record in (change.a, change.b))
        if then is None:
            continue
        low, high, allowed = _allowed(change.a, metric, getattr(bounds, metric.bound))
        if now is None or not low <= now <= high:
            yield metric.name.replace("_", " "), then, now, _minus(then, now), allowed


def _allowed(then: Record, metric: Metric, by: float) -> tuple[float, float, str]:
    """Return how low and how high a metric may be, and the same in words."""
    value = getattr(then, metric.name)
    if metric.bound != "tau" or getattr(then, metric.low) is None:
        return value - by, value + by, f"±{by:g}"
    # It also has to stay in the expected interval. The golden row's has no width, and rounding is
    # no news.
    low, high = (
        max(getattr(then, metric.low), value - by),
        min(getattr(then, metric.high), value + by),
    )
    low, high = min(low, value - SHOWN_DIGITS), max(high, value + SHOWN_DIGITS)
    return low, high, f"{low:.4f} to {high:.4f}"


def _slower(then: Record, now: Record, factor: float) -> Iterator[_Found]:
    """Compare ratios to the dense model's time in the same run."""
    found = {entry.batch: entry for entry in now.latency}
    for entry in then.latency:
        here: Latency | None = found.get(entry.batch)
        if entry.ratio_to_dense is None or here is None or here.ratio_to_dense is None:
            continue
        most = factor * entry.ratio_to_dense
        if here.ratio_low is not None and here.ratio_low > most:
            ratios = (entry.ratio_to_dense, here.ratio_to_dense)
            yield (
                f"time to dense, batch {entry.batch}",
                *ratios,
                _minus(*ratios),
                f"up to {most:.2f}",
            )


def _minus(then: float | None, now: float | None) -> float | None:
    return None if then is None or now is None else now - then


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found.

    Attributes:
        rows: how many were compared.
        moved: what isn't as expected, in the rows' order.
        notes: conditions that differ and may, and what wasn't compared.
        update: whether the expectation is written anew, so that nothing is judged.
    """

    rows: int
    moved: tuple[Moved, ...]
    notes: tuple[str, ...] = ()
    update: bool = False

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
        parts: tuple[Part, ...] = (*self.tables(), *self.notes, self.summary)
        return Shown(parts=parts, data=self.data(), code=code)

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
        lines = [
            f"### {markdown_text(self.summary)}",
            "",
            *(markdown([each], 4) for each in self.tables()),
        ]
        return "\n".join([*lines, *(f"- {markdown_text(note)}" for note in self.notes), ""])

    def tables(self) -> list[Table]:
        """Return what moved, a table per tower."""
        what = "changed" if self.update else "moved"
        return [
            Table(
                title=f"{what}: {tower}",
                columns=[
                    Column(heading=head, left=head in _HEADS[:2], fold=True)
                    for head in _HEADS[: len(_HEADS) - self.update]
                ],
                rows=[_cells(one)[: len(_HEADS) - self.update] for one in group],
            )
            for tower, group in groupby(self.moved, lambda one: one.tower)
        ]


def _cells(one: Moved) -> list[Cell]:
    by = _ABSENT if one.by is None else _signed(one.by)
    row, quantity = f"{one.dataset} {one.row}", one.quantity
    texts = (row, quantity, _text(one, one.expected), _text(one, one.now), by, one.allowed)
    return [Cell(text) for text in texts]


def _text(one: Moved, value: object) -> str:
    """Show a value: runs of equal numbers of tokens once, hashes by their first digits."""
    if value is None:
        return "absent" if one.quantity == "row" else _ABSENT
    if one.quantity == "tokens_per_block" and isinstance(value, (tuple, list)):
        runs = ((count, len(list(run))) for count, run in groupby(value))
        return " ".join(f"{count}×{times}" if times > 1 else f"{count}" for count, times in runs)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, str):
        plain = "".join(letter if letter.isprintable() else "?" for letter in value)
        return plain[:_DIGITS] if one.quantity in ("weights_sha256", "predictor") else plain
    return json.dumps(value)


def _signed(number: float) -> str:
    """Show a difference, with more digits where it is small."""
    if isinstance(number, int):
        return f"{number:+d}"
    return f"{number:+.4f}" if abs(number) >= SHOWN_DIGITS else f"{number:+.1e}"
