"""A report as a folder: the page, tables and plots."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from harness.picture import Picture
from harness.plots.accuracy import gflops_plot, ratio_plots, time_plots
from harness.plots.agreement import tau_plot
from harness.plots.panel import Plot
from harness.plots.shots import shots_plot
from harness.plots.style import styles_of
from harness.plots.tokens import tokens_plot
from harness.progress import Progress
from harness.records import Record
from harness.report.groups import Grouped, grouped
from harness.report.latex import latex_tables
from harness.report.markdown import markdown_tables
from harness.report.page import page
from harness.report.sections import shot_columns
from harness.report.tidy import rows_csv, tidy_csv
from harness.report_pictures import galleries, matrix, table
from zoo.files import write_whole

_TABLES = (".html", ".md", ".csv", ".tex")
TITLE = "Token reduction for CLIP, side by side"


def write_report(
    records: Sequence[Record],
    folder: Path,
    progress: Progress,
    *,
    runs: Sequence[Path] = (),
    title: str = TITLE,
    drawn: Collection[str] | None = None,
) -> list[Path]:
    """Write the report of records; files of earlier ones are written over.

    Args:
        records: of one run or many; each in the CSV, the newest of a row in the rest.
        folder: where to; made if it isn't there.
        progress: where to show how far it is.
        runs: where the records come from; their traces are drawn, if they have some.
        title: of the page.
        drawn: files of plots and pictures to write, those that there are; None for all.

    Returns:
        What was written, the page first.

    Raises:
        ValueError: no records, or traces that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    found = grouped(records)
    plots = plots_of(found)
    pictures = [*matrix(*runs, records=records), *galleries(*runs, records=records)]
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)
    made = _files(found, records, title, plots, pictures)
    if agreed := table(*runs, records=records):
        made["agreement.csv"] = lambda: rows_csv(agreed).encode()
    if drawn is not None:
        made = {
            name: make for name, make in made.items() if name.endswith(_TABLES) or name in drawn
        }
    with progress.task("report", len(made)) as update:
        for done, (name, make) in enumerate(made.items(), start=1):
            write_whole(folder / name, make())
            update(done)
    return [folder / name for name in made]


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


def _files(
    found: Grouped,
    records: Sequence[Record],
    title: str,
    plots: Sequence[Plot],
    pictures: Sequence[Picture],
) -> dict[str, Callable[[], bytes]]:
    """Return what makes each file."""
    styles = styles_of(name for plot in plots for panel in plot.panels for name in panel.names)
    files: dict[str, Callable[[], bytes]] = {
        "report.html": lambda: page(found, title, plots, styles, pictures).encode(),
        "table.md": lambda: markdown_tables(found).encode(),
        "summary.md": lambda: markdown_tables(found, summary=True).encode(),
        "table.csv": lambda: tidy_csv(records).encode(),
        "table.tex": lambda: latex_tables(found).encode(),
    }
    for plot in plots:
        for form in ("svg", "png"):
            files[f"{plot.name}.{form}"] = partial(plot.draw, styles, form)
    for picture in pictures:
        files[f"{picture.name}.svg"] = partial(bytes, picture.svg)
        files[f"{picture.name}.png"] = partial(bytes, picture.png)
    return files
