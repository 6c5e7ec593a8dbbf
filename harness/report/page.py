"""A report as one page that needs no network."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from harness.columns import Cell
from harness.picture import Picture
from harness.plots.panel import Plot
from harness.plots.style import Style
from harness.report.groups import Grouped, counted
from harness.report.missing import Missing, missing
from harness.report.sections import Section, sections
from harness.report.svg import inline

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


def _text(text: str) -> str:
    """Return text for the page; numbers stay with what follows them."""
    return re.sub(r"(?<=\d) (?=%)|(?<=×) (?=\w)|(?<=\w) (?=×)", "\u00a0", escape(text))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What the contents name, and what stands there."""

    anchor: str
    title: str
    html: str
    parts: Sequence["_Part"] = ()


def page(
    found: Grouped,
    title: str,
    plots: Sequence[Plot],
    styles: Mapping[str, Style],
    pictures: Sequence[Picture] = (),
) -> str:
    """Return the page.

    Args:
        found: what it is of.
        title: heading.
        plots: in order.
        styles: of their series.
        pictures: more figures, drawn already.
    """
    notes = f"{_NOTES} {_OVER_SEEDS}" if found.several_seeds else _NOTES
    parts = [_tables(found, notes), _plots(plots, styles)]
    if pictures:
        parts.append(_pictures(pictures))
    if lacking := missing(found, traced=bool(pictures)):
        parts.append(_missing(lacking))
    body = "".join(_section(part, 2) for part in parts)
    script, policy = _asset("sort.js"), _policy()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_asset("style.css")}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<header>
<h1>{_text(title)}</h1>
<p class="soft">{_text(_lead(found))}</p>
</header>
<nav aria-label="Contents">{_contents(parts)}</nav>
<main id="report" tabindex="-1">
{body}</main>
<script>{script}</script>
</body>
</html>
"""


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _policy() -> str:
    """Return what the browser lets the page do: our script by its hash, and nothing outside."""
    digest = base64.b64encode(hashlib.sha256(_asset("sort.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _lead(found: Grouped) -> str:
    """Say how much is in it."""
    rows = sum(len(group.rows) for group in found.groups)
    told = f"{counted(rows, 'row')} in {counted(len(found.groups), 'group')}; rows of one table "
    told += "were measured under the same conditions."
    if found.replaced:
        told += (
            f" Left out for newer ones of the same rows under the same conditions: "
            f"{counted(found.replaced, 'earlier measurement')}."
        )
    return told


def _contents(parts: Sequence[_Part]) -> str:
    entries = "".join(
        f'<li><a href="#{part.anchor}">{_text(part.title)}</a>'
        f"{_contents(part.parts) if part.parts else ''}</li>\n"
        for part in parts
    )
    return f"<ul>\n{entries}</ul>"


def _section(part: _Part, level: int) -> str:
    inside = "".join(_section(inner, level + 1) for inner in part.parts)
    return (
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n'
        f'<h{level} id="{part.anchor}-title">{_text(part.title)}</h{level}>\n'
        f"{part.html}{inside}</section>\n"
    )


def _tables(found: Grouped, notes: str) -> _Part:
    every = enumerate(sections(found, marked=True), start=1)
    parts = [_table(section, f"table-{at}") for at, section in every]
    text = f'<p class="soft">{notes} A click on a heading sorts by its column.</p>\n'
    return _Part(anchor="tables", title="Tables", html=text, parts=parts)


def _table(section: Section, anchor: str) -> _Part:
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in section.heads)
    rows = "".join(f"<tr>{''.join(_cells(row))}</tr>\n" for row in section.rows)
    html = (
        f'<p class="soft">{_text(section.about)}</p>\n'
        f'<div class="wide" role="region" aria-labelledby="{anchor}-title" tabindex="0">'
        f'<table data-sortable aria-labelledby="{anchor}-title">\n'
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
        f'<p class="unseen" role="status"></p>\n{_settings(section)}'
    )
    return _Part(anchor=anchor, title=section.name, html=html)


def _cells(row: Sequence[Cell]) -> Iterator[str]:
    for at, cell in enumerate(row):
        value = "" if cell.value is None else f' data-sort="{escape(str(cell.value))}"'
        tag, scope = ("td", "") if at else ("th", ' scope="row"')
        yield f"<{tag}{scope}{value}>{_text(cell)}</{tag}>"


def _settings(section: Section) -> str:
    """Return the models' names and settings, folded."""
    if section.settings is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(model)}</th>'
        f"<td>{_text(json.dumps(settings, sort_keys=True)[1:-1] or 'no settings')}</td></tr>\n"
        for model, settings in zip(section.models, section.settings, strict=True)
    )
    return (
        "<details><summary>Models and settings</summary>\n"
        '<table class="settings"><thead><tr><th scope="col">Model</th>'
        f'<th scope="col">Settings</th></tr></thead>\n<tbody>\n{rows}</tbody></table></details>\n'
    )


def _plots(plots: Sequence[Plot], styles: Mapping[str, Style]) -> _Part:
    parts = []
    for plot in plots:
        figures = []
        for at, (panel, svg) in enumerate(zip(plot.panels, plot.draw_each(styles), strict=True)):
            notes = " ".join(_text(note) for note in panel.notes)
            figures.append(
                f"<figure>\n<h4>{_text(panel.title)}</h4>\n"
                f"{inline(svg, f'{plot.name}-{at}', panel.alt)}\n"
                f"<figcaption>{notes}</figcaption></figure>\n"
            )
        html = f'<p class="soft">{_text(plot.about)}</p>\n'
        html += f'<div class="panels">\n{"".join(figures)}</div>\n'
        parts.append(_Part(anchor=plot.name, title=plot.title, html=html))
    return _Part(anchor="plots", title="Plots", html="", parts=parts)


def _pictures(pictures: Sequence[Picture]) -> _Part:
    parts = []
    for picture in pictures:
        anchor = re.sub(r"[^A-Za-z0-9_-]", "-", picture.name)
        html = (
            f'<p class="soft">{_text(picture.about)}</p>\n'
            f'<div class="wide" role="region" aria-labelledby="{anchor}-title" tabindex="0">'
            f'<figure class="picture">\n{inline(picture.svg, anchor, picture.alt)}\n'
            "</figure></div>\n"
        )
        parts.append(_Part(anchor=anchor, title=picture.title, html=html))
    return _Part(anchor="rankings", title="Rankings and kept patches", html="", parts=parts)


def _missing(lacking: Sequence[Missing]) -> _Part:
    parts = []
    for at, one in enumerate(lacking, start=1):
        where = "".join(f"<li>{_text(name)}</li>\n" for name in one.groups)
        html = (
            f"<p>{_text(one.why.capitalize())} in:</p>\n<ul>\n{where}</ul>\n"
            f'<p>This measures it:</p>\n<code class="command">{escape(one.command)}</code>\n'
        )
        parts.append(_Part(anchor=f"missing-{at}", title=one.title, html=html))
    return _Part(anchor="missing", title="Not measured", html="", parts=parts)
