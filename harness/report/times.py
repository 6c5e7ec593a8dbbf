"""Times by `latency` in a report: tables, a line per time for programs, and the plot's groups."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from harness.latency.machine import Machine
from harness.latency.record import CONDITIONS, LatencyRecord
from harness.latency.tables import CAPTION, DETAILS, PREPARED, columns_of, notes, table_of
from harness.records import differing
from harness.shown import json_values
from harness.tables import Cell, Column, Table
from harness.variants import DENSE

# What sorting goes by, where it isn't what stands in the cell.
_VALUES = {
    "batch": "batch",
    "tokens": "final_tokens",
    "GFLOPs": "gflops",
    "ms": "median_ms",
    "images/s": "images_per_s",
    "ratio": "ratio_to_dense",
    "saved": "saved_gflops",
    "of time": "saved_time",
    "arrived": "arrived",
    "MiB": "peak_mib",
    "first, s": "first_call_s",
    "off": "deviation",
    "mJ/image": "energy_mj_per_image",
}
_BY_ROW = ("model", "method", "keep", "method_config", "batch")
_APART = ("version", "weights_sha256", *(field.name for field in fields(Machine)))


@dataclass(frozen=True, kw_only=True)
class TimedGroup:
    """Times that may stand in one table.

    Attributes:
        name: heading; no other group has it.
        rows: batches rising, of each the dense model first.
    """

    name: str
    rows: Sequence[LatencyRecord]


def timed_groups(records: Sequence[LatencyRecord]) -> list[TimedGroup]:
    """Share times out to tables; what was timed several times counts once, as it was last."""
    newest: dict[str, LatencyRecord] = {}
    for record in records:
        known = newest.setdefault(_key(record, CONDITIONS), record)
        if _when(record) >= _when(known):
            newest[_key(record, CONDITIONS)] = record
    shared = tuple(name for name in CONDITIONS if name not in _BY_ROW)
    shares: dict[tuple[str, str], list[LatencyRecord]] = {}
    for record in newest.values():
        shares.setdefault((table_of(record), _key(record, shared)), []).append(record)
    found = []
    for (title, key), rows in shares.items():
        alike = {other: share[0] for (same, other), share in shares.items() if same == title}
        varying = differing((other, _facts(first)) for other, first in alike.items())
        told = ", ".join(f"{name} {_facts(alike[key])[name]}" for name in varying)
        name = f"{title}; {told}" if told else title
        found.append(TimedGroup(name=name, rows=sorted(rows, key=_place)))
    return found


def time_sections(groups: Sequence[TimedGroup], *, summary: bool = False) -> list[Table]:
    """Return a table per group, the model first in each row.

    Args:
        groups: the times.
        summary: leave out what a first look doesn't need.
    """
    return [_section(group, summary=summary) for group in groups]


def time_rows(times: Sequence[tuple[str, LatencyRecord]]) -> list[dict[str, Any]]:
    """Return a row of every field per time, each time with the run that it is from."""
    found = []
    for run, record in times:
        told = asdict(record)
        inner = {name: told.pop(name) for name in ("machine", "surroundings")}
        flat = {f"{name}_{key}": value for name, own in inner.items() for key, value in own.items()}
        found.append({"run": run} | told | flat)
    return found


def _section(group: TimedGroup, *, summary: bool) -> Table:
    columns = columns_of(group.rows)
    heads = ["model", *(head for head in columns if head != "model")]
    if summary:
        heads = [head for head in heads if head not in DETAILS]
    more = PREPARED if "off" in columns and not summary else ""
    return Table(
        title=group.name,
        caption=f"{CAPTION[0].upper()}{CAPTION[1:]}{more}.",
        columns=[Column(heading=head, left=head == "model") for head in heads],
        rows=[
            [Cell(columns[head](row), _value(row, head, columns[head](row))) for head in heads]
            for row in group.rows
        ],
        models=[row.model for row in group.rows],
        notes=notes(group.rows),
    )


def _value(row: LatencyRecord, head: str, text: str) -> float | str | None:
    if head in _VALUES:
        value: float | None = getattr(row, _VALUES[head])
        return value
    return None if head == "verdict" and row.verdict is None else text


def _key(record: LatencyRecord, names: Sequence[str]) -> str:
    return json.dumps({n: json_values(getattr(record, n)) for n in names}, sort_keys=True)


def _facts(record: LatencyRecord) -> dict[str, Any]:
    return {n: getattr(record if hasattr(record, n) else record.machine, n) for n in _APART}


def _when(record: LatencyRecord) -> datetime:
    return datetime.fromisoformat(record.created)


def _place(row: LatencyRecord) -> tuple[int, bool]:
    return row.batch, row.method != DENSE
