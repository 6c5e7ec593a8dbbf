"""A report as one page that needs no network; its template, style and script lie beside this."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.base.table import Table
from harness.report.drawing import INK, Panel, Picture, Plot, Style, styles_of
from harness.report.groups import Grouped, TimedGroup, counted, sections, time_sections
from harness.report.highlights import Highlights, Missing, headline

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report is made from, and where it is."""

    records: Grouped  # no groups if there are only times
    short: Sequence[Highlights] = ()
    times: Sequence[TimedGroup] = ()
    plots: Sequence[Plot] = ()  # of records and times
    samples: Picture | None = None  # of traces, as are pictures
    pictures: Sequence[Picture] = ()
    agreement: Sequence[dict[str, Any]] = ()  # of rankings, a pair a row
    missing: Sequence[Missing] = ()
    left_out: Sequence[str] = ()  # why files beside the records are not in it
    most: int | None = None  # groups that are drawn; None for all
    command: str = ""  # what draws all
    files: Sequence[Path] = ()  # the page first

    @property
    def styles(self) -> dict[str, Style]:
        """Of the series of all plots."""
        return styles_of(n for plot in self.plots for panel in plot.panels for n in panel.names)

    @property
    def undrawn(self) -> str:
        """Say that only some of the tables are drawn; nothing where all are."""
        tables = len(self.records.groups)
        if self.most is None or self.most >= max(tables, len(self.times)):
            return ""
        first = "first" if self.most == 1 else f"first {min(self.most, tables)}"
        return f"Plots and pictures show the {first} of {counted(tables, 'table')} of records."


class Choice(NamedTuple):
    """A plot of the same rows by several costs, of which the page shows one at a time."""

    title: str
    drawings: Mapping[str, tuple[str, bytes, Panel]]  # by cost: the name of the drawing, it, and what it is of


def choices(plots: Sequence[Plot], styles: Mapping[str, Style]) -> list[Choice]:
    """Put plots of the same group and quality together, the group's qualities side by side."""
    found: dict[tuple[str, str], dict[str, tuple[str, bytes, Panel]]] = {}
    for plot in plots:
        for at, (panel, svg) in enumerate(zip(plot.panels, plot.draw_each(styles), strict=True)):
            key = (panel.title, plot.title.partition(" against ")[0])
            found.setdefault(key, {})[plot.axis] = (f"{plot.name}-{at}", svg, panel)
    titles = list(dict.fromkeys(title for title, _ in found))
    ordered = sorted(found, key=lambda key: titles.index(key[0]))
    return [Choice(f"{key[1]}: {key[0]}", found[key]) for key in ordered]


def page(report: Report, title: str) -> str:
    """Return the page, under this heading."""
    tables = list(sections(report.records, marked=True))
    times = time_sections(report.times)
    pictures = {re.sub(r"[^A-Za-z0-9_-]", "-", one.name): one for one in report.pictures}
    switched = [plot for plot in report.plots if plot.axis]
    others = [plot for plot in report.plots if not plot.axis]
    chapters = {
        ("tables", "Tables"): _numbered("table", tables),
        ("times", "Times"): _numbered("times", times),
        ("plots", "Plots"): [(plot.name, plot.title) for plot in others],
        ("rankings", "Rankings and kept patches"): [(k, p.title) for k, p in pictures.items()],
        ("missing", "Not measured"): _numbered("missing", report.missing),
    }
    script, styles = _asset("sort.js"), report.styles
    return _template().render(
        report=report,
        title=title,
        tables=tables,
        anchor_of={name: anchor for anchor, name in _numbered("table", tables)},
        times=times,
        headline=headline(report.short),
        axes={plot.axis: plot.about for plot in switched},
        choices=choices(switched, styles),
        plots=others,
        drawings={plot.name: plot.draw_each(styles) for plot in others},
        pictures=pictures,
        contents=[(*chapter, [(*entry, ()) for entry in entries]) for chapter, entries in chapters.items() if entries],
        style=Markup(_asset("style.css")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _numbered(kind: str, parts: Sequence[Table | Missing]) -> list[tuple[str, str]]:
    return [(f"{kind}-{at}", part.title) for at, part in enumerate(parts, 1)]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_with_unit,
        keep_trailing_newline=True,
    )
    environment.globals |= {"counted": counted, "inline": inline}
    environment.filters["settings"] = _settings
    return environment.get_template("page.html")


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _with_unit(value: Any) -> Any:
    """Keep a number on one line with what follows it; markup stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"(?<=\d) (?=%)|(?<=×) (?=\w)|(?<=\w) (?=×)", "\u00a0", value)


def _settings(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, sort_keys=True)[1:-1] or "no settings"


def inline(svg: bytes, name: str, alt: str) -> Markup:
    """Return matplotlib's SVG as an element with the role and the words of a picture.

    No prolog, document type or metadata; ink has the colour of the page's text; ids begin with the
    drawing's name, so that no other drawing on the page has them.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"'
    title = f'<title id="{name}-alt">{escape(alt)}</title>'
    return Markup(f"{head}>{title}{body}".replace(INK, "currentColor").strip())
