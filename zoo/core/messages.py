"""Phrases that messages share, and what would mend an error."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

E = TypeVar("E", bound=BaseException)


def expected(value: str, allowed: Any, *, shown_by: str = "") -> str:
    """Phrase what was allowed instead of ``value``, the nearest first, and what shows the rest."""
    names = list(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{hint}expected one of {', '.join(names[:12])}{more}{f' ({shown_by})' if more and shown_by else ''}"


def tower_name(model: str, tag: str) -> str:
    """Return the name of a tower, with its weight tag if it has one."""
    return f"{model}.{tag}" if tag else model


class Wanted(NamedTuple):
    """What would mend an error: something of a ``kind``, such as a predictor, with facts as its file's metadata has."""

    kind: str
    facts: Mapping[str, Any]


def wanting(error: E, kind: str, /, **facts: Any) -> E:
    """Return an error that says what would mend it, as its attribute ``wanted``, for whoever knows how that is made."""
    error.__dict__["wanted"] = Wanted(kind, facts)
    return error
