"""What a subcommand has to show: for people, and as data for programs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a subcommand found.

    Attributes:
        parts: tables and lines, in order.
        data: the same as JSON values, numbers as they are, units in the names.
        code: exit code: 0 fine, 1 a regression or a problem was found.
    """

    parts: tuple[Table | str, ...]
    data: Any
    code: int = 0

    def __iter__(self) -> Iterator[Table | str]:
        """Go through what people see."""
        return iter(self.parts)
