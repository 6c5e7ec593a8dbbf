"""A report as one page that needs no network; its template, style and script lie beside this."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.console.table import Table
from harness.report.drawing import INK, Picture, Plot, Style
from harness.report.groups import Grouped, counted, sections
from harness.report.highlights import Highlights, Missing

_HERE = Path(__file__).parent


def page(
    report: Grouped,
    title: str,
    *,
    short: Sequence[Highlights],
    plots: Sequence[Plot] = (),
    styles: Mapping[str, Style],
    pictures: Sequence[Picture] = (),
    times: Sequence[Table] = (),
    missing: Sequence[Missing] = (),
    left_out: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        report: groups of records.
        title: heading.
        short: each group in short.
        plots: in order.
        styles: of their series.
        pictures: more figures, drawn already.
        times: tables of what `latency` timed.
        missing: what was not measured.
        left_out: why files beside the records are not in it.
    """
    tables = list(sections(report, marked=True))
    named = {re.sub(r"[^A-Za-z0-9_-]", "-", picture.name): picture for picture in pictures}
    chapters = {
        ("tables", "Tables"): _numbered("table", tables),
        ("times", "Times"): _numbered("times", times),
        ("plots", "Plots"): [(plot.name, plot.title) for plot in plots],
        ("rankings", "Rankings and kept patches"): [(k, each.title) for k, each in named.items()],
        ("missing", "Not measured"): _numbered("missing", missing),
    }
    script = _asset("sort.js")
    return _template().render(
        report=report,
        title=title,
        short=short,
        tables=tables,
        anchor_of={name: anchor for anchor, name in _numbered("table", tables)},
        times=times,
        plots=plots,
        drawings={plot.name: plot.draw_each(styles) for plot in plots},
        pictures=named,
        missing=missing,
        left_out=left_out,
        contents=[
            (*chapter, [(*entry, ()) for entry in entries])
            for chapter, entries in chapters.items()
            if entries
        ],
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
