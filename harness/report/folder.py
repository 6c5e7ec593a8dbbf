"""A report as a folder: tables, plots and pictures of runs, and a page of all that needs no network."""

import base64
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.base.table import Part, Shown, json_values
from harness.base.terminal import Progress
from harness.records.averages import Average
from harness.records.metrics import fidelity_metrics
from harness.records.record import CONDITIONS, RECORDS, Record, read_run
from harness.records.times import LATENCIES, LatencyRecord, read_latencies
from harness.report.charts import INK, Plot, draw, draw_sample, encode, id_of, names_of, render, styles_of
from harness.report.groups import Group, count_of, group_records, group_times, sections, time_tables
from harness.report.highlights import DRAWN, Standing, headline, plots_of, standings
from harness.report.pictures import Gallery, read_galleries
from harness.report.writers import latex, markdown, records_csv, times_csv
from zoo.core.files import write_whole

TITLE = "Token reduction for CLIP, side by side"
ON_PAGE = 4  # plots at most, the first; files have all


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a report shows."""

    groups: Sequence[Group]  # none if there are only times
    times: dict[str, list[LatencyRecord]]  # by the heading of their table
    plots: Sequence[Plot]
    standings: Sequence[Standing] = ()  # judged once, as that takes a while
    pictures: Sequence[Gallery] = ()
    left_out: Sequence[str] = ()  # why files beside the records are not in it


def report_runs(
    paths: Sequence[Path], folder: Path, progress: Progress, *, title: str = TITLE, every_plot: bool = False
) -> Shown:
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
    pairs = [(record, str(run)) for run in runs if not _is_of_times(run) for record in read_run(run)]
    records, sources = [record for record, _ in pairs], [run for _, run in pairs]
    return write_report(records, folder, progress, runs=runs, sources=sources, title=title, every_plot=every_plot)


def write_report(
    records: Sequence[Record],
    folder: Path,
    progress: Progress,
    *,
    runs: Sequence[Path] = (),
    sources: Sequence[str] = (),
    title: str = TITLE,
    drawn: Collection[str] | None = None,
    every_plot: bool = False,
) -> Shown:
    """Write the report of records, each file whole, and say it in short.

    Galleries and times beside the records that can't be read are named and left out: measuring may have taken hours.

    All ``records`` are in the CSV, with ``sources``, the run of each; the newest of a row are in the rest. Galleries
    and times are those of ``runs``. ``drawn`` are the files of plots and pictures to write, None for all. Only the
    first groups are drawn, save with ``every_plot``.

    Raises:
        ValueError: no records and no times, or a run of times alone that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    left_out: list[str] = []
    times = read_times(runs, left_out.append)
    groups = [] if times and not records else group_records(records)
    pictures = read_galleries(runs, records, left_out.append)
    for reason in left_out:
        progress.say(f"left out of the report: {reason}")
    timed = group_times(record for _, record in times)
    parts = Parts(
        groups=groups,
        times=timed,
        standings=standings(groups),
        plots=plots_of(groups if every_plot else groups[:DRAWN]),
        pictures=pictures if every_plot else pictures[:DRAWN],
        left_out=left_out,
    )
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    brief, conclusion = [one.table() for one in parts.standings], headline(parts.standings)
    tables: dict[str, Callable[[], bytes | str]] = {
        "report.html": lambda: page(parts, title),
        "table.md": lambda: markdown([*brief, *sections(groups), *time_tables(timed)]),
        "table.tex": lambda: latex([*sections(groups, summary=True), *time_tables(timed, summary=True)]),
    }
    if records:
        tables["table.csv"] = lambda: records_csv(records, sources)
    if times:
        tables["latency.csv"] = lambda: times_csv(times)
    styles = styles_of(name for plot in parts.plots for name in plot.names)
    drawings: dict[str, Callable[[], bytes]] = {
        f"{plot.name}.{form}": partial(render, plot.charts, styles, form)
        for plot in parts.plots
        for form in ("svg", "png")
    }
    drawings |= {f"{one.name}.jpg": partial(bytes, one.jpeg) for one in pictures}
    files = tables | {name: make for name, make in drawings.items() if drawn is None or name in drawn}
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("report", len(files)) as update:
        for count, (name, make) in enumerate(files.items(), start=1):
            content = make()
            write_whole(folder / name, content.encode() if isinstance(content, str) else content)
            update(count)
    shown: list[Part] = [*brief, *conclusion]
    if timed:
        many = count_of(sum(map(len, timed.values())), "time")
        shown.append(f"{many} by latency in {count_of(len(timed), 'table')} of report.html")
    return Shown(
        parts=(*shown, f"wrote {folder / 'report.html'} and {len(files) - 1} files beside it"),
        data={
            "runs": [str(run) for run in runs],
            "records": len(records),
            "files": [str(folder / name) for name in files],
            "left_out": left_out,
            "conclusion": conclusion,
            "groups": [
                {
                    "name": group.name,
                    "conditions": {name: getattr(group.first, name) for name in (*CONDITIONS, "version")},
                    "rows": [_row_data(row) for row in group.rows],
                }
                for group in groups
            ],
            "latency": [{"name": name, "records": json_values(rows)} for name, rows in timed.items()],
        },
    )


def _row_data(row: Average) -> dict[str, Any]:
    return {
        "model": row.first.model,
        "method": row.method,
        "keep_fraction": row.keep,
        "method_config": row.config,
        "seeds": [record.seed for record in row.records],
        **{metric.name: json_values(row.estimate(metric)) for metric in fidelity_metrics()},
        "top1_fraction": json_values(row.top1),
        "diff_to_dense_fraction": json_values(row.to_dense),
        "gflops": row.mean("gflops"),
        "latency": json_values(row.latency),
        "tau": row.mean("tau"),
    }


def _is_of_times(run: Path) -> bool:
    """Tell a run of times alone."""
    return (run.name == LATENCIES and run.is_file()) or ((run / LATENCIES).is_file() and not (run / RECORDS).exists())


def read_times(runs: Iterable[Path], left_out: Callable[[str], object]) -> list[tuple[str, LatencyRecord]]:
    """Return the times that runs hold or that lie beside their records, each with its run.

    ``left_out`` is called with why a file beside records can't be read.

    Raises:
        ValueError: a run of times alone can't be read.
        OSError: one can't be opened.
    """
    times: dict[Path, list[tuple[str, LatencyRecord]]] = {}
    for run in runs:
        file = (run if run.is_dir() else run.parent) / LATENCIES
        if file.resolve() in times or not file.is_file():
            continue
        try:
            times[file.resolve()] = [(str(run), record) for record in read_latencies(file)]
        except (ValueError, OSError) as error:
            if _is_of_times(run):
                raise
            left_out(str(error))
    return [time for each in times.values() for time in each]


def page(parts: Parts, title: str) -> str:
    """Return all as one page, under this heading; its template, style and script lie beside this."""
    styles = styles_of(name for plot in parts.plots for name in plot.names)
    shown = [(plot, chart) for plot in parts.plots for chart in plot.charts][:ON_PAGE]
    return _template().render(
        parts=parts,
        title=title,
        brief=[one.table() for one in parts.standings],
        tables=list(sections(parts.groups, marked=True)),
        times=time_tables(parts.times),
        headline=headline(parts.standings),
        legend=[
            (id_of(name, styles), name, inline(draw_sample(styles[name]), f"sample-{id_of(name, styles)}"))
            for name in names_of([chart for _, chart in shown], styles)
        ],
        plots=[  # each chart by itself, small enough for a phone
            (plot, chart, inline(draw([chart], styles, small=True), f"plot-{at}", chart.alt))
            for at, (plot, chart) in enumerate(shown, start=1)
        ],
        pictures={re.sub(r"[^A-Za-z0-9_-]", "-", one.name): one for one in parts.pictures},
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
