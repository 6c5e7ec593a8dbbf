"""The CSV has every field of every record, and numbers as they are."""

import csv
import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest

from harness.records import Latency, Record
from harness.report.tidy import UNITS, column, tidy_csv

DOCS = Path(__file__).parents[3] / "docs" / "records.md"


def rows(records: list[Record]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tidy_csv(records))))


def test_every_field_comes_back(records: list[Record]):
    read = rows(records)
    assert len(read) == len(records)
    for record, line in zip(records, read, strict=True):
        for field in fields(Record):
            value = getattr(record, field.name)
            if field.name == "latency":
                continue
            cell = line[column(field.name)]
            if value is None:
                assert cell == ""
            elif isinstance(value, str):
                assert cell == value
            else:
                assert json.loads(cell) == (list(value) if isinstance(value, tuple) else value)
        times = {timed.batch: timed for timed in record.latency}
        for batch in (1, 32):
            for field in fields(Latency):
                if field.name == "batch":
                    continue
                cell = line[f"latency_batch{batch}_{field.name}"]
                value = getattr(times.get(batch), field.name, None)
                assert cell == ("" if value is None else json.dumps(value))


def test_not_measured_is_empty_and_zero_is_zero(records: list[Record]):
    [one] = rows([replace(records[0], gflops=None, tau_undefined=0)])
    assert one["gflops"] == ""
    assert one["tau_undefined_images"] == "0"


def test_units_are_those_of_the_documentation():
    """A fraction is called so; what else has a unit says it in the field's own name, or here."""
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|", DOCS.read_text("utf-8"), re.M))
    known = {field.name for field in fields(Record)}
    fractions = {name for name, unit in told.items() if unit.strip() == "fraction"}
    assert fractions == {name for name, unit in UNITS.items() if unit == "fraction"}
    assert UNITS.keys() <= known
    assert told["match_k"] == UNITS["match_k"] == "patches"
    assert told["tau_undefined"] == UNITS["tau_undefined"] == "images"
    assert told["shots"].endswith(UNITS["shots"].removeprefix("per_"))


def test_pandas_reads_it(records: list[Record]):
    frame = pd.read_csv(io.StringIO(tidy_csv(records)))
    assert frame["top1_fraction"].tolist() == [record.top1 for record in records]
    assert frame["latency_batch32_ratio_to_dense"].notna().sum() == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_is_a_formula(text: str, records: list[Record]):
    [one] = rows([replace(records[0], device_name=text)])
    assert one["device_name"] == f"'{text}"


@pytest.mark.parametrize("text", ['a "quote"', "two\nlines", "a, b", "Größe"])
def test_other_text_stays_as_it_is(text: str, records: list[Record]):
    [one] = rows([replace(records[0], device_name=text)])
    assert one["device_name"] == text
