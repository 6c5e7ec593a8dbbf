"""The paper's figures, as data: what isn't known of them is None, never guessed."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("paper.json")


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row of the paper.

    Attributes:
        values: by dataset; those that we know.
        mean: over ``columns`` as printed, None where we don't know it.
        columns: datasets of the row's table.
        source: table or figure, and whatever else is to be known of it.
    """

    values: dict[str, float]
    mean: float | None
    columns: tuple[str, ...]
    source: str

    def mean_over(self, datasets: Sequence[str]) -> float | None:
        """Return the mean over some datasets: printed for all of the table, else if each is known.

        Args:
            datasets: names; none of them has to be the paper's.
        """
        if set(datasets) == set(self.columns) and self.mean is not None:
            return self.mean
        if not datasets or any(name not in self.values for name in datasets):
            return None
        return sum(self.values[name] for name in datasets) / len(datasets)


@functools.cache
def _content() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return facts


def paper_datasets() -> tuple[str, ...]:
    """Return the names of the paper's seven datasets, in its order."""
    return tuple(_content()["datasets"])


@functools.cache
def printed(table: str) -> dict[str, Printed]:
    """Return the rows of a table or figure that we know something of, by name."""
    facts = _content()["tables"][table]
    columns = tuple(_content()["columns"][facts["columns"]])
    rows = {}
    for name, row in facts["rows"].items():
        values = dict(zip(columns, row.get("values", ()), strict=False))
        told = {"mean": row.get("mean"), "columns": columns, "source": row["source"]}
        if values and told["mean"] is None:
            told["mean"] = sum(values.values()) / len(values)
        rows[name] = Printed(values=values, **told)
    return rows
