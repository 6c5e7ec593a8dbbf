"""What a subcommand has to show: for people, and as data for programs."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any

from rich.table import Table as RichTable

from harness.tables import Table


@dataclass(frozen=True)
class Forms:
    """One table in several forms.

    Attributes:
        forms: the fullest first; people get the first that fits their terminal.
    """

    forms: tuple[RichTable, ...]


Part = Table | RichTable | Forms | str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a subcommand found.

    Attributes:
        parts: tables and lines, in order.
        data: the same as JSON values, numbers as they are, units in the names; None where this
            process has nothing to say, being one of many.
        code: exit code: 0 fine, 1 a regression or a problem was found.
    """

    parts: tuple[Part, ...]
    data: Any
    code: int = 0

    def __iter__(self) -> Iterator[Part]:
        """Go through what people see."""
        return iter(self.parts)


# Long work: parts as they come, and at the end what is left to show, with all of the data.
Work = Generator[Part, None, Shown]


def json_values(value: Any) -> Any:
    """Return a result as JSON values.

    Dataclasses and named tuples become objects by field; numpy's numbers and arrays become plain
    ones, paths text; what is NaN was not measured and becomes null.

    Raises:
        TypeError: something else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_values(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return json_values(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): json_values(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):
        return json_values(value.tolist())
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, str | bytes):
        return [json_values(entry) for entry in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value: {value!r}")
