"""docs/records.md says what `Record` says, and its code runs."""

import contextlib
import io
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from harness.records.metrics import METRICS, RECALL_AT, Measured
from harness.records.record import Record, Times, read_records, write_records

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "records.md").read_text("utf-8")
TABLES = [("Fields", Record), ("An object of `latency`", Times), ("A metric", Measured)]


def rows(heading: str, skip: int = 0) -> dict[str, list[str]]:
    section = re.split(r"^##+ ", TEXT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    table = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[skip]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    own = {cells[0].strip("`"): cells[1:] for cells in lines}
    of_k = {name: cells for name, cells in own.items() if "_K" in name}
    plain = {name: cells for name, cells in own.items() if name not in of_k}
    return {name.replace("K", str(k)): cells for k in RECALL_AT for name, cells in of_k.items()} | plain


@pytest.mark.parametrize(("heading", "kind"), TABLES)
def test_every_field_is_there_in_order(heading: str, kind: Any):
    assert list(rows(heading)) == [field.name for field in fields(kind)]


def test_every_metric_is_there_in_order_with_its_unit_and_direction():
    documented = {name: row[:2] for name, row in rows("A metric", 1).items()}
    assert list(documented.items()) == [(name, [own.unit, own.better]) for name, own in METRICS.items()]


def test_pandas_reads_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [code] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    known = read_records(ROOT / "docs" / "results" / "records.jsonl")
    write_records(tmp_path / "results" / "records.jsonl", known)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    assert "clip_vit_s14_patchrank60" in out.getvalue()
    top1 = [math.nan if one.mean("top1") is None else one.mean("top1") for one in known]
    assert names["records"]["top1"].tolist() == pytest.approx(top1, rel=1e-12, nan_ok=True)
