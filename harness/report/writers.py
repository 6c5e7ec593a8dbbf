"""A `Table` as Markdown, LaTeX and CSV; `page.html` writes HTML."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from itertools import zip_longest
from typing import Any

from harness.base.table import Table
from harness.base.terminal import printable
from harness.records.metrics import METRICS
from harness.records.record import Record, Times, declared


def markdown(tables: Sequence[Table], level: int = 3) -> str:
    """Return tables in their fullest form, each under its heading, with its caption above and its notes below."""
    lines: list[str] = []
    for table in tables:
        places = table.places()
        marks = ["---" if at == 0 or table.columns[at].left else "---:" for at in places]
        heads = [table.columns[at].heading for at in places]
        rows = [[row[at].marked for at in places] for row in table.rows]
        lines += [f"{'#' * level} {markdown_text(table.title)}", *filter(None, [markdown_text(table.explain())]), ""]
        lines += [f"| {' | '.join(map(markdown_text, row))} |" for row in (heads, marks, *rows)]
        if table.notes:
            lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
        lines.append("")
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    """Return text that can neither end a cell nor become a tag, a link or an image."""
    plain = escape(printable(" ".join(text.split())), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")


_HEAD = r"""% Needs \usepackage{booktabs}. Written by patchrank report.
% Square brackets are 95 % intervals; those of times are in table.csv.
"""
_BARE = "× dense"  # headings of columns without intervals, so that a page holds all
_SIGN = re.compile(r"(?<![\w.])([-+])(?=\d)")  # of a number
_ESCAPED = str.maketrans(
    {letter: f"\\{letter}" for letter in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"[": "{[}", "]": "{]}"}  # behind \\ a bracket would be its argument
    | {"×": r"$\times$", "τ": r"$\tau$", "–": "--", "*": r"\textsuperscript{*}"}
)


def latex(tables: Sequence[Table]) -> str:
    """Return tables with booktabs, each a ``table`` with a caption and a label.

    Letters of scripts that pdfLaTeX doesn't know stay as they are: XeLaTeX and LuaLaTeX do.
    """
    return _HEAD + "\n".join(_latex(table, at) for at, table in enumerate(tables, 1))


def _latex(table: Table, number: int) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    bare = [heading.endswith(_BARE) for heading in table.heads]
    heads = [latex_text(head).replace(", $", r",\\$") for head in table.heads]  # a long heading is broken in two
    heads = [rf"\shortstack[r]{{{head}}}" if r"\\" in head else head for head in heads]
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.explain())}}}",
        rf"\label{{tab:{label}-{number}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(table.columns) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for at, row in enumerate(table.rows):
        lines += [r"\addlinespace"] if at in table.sections else []
        cells = [c.marked.partition(" [")[0] if own else c.marked for c, own in zip(row, bare, strict=True)]
        lines.append(" & ".join(_SIGN.sub(r"$\1$", latex_text(cell)) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex_text(text: str) -> str:
    """Return text in which nothing is a command of LaTeX's."""
    return " ".join(text.split()).translate(_ESCAPED)


_UNTABLED = ("metrics", "latency", "image_groups")  # fields that aren't a column in CSV


def records_csv(records: Sequence[Record], runs: Sequence[str] = ()) -> str:
    """Return CSV with a line per record, at least one; what wasn't measured is empty.

    Every field is there but values of all images. Lists and settings are JSON. Of each batch size timed there is a
    column per figure. ``runs``, which run each record is from, are the last.
    """
    batches = sorted({timed.batch for record in records for timed in record.latency})
    times = [field.name for field in fields(Times) if field.name != "batch"]
    units = {name: own.unit for name, own in declared(Record).items() if name not in _UNTABLED}
    measured = list(dict.fromkeys([*METRICS, *(name for record in records for name in record.metrics)]))
    rows = []
    for record, run in zip_longest(records, runs):
        row = {f"{name}_{unit}" if unit else name: getattr(record, name) for name, unit in units.items()}
        for name in measured:
            own, unit = record.metrics.get(name), METRICS[name].unit if name in METRICS else ""
            for part in ("mean", "low", "high", "chance"):
                column = [name, *([] if part == "mean" else [part]), *([unit] if unit else [])]
                row["_".join(column)] = own and getattr(own, part)
            row[f"{name}_at"] = own and own.at
        timed = {entry.batch: entry for entry in record.latency}
        row |= {f"latency_batch{b}_{name}": getattr(timed.get(b), name, None) for b in batches for name in times}
        rows.append(row | ({"run": run} if runs else {}))
    return csv_text(rows)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns, at least one, numbers as they are; None is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_csv_cell(value) for value in row.values()] for row in rows)
    return buffer.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, allow_nan=False, sort_keys=True)
