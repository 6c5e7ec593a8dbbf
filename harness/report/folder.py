"""A report as a folder: the page, tables, plots and pictures of runs."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.base.table import Shown, json_values
from harness.base.terminal import Progress
from harness.records.averages import Average
from harness.records.metrics import fidelity_metrics
from harness.records.record import CONDITIONS, RECORDS, Record, read_run
from harness.records.times import LATENCIES, LatencyRecord, read_latencies
from harness.report.charts import render
from harness.report.groups import (
    Grouped,
    brief_tables,
    count_of,
    equal_time_tables,
    group_records,
    group_times,
    sections,
    time_rows,
    time_sections,
)
from harness.report.highlights import Front, Highlights, highlights
from harness.report.page import Report, page
from harness.report.pictures import agreement_rows, galleries, group_traces, matrices
from harness.report.plots import DRAWN, describe_missing, plots_of
from harness.report.writers import csv_text, latex, markdown, records_csv
from zoo.core.files import write_whole

TITLE = "Token reduction for CLIP, side by side"
_TABLES = (".html", ".md", ".csv", ".tex")


def report_runs(
    paths: Sequence[Path], folder: Path, progress: Progress, *, title: str = TITLE, every_plot: bool = False
) -> Shown:
    """Write the report of runs; say which rows are on the Pareto fronts.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: one that can't be read, or no record in any.
        NotADirectoryError: ``folder`` is a file.
    """
    runs = unique_runs(paths)
    pairs = [(record, str(run)) for run in runs for record in records_in(run)]
    report = write_report(
        [record for record, _ in pairs],
        folder,
        progress,
        runs=runs,
        sources=[run for _, run in pairs],
        title=title,
        every_plot=every_plot,
    )
    page_file, replaced = report.files[0], report.records.replaced
    lines = [f"{one.group.name}: {' '.join([one.saving, *one.winners])}" for one in report.short]
    if report.times:
        count = count_of(sum(len(group.rows) for group in report.times), "time")
        lines.append(f"{count} by latency in {count_of(len(report.times), 'table')} of {page_file.name}")
    lines += report.missing
    if replaced:
        lines.append(f"left out for newer ones of the same rows: {count_of(replaced, 'earlier measurement')}")
    return Shown(
        parts=(*lines, f"wrote {page_file} and {len(report.files) - 1} files beside it"),
        data={
            "runs": [str(run) for run in runs],
            "records": len(pairs),
            "replaced": replaced,
            "files": [str(path) for path in report.files],
            "left_out": list(report.left_out),
            "missing": list(report.missing),
            "groups": [_group_data(one) for one in report.short],
            "latency": [{"name": group.name, "records": json_values(group.rows)} for group in report.times],
            "agreement": list(report.agreement),
        },
    )


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
) -> Report:
    """Write the report of records, each file whole; those of an earlier report are overwritten.

    Traces and times beside the records that can't be read are named and left out: measuring may have taken hours.

    All ``records`` are in the CSV, with ``sources``, the run of each; the newest of a row are in the rest. Traces and
    times are those of ``runs``. ``drawn`` are the files of plots and pictures to write, None for all. Only the first
    groups are drawn, and the page says so, save with ``every_plot``.

    Raises:
        ValueError: no records and no times, or a run of times alone that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    left_out: list[str] = []
    times = latencies_in(runs, left_out.append)
    groups = Grouped(groups=[]) if times and not records else group_records(records)
    traced = group_traces(runs, records, left_out.append) if records else []
    for reason in left_out:
        progress.say(f"left out of the report: {reason}")
    short = [highlights(group) for group in groups.groups]
    timed = group_times([record for _, record in times])
    most = None if every_plot else DRAWN
    pictures = [*matrices(traced[:most]), *galleries(traced[:most])]
    plots = plots_of(groups, short, timed, most)
    report = Report(
        records=groups,
        short=short,
        times=timed,
        plots=plots,
        pictures=pictures,
        agreement=agreement_rows(traced),
        missing=describe_missing([*(plot.name for plot in plots), *(one.name for one in pictures)]) if records else [],
        left_out=left_out,
        most=most,
    )
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    files = _files(report, title)
    if records:
        files["table.csv"] = lambda: records_csv(records, sources)
    if times:
        files["latency.csv"] = lambda: csv_text(time_rows(times))
    names = [name for name in files if drawn is None or name.endswith(_TABLES) or name in drawn]
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("report", len(names)) as update:
        for count, name in enumerate(names, start=1):
            content = files[name]()
            write_whole(folder / name, content.encode() if isinstance(content, str) else content)
            update(count)
    return replace(report, files=[folder / name for name in names])


def _files(report: Report, title: str) -> dict[str, Callable[[], bytes | str]]:
    """Return what makes each file that needs no more than the report."""
    groups, styles = report.records, report.styles
    files: dict[str, Callable[[], bytes | str]] = {
        "report.html": lambda: page(report, title),
        "table.md": lambda: markdown([*sections(groups), *time_sections(report.times)]),
        "table.tex": lambda: latex([*sections(groups, summary=True), *time_sections(report.times, summary=True)]),
    }
    if groups.groups:
        files["summary.md"] = lambda: markdown(list(sections(groups, summary=True)))
    for name, tables in (("brief.md", brief_tables(groups)), ("equal_time.md", equal_time_tables(groups))):
        if tables:
            files[name] = partial(markdown, tables)
    if report.agreement:
        files["agreement.csv"] = lambda: csv_text(report.agreement)
    for plot in report.plots:
        for form in ("svg", "png"):
            files[f"{plot.name}.{form}"] = partial(render, plot.charts, styles, form)
    for picture in report.pictures:
        for form, content in picture.files.items():
            files[f"{picture.name}.{form}"] = partial(bytes, content)
    return files


def _group_data(short: Highlights) -> dict[str, Any]:
    first = short.group.first
    return {
        "name": short.group.name,
        "conditions": {name: getattr(first, name) for name in (*CONDITIONS, "version")},
        "fewest_gflops_without_clear_loss": short.least and short.least.first.model,
        "rows": [_row_data(row, short.fronts) for row in short.group.rows],
    }


def _row_data(row: Average, fronts: Sequence[Front]) -> dict[str, Any]:
    standings = {front.name: one for front in fronts if (one := front.of(row)) is not None}
    return {
        "model": row.first.model,
        "method": row.method,
        "keep_fraction": row.keep,
        "method_config": row.config,
        "seeds": [record.seed for record in row.records],
        **{metric.name: json_values(row.estimate(metric)) for metric in fidelity_metrics()},
        "top1_fraction": None if row.top1 is None else row.top1._asdict(),
        "diff_to_dense_fraction": None if row.to_dense is None else row.to_dense._asdict(),
        "gflops": row.mean("gflops"),
        "latency": [asdict(timed) for timed in row.latency],
        "tau": row.mean("tau"),
        "pareto": {
            name: {"verdict": one.verdict, "beaten_by": one.by and one.by.first.model}
            for name, one in standings.items()
        },
    }


def unique_runs(runs: Iterable[Path]) -> list[Path]:
    """Return runs without those that are there already, be it as a folder or as its file."""
    unique: dict[Path, Path] = {}
    for run in runs:
        unique.setdefault((run / RECORDS if run.is_dir() else run).resolve(), run)
    return list(unique.values())


def records_in(run: Path) -> list[Record]:
    """Return the records of a run; none of one that holds times alone.

    Raises:
        FileNotFoundError: the run isn't there, or has neither.
        ValueError: no records, or a line that is none.
    """
    only_times = (run / LATENCIES).is_file() and not (run / RECORDS).exists()
    return [] if only_times or _has_times(run) else read_run(run)


def latencies_in(runs: Sequence[Path], left_out: Callable[[str], object]) -> list[tuple[str, LatencyRecord]]:
    """Return the times that runs hold or that lie beside their records, each with its run.

    ``left_out`` is called with why a file beside records can't be read.

    Raises:
        ValueError: a run of times alone can't be read, or holds none.
        OSError: one can't be opened.
    """
    times: dict[Path, list[tuple[str, LatencyRecord]]] = {}
    for run in runs:
        alone = _has_times(run)
        file = run if alone else (run if run.is_dir() else run.parent) / LATENCIES
        if file.resolve() in times or not file.is_file():
            continue
        alone = alone or not (file.parent / RECORDS).exists()
        records = []
        try:
            records = read_latencies(file)
        except (ValueError, OSError) as error:
            if alone:
                raise
            left_out(str(error))
        if not records and alone:
            raise ValueError(f"run {str(run)!r}: {file.name} holds no times")
        times[file.resolve()] = [(str(run), record) for record in records]
    return [time for each in times.values() for time in each]


def _has_times(run: Path) -> bool:
    """Tell a file of times, whatever it is called, by its first line."""
    if not run.is_file() or run.name == LATENCIES:
        return run.is_file()
    with run.open("rb") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and "stopwatch" in first
