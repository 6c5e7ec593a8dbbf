"""What an expectation asks to be measured: rows, told apart by the settings they were asked with.

An expectation is a file of records. The first row of a name has its method's defaults; other rows
of the name differ from it in what was asked for. So a default that changes later is seen as a
changed setting, and isn't taken for something that was asked for.
"""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.changes import ABSENT, read_run
from harness.conditions import DENSE
from harness.datasets.base import SplitName
from harness.measure.rows import known_methods
from harness.protocol import protocol, tower_of
from harness.records import Record

# Hashes of what was learned for a row; nobody asks for them.
_LEARNED = ("predictor", "prompts")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One row on one dataset.

    Attributes:
        method: from ``known_methods``, or one that was registered once.
        keep: keep rate.
        options: settings beside the keep rate that aren't the method's defaults.
        record: what is expected; None of a new row.
    """

    method: str
    keep: float
    options: dict[str, Any]
    record: Record | None = None

    @property
    def name(self) -> str:
        """Say method and keep rate as models' names do, and what else was asked for."""
        percent = "" if self.method == DENSE else str(round(100 * self.keep))
        return f"{self.method}{percent} {self.what}".rstrip()

    @property
    def what(self) -> str:
        """Write the options as ``Asked.of`` reads them."""
        told = (f"{name}={_compact(value)}" for name, value in self.options.items())
        return ",".join(told)

    @property
    def known(self) -> bool:
        """Whether the method is still registered."""
        return self.method in known_methods()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured on one tower under one set of conditions.

    Attributes:
        tower: dense name with its weight tag.
        split: of the datasets.
        dtype: name in ``plan.DTYPES``.
        device: of the expectation.
        image_count: images judged per dataset; None for all.
        batches: batch sizes that are timed.
        rows: by dataset, the dense one first.
    """

    tower: str
    split: SplitName
    dtype: str
    device: str
    image_count: int | None
    batches: tuple[int, ...]
    rows: dict[str, list[Wanted]]


def read_expectation(file: Path) -> list[Record]:
    """Read a file of records, or the folder of a run.

    Raises:
        FileNotFoundError: it isn't there; says how to write one.
        ValueError: no records, or a line that is none.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"no expectation at {str(file)!r}; write one with: python -m harness check "
            f"{shlex.quote(str(file))} --update"
        )
    return read_run(file)


def cases_of(records: Iterable[Record], where: str) -> list[Case]:
    """Sort an expectation's records into cases.

    Args:
        records: of one file.
        where: its name, for messages.

    Raises:
        ValueError: a row that wasn't classified by text, or no dense row among a case's.
    """
    found: dict[tuple[Any, ...], dict[str, list[Wanted]]] = {}
    for record in records:
        if record.shots:
            raise ValueError(
                f"{where}: {record.model} on {record.dataset} is {protocol(record)}; check "
                "measures by text, leave out rows that learned from shots"
            )
        shared = (tower_of(record), *(getattr(record, name) for name in _SHARED))
        _enter(found.setdefault(shared, {}).setdefault(record.dataset, []), record)
    cases = []
    for (tower, *told), datasets in found.items():
        for dataset, rows in datasets.items():
            rows.sort(key=lambda row: row.method != DENSE)
            if rows[0].method != DENSE:
                raise ValueError(
                    f"{where}: no dense row of {tower} on {dataset}; the others are compared with "
                    "it, so an expectation needs one"
                )
        conditions = dict(zip(_SHARED, told, strict=True))
        cases.append(Case(tower=tower, **conditions, batches=_timed(datasets), rows=datasets))
    return cases


_SHARED = ("split", "dtype", "device", "image_count")


def _enter(rows: list[Wanted], record: Record) -> None:
    """Add a record's row to those of its dataset; of one row the newest record counts."""
    same = [row.record for row in rows if (row.method, row.keep) == (record.method, record.keep)]
    options = _beside(same[0], record) if same else {}
    row = Wanted(method=record.method, keep=record.keep, options=options, record=record)
    for at, other in enumerate(rows):
        if other.name == row.name:
            rows[at] = row
            return
    rows.append(row)


def _timed(datasets: dict[str, list[Wanted]]) -> tuple[int, ...]:
    """Return the batch sizes that were timed."""
    records = [row.record for rows in datasets.values() for row in rows if row.record is not None]
    return tuple(sorted({entry.batch for record in records for entry in record.latency}))


def _beside(first: Record | None, record: Record) -> dict[str, Any]:
    """Return the settings in which a row differs from the first of its name."""
    if first is None:
        return {}
    return {
        name: value
        for name, value in record.method_config.items()
        if name not in _LEARNED and value != first.method_config.get(name, ABSENT)
    }


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
