"""LaTeX: nothing of a record is a command, and the tables compile where there is a TeX."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import Record
from harness.report.groups import grouped
from harness.report.latex import latex, latex_tables

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


def test_every_special_letter_is_escaped():
    assert latex("a_b & 5 % of #1 {x} $y$ ~^\\ [z]") == (
        r"a\_b \& 5 \% of \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{} "
        "{[}z{]}"
    )


def test_a_table_has_its_rows_its_caption_and_its_label(dense: Record, patchrank: Record):
    text = latex_tables(grouped([patchrank, dense]))
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [row.split(" & ")[0] for row in rows] == ["dense", "patchrank"]
    assert rows[1] == (
        r"patchrank & 60 \% & 68.0 {\scriptsize {[}60.0, 75.0{]}} & $-$2.0 {\scriptsize "
        r"{[}$-$5.1, $+$1.2{]}} & 2.45 & 0.71 & 0.70 & $+$0.31 \\"
    )
    assert r"\label{tab:fashion-test-16-shots-linear-probe-clip-vit-s14-saliency-1}" in text
    assert r"\caption{fashion test, 16 shots, linear probe, clip\_vit\_s14.saliency. " in text
    assert text.count(r"\addlinespace") == 1
    assert text.count("% Needs") == 1


def test_no_two_tables_have_one_label(records: list[Record], row: object):
    labels = re.findall(r"\\label\{(.*?)\}", latex_tables(grouped(records)))
    assert len(set(labels)) == len(labels) == 2


def test_hostile_names_neither_open_nor_close_anything(dense: Record, patchrank: Record):
    text = latex_tables(grouped(hostile(dense, patchrank)))
    bare = re.sub(r"\\[{}$&#%_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\input" not in bare
    rows = [line for line in bare.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {line.count("&") for line in rows[-2:]} == {7}


@pytest.mark.parametrize("which", ["records", "hostile"])
def test_it_compiles(
    which: str, records: list[Record], dense: Record, patchrank: Record, tmp_path: Path
):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex: apt install texlive-latex-recommended has one")
    given = records if which == "records" else hostile(dense, patchrank)
    (tmp_path / "table.tex").write_text(latex_tables(grouped(given)), "utf-8")
    (tmp_path / "paper.tex").write_text(DOCUMENT, "utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
