"""Records as CSV: a line each, every field, units in the names, numbers as they are."""

import csv
import io
import json
from collections.abc import Sequence
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


def tidy_csv(records: Sequence[Record]) -> str:
    """Return a table with a line per record; what was not measured is empty.

    Lists and settings are JSON. Of each batch size timed there is a column per figure.
    """
    batches = sorted({timed.batch for record in records for timed in record.latency})
    plain = [field.name for field in fields(Record) if field.name != "latency"]
    heads = [column(name) for name in plain]
    heads += [f"latency_batch{batch}_{name}" for batch in batches for name in _TIMES]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    for record in records:
        times = {timed.batch: timed for timed in record.latency}
        cells = [_cell(getattr(record, name)) for name in plain]
        cells += [
            _cell(getattr(times.get(batch), name, None)) for batch in batches for name in _TIMES
        ]
        writer.writerow(cells)
    return buffer.getvalue()


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
