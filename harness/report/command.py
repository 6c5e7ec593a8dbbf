"""What ``report`` does."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.averages import Average, labels
from harness.plots.accuracy import row_name
from harness.progress import Progress
from harness.records import CONDITIONS
from harness.report.folder import write_report
from harness.report.front import Standing
from harness.report.groups import Group, counted
from harness.report.highlights import Highlights
from harness.report.missing import missing
from harness.report.runs import once, records_in
from harness.shown import Shown, json_values

_VERDICTS = {"front": "on the front", "open": "beside it", "beaten": "beaten by"}


def run_report(args: argparse.Namespace, status: Console) -> Shown:
    """Write the report of runs; show which rows are on the Pareto fronts.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: one that can't be read, or no record in any.
        NotADirectoryError: ``--output`` is a file.
    """
    runs = once(args.runs)
    given = [(record, str(run)) for run in runs for record in records_in(run)]
    records, sources = [record for record, _ in given], [run for _, run in given]
    written = write_report(
        records, args.output, Progress(status), runs=runs, sources=sources, title=args.title
    )
    found = written.found
    lacking = missing(found, traced=bool(written.agreement))
    lines = [
        f"{one.title}: {one.why} in {'; '.join(one.groups)}. This measures it: {one.command}"
        for one in lacking
    ]
    if found.replaced:
        count = counted(found.replaced, "earlier measurement")
        lines.append(f"left out for newer ones of the same rows: {count}")
    tables = [front_table(told.group, told.stood) for told in written.short if told.stood]
    short = [f"{told.group.name}: {told.saving}" for told in written.short]
    if written.times:
        count = counted(sum(len(group.rows) for group in written.times), "time")
        where = f"{counted(len(written.times), 'table')} of {written.files[0].name}"
        short.append(f"{count} by latency in {where}")
    wrote = f"wrote {written.files[0]} and {len(written.files) - 1} files beside it"
    return Shown(
        parts=(*tables, *short, *lines, wrote),
        data={
            "runs": [str(run) for run in runs],
            "records": len(records),
            "replaced": found.replaced,
            "files": [str(path) for path in written.files],
            "left_out": list(written.left_out),
            "missing": [asdict(one) for one in lacking],
            "groups": [_data(told) for told in written.short],
            "latency": [
                {"name": group.name, "records": json_values(group.rows)} for group in written.times
            ],
            "agreement": list(written.agreement),
        },
    )


def front_table(group: Group, stood: Mapping[str, Sequence[Standing]]) -> Table:
    """Lay out where rows stand by each cost.

    Args:
        group: whose rows.
        stood: by cost, at least one; as `judge` returns it.
    """
    named = labels(group.rows)
    table = Table(
        title=f"Pareto fronts of {group.name}",
        caption="beaten: another row costs no more and is clearly more accurate; beside: not on "
        "the front by the estimates, which may be wrong",
    )
    table.add_column("row")
    for cost in stood:
        table.add_column(heading(cost))
    places = {cost: {one.row.identity: one for one in each} for cost, each in stood.items()}
    for row in group.rows:
        found = [places[cost].get(row.identity) for cost in stood]
        if any(found):
            table.add_row(row_name(row, named), *(_told(one, named) for one in found))
    return table


def heading(cost: str) -> str:
    """Return what a cost of `judge` is called."""
    batch = cost.partition("ratio_batch")[2]
    return f"time, batch {batch}" if batch else "GFLOPs"


def _told(one: Standing | None, named: Mapping[str, str]) -> str:
    if one is None:
        return "–"
    words = _VERDICTS[one.verdict]
    return words if one.by is None else f"{words} {row_name(one.by, named)}"


def _data(told: Highlights) -> dict[str, Any]:
    first = told.group.first
    return {
        "name": told.group.name,
        "conditions": {name: getattr(first, name) for name in (*CONDITIONS, "version")},
        "fewest_gflops_without_clear_loss": _model(told.least),
        "rows": [_row(row, told.stood) for row in told.group.rows],
    }


def _model(row: Average | None) -> str | None:
    return None if row is None else row.first.model


def _row(row: Average, stood: Mapping[str, Sequence[Standing]]) -> dict[str, Any]:
    front: dict[str, Any] = {}
    for cost, each in stood.items():
        for one in each:
            if one.row.identity == row.identity:
                by = _model(one.by)
                front[cost] = {"verdict": one.verdict, "beaten_by": by}
    return {
        "model": row.first.model,
        "method": row.method,
        "keep_fraction": row.keep,
        "method_config": row.config,
        "seeds": [record.seed for record in row.records],
        "top1_fraction": row.top1._asdict(),
        "diff_to_dense_fraction": None if row.to_dense is None else row.to_dense._asdict(),
        "gflops": row.mean("gflops"),
        "latency": [asdict(timed) for timed in row.latency],
        "tau": row.mean("tau"),
        "pareto": front,
    }
