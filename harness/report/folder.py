"""A report as a folder: the page, tables and plots; and the command that writes it."""

import argparse
import glob
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.table import UNMEASURED, Cell, Column, Shown, Table, json_values
from harness.base.terminal import Progress
from harness.measure.times import LATENCIES, LatencyRecord, read_latencies
from harness.records.averages import Average, labels
from harness.records.metrics import fidelity_metrics
from harness.records.record import CONDITIONS, RECORDS, Record, read_run
from harness.report.groups import (
    Group,
    Grouped,
    brief_tables,
    counted,
    equal_time_tables,
    grouped,
    sections,
    time_rows,
    time_sections,
    timed_groups,
)
from harness.report.highlights import (
    NAMED,
    Front,
    Highlights,
    Standing,
    highlights,
    listed,
    missing,
    qualities,
    row_name,
)
from harness.report.page import Report, page
from harness.report.pictures import agreement_rows, galleries, matrices, samples, traced_groups
from harness.report.plots import drawn_groups, plots_of
from harness.report.tables import records_csv, short_heading
from harness.report.writers import csv_text, latex, markdown
from zoo.core.files import PARTIAL, partial_of, strict_json, write_whole

TITLE = "Token reduction for CLIP, side by side"
_TABLES = (".html", ".md", ".csv", ".tex")
_MADE = ".report"  # folder of files that are all made and on their way to their places
_MAKING = _MADE.removeprefix(".")  # folder of files that are being made, under a partial's name
_LIST = ".report.json"  # names and digests of the files of the report that lies in a folder
_VERDICTS = {"front": "on the front", "open": "beside it", "beaten": "beaten by"}


def run_report(args: argparse.Namespace, status: Console) -> Shown:
    """Write the report of runs; show which rows are on the Pareto fronts.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: one that can't be read, or no record in any.
        NotADirectoryError: ``--output`` is a file.
    """
    runs = once(args.runs)
    pairs = [(record, str(run)) for run in runs for record in records_in(run)]
    report = write_report(
        [record for record, _ in pairs],
        args.output,
        Progress(status),
        runs=runs,
        sources=[run for _, run in pairs],
        title=args.title,
        every_plot=args.all_plots,
    )
    page_file, replaced = report.files[0], report.records.replaced
    tables = [
        front_table(one.group, own)
        for one in report.short
        for metric in qualities()
        if (own := [front for front in one.trusted if front.metric == metric])
    ]
    lines = [f"{one.group.name}: {one.saving}" for one in report.short]
    if report.times:
        count = counted(sum(len(group.rows) for group in report.times), "time")
        where = f"{counted(len(report.times), 'table')} of {page_file.name}"
        lines.append(f"{count} by latency in {where}")
    lines += [
        f"{one.title}: {one.why} in {listed(one.groups, NAMED, 'table', '; ')}. This measures it: {one.command}"
        for one in report.missing
    ]
    if replaced:
        count = counted(replaced, "earlier measurement")
        lines.append(f"left out for newer ones of the same rows: {count}")
    return Shown(
        parts=(*tables, *lines, f"wrote {page_file} and {len(report.files) - 1} files beside it"),
        data={
            "runs": [str(run) for run in runs],
            "records": len(pairs),
            "replaced": replaced,
            "files": [str(path) for path in report.files],
            "left_out": list(report.left_out),
            "missing": [asdict(one) for one in report.missing],
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
    """Write the report of records in place of an earlier one, all its files or none.

    Traces and times beside the records that can't be read are named and left out: measuring may
    have taken hours.

    All ``records`` are in the CSV, with ``sources``, the run of each; the newest of a row are in
    the rest. Traces and times are those of ``runs``. ``drawn`` are the files of plots and pictures
    to write, None for all. Of many groups only the first are drawn, and the page says so, save with
    ``every_plot``.

    Raises:
        ValueError: no records and no times, or a run of times alone that can't be read.
        NotADirectoryError: ``folder`` is a file.
    """
    left_out: list[str] = []
    times = latencies_in(runs, left_out.append)
    groups = Grouped(groups=[]) if times and not records else grouped(records)
    traced = traced_groups(runs, records, left_out.append) if records else []
    for reason in left_out:
        progress.say(f"left out of the report: {reason}")
    short = [highlights(group) for group in groups.groups]
    timed = timed_groups([record for _, record in times])
    most = None if every_plot else drawn_groups(groups.groups)
    pictures = [*matrices(traced[:most]), *galleries(traced[:most])]
    report = Report(
        records=groups,
        short=short,
        times=timed,
        plots=plots_of(groups, short, timed, most),
        samples=samples(traced),
        pictures=pictures,
        agreement=agreement_rows(traced),
        missing=missing(groups, traced=bool(pictures)),
        left_out=left_out,
        most=most,
        command=f"patchrank report {shlex.join([str(run) for run in runs] or ['RUN'])} --all-plots",
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
        swap(folder, names, lambda name: files[name](), update)
    return replace(report, files=[folder / name for name in names])


def swap(
    folder: Path, names: Sequence[str], content: Callable[[str], bytes | str], update: Callable[[int], object]
) -> None:
    """Write files that replace those of the last call in this folder, all or none.

    They are made in a hidden folder inside, which gets its last name when they are whole. Then they
    take their places, and what the last call wrote beyond them goes, unless somebody changed it. A
    stop in between is made good by the next call, before it makes anything. ``content`` returns what
    a file of ``names`` is to hold; ``update`` is told how many are made.

    Raises:
        NoRoomError: no room; the folder is as it was.
    """
    _take_places(folder)
    _clear_leftovers(folder)
    making = partial_of(folder / _MAKING)
    making.mkdir()
    try:
        digests = {}
        for count, name in enumerate(names, start=1):
            made = content(name)
            raw = made.encode() if isinstance(made, str) else made
            write_whole(making / name, raw)
            digests[name] = hashlib.sha256(raw).hexdigest()
            update(count)
        write_whole(making / _LIST, json.dumps(digests, indent=0).encode())
        making.rename(folder / _MADE)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    try:
        _take_places(folder)
    except KeyboardInterrupt:
        _take_places(folder)
        raise


def _take_places(folder: Path) -> None:
    """Move files that are all made to where they belong; going on after a stop is the same."""
    made = folder / _MADE
    if not made.is_dir():
        return
    new, old = _listed(made / _LIST), _listed(folder / _LIST)
    for name, digest in old.items():
        path = folder / name
        if name not in new and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            path.unlink()
    for name in (*new, _LIST):  # the list is the last: until then, what it replaces says what has to go
        if (made / name).exists():
            (made / name).replace(folder / name)
    made.rmdir()


def _listed(path: Path) -> dict[str, str]:
    """Return the names in a list of a report's files with their digests; none of a list that isn't ours."""
    try:
        facts = strict_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    known = facts.items() if isinstance(facts, dict) else ()
    # Names of files in the folder itself: whatever a list says, nothing elsewhere is touched.
    return {name: str(digest) for name, digest in known if name == Path(name).name}


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed commands of this machine were making."""
    host = partial_of(folder / _MAKING).name.removesuffix(f"{os.getpid()}{PARTIAL}")
    for path in folder.glob(f"{glob.escape(host)}*{PARTIAL}"):
        process = path.name.removeprefix(host).removesuffix(PARTIAL)
        if process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name != "posix":
        return True  # where asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


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
        both = cache(partial(plot.draw_both, styles))
        for form in ("svg", "png"):
            files[f"{plot.name}.{form}"] = partial(_formed, both, form)
    for picture in report.pictures:
        files[f"{picture.name}.svg"] = partial(bytes, picture.svg)
        files[f"{picture.name}.png"] = partial(bytes, picture.png)
    return files


def _formed(drawn: Callable[[], Mapping[str, bytes]], form: str) -> bytes:
    return drawn()[form]


def front_table(group: Group, fronts: Sequence[Front]) -> Table:
    """Lay out where a group's rows stand in one quality by each cost, at least one."""
    names = labels(group.rows)
    rows = {row_name(row, names): [front.of(row) for front in fronts] for row in group.rows}
    heads = ["row", *(front.cost.heading for front in fronts)]
    return Table(
        title=f"Pareto fronts of {group.name}, {short_heading(fronts[0].metric)}",
        caption=f"beaten: the best row that costs no more is clearly {qualities()[fronts[0].metric][1]}; "
        "beside: not on the front by the estimates, which may be wrong",
        columns=[Column(heading=heading, left=True, fold=True) for heading in heads],
        rows=[
            [Cell(name), *(_verdict(place, names) for place in places)] for name, places in rows.items() if any(places)
        ],
    )


def _verdict(place: Standing | None, names: Mapping[str, str]) -> Cell:
    if place is None:
        return UNMEASURED
    words = _VERDICTS[place.verdict]
    return Cell(words if place.by is None else f"{words} {row_name(place.by, names)}")


def _group_data(short: Highlights) -> dict[str, Any]:
    first = short.group.first
    return {
        "name": short.group.name,
        "conditions": {name: getattr(first, name) for name in (*CONDITIONS, "version")},
        "fewest_gflops_without_clear_loss": short.least and short.least.first.model,
        "rows": [_row_data(row, short.trusted) for row in short.group.rows],
    }


def _row_data(row: Average, fronts: Sequence[Front]) -> dict[str, Any]:
    places = {front.name: front.of(row) for front in fronts}
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
            name: {"verdict": place.verdict, "beaten_by": place.by and place.by.first.model}
            for name, place in places.items()
            if place is not None
        },
    }


def once(runs: Iterable[Path]) -> list[Path]:
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
    return [] if only_times or _of_times(run) else read_run(run)


def latencies_in(runs: Sequence[Path], left_out: Callable[[str], object]) -> list[tuple[str, LatencyRecord]]:
    """Return the times that runs hold or that lie beside their records, each with its run.

    ``left_out`` is called with why a file beside records can't be read.

    Raises:
        ValueError: a run of times alone can't be read, or holds none.
        OSError: one can't be opened.
    """
    times: dict[Path, list[tuple[str, LatencyRecord]]] = {}
    for run in runs:
        alone = _of_times(run)
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


def _of_times(run: Path) -> bool:
    """Tell a file of times, whatever it is called, by its first line."""
    if not run.is_file():
        return False
    with run.open("rb") as file:
        line = file.readline()
    try:
        first = json.loads(line)
    except ValueError:
        return run.name == LATENCIES
    return run.name == LATENCIES or (isinstance(first, dict) and "stopwatch" in first)
