"""Tables as LaTeX, which compiles and in which nothing is a command, and records as CSV."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
from by_hand import part, replace

from harness.records.metrics import METRICS
from harness.records.record import Record, Times, declared
from harness.report.groups import group_records, sections
from harness.report.writers import latex, records_csv

HOSTILE = r"\input{x} $y_1^2$ & 50% #1 ~ {a} <b> | [c] \\ 'd' \"e\" ×τ–"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{table.tex}
\end{document}
"""


def hostile(dense: Record, patchrank: Record) -> list[Record]:
    bad = {"dataset": HOSTILE, "device_name": HOSTILE, "tag": HOSTILE}
    named = replace(patchrank, **bad, method=f"[{HOSTILE}")
    return [replace(dense, **bad), named]


def latex_of(records: list[Record]) -> str:
    return latex([one.wide(summary=True) for one in sections(group_records(records))])


def test_a_table_has_its_rows(dense: Record, patchrank: Record):
    text = latex_of([patchrank, dense])
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [row.split(" & ")[0] for row in rows] == ["dense", "patchrank"]
    assert rows[1] == (r"patchrank & 60 \% & 68.0 {[}60.0, 75.0{]} & $-$2.0 {[}$-$5.1, $+$1.2{]} & 2.45 & 0.70 \\")


def test_hostile_names_neither_open_nor_close_anything(dense: Record, patchrank: Record):
    text = latex_of(hostile(dense, patchrank))
    bare = re.sub(r"\\[{}$&#%_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\input" not in bare
    rows = [line for line in bare.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {line.count("&") for line in rows[-2:]} == {5}


@pytest.mark.parametrize("which", ["records", "hostile"])
def test_latex_compiles(which: str, records: list[Record], dense: Record, patchrank: Record, tmp_path: Path):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex: apt install texlive-latex-recommended has one")
    rows = records if which == "records" else hostile(dense, patchrank)
    (tmp_path / "table.tex").write_text(latex_of(rows), "utf-8")
    (tmp_path / "paper.tex").write_text(DOCUMENT, "utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_every_field_comes_back_from_csv(records: list[Record]):
    untold = {"image_groups", "metrics", "latency"}
    for record, line in zip(records, csv.DictReader(io.StringIO(records_csv(records))), strict=True):
        assert not untold & line.keys()
        units = {name: own.unit for name, own in declared(Record).items() if name not in untold}
        values = {f"{name}_{unit}" if unit else name: getattr(record, name) for name, unit in units.items()}
        for name, own in METRICS.items():
            unit = f"_{own.unit}" if own.unit else ""
            values |= {f"{name}{unit}": part(record, name), f"{name}_at": part(record, f"{name}_at")}
            values |= {f"{name}_{end}{unit}": part(record, f"{name}_{end}") for end in ("low", "high", "chance")}
        times = {timed.batch: timed for timed in record.latency}
        for batch, name in product((1, 32), {field.name for field in fields(Times)} - {"batch"}):
            values[f"latency_batch{batch}_{name}"] = getattr(times.get(batch), name, None)
        for name, value in values.items():
            assert line[name] == ("" if value is None else value if isinstance(value, str) else json.dumps(value))
