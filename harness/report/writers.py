"""A `Table` as Markdown, LaTeX and CSV; `page.html` writes HTML."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

from harness.base.table import NOT_MEASURED, Table
from harness.records.metrics import METRICS
from harness.records.record import Record, Times, declared


def markdown(tables: Sequence[Table], level: int = 3) -> str:
    """Return tables in their fullest form, each under its heading, with its caption above and its notes below."""
    return "\n".join(_markdown(table, level) for table in tables)


def _markdown(table: Table, level: int) -> str:
    places = table.places()
    marks = ["---" if at == 0 or table.columns[at].left else "---:" for at in places]
    heads = [table.columns[at].heading for at in places]
    rows = [[row[at].marked for at in places] for row in table.rows]
    return "\n".join(
        [
            f"{'#' * level} {markdown_text(table.title)}",
            *([markdown_text(table.caption)] if table.caption else []),
            "",
            *(f"| {' | '.join(map(markdown_text, row))} |" for row in (heads, marks, *rows)),
            *(["", *(f"- {markdown_text(note)}" for note in table.notes)] if table.notes else []),
            "",
        ]
    )


def markdown_text(text: str) -> str:
    """Return text that can neither end a cell nor become a tag, a link or an image."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")


_HEAD = r"""% Needs \usepackage{booktabs}. Written by patchrank report.
% Square brackets are 95 % intervals; those of times and of Kendall tau are in table.csv.
"""
_BARE = ("× dense", "Kendall τ")  # headings of columns without intervals, so that a page holds all
_SPACED = ("Keep", "batch")  # where it changes, there is room between rows
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
    spaced = next((at for at, heading in enumerate(table.heads) if heading in _SPACED), 0)
    bare = [heading.endswith(_BARE) for heading in table.heads]
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.caption)}}}",
        rf"\label{{tab:{label}-{number}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(table.columns) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(map(_latex_heading, table.heads)) + r" \\",
        r"\midrule",
    ]
    before = None
    for row in table.rows:
        if before is not None and row[spaced] != before:
            lines.append(r"\addlinespace")
        before = row[spaced]
        cells = (_latex_cell(c.marked, bare=b) for c, b in zip(row, bare, strict=True))
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_heading(text: str) -> str:
    """Break a long heading in two."""
    batch, comma, rest = text.partition(", ×")
    if not comma:
        return latex_text(text)
    return rf"\shortstack[r]{{{latex_text(batch)},\\{latex_text('×' + rest)}}}"


def _latex_cell(text: str, *, bare: bool) -> str:
    """Return a cell, its interval smaller or left out, and its sign a minus."""
    if text == NOT_MEASURED:
        return "--"
    head, bracket, rest = text.partition(" [")
    if not re.fullmatch(r"[-+]?[\d.]+\*?", head):
        return latex_text(text)
    if bare or not bracket:
        return _latex_signed(head)
    return _latex_signed(head) + r" {\scriptsize " + _latex_signed(f"[{rest}") + "}"


def _latex_signed(text: str) -> str:
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", latex_text(text))


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
    columns = {name: own.unit for name, own in declared(Record).items() if name not in _UNTABLED}
    measured = list(dict.fromkeys([*METRICS, *(name for record in records for name in record.metrics)]))
    rows = []
    for at, record in enumerate(records):
        timed = {entry.batch: entry for entry in record.latency}
        row = {f"{name}_{unit}" if unit else name: getattr(record, name, None) for name, unit in columns.items()}
        row |= {key: value for name in measured for key, value in _csv_metric(record, name).items()}
        row |= {
            f"latency_batch{batch}_{name}": getattr(timed.get(batch), name, None) for batch in batches for name in times
        }
        rows.append(row | ({"run": runs[at]} if runs else {}))
    return csv_text(rows)


def _csv_metric(record: Record, name: str) -> dict[str, Any]:
    """Return the columns of a metric; the same for every record."""
    metric, own = METRICS.get(name), record.metrics.get(name)
    unit = f"_{metric.unit}" if metric is not None and metric.unit else ""
    ends = {"_low": "low", "_high": "high", "_chance": "chance"}
    columns = {f"{name}{unit}": own and own.mean}
    columns |= {f"{name}{end}{unit}": own and getattr(own, field) for end, field in ends.items()}
    return columns | {f"{name}_at": own and own.at}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns, at least one, numbers as they are; None is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_csv_cell(value) for value in row.values()] for row in rows)
    return buffer.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        # A spreadsheet would run what begins so; no name of ours does.
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return json.dumps(value, allow_nan=False, sort_keys=True)
