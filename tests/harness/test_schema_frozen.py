"""Versions of the records' schema are frozen: each in a file, with a line of its time."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from harness import schema
from harness.records import (
    CONDITIONS,
    LATER_CONDITIONS,
    Latency,
    Record,
    read_records,
    write_records,
)

FOLDER = Path(__file__).parent / "schema"
VERSIONS = range(1, schema.SCHEMA_VERSION + 1)
MEND = (
    "the fields of a record changed, and programs of other people read them. If version "
    f"{schema.SCHEMA_VERSION} was released, raise SCHEMA_VERSION in harness/schema.py, list new "
    "fields in ADDED there, teach `upgraded` what an earlier line means, add a line and a list of "
    "the new version to tests/harness/schema, and a row to docs/records.md"
)


def told(kind: Any) -> dict[str, str]:
    """Return the fields of a record or of a latency entry with their types as text."""
    hints = get_type_hints(kind)
    return {name: getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
            for name, hint in hints.items()}  # fmt: skip


def frozen(version: int) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((FOLDER / f"v{version}.json").read_text())
    return found


def line(version: int) -> dict[str, Any]:
    [text] = (FOLDER / f"v{version}.jsonl").read_text().splitlines()
    values: dict[str, Any] = json.loads(text)
    return values


def test_the_present_version_is_what_its_file_says():
    present = {"record": told(Record), "latency": told(Latency)}
    assert present == frozen(schema.SCHEMA_VERSION), MEND


def test_every_version_has_its_files_and_no_other_is_there():
    names = {f"v{version}.{end}" for version in VERSIONS for end in ("json", "jsonl")}
    assert {path.name for path in FOLDER.iterdir()} - {"README.md"} == names, MEND


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_has_the_fields_of_its_line(version: int):
    fields = frozen(version)
    assert list(line(version)) == list(fields["record"])
    for entry in line(version)["latency"]:
        assert list(entry) == list(fields["latency"])


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_a_version_adds_what_the_schema_says_and_changes_nothing_else(version: int):
    before, after = frozen(version - 1), frozen(version)
    assert set(after["record"]) - set(before["record"]) == set(schema.ADDED[version]), MEND
    assert before["record"].items() <= after["record"].items(), MEND
    assert before["latency"] == after["latency"], MEND


@pytest.mark.parametrize("version", VERSIONS)
def test_a_line_of_its_time_is_read_and_says_no_more_than_it_did(version: int, tmp_path: Path):
    [record] = read_records(FOLDER / f"v{version}.jsonl")
    values, known = json.loads(json.dumps(asdict(record))), line(version)
    later = {name for at in VERSIONS[version:] for name in schema.ADDED[at]}
    assert {name: values[name] for name in known} == known | {
        "schema_version": schema.SCHEMA_VERSION
    }
    assert values.keys() - known.keys() == later
    tuned = {"tuning"} if version < 5 and known["shots"] else set()
    assert {name for name in later if values[name] is not None} == tuned
    write_records(tmp_path / "again.jsonl", [record])
    assert read_records(tmp_path / "again.jsonl") == [record]


def test_what_is_unknown_of_earlier_lines_are_conditions_that_came_with_a_version():
    added = {name for names in schema.ADDED.values() for name in names}
    assert set(LATER_CONDITIONS) <= set(CONDITIONS) & added
