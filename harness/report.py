"""Turn records into a table, a plot of accuracy against cost, and a page that holds both."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from harness.averages import Average, Judged, averages, judged
from harness.columns import Column, columns_of
from harness.plot import INK, draw
from harness.protocol import protocol, tower_of
from harness.records import Record
from harness.shot_table import place, shot_tables

_CSS = """
:root { color-scheme: light dark; --ink: #1b1c1d; --paper: #fdfdfc; --line: #c9c9c4;
  --soft: #60625e; --band: #f2f2ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #161716; --line: #3b3d3a;
  --soft: #a3a59f; --band: #20211f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1700px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { color: var(--soft); margin: .25rem 0; max-width: 100ch; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .5rem 0; }
svg { max-width: 100%; min-width: 40rem; height: auto; color: var(--ink); }
table { border-collapse: separate; border-spacing: 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: normal; border-bottom: 2px solid var(--ink);
  vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
tbody tr:hover { background: var(--band); }
"""

_NOTES = (
    "Top-1 with its 95 % Wilson interval; the difference to dense in points on the same images, "
    "with its 95 % paired bootstrap interval. GFLOPs are 1e9 multiply-adds per image, attention "
    "included. Latency is the median with the quartiles, interleaved with dense; below 1 × is "
    "faster than dense. Kendall τ, plain and top-weighted, match at k and border overlap are "
    "against the golden ranking; k is the number of patch tokens kept, and border overlap is the "
    "share of the patches within 10 % of all from golden's k-th that fall on its side. Chance is "
    "what unrelated rankings reach. – means not measured."
)

_OVER_SEEDS = (
    "Where a table is the mean of seeds, so is every column: top-1 with Student's 95 % interval "
    "over seeds, the difference to dense with a 95 % paired bootstrap interval over images of the "
    "mean over seeds, and of other intervals both ends are means."
)
_SUMMARY = ("Method", "Keep", "Top-1, %", "To dense", "GFLOPs", "× dense", "Kendall τ")


def write_report(records: Iterable[Record], path_html: str | Path, title: str) -> None:
    """Write a page that needs no network: the plot, then one table per group of records.

    Raises:
        ValueError: No records, or a group mixes conditions; see `records.refuse_mixed`.
    """
    groups = _groups(records)
    sections = [_html(section) for section in _sections(groups, marked=True)]
    notes = _NOTES
    if any(len(row.records) > 1 for group in groups.values() for row in group):
        notes = f"{_NOTES} {_OVER_SEEDS}"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<figure class="wide" tabindex="0" aria-label="Top-1 against GFLOPs">
{_inline_svg(groups)}
</figure>
<p>{notes}</p>
{"".join(sections)}</body>
</html>
"""
    Path(path_html).write_text(page, encoding="utf-8")


def write_plot(records: Iterable[Record], path: str | Path) -> None:
    """Write top-1 against GFLOPs, one panel per group; the suffix .png or .svg decides the format.

    The same records give the same bytes.

    Raises:
        ValueError: No records, a group mixes conditions, or the suffix is another.
    """
    path = Path(path)
    if path.suffix not in {".png", ".svg"}:
        raise ValueError(f"a plot's name ends with .png or .svg, got {path.name!r}")
    path.write_bytes(draw(_groups(records), path.suffix.removeprefix(".")))


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Args:
        records: What to show.
        summary: Leave out what a first look doesn't need.

    Raises:
        ValueError: No records, or a group mixes conditions.
    """
    parts = []
    for section in _sections(_groups(records), summary=summary):
        rows = [section.heads, ["---"] + ["---:"] * (len(section.heads) - 1), *section.rows]
        lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows]
        head = [f"### {markdown_cell(section.name)}", markdown_cell(section.about), ""]
        parts.append("\n".join([*head, *lines, ""]))
    return "\n".join(parts)


def _groups(records: Iterable[Record]) -> dict[str, list[Average]]:
    """Return the rows by dataset, tower and tuning under a heading, dense first, keeps falling."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        key = (*place(record), record.shots, record.tuning, record.prompt_tokens)
        groups.setdefault(key, []).append(record)
    if not groups:
        raise ValueError("there are no records to report")
    named: dict[str, list[Average]] = {}
    for group in groups.values():
        rows = sorted(averages(group), key=lambda row: (row.method != "dense", -row.keep))
        first = rows[0].first
        how = protocol(first) if first.shots else "by text"
        name = f"{first.dataset} {first.split}, {how}, {tower_of(first)}"
        named[name if name not in named else f"{name} ({first.weights_sha256[:8]})"] = rows
    return named


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A table under its heading; ``tips`` say more of each row's model."""

    name: str
    about: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    tips: Sequence[str]


def _sections(
    groups: Mapping[str, list[Average]], *, summary: bool = False, marked: bool = False
) -> Iterator[_Section]:
    """Yield a section per group, and after the last of a dataset its numbers of shots.

    ``marked``: differences to dense that are clear with all rows judged together have a mark.
    """
    places = [place(group[0].first) for group in groups.values()]
    for at, (name, group) in enumerate(groups.items()):
        columns = [c for c in columns_of(group) if not summary or c[0].endswith(_SUMMARY)]
        together, about = judged(group) if marked else None, _about(group)
        if together is not None:
            columns = [_marked(column, together) for column in columns]
            about = f"{about} {together.note}."
        yield _Section(
            name=name,
            about=about,
            heads=[heading for heading, _ in columns],
            rows=[[render(row) for _, render in columns] for row in group],
            tips=[f"{row.first.model} {row.config}" for row in group],
        )
        if places[at] in places[at + 1 :]:
            continue
        same = [rows for rows in groups.values() if place(rows[0].first) == places[at]]
        for table in shot_tables(same):
            yield _Section(
                name=table.name,
                about=table.about,
                heads=table.heads,
                rows=table.rows,
                tips=table.models,
            )


def _marked(column: Column, together: Judged) -> Column:
    heading, render = column
    if heading != "To dense":
        return column
    return heading, lambda row: render(row).replace(" ", f"{together.mark(row)} ", 1)


def _about(group: Sequence[Average]) -> str:
    """Say what all records of a group have in common."""
    first = group[0].first
    golden = sorted({r.golden_images for row in group for r in row.records if r.golden_images})
    seeds = [str(record.seed) for record in group[0].records]
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"{'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(seeds)}), "
        f"{first.device_name}, {first.device}, {first.dtype}, {first.threads} threads, torch "
        f"{first.torch}, timm {first.timm}, weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images."
    )


def _html(section: _Section) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in section.heads)
    rows = "".join(
        f'<tr title="{escape(tip)}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>\n"
        for tip, row in zip(section.tips, section.rows, strict=True)
    )
    return (
        f"<section>\n<h2>{escape(section.name)}</h2>\n<p>{escape(section.about)}</p>\n"
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
    )


def markdown_cell(text: str) -> str:
    """Return text that can neither end the cell nor become a tag, a link or an image."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")


def _inline_svg(groups: Mapping[str, Sequence[Average]]) -> str:
    """Return the plot as an element: no prolog, no document type, ink in the text's colour."""
    text = draw(groups, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor").strip()
