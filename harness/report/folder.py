"""A report as a folder: tables and plots of runs, and a page of all that needs no network."""

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from html import escape
from itertools import chain, product
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


def read_runs(paths: Sequence[Path]) -> dict[str, list[Record]]:
    """Read runs, each once, by the path that names it first; raises what `read_run` does."""
    unique: dict[Path, Path] = {}
    for run in paths:
        unique.setdefault((run / RECORDS if run.is_dir() else run).resolve(), run)
    return {str(run): read_run(run) for run in unique.values()}


def write_report(
    runs: Mapping[str, Sequence[Record]],
    folder: Path,
    progress: Progress,
    *,
    drawn: Collection[str] | None = None,
    by_half: bool = False,
) -> Shown:
    """Write the report of runs, each file whole; say which method is nearest to dense at equal cost.

    All records are in the CSV; the newest of a row are in the rest. ``drawn`` are the files of plots to write, None for
    all. ``by_half`` adds what there is to show of the `halves` of images by detail.

    Raises:
        ValueError: no records, or a gallery that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    records = [record for own in runs.values() for record in own]
    groups = group_records([*records, *chain.from_iterable(halves(records))] if by_half else records)
    pictures = read_galleries(run if run.is_dir() else run.parent for run in map(Path, runs))
    plots, ranked, found = plots_of(groups), standings(groups), list(sections(groups))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    brief, conclusion = [one.table() for one in ranked], headline(ranked)
    files: dict[str, Callable[[], bytes | str]] = {
        "report.html": lambda: page(groups, plots, found, brief, conclusion, pictures),
        "table.md": lambda: markdown([*brief, *found]),
        "table.tex": lambda: latex([one.wide(summary=True) for one in found]),
        "table.csv": lambda: records_csv(records, [run for run, own in runs.items() for _ in own]),
    }
    styles = styles_of(name for plot in plots for name in plot.names)
    for plot, form in product(plots, ("svg", "png")):
        if drawn is None or f"{plot.name}.{form}" in drawn:
            files[f"{plot.name}.{form}"] = partial(render, plot.charts, styles, form)
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("report", len(files)) as update:
        for count, (name, make) in enumerate(files.items(), start=1):
            content = make()
            write_whole(folder / name, content.encode() if isinstance(content, str) else content)
            update(count)
    return Shown(
        parts=(*brief, *conclusion, f"wrote {folder / 'report.html'} and {len(files) - 1} files beside it"),
        data={
            "runs": list(runs),
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
        pictures=pictures,
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
