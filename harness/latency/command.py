"""What `latency` does: from parsed arguments to times, tables and files."""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from harness.commands import check_device
from harness.console import Progress
from harness.latency.latency import LatencyPlan, batches_for, measure_latency
from harness.latency.machine import load_1min
from harness.latency.record import LATENCIES, LatencyRecord, earlier, write_latencies
from harness.latency.tables import latency_markdown, latency_tables, table_of
from harness.records import require_appendable
from harness.shown import Shown, Work, json_values
from zoo.files import write_whole

MARKDOWN = "latency.md"


def run_latency(args: argparse.Namespace, status: Console) -> Work:
    """Time models in turn with their dense towers, and write records and tables."""
    check_device(args.device)
    progress = Progress(status)
    plan = LatencyPlan(
        models=tuple(dict.fromkeys(args.models)),
        methods=tuple(dict.fromkeys(args.methods)),
        keeps=tuple(dict.fromkeys(args.keeps)),
        batches=batches_for(args.device, args.batches),
        dtypes=tuple(dict.fromkeys(args.dtypes)),
        ways=tuple(dict.fromkeys(args.ways)),
        threads=tuple(dict.fromkeys(args.threads or [torch.get_num_threads()])),
        rounds=args.rounds,
        seconds=args.seconds,
        device=args.device,
        random_weights=args.random_weights,
    )
    if args.batches is None:
        progress.say(f"batches {' '.join(map(str, plan.batches))}; --batches names others")
    _say_load(progress)
    path = args.output / LATENCIES
    require_appendable(path)
    known = earlier(path, progress, fresh=args.fresh)
    records: list[LatencyRecord] = []
    for table in _tables(measure_latency(plan, known, progress), path):
        yield from latency_tables(table)
        records += table
    write_whole(args.output / MARKDOWN, latency_markdown(records).encode())
    progress.say(f"records: {path}; tables: {args.output / MARKDOWN}")
    data = {"path": str(path), "records": json_values(records)}
    return Shown(parts=(), data=data)


def _tables(
    cells: Iterable[tuple[list[LatencyRecord], list[LatencyRecord]]], path: Path
) -> Iterator[list[LatencyRecord]]:
    """Write what is new, and yield records of a table as soon as all of them are there."""
    table: list[LatencyRecord] = []
    for cell, new in cells:
        if new:
            write_latencies(path, new)
        if table and table_of(table[0]) != table_of(cell[0]):
            yield table
            table = []
        table += cell
    if table:
        yield table


def _say_load(progress: Progress) -> None:
    load, cores = load_1min(), os.cpu_count() or 1
    if load is not None and load > cores / 2:
        progress.say(
            f"this machine is busy: a load of {load:.1f} on {cores} cores in the last minute; "
            "times will be longer and spread wider"
        )
