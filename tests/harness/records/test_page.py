"""docs/internals.md has every metric, and its code reads records."""

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest

from harness.records.metrics import METRICS, RECALL_AT
from harness.records.record import read_records, write_records

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "internals.md").read_text("utf-8")


def test_every_metric_is_there_in_order_with_its_unit_and_direction():
    section = TEXT.partition("\n### Metrics\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (\w*) ?\| (\w*) ?\|", section, re.M)
    of_k = [line for line in lines if "_K" in line[0]]
    documented = [(name.replace("K", str(k)), [*own]) for k in RECALL_AT for name, *own in of_k]
    documented += [(name, [*own]) for name, *own in lines if "_K" not in name]
    assert documented == [(name, [own.unit, own.better]) for name, own in METRICS.items()]


def test_pandas_reads_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [code] = re.findall(r"^```python\n(.*?)^```$", TEXT.partition("\n## Traces\n")[0], re.M | re.S)
    known = read_records(ROOT / "docs" / "results" / "records.jsonl")
    write_records(tmp_path / "results" / "records.jsonl", known)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    assert "clip_vit_s14_patchrank60" in out.getvalue()
    top1 = [math.nan if one.mean("top1") is None else one.mean("top1") for one in known]
    assert names["records"]["top1"].tolist() == pytest.approx(top1, rel=1e-12, nan_ok=True)
