"""The parts of a page: a heading for its contents each, and what stands below it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from harness.picture import Picture
from harness.plots.panel import Plot
from harness.plots.style import Style
from harness.report.groups import Grouped
from harness.report.highlights import Highlights
from harness.report.missing import Missing
from harness.report.sections import sections
from harness.report.svg import inline
from harness.report.writers import html, html_text
from harness.tables import Table

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
_IN_SHORT = (
    "A difference is clear if the exact test on the same images says so, with all rows of a table "
    "judged together, at 5 %; a loss also if its own interval lies below zero. Fronts are by the "
    "estimates; a row is clearly beaten if another costs no more and is clearly more accurate."
)
_TIMES = (
    "By <code>latency</code>, which times models in turn with their dense tower: faster and slower "
    "are what the whole 95 % interval of the ratio says, each row by itself."
)


plain = html_text


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the contents name, and what stands there."""

    anchor: str
    title: str
    html: str
    parts: Sequence["Part"] = ()


def in_short_part(every: Sequence[Highlights], anchors: Mapping[str, str]) -> Part:
    """Say of each group what is saved without a clear loss, and which rows win."""
    entries = "".join(
        f'<li><p><a href="#{anchors[short.group.name]}">{plain(short.group.name)}</a> '
        f'<span class="soft">{plain(short.conditions)}</span></p>\n'
        f"<p>{plain(short.saving)}</p>\n"
        + "".join(f'<p class="soft">{plain(front)}</p>\n' for front in short.fronts)
        + "</li>\n"
        for short in every
    )
    html = f'<p class="soft">{_IN_SHORT}</p>\n<ul class="short">\n{entries}</ul>\n'
    return Part(anchor="short", title="In short", html=html)


def left_out_part(reasons: Sequence[str]) -> Part:
    """Name the files that could not be read."""
    told = "".join(f"<li>{plain(reason)}</li>\n" for reason in reasons)
    why = "These files could not be read, and the report is of the others:"
    html = f"<p>{why}</p>\n<ul>\n{told}</ul>\n"
    return Part(anchor="left-out", title="Left out", html=html)


def times_part(every: Sequence[Table]) -> Part:
    """Show what `latency` timed."""
    parts = [_table(section, f"times-{at}") for at, section in enumerate(every, start=1)]
    text = f'<p class="soft">{_TIMES}</p>\n'
    return Part(anchor="times", title="Times", html=text, parts=parts)


def tables_part(found: Grouped) -> Part:
    """Show the tables of records."""
    notes = f"{_NOTES} {_OVER_SEEDS}" if found.several_seeds else _NOTES
    every = enumerate(sections(found, marked=True), start=1)
    parts = [_table(section, f"table-{at}") for at, section in every]
    text = f'<p class="soft">{notes} A click on a heading sorts by its column.</p>\n'
    return Part(anchor="tables", title="Tables", html=text, parts=parts)


def _table(section: Table, anchor: str) -> Part:
    text = (
        f'<p class="soft">{plain(section.caption)}</p>\n'
        f'<div class="wide" role="region" aria-labelledby="{anchor}-title" tabindex="0">'
        f"{html(section, f'{anchor}-title')}</div>\n"
        f'<p class="unseen" role="status"></p>\n{_notes(section.notes)}{_settings(section)}'
    )
    return Part(anchor=anchor, title=section.title, html=text)


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{plain(note)}</li>\n" for note in notes)
    return f'<ul class="soft">\n{lines}</ul>\n' if notes else ""


def _settings(section: Table) -> str:
    """Return the models' names and settings, folded."""
    if section.settings is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{plain(model)}</th>'
        f"<td>{plain(json.dumps(settings, sort_keys=True)[1:-1] or 'no settings')}</td></tr>\n"
        for model, settings in zip(section.models, section.settings, strict=True)
    )
    return (
        "<details><summary>Models and settings</summary>\n"
        '<table class="settings"><thead><tr><th scope="col">Model</th>'
        f'<th scope="col">Settings</th></tr></thead>\n<tbody>\n{rows}</tbody></table></details>\n'
    )


def plots_part(plots: Sequence[Plot], styles: Mapping[str, Style]) -> Part:
    """Show plots, each panel by itself."""
    parts = []
    for plot in plots:
        figures = []
        for at, (panel, svg) in enumerate(zip(plot.panels, plot.draw_each(styles), strict=True)):
            notes = " ".join(plain(note) for note in panel.notes)
            figures.append(
                f"<figure>\n<h4>{plain(panel.title)}</h4>\n"
                f"{inline(svg, f'{plot.name}-{at}', panel.alt)}\n"
                f"<figcaption>{notes}</figcaption></figure>\n"
            )
        html = f'<p class="soft">{plain(plot.about)}</p>\n'
        html += f'<div class="panels">\n{"".join(figures)}</div>\n'
        parts.append(Part(anchor=plot.name, title=plot.title, html=html))
    return Part(anchor="plots", title="Plots", html="", parts=parts)


def pictures_part(pictures: Sequence[Picture]) -> Part:
    """Show figures that are drawn already."""
    parts = []
    for picture in pictures:
        anchor = re.sub(r"[^A-Za-z0-9_-]", "-", picture.name)
        html = (
            f'<p class="soft">{plain(picture.about)}</p>\n'
            f'<div class="wide" role="region" aria-labelledby="{anchor}-title" tabindex="0">'
            f'<figure class="picture">\n{inline(picture.svg, anchor, picture.alt)}\n'
            "</figure></div>\n"
        )
        parts.append(Part(anchor=anchor, title=picture.title, html=html))
    return Part(anchor="rankings", title="Rankings and kept patches", html="", parts=parts)


def missing_part(lacking: Sequence[Missing]) -> Part:
    """Say what was not measured, and the commands that measure it."""
    parts = []
    for at, one in enumerate(lacking, start=1):
        where = "".join(f"<li>{plain(name)}</li>\n" for name in one.groups)
        html = (
            f"<p>{plain(one.why.capitalize())} in:</p>\n<ul>\n{where}</ul>\n"
            f'<p>This measures it:</p>\n<code class="command">{escape(one.command)}</code>\n'
        )
        parts.append(Part(anchor=f"missing-{at}", title=one.title, html=html))
    return Part(anchor="missing", title="Not measured", html="", parts=parts)
