"""Records as CSV: a line each, every field, units in the names, numbers as they are."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.records import Latency, Record

# Of fields whose name doesn't say it.
UNITS = {
    "shots": "per_class",
    "match_k": "patches",
    "tau_undefined": "images",
    "params": "count",
    "image_size": "pixels",
    "activations": "per_image",
    **dict.fromkeys(
        (
            "keep", "top1", "top1_low", "top1_high", "diff_to_dense", "diff_low", "diff_high",
            "match_at_k", "match_low", "match_high", "match_chance", "border_overlap",
            "border_low", "border_high", "border_chance",
        ),
        "fraction",
    ),
}  # fmt: skip
_TIMES = tuple(field.name for field in fields(Latency) if field.name != "batch")


def tidy_csv(records: Sequence[Record], runs: Sequence[str] = ()) -> str:
    """Return a table with a line per record; what was not measured is empty.

    Lists and settings are JSON. Of each batch size timed there is a column per figure.

    Args:
        records: at least one.
        runs: which run each record is from, the last column; none to leave it out.
    """
    batches = sorted({timed.batch for record in records for timed in record.latency})
    rows = [_row(record, batches) for record in records]
    if runs:
        rows = [row | {"run": run} for row, run in zip(rows, runs, strict=True)]
    return rows_csv(rows)


def rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns as CSV, at least one; None is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return buffer.getvalue()


def _row(record: Record, batches: Sequence[int]) -> dict[str, Any]:
    plain = [field.name for field in fields(Record) if field.name != "latency"]
    row = {column(name): getattr(record, name) for name in plain}
    times = {timed.batch: timed for timed in record.latency}
    for batch in batches:
        for name in _TIMES:
            row[f"latency_batch{batch}_{name}"] = getattr(times.get(batch), name, None)
    return row


def column(field: str) -> str:
    """Return the name of a field's column."""
    return f"{field}_{UNITS[field]}" if field in UNITS else field


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        # A spreadsheet would run what begins so; no name of ours does.
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return json.dumps(value, allow_nan=False, sort_keys=True)
