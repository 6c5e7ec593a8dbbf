"""A report as a folder: tables, plots and pictures of runs, and a page of all that needs no network."""

import base64
import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.base.table import Shown, Table
from harness.base.terminal import Progress
from harness.records.record import RECORDS, Record, halves, read_run
from harness.report.charts import INK, Plot, draw, draw_sample, encode, id_of, names_of, render, styles_of
from harness.report.groups import Group, count_of, group_records, sections
from harness.report.highlights import headline, plots_of, standings
from harness.report.pictures import Gallery, read_galleries
from harness.report.writers import latex, markdown, records_csv
from zoo.core.files import write_whole

TITLE = "Token reduction for CLIP, side by side"
ON_PAGE = 4  # plots at most, the first; files have all


def report_runs(paths: Sequence[Path], folder: Path, progress: Progress, *, by_half: bool = False) -> Shown:
    """Write the report of runs, each once; say which method is nearest to dense at equal cost.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: one that can't be read, or no record in any.
        NotADirectoryError: ``folder`` is a file.
    """
    unique: dict[Path, Path] = {}
    for run in paths:
        unique.setdefault((run / RECORDS if run.is_dir() else run).resolve(), run)
    runs = list(unique.values())
    pairs = [(record, str(run)) for run in runs for record in read_run(run)]
    records, sources = [record for record, _ in pairs], [run for _, run in pairs]
    return write_report(records, folder, progress, runs=runs, sources=sources, by_half=by_half)


def write_report(
    records: Sequence[Record],
    folder: Path,
    progress: Progress,
    *,
    runs: Sequence[Path] = (),
    sources: Sequence[str] = (),
    drawn: Collection[str] | None = None,
    by_half: bool = False,
) -> Shown:
    """Write the report of records, each file whole, and say it in short.

    All ``records`` are in the CSV, with ``sources``, the run of each; the newest of a row are in the rest. Galleries
    are those of ``runs``. ``drawn`` are the files of plots and pictures to write, None for all. ``by_half`` adds what
    there is to show of the `halves` of images by detail.

    Raises:
        ValueError: no records, or a gallery that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    every = [*records, *(record for half in halves(records) for record in half)] if by_half else records
    groups, pictures = group_records(every), read_galleries(runs, records)
    plots, ranked, found = plots_of(groups), standings(groups), list(sections(groups))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    brief, conclusion = [one.table() for one in ranked], headline(ranked)
    tables: dict[str, Callable[[], bytes | str]] = {
        "report.html": lambda: page(groups, plots, found, brief, conclusion, pictures),
        "table.md": lambda: markdown([*brief, *found]),
        "table.tex": lambda: latex([one.wide(summary=True) for one in found]),
        "table.csv": lambda: records_csv(records, sources),
    }
    styles = styles_of(name for plot in plots for name in plot.names)
    drawings: dict[str, Callable[[], bytes]] = {
        f"{plot.name}.{form}": partial(render, plot.charts, styles, form) for plot in plots for form in ("svg", "png")
    }
    drawings |= {f"{one.name}.jpg": partial(bytes, one.jpeg) for one in pictures}
    files = tables | {name: make for name, make in drawings.items() if drawn is None or name in drawn}
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("report", len(files)) as update:
        for count, (name, make) in enumerate(files.items(), start=1):
            content = make()
            write_whole(folder / name, content.encode() if isinstance(content, str) else content)
            update(count)
    return Shown(
        parts=(*brief, *conclusion, f"wrote {folder / 'report.html'} and {len(files) - 1} files beside it"),
        data={
            "runs": [str(run) for run in runs],
            "records": len(records),
            "files": [str(folder / name) for name in files],
            "conclusion": conclusion,
        },
    )


def page(
    groups: Sequence[Group],
    plots: Sequence[Plot],
    tables: Sequence[Table],
    brief: Sequence[Table] = (),
    conclusion: Sequence[str] = (),
    pictures: Sequence[Gallery] = (),
) -> str:
    """Return all as one page; its template, style and script lie beside this."""
    styles = styles_of(name for plot in plots for name in plot.names)
    shown = [(plot, chart) for plot in plots for chart in plot.charts][:ON_PAGE]
    return _template().render(
        groups=groups,
        title=TITLE,
        brief=brief,
        tables=[one.wide() for one in tables],
        headline=conclusion,
        legend=[
            (id_of(name, styles), name, inline(draw_sample(styles[name]), f"sample-{id_of(name, styles)}"))
            for name in names_of([chart for _, chart in shown], styles)
        ],
        plots=[  # each chart by itself, small enough for a phone
            (plot, chart, inline(draw([chart], styles, small=True), f"plot-{at}", chart.alt))
            for at, (plot, chart) in enumerate(shown, start=1)
        ],
        pictures={re.sub(r"[^A-Za-z0-9_-]", "-", one.name): one for one in pictures},
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_with_unit,
        keep_trailing_newline=True,
    )
    environment.globals |= {"count_of": count_of}
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["settings"] = lambda settings: json.dumps(settings, sort_keys=True)[1:-1] or "no settings"
    return environment.get_template("page.html")


def _with_unit(value: Any) -> Any:
    """Keep a number on one line with what follows it; markup stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"(?<=\d) (?=%)|(?<=×) (?=\w)|(?<=\w) (?=×)", "\u00a0", value)


def inline(figure: Any, name: str, alt: str = "") -> Markup:
    """Return a figure as an SVG element with the role and the words of a picture, or hidden from those who need words.

    No prolog, document type or metadata; ink has the colour of the page's text; ids begin with the drawing's name, so
    that no other drawing on the page has them, and those of series are classes.
    """
    text = encode(figure, "svg", transparent=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'id="(series-\d+)"', r'class="\1"', text)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"' if alt else ' aria-hidden="true"'
    words = f'<title id="{name}-alt">{escape(alt)}</title>' if alt else ""
    return Markup(f"{head}>{words}{body}".replace(INK, "currentColor").strip())
