"""Rows as they are asked for: methods, some with options that aren't their defaults."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.check.wanted import Wanted
from harness.conditions import DENSE, GOLDEN
from harness.measure.rows import known_methods
from zoo.reducer import METHODS, expected

_OURS = ("baselines", "zoo")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A method as it is asked for.

    Attributes:
        method: from ``known_methods``.
        options: settings that aren't the method's defaults, as JSON values; ``keep`` may be one.
    """

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> "Asked":
        """Read ``METHOD`` or ``METHOD:OPTION=VALUE,...`` with JSON values.

        Raises:
            ValueError: no such method, or options that aren't written like this.
        """
        method, colon, rest = text.partition(":")
        if method not in known_methods():
            raise ValueError(f"method {method!r}: {expected(method, known_methods())}")
        if not colon:
            return cls(method=method, options={})
        if method in (DENSE, GOLDEN):
            raise ValueError(f"--methods {text!r}: {method} has no options")
        try:
            # A comma inside brackets belongs to a list.
            names = [part.partition("=") for part in _split(rest)]
            options = {name: json.loads(value) for name, _, value in names}
        except ValueError as error:
            raise ValueError(
                f"--methods {text!r}: expected METHOD:OPTION=VALUE,... with JSON values, such as "
                "evit:fuse=true or tome:reduce_at=[2,5,7],keep=0.3"
            ) from error
        return cls(method=method, options=options)


def rows_of(asked: Sequence[Asked], keeps: Sequence[float]) -> list[Wanted]:
    """Return the rows that are asked for: defaults first, then those with options.

    A method with options brings the row of its defaults along, which says what they are.
    """
    rows = [Wanted(method=DENSE, keep=1.0, options={})]
    for one in sorted(asked, key=lambda one: bool(one.options)):
        options = {name: value for name, value in one.options.items() if name != "keep"}
        given = [one.options["keep"]] if "keep" in one.options else keeps
        for keep in (1.0,) if one.method == DENSE else given:
            for told in ({}, options):
                row = Wanted(method=one.method, keep=keep, options=told)
                if row not in rows:
                    rows.append(row)
    return rows


def own_methods() -> tuple[str, ...]:
    """Return the methods that the shipped benchmark must have: ours, not another distribution's."""
    return tuple(
        name
        for name in known_methods()
        if name in (DENSE, GOLDEN) or METHODS[name].__module__.split(".")[0] in _OURS
    )


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
