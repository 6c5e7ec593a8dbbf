"""The committed run, and rows made from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import Record, read_run
from harness.report.groups import Grouped, grouped

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="session")
def records() -> list[Record]:
    return read_run(RESULTS)


@pytest.fixture(scope="session")
def found(records: list[Record]) -> Grouped:
    return grouped(records)


@pytest.fixture(scope="session")
def with_shots(records: list[Record]) -> Grouped:
    """The run by text, and as if it were learned from one and two shots."""
    learned = [
        replace(record, shots=shots, tuning="probe", seed=0, latency=())
        for shots in (1, 2)
        for record in records
        if record.method != "tome" or shots == 2
    ]
    return grouped([*records, *learned])
