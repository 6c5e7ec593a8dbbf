"""What moved between an expected record and the one measured now, and how far it may."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.changes import Change
from harness.check.bounds import SHOWN_DIGITS, Bounds
from harness.check.measured import Outcome
from harness.records import Latency, Record

_EXACT = (
    "gflops", "uncounted_operators", "activations", "params", "tokens_per_block", "final_tokens",
)  # fmt: skip
# What must agree for anything else to be comparable; all other conditions are only told.
_GIVEN = ("weights_sha256", "dtype", "image_size", "golden_images")
_SETTING = "method_config."


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
    then, now = outcome.wanted.record, outcome.now
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
    told = [
        f"{one.name}: {one.a} expected, {one.b} now"
        for one in Change(a=then, b=now).conditions
        if one.name not in (*_GIVEN, "git_commit") and not one.name.startswith(_SETTING)
    ]
    if then.device != now.device and then.latency:
        told.append("latency isn't judged, as the device is another one")
    return told


_Found = tuple[str, Any, Any, float | None, str]


def _exact(change: Change) -> Iterator[_Found]:
    """Compare settings, weights and what is counted."""
    for one in change.conditions:
        if one.name in _GIVEN or one.name.startswith(_SETTING):
            yield one.name.removeprefix(_SETTING), one.a, one.b, None, "nothing"
    for one in change.costs:
        numbers = isinstance(one.a, (int, float)) and isinstance(one.b, (int, float))
        yield one.name, one.a, one.b, one.b - one.a if numbers else None, "nothing"
    for name in _EXACT:
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
        told = f"{lost} lost, {won} won"
        yield "answers flipped", 0, told, won + lost, f"{bounds.flips}"


def _near(change: Change, bounds: Bounds) -> Iterator[_Found]:
    """Compare what rounding may move."""
    a, b = change.a, change.b
    for name, quantity in (("margin", "margin"), ("cosine_to_dense", "cosine to dense")):
        then, now = getattr(a, name), getattr(b, name)
        by = _minus(then, now)
        if then is not None and (by is None or abs(by) > bounds.cosine):
            yield quantity, then, now, by, f"±{bounds.cosine:g}"
    if a.tau is None or a.tau_low is None or a.tau_high is None:
        return
    low, high = max(a.tau_low, a.tau - bounds.tau), min(a.tau_high, a.tau + bounds.tau)
    # The golden row's interval has no width, and rounding is no news.
    low, high = min(low, a.tau - SHOWN_DIGITS), max(high, a.tau + SHOWN_DIGITS)
    if b.tau is None or not low <= b.tau <= high:
        yield "tau", a.tau, b.tau, _minus(a.tau, b.tau), f"{low:.4f} to {high:.4f}"


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
