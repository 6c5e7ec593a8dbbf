"""What rows are called, where a method's name alone doesn't tell them apart."""

import json
from collections import Counter
from collections.abc import Sequence

from harness.averages import Average


def labels(rows: Sequence[Average]) -> dict[str, str]:
    """Return the method by identity, with its settings where it comes several times at one keep.

    Args:
        rows: of one table.
    """
    named: dict[str, str] = {}
    for method in dict.fromkeys(row.method for row in rows):
        same = [row for row in rows if row.method == method]
        several = max(Counter(row.keep for row in same).values()) > 1
        told = _varying(same) if several else []
        for row in same:
            named[row.identity] = _label(row, told)
    return named


def _varying(rows: Sequence[Average]) -> list[str]:
    """Return settings that not all rows share, the keep rate aside, which has its own column."""
    names = dict.fromkeys(name for row in rows for name in row.config if name != "keep")
    return [name for name in names if len({_shown(row, name) for row in rows}) > 1]


def _label(row: Average, told: Sequence[str]) -> str:
    found = [f"{name} {_shown(row, name)}" for name in told if name in row.config]
    return f"{row.method} ({', '.join(found)})" if found else row.method


def _shown(row: Average, name: str) -> str:
    value = row.config.get(name)
    return value if isinstance(value, str) else json.dumps(value)
