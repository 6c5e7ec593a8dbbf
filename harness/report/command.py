"""What ``report`` does."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.averages import Average
from harness.changes import read_run
from harness.labels import labels
from harness.plots.accuracy import judge, row_name
from harness.progress import Progress
from harness.records import CONDITIONS
from harness.report.folder import write_report
from harness.report.front import Standing
from harness.report.groups import Group, Grouped, counted, grouped
from harness.report.missing import missing
from harness.report_pictures import table
from harness.shown import Shown

_VERDICTS = {"front": "on the front", "open": "beside it", "beaten": "beaten by"}


def run_report(args: argparse.Namespace, status: Console) -> Shown:
    """Write the report of runs; show which rows are on the Pareto fronts.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: one that can't be read, or no record in any.
        NotADirectoryError: ``--output`` is a file.
    """
    records = [record for run in args.runs for record in read_run(run)]
    found = grouped(records)
    progress = Progress(status)
    written = write_report(records, args.output, progress, runs=args.runs, title=args.title)
    agreement = table(*args.runs, records=records)
    lacking = missing(found, traced=bool(agreement))
    lines = [
        f"{one.title}: {one.why} in {'; '.join(one.groups)}. This measures it: {one.command}"
        for one in lacking
    ]
    if found.replaced:
        count = counted(found.replaced, "earlier measurement")
        lines.append(f"left out for newer ones of the same rows: {count}")
    fronts = {group.name: judge(group) for group in found.groups}
    tables = [front_table(group, stood) for group in found.groups if (stood := fronts[group.name])]
    return Shown(
        parts=(*tables, *lines, f"wrote {written[0]} and {len(written) - 1} files beside it"),
        data={
            "runs": [str(run) for run in args.runs],
            "records": len(records),
            "replaced": found.replaced,
            "files": [str(path) for path in written],
            "missing": [asdict(one) for one in lacking],
            "groups": _data(found, fronts),
            "agreement": agreement,
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
        table.add_column(
            cost.replace("_", " ").replace("ratio", "time,").replace("batch", "batch ")
        )
    places = {cost: {one.row.identity: one for one in each} for cost, each in stood.items()}
    for row in group.rows:
        found = [places[cost].get(row.identity) for cost in stood]
        if any(found):
            table.add_row(row_name(row, named), *(_told(one, named) for one in found))
    return table


def _heading(cost: str) -> str:
    batch = cost.partition("ratio_batch")[2]
    return f"time, batch {batch}" if batch else "GFLOPs"


def _told(one: Standing | None, named: Mapping[str, str]) -> str:
    if one is None:
        return "–"
    words = _VERDICTS[one.verdict]
    return words if one.by is None else f"{words} {row_name(one.by, named)}"


def _data(
    found: Grouped, fronts: Mapping[str, Mapping[str, Sequence[Standing]]]
) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "conditions": {name: getattr(group.first, name) for name in (*CONDITIONS, "version")},
            "rows": [_row(row, fronts[group.name]) for row in group.rows],
        }
        for group in found.groups
    ]


def _row(row: Average, stood: Mapping[str, Sequence[Standing]]) -> dict[str, Any]:
    front: dict[str, Any] = {}
    for cost, each in stood.items():
        for one in each:
            if one.row.identity == row.identity:
                by = None if one.by is None else one.by.first.model
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
