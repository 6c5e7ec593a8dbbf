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
from harness.report.groups import Grouped, counted
from harness.report.highlights import Highlights, Missing
from harness.report.sections import sections

_HERE = Path(__file__).parent


def page(
    found: Grouped,
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
        found: what it is of.
        title: heading.
        short: each group in short.
        plots: in order.
        styles: of their series.
        pictures: more figures, drawn already.
        times: tables of what `latency` timed.
        missing: what was not measured.
        left_out: why files beside the records are not in it.
    """
    tables = list(sections(found, marked=True))
    named = {re.sub(r"[^A-Za-z0-9_-]", "-", picture.name): picture for picture in pictures}
    chapters = {
        ("tables", "Tables"): [(f"table-{at}", one.title) for at, one in enumerate(tables, 1)],
        ("times", "Times"): [(f"times-{at}", one.title) for at, one in enumerate(times, 1)],
        ("plots", "Plots"): [(plot.name, plot.title) for plot in plots],
        ("rankings", "Rankings and kept patches"): [(k, each.title) for k, each in named.items()],
        ("missing", "Not measured"): [
            (f"missing-{at}", one.title) for at, one in enumerate(missing, 1)
        ],
    }
    script = _asset("sort.js")
    return _template().render(
        found=found,
        title=title,
        short=short,
        tables=tables,
        anchor_of={one.title: f"table-{at}" for at, one in enumerate(tables, 1)},
        times=times,
        plots=plots,
        drawings={plot.name: plot.draw_each(styles) for plot in plots},
        pictures=named,
        missing=missing,
        left_out=left_out,
        contents=[
            (*chapter, [(*entry, ()) for entry in inner])
            for chapter, inner in chapters.items()
            if inner
        ],
        style=Markup(_asset("style.css")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


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
    """Return a drawing as an element that is told as a picture.

    No prolog, document type or metadata; ink has the colour of the page's text; no id of it is
    another drawing's.

    Args:
        svg: as matplotlib writes it.
        name: of the drawing on its page.
        alt: what it shows.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"'
    title = f'<title id="{name}-alt">{escape(alt)}</title>'
    return Markup(f"{head}>{title}{body}".replace(INK, "currentColor").strip())
