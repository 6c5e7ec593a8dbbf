"""The report as a folder: files, figures for programs, what runs hold, docs/compare.md; and a page, safe and whole."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import part, per_image, replace
from markupsafe import Markup

from harness.base.terminal import Progress
from harness.cli.entry import main, parse
from harness.records.metrics import METRICS
from harness.records.record import UNITS, Record, Times, read_run, write_records
from harness.report.folder import csv_text, latex, markdown, records_csv
from harness.report.highlights import headline, standings
from harness.report.tables import group_records, sections

RESULTS = Path(__file__).parents[3] / "docs" / "results"
QUALITIES = ("accuracy", "fidelity")  # of plots
TABLES = ("report.html", "table.csv", "table.md", "table.tex")


def test_a_committed_run_has_all_files_and_its_own_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "made" / "here"
    assert main(["report", str(RESULTS), "--output", str(folder)]) == 0
    records = read_run(RESULTS)
    batches = sorted({timed.batch for record in records for timed in record.latency})
    names = [f"{q}_{cost}" for q in QUALITIES for cost in ("gflops", *(f"ratio_batch{batch}" for batch in batches))]
    drawn = [f"{name}.{form}" for name in names for form in ("svg", "png")]
    assert sorted(path.name for path in folder.iterdir()) == sorted((*TABLES, *drawn))
    said = " ".join(capsys.readouterr().out.split())
    [sentence] = headline(standings(group_records(records)))
    assert sentence in said


def test_the_same_run_gives_the_same_bytes(records: list[Record], tmp_path):
    write_records(tmp_path / "records.jsonl", records)
    again = str(tmp_path / "records.jsonl")  # a run that is named twice is read once
    args = parse(["report", str(tmp_path), again, "--output", str(tmp_path / "out")])
    data = json.loads(json.dumps(args.run(args, Progress()).data, allow_nan=False))
    assert all(Path(name).exists() for name in data["files"])
    assert (data["runs"], data["records"]) == ([str(tmp_path)], len(records))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "report.html").write_text("older")
    args.run(args, Progress())
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.command("report")
def test_a_report_has_tables_of_halves(dense: Record, patchrank: Record, tmp_path: Path):
    detailed = replace(dense, metrics=dense.metrics | per_image("detail", np.arange(100)))
    write_records(tmp_path / "records.jsonl", [detailed, patchrank])
    assert main(["report", str(tmp_path), "--halves", "--output", str(tmp_path / "out")]) == 0
    pages = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert all(f"fashion, {half} half" in pages for half in ("smooth", "detailed"))


@pytest.mark.parametrize(("name", "match"), [
    ("gone", "run 'gone': there is no such file or folder"),
    ("bad.jsonl", "bad.jsonl, line 1: "),
    ("run", "is a file; expected a folder for the report"),
])  # fmt: skip
def test_refusals(name: str, match: str, records: list[Record], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_records("run/records.jsonl", records[:1])
    Path("file").touch()
    Path("bad.jsonl").write_text('{"schema_version": 1}\n')
    out = "file" if name == "run" else "out"
    assert main(["report", "run", name, "--output", out]) == 2
    assert match in capsys.readouterr().err
    assert not Path("out").exists()


HOSTILE = "<script>alert(\"1\")</script> $\\frac{ & | \n 'x' ![](http://a.b)"


def test_the_page_loads_nothing_and_every_drawing_has_its_words(drawn: Any):
    text, parsed = drawn
    assert not {"link", "img", "iframe", "image", "object"} & set(parsed.tags)
    assert all(target and target.startswith("#") for _, target in parsed.links)
    assert set(re.findall(r'https?://[^"<\s]*', text)) == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert not re.search(r"\d{4}-\d{2}-\d{2}T", text)
    drawings = re.findall(r'<svg[^>]*role="img" aria-labelledby="([^"]+)"[^>]*><title id="([^"]+)">([^<]+)<', text)
    assert len(drawings) == text.count("<svg") - text.count('aria-hidden="true"') == 3
    assert all(named == own and len(words) > 40 for named, own, words in drawings)
    assert len(set(parsed.ids)) == len(parsed.ids)


def test_hostile_names_stay_text(made: Any, dense: Record):
    names = dict.fromkeys(("model", "tag", "dataset", "device_name"), HOSTILE)
    hostile = dataclasses.replace(dense, **names, method_config={HOSTILE: HOSTILE})
    other = replace(hostile, method=HOSTILE, keep=0.5, gflops=2.0)
    text, parsed = made([hostile, other])
    assert parsed.tags.count("script") == text.count("<script") == 1
    assert f">{Markup.escape(HOSTILE)}</th>" in text
    table = markdown(list(sections(group_records([hostile, other]))))
    assert "<script" not in table
    assert "](http" not in table
    assert len({line.count("|") for line in table.splitlines()[3:]}) == 1


def test_the_page_and_markdown_have_every_cell_and_the_page_sorts_by_values(drawn: Any, records: list[Record]):
    """What was not measured is a dash without a value."""
    lines, blank = markdown(list(sections(group_records(records)))).splitlines(), 0
    for table in sections(group_records(records)):
        for row in table.rows:
            cells = [row[at] for at in table.places()]
            assert f"| {' | '.join(cell.marked for cell in cells)} |" in lines
            for cell in cells:
                sort = "" if cell.value is None else f' data-sort="{cell.value}"'
                assert f"{sort}>{cell.marked}</t" in drawn[0]
            blank += sum(cell.value is None and cell == "–" for cell in cells)
    assert blank


COMMANDS = r"\input{x} $y_1^2$ & 50% #1 ~ {a} <b> | [c] \\ 'd' \"e\" ×τ–"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{table.tex}
\end{document}
"""


def hostile(dense: Record, patchrank: Record) -> list[Record]:
    bad = {"dataset": COMMANDS, "device_name": COMMANDS, "tag": COMMANDS}
    named = replace(patchrank, **bad, method=f"[{COMMANDS}")
    return [replace(dense, **bad), named]


def latex_of(records: list[Record]) -> str:
    return latex([one.wide(summary=True) for one in sections(group_records(records))])


def test_a_table_has_its_rows(dense: Record, patchrank: Record):
    text = latex_of([patchrank, dense])
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [row.split(" & ")[0] for row in rows] == ["dense", "patchrank"]
    assert rows[1] == (r"patchrank & 60 \% & 68.0 {[}34.0, 100.0{]} & $-$2.0 {[}$-$5.1, $+$1.2{]} & 2.45 & 0.70 \\")


def test_hostile_names_neither_open_nor_close_anything_and_latex_compiles(
    dense: Record, patchrank: Record, tmp_path: Path
):
    text = latex_of(hostile(dense, patchrank))
    bare = re.sub(r"\\[{}$&#%_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\input" not in bare
    rows = [line for line in bare.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {line.count("&") for line in rows[-2:]} == {5}
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex: apt install texlive-latex-recommended has one")
    (tmp_path / "table.tex").write_text(text, "utf-8")
    (tmp_path / "paper.tex").write_text(DOCUMENT, "utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_no_text_in_csv_is_a_formula():
    cells = {"a": "=1+1", "b": "@x", "c": "-1", "d": -1, "e": "a=b", "f": None}
    assert csv_text([cells]).splitlines()[1] == "'=1+1,'@x,'-1,-1,a=b,"


def test_every_field_comes_back_from_csv(records: list[Record]):
    untold = {"image_groups", "metrics", "latency"}
    runs = [f"run {number}" for number in range(len(records))]
    lines = csv.DictReader(io.StringIO(records_csv(records, runs)))
    for record, run, line in zip(records, runs, lines, strict=True):
        assert not untold & line.keys()
        assert line["run"] == run
        units = {each.name: UNITS.get(each.name) for each in fields(Record) if each.name not in untold}
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
