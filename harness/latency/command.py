"""What `latency` does: from parsed arguments to times, tables and files."""

import argparse
import os
from dataclasses import asdict

import torch
from rich.console import Console

from harness.commands import check_device
from harness.latency.plan import LatencyPlan, batches_for
from harness.latency.record import LatencyRecord, earlier, write_latencies
from harness.latency.run import measure_latency
from harness.latency.tables import WIDE, latency_markdown, latency_tables
from harness.progress import Progress
from harness.shown import Shown
from zoo.files import write_whole

JSONL, MARKDOWN = "latency.jsonl", "latency.md"


def run_latency(args: argparse.Namespace, status: Console) -> Shown:
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
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / JSONL
    known = earlier(path, progress, fresh=args.fresh)
    records: list[LatencyRecord] = []
    for cell, new in measure_latency(plan, known, progress):
        if new:
            write_latencies(path, new)
        records += cell
    write_whole(args.output / MARKDOWN, latency_markdown(records).encode())
    progress.say(f"records: {path}; tables: {args.output / MARKDOWN}")
    data = {"records": str(path), "rows": [asdict(record) for record in records]}
    # Where there is no width, as in a pipe, nothing is left out.
    wide = status.width >= WIDE or not (status.is_terminal or "COLUMNS" in os.environ)
    return Shown(parts=tuple(latency_tables(records, wide=wide)), data=data)


def _say_load(progress: Progress) -> None:
    if not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        progress.say(
            f"this machine is busy: a load of {load:.1f} on {cores} cores in the last minute; "
            "times will be longer and spread wider"
        )
