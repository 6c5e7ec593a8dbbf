"""Tables of records in Markdown."""

from collections.abc import Iterable, Sequence
from html import escape

from harness.records import Record
from harness.report.groups import Grouped, grouped
from harness.report.sections import Section, sections


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Args:
        records: what to show.
        summary: leave out what a first look doesn't need.

    Raises:
        ValueError: no records.
    """
    return markdown_tables(grouped(records), summary=summary)


def markdown_tables(found: Grouped, *, summary: bool = False) -> str:
    """Return what `markdown_table` does, of groups."""
    return markdown_sections([*sections(found, summary=summary)])


def markdown_sections(every: Sequence[Section]) -> str:
    """Return tables, each under its heading and with its notes below."""
    parts = []
    for section in every:
        rows = [section.heads, ["---"] + ["---:"] * (len(section.heads) - 1), *section.rows]
        lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows]
        head = [f"### {markdown_cell(section.name)}", markdown_cell(section.about), ""]
        notes = ["", *(f"- {markdown_cell(note)}" for note in section.notes)]
        parts.append("\n".join([*head, *lines, *(notes if section.notes else ()), ""]))
    return "\n".join(parts)


def markdown_cell(text: str) -> str:
    """Return text that can neither end the cell nor become a tag, a link or an image."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")
