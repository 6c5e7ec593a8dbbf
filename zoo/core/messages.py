"""Phrases that messages share."""

import difflib
from typing import Any


def expected(value: str, allowed: Any, *, shown_by: str = "patchrank list") -> str:
    """Phrase what was allowed instead of ``value``, the nearest first, and what shows the rest."""
    names = list(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - 12} more ({shown_by})" if len(names) > 12 else ""
    return f"{hint}expected one of {', '.join(names[:12])}{more}"


def tower_name(model: str, tag: str) -> str:
    """Return the name of a tower, with its weight tag if it has one."""
    return f"{model}.{tag}" if tag else model
