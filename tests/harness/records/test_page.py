"""docs/records.md says what `Record` says, and its code runs."""

import contextlib
import io
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from harness.records.record import (
    RECALL_AT,
    Latency,
    Record,
    RetrievalRecord,
    declared,
    metrics,
    read_records,
    write_records,
)

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "records.md").read_text("utf-8")
JSON = {str: "string", int: "integer", float: "number", dict: "object", Latency: "object"}
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*)\| ([^|]*)\| ([^|]*)\|$", re.MULTILINE)


def rows(heading: str) -> dict[str, tuple[str, str, str, str]]:
    part = re.split(r"^##+ ", TEXT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in table]
    assert None not in found, table[found.index(None)]
    cells = [[cell.strip() for cell in row.groups()] for row in found if row]
    own = {name: (json, unit, better, meaning) for name, json, unit, better, meaning in cells}
    of_k = {name: row for name, row in own.items() if "_K" in name}
    plain = {name: row for name, row in own.items() if name not in of_k}
    return plain | {name.replace("K", str(k)): row for k in RECALL_AT for name, row in of_k.items()}


def json_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        [own] = [part for part in get_args(kind) if part is not type(None)]
        return f"{json_name(own)} or null"
    if get_origin(kind) is tuple:
        return f"array of {json_name(get_args(kind)[0])}s"
    return JSON[get_origin(kind) or kind]


TABLES = [("Fields", Record), ("An object of `latency`", Latency), ("Fields of retrieval", RetrievalRecord)]


@pytest.mark.parametrize(("heading", "kind"), TABLES)
def test_every_field_is_there_in_order_with_its_type(heading: str, kind: Any):
    types = get_type_hints(kind)
    known = {field.name for field in fields(Record)} if kind is RetrievalRecord else set()
    expected = {field.name: json_name(types[field.name]) for field in fields(kind) if field.name not in known}
    documented = {name: row[0] for name, row in rows(heading).items()}
    assert list(documented.items()) == list(expected.items())


@pytest.mark.parametrize(("heading", "kind"), TABLES)
def test_every_field_has_a_meaning_but_the_upper_end_of_an_interval(heading: str, kind: Any):
    silent = [name for name, row in rows(heading).items() if not row[3]]
    assert all(name.endswith("_high") for name in silent)
    for name in silent:
        low = f"{name.removesuffix('_high')}_low"
        assert rows(heading)[low][1:3] == rows(heading)[name][1:3]


def test_units_in_names_are_the_units_of_the_table():
    for name, row in rows("An object of `latency`").items():
        assert (row[1] == "ms") == name.endswith("_ms")
    assert rows("An object of `latency`")["images_per_s"][1] == "images per second"


@pytest.mark.parametrize(("heading", "kind"), TABLES)
def test_directions_and_fractions_are_those_that_the_code_declares(heading: str, kind: Any):
    known = metrics(kind)
    for name, (_, unit, better, _) in rows(heading).items():
        assert better == (known[name].better if name in known else ""), name
        assert (unit == "fraction") == (declared(kind)[name].unit == "fraction"), name


def test_pandas_reads_records_in_three_lines(tmp_path: Path, monkeypatch):
    [code] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert sum(map(bool, code.splitlines())) == 3
    path = tmp_path / "results" / "records.jsonl"
    known = read_records(ROOT / "docs" / "results" / "records.jsonl")
    digits = replace(known[0], dataset_revision="001122334455")
    write_records(path, [digits, *known[1:]])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    assert "clip_vit_s14_patchrank60" in out.getvalue()
    frame = names["records"]
    assert list(frame.columns) == [field.name for field in fields(Record)]
    top1 = [math.nan if record.top1 is None else record.top1 for record in known]
    assert frame["top1"].tolist() == pytest.approx(top1, rel=1e-12, nan_ok=True)
    assert frame["dataset_revision"][0] == "001122334455"
    there = [record.correct_bits for record in known if record.correct_bits is not None]
    assert frame["correct_bits"].dropna().tolist() == there
