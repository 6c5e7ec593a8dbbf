"""A report as a folder: the page, tables and plots."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.picture import Picture
from harness.plots.accuracy import gflops_plot, ratio_plots, time_plots
from harness.plots.agreement import tau_plot
from harness.plots.panel import Plot
from harness.plots.shots import shots_plot
from harness.plots.style import styles_of
from harness.plots.times import batches_plot
from harness.plots.tokens import tokens_plot
from harness.progress import Progress
from harness.records import Record
from harness.report.groups import Grouped, grouped
from harness.report.highlights import Highlights, highlights
from harness.report.page import page
from harness.report.runs import latencies_in
from harness.report.sections import sections, shot_columns
from harness.report.tables import records_csv
from harness.report.times import TimedGroup, time_rows, time_sections, timed_groups
from harness.report.writers import csv_text, latex, markdown
from harness.report_pictures.agreement import table_of
from harness.report_pictures.gallery import galleries_of
from harness.report_pictures.groups import groups as traced_groups
from harness.report_pictures.matrix import matrices
from zoo.files import write_whole

_TABLES = (".html", ".md", ".csv", ".tex")
TITLE = "Token reduction for CLIP, side by side"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and of what.

    Attributes:
        files: the page first.
        found: groups of the records; none if there are only times.
        short: each group in short.
        times: groups of what `latency` timed.
        agreement: how rankings agree, a pair a row.
        left_out: why files beside the records are not in it.
    """

    files: Sequence[Path]
    found: Grouped
    short: Sequence[Highlights]
    times: Sequence[TimedGroup]
    agreement: Sequence[dict[str, Any]]
    left_out: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What all files are made from."""

    records: Sequence[Record]
    sources: Sequence[str]
    title: str
    plots: Sequence[Plot]
    pictures: Sequence[Picture]
    timed: Sequence[dict[str, Any]]
    written: Written


def write_report(
    records: Sequence[Record],
    folder: Path,
    progress: Progress,
    *,
    runs: Sequence[Path] = (),
    sources: Sequence[str] = (),
    title: str = TITLE,
    drawn: Collection[str] | None = None,
) -> Written:
    """Write the report of records; files of earlier ones are written over.

    Traces and times beside the records that can't be read are told and left out: measuring may
    have taken hours.

    Args:
        records: of one run or many; each in the CSV, the newest of a row in the rest. None of runs
            of times alone.
        folder: where to; made if it isn't there.
        progress: where to show how far it is, and to tell what is left out.
        runs: where the records come from; their traces and times are in it, if they have some.
        sources: which run each record is from, for the CSV; none to leave it out.
        title: of the page.
        drawn: files of plots and pictures to write, those that there are; None for all.

    Raises:
        ValueError: no records and no times, or a run of times alone that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    left_out: list[str] = []
    times = latencies_in(runs, left_out.append)
    found = Grouped(groups=[]) if times and not records else grouped(records)
    traced = traced_groups(runs, records, left_out.append) if records else []
    for reason in left_out:
        progress.say(f"left out of the report: {reason}")
    timed = timed_groups([record for _, record in times])
    plots = [*plots_of(found), *filter(None, [batches_plot(timed)])]
    pictures = [*matrices(traced), *galleries_of(traced)]
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)
    written = Written(
        files=(),
        found=found,
        short=[highlights(group) for group in found.groups],
        times=timed,
        agreement=table_of(traced),
        left_out=left_out,
    )
    content = _Content(
        records=records, sources=sources, title=title, plots=plots, pictures=pictures,
        timed=time_rows(times), written=written,
    )  # fmt: skip
    made = {
        name: make
        for name, make in _files(content).items()
        if drawn is None or name.endswith(_TABLES) or name in drawn
    }
    with progress.task("report", len(made)) as update:
        for done, (name, make) in enumerate(made.items(), start=1):
            write_whole(folder / name, make())
            update(done)
    return replace(written, files=[folder / name for name in made])


def plots_of(found: Grouped) -> list[Plot]:
    """Return the plots that the records have figures for."""
    groups = found.groups
    every = [
        gflops_plot(groups),
        *ratio_plots(groups),
        *time_plots(groups),
        tau_plot(groups),
        tokens_plot(groups),
        shots_plot(shot_columns(found)),
    ]
    return [plot for plot in every if plot is not None]


def _files(content: _Content) -> dict[str, Callable[[], bytes]]:
    """Return what makes each file."""
    plots, pictures, found = content.plots, content.pictures, content.written.found
    styles = styles_of(name for plot in plots for panel in plot.panels for name in panel.names)
    full, less = (time_sections(content.written.times, summary=bare) for bare in (False, True))

    def whole_page() -> bytes:
        short, left_out = content.written.short, content.written.left_out
        return page(
            found, content.title, plots, styles, pictures, short=short, times=full,
            left_out=left_out,
        ).encode()  # fmt: skip

    files: dict[str, Callable[[], bytes]] = {
        "report.html": whole_page,
        "table.md": lambda: markdown([*sections(found), *full]).encode(),
        "table.tex": lambda: latex([*sections(found, summary=True), *less]).encode(),
    }
    if content.records:
        files["summary.md"] = lambda: markdown(list(sections(found, summary=True))).encode()
        files["table.csv"] = lambda: records_csv(content.records, content.sources).encode()
    if content.timed:
        files["latency.csv"] = lambda: csv_text(content.timed).encode()
    if content.written.agreement:
        files["agreement.csv"] = lambda: csv_text(content.written.agreement).encode()
    for plot in plots:
        for form in ("svg", "png"):
            files[f"{plot.name}.{form}"] = partial(plot.draw, styles, form)
    for picture in pictures:
        files[f"{picture.name}.svg"] = partial(bytes, picture.svg)
        files[f"{picture.name}.png"] = partial(bytes, picture.png)
    return files
