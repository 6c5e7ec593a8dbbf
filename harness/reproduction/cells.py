"""What stands in a cell of a reproduced table."""

from harness.statistics import Interval
from harness.studies.sheet import NOT_MEASURED


def number(value: float | None, form: str) -> str:
    """Show a number, or that there is none."""
    return NOT_MEASURED if value is None else format(value, form)


def interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, low, high = (format(number, form) for number in value)
    return text if low == text == high else f"{text} [{low}, {high}]"


def difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    """Return ours minus theirs; nothing where there is no form, for they can't be compared."""
    if ours is None or theirs is None or not form:
        return NOT_MEASURED
    return format(ours.estimate - theirs, form)
