"""Tables of records in LaTeX, for papers: booktabs, one table per group."""

import re
from collections.abc import Sequence

from harness.columns import NOT_MEASURED
from harness.report.groups import Grouped
from harness.report.sections import Section, sections

_HEAD = r"""% Needs \usepackage{booktabs}. Written by python -m harness report.
% Square brackets are 95 % intervals; those of times and of Kendall tau are in table.csv.
"""
_BARE = ("× dense", "Kendall τ")  # headings of columns without intervals, so that a page holds all
_SPACED = ("Keep", "batch")  # where it changes, there is room between rows
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Behind \\ a bracket would be its argument.
    "[": "{[}",
    "]": "{]}",
    "×": r"$\times$",
    "τ": r"$\tau$",
    "–": "--",
    "*": r"\textsuperscript{*}",
}


def latex_tables(found: Grouped, more: Sequence[Section] = ()) -> str:
    """Return the summary's tables and more, each a ``table`` with a caption and a label.

    Letters of scripts that pdfLaTeX doesn't know stay as they are: XeLaTeX and LuaLaTeX do.
    """
    every = [*sections(found, summary=True), *more]
    made = [_table(section, at) for at, section in enumerate(every, 1)]
    return _HEAD + "\n".join(made)


def _table(section: Section, number: int) -> str:
    keeps = next(at for at, heading in enumerate(section.heads) if heading in _SPACED)
    bare = [heading.endswith(_BARE) for heading in section.heads]
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{latex(section.name)}. {latex(section.about)}}}",
        rf"\label{{tab:{_label(section.name)}-{number}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(section.heads) - 1)}@{{}}}}",
        r"\toprule",
        _row([_heading(heading) for heading in section.heads]),
        r"\midrule",
    ]
    before = None
    for row in section.rows:
        if before is not None and row[keeps] != before:
            lines.append(r"\addlinespace")
        before = row[keeps]
        lines.append(_row([_cell(c, bare=b) for c, b in zip(row, bare, strict=True)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _heading(text: str) -> str:
    """Break a long heading in two."""
    batch, comma, rest = text.partition(", ×")
    return rf"\shortstack[r]{{{latex(batch)},\\{latex('×' + rest)}}}" if comma else latex(text)


def _cell(text: str, *, bare: bool) -> str:
    """Return a cell, its interval smaller or left out, and its sign a minus."""
    if text == NOT_MEASURED:
        return "--"
    head, bracket, rest = text.partition(" [")
    if not re.fullmatch(r"[-+]?[\d.]+\*?", head):
        return latex(text)
    if bare or not bracket:
        return _signed(head)
    return _signed(head) + r" {\scriptsize " + _signed(f"[{rest}") + "}"


def _signed(text: str) -> str:
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", latex(text))


def latex(text: str) -> str:
    """Return text in which nothing is a command of LaTeX's."""
    plain = " ".join(text.split())
    return "".join(_ESCAPED.get(letter, letter) for letter in plain)


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
