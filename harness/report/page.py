"""A report as one page that needs no network; its template, style and script lie beside this."""

import base64
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
from harness.report.charts import INK, Chart, Plot, Style, draw, encode, styles_of
from harness.report.groups import Grouped, TimedGroup, count_of, sections, time_sections
from harness.report.highlights import Highlights, headline
from harness.report.pictures import TracePicture


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report is made from, and where it is."""

    records: Grouped  # no groups if there are only times
    short: Sequence[Highlights] = ()
    times: Sequence[TimedGroup] = ()
    plots: Sequence[Plot] = ()  # of records and times
    pictures: Sequence[TracePicture] = ()  # of traces
    agreement: Sequence[dict[str, Any]] = ()  # of rankings, a pair a row
    missing: Sequence[str] = ()  # plots without figures, and what measures them
    left_out: Sequence[str] = ()  # why files beside the records are not in it
    most: int | None = None  # groups that are drawn; None for all
    files: Sequence[Path] = ()  # the page first

    @property
    def styles(self) -> dict[str, Style]:
        """Of the methods in all plots, the same in each."""
        charts = (chart for plot in self.plots for chart in plot.charts if not chart.steps)
        return styles_of(name for chart in charts for name in chart.series)

    @property
    def undrawn(self) -> str:
        """Say that only some of the tables are drawn; nothing where all are."""
        tables = len(self.records.groups)
        if self.most is None or self.most >= max(tables, len(self.times)):
            return ""
        return f"Plots and pictures show the first {self.most} of {count_of(tables, 'table')}; --all-plots draws all."


class Drawing(NamedTuple):
    """A chart as an SVG; no other one of the page has its name."""

    name: str
    chart: Chart
    svg: Markup


def page(report: Report, title: str) -> str:
    """Return the page, under this heading."""
    tables = list(sections(report.records, marked=True))
    times = time_sections(report.times)
    pictures = {re.sub(r"[^A-Za-z0-9_-]", "-", one.name): one for one in report.pictures}
    switched = [plot for plot in report.plots if plot.axis]
    others = [plot for plot in report.plots if not plot.axis]
    chapters = {
        ("tables", "Tables"): _number("table", tables),
        ("times", "Times"): _number("times", times),
        ("plots", "Plots"): [(plot.name, plot.title) for plot in others],
        ("rankings", "Rankings and kept patches"): [(k, p.title) for k, p in pictures.items()],
    }
    styles = report.styles
    return _template().render(
        report=report,
        title=title,
        tables=tables,
        anchor_of={name: anchor for anchor, name in _number("table", tables)},
        times=times,
        headline=headline(report.short),
        axes={plot.axis: plot.about for plot in switched},
        switched=_by_axis(switched, styles),
        plots=[(plot, _drawings(plot, styles)) for plot in others],
        pictures=pictures,
        contents=[(*chapter, [(*entry, ()) for entry in entries]) for chapter, entries in chapters.items() if entries],
    )


def _number(kind: str, parts: Sequence[Table]) -> list[tuple[str, str]]:
    return [(f"{kind}-{at}", part.title) for at, part in enumerate(parts, 1)]


def _drawings(plot: Plot, styles: Mapping[str, Style]) -> list[Drawing]:
    """Draw each chart of a plot by itself, small enough for a phone."""
    drawings = []
    for at, chart in enumerate(plot.charts):
        name = f"{plot.name}-{at}"
        svg = encode(draw([chart], styles, small=True), "svg")
        drawings.append(Drawing(name, chart, inline(svg, name, chart.alt)))
    return drawings


def _by_axis(plots: Sequence[Plot], styles: Mapping[str, Style]) -> list[tuple[str, dict[str, Drawing]]]:
    """Put charts of the same group and quality together by their costs, the group's qualities side by side."""
    found: dict[tuple[str, str], dict[str, Drawing]] = {}
    for plot in plots:
        for drawing in _drawings(plot, styles):
            key = (drawing.chart.title, plot.title.partition(" against ")[0])
            found.setdefault(key, {})[plot.axis] = drawing
    titles = list(dict.fromkeys(title for title, _ in found))
    ordered = sorted(found, key=lambda key: titles.index(key[0]))
    return [(f"{quality}: {title}", found[title, quality]) for title, quality in ordered]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_with_unit,
        keep_trailing_newline=True,
    )
    environment.globals |= {"count_of": count_of, "shown": show_picture}
    environment.filters["settings"] = lambda settings: json.dumps(settings, sort_keys=True)[1:-1] or "no settings"
    return environment.get_template("page.html")


def _with_unit(value: Any) -> Any:
    """Keep a number on one line with what follows it; markup stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"(?<=\d) (?=%)|(?<=×) (?=\w)|(?<=\w) (?=×)", "\u00a0", value)


def show_picture(picture: TracePicture, name: str) -> Markup:
    """Return a picture as an element that holds it whole."""
    form, content = next(iter(picture.files.items()))
    if form == "svg":
        return inline(content, name, picture.alt)
    data = base64.b64encode(content).decode()
    return Markup('<img alt="{}" src="data:image/jpeg;base64,{}">').format(picture.alt, data)


def inline(svg: bytes, name: str, alt: str) -> Markup:
    """Return matplotlib's SVG as an element with the role and the words of a picture.

    No prolog, document type or metadata; ink has the colour of the page's text; ids begin with the drawing's name, so
    that no other drawing on the page has them.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"'
    title = f'<title id="{name}-alt">{escape(alt)}</title>'
    return Markup(f"{head}>{title}{body}".replace(INK, "currentColor").strip())
