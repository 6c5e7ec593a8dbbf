"""What the subcommands do: from parsed arguments to files and tables."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.compare import compare
from harness.datasets import get_dataset
from harness.fit import fit
from harness.floor import floor
from harness.golden.rank import rank
from harness.golden.store import Rankings
from harness.plan import DTYPES, Plan
from harness.progress import Progress
from harness.records import Record, read_records, write_records
from harness.report import markdown_table, write_plot, write_report
from harness.table import comparison_table, floor_table
from harness.variants import DENSE, known_methods
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.reducer import expected
from zoo.registry import MODELS

WIDE = 165  # columns of a terminal that take the whole table


def run_compare(
    args: argparse.Namespace, limit: int | None, status: Console, output: Console
) -> None:
    """Measure, print a table per dataset, write records, report, Markdown and plot."""
    _check(args)
    args.output.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        **_conditions(args, limit),
        models=tuple(args.models),
        methods=tuple(args.methods or known_methods()),
        keeps=tuple(args.keeps),
        datasets=tuple(args.datasets),
        shots=tuple(args.shots),
        batches=tuple(args.batches),
        rounds=args.rounds,
    )
    path = args.output / "records.jsonl"
    known = read_records(path) if path.is_file() and not args.fresh else []
    records: list[Record] = []
    for group in compare(plan, known, Progress(status)):
        fresh = [record for record in group if record not in known]
        if fresh:
            write_records(path, fresh)
        records += group
        output.print(comparison_table(group, wide=output.width >= WIDE))
    write_report(records, args.output / "report.html", "Token reduction for CLIP, side by side")
    write_plot(records, args.output / "accuracy_gflops.svg")
    for name, summary in (("table.md", False), ("summary.md", True)):
        text = markdown_table(records, summary=summary)
        (args.output / name).write_text(text, encoding="utf-8")
    text = f"records: {path}; report: {args.output / 'report.html'}"
    status.print(text, highlight=False, soft_wrap=True)


def run_eval(args: argparse.Namespace, limit: int | None, status: Console) -> list[Record]:
    """Measure one model beside its dense tower."""
    _check(args)
    name, _, tag = args.model.partition(".")
    if name not in MODELS:
        raise ValueError(f"model {name!r}: {expected(name, MODELS)}")
    parts = MODELS[name]
    dense = str(replace(parts, method=None, percent=100))
    plan = Plan(
        **_conditions(args, limit),
        models=(f"{dense}.{tag}" if tag else dense,),
        methods=(parts.method or DENSE,),
        keeps=(parts.percent / 100,),
        datasets=(args.dataset,),
        shots=(args.shots,),
        batches=(),
    )
    return next(compare(plan, [], Progress(status)))


def run_floor(
    args: argparse.Namespace, limit: int | None, status: Console, output: Console
) -> None:
    """Measure methods against random pruning and print a table per dataset."""
    _check(args)
    plan = Plan(
        **_conditions(args, limit),
        models=(args.model,),
        methods=tuple(args.methods),
        keeps=tuple(args.keeps),
        datasets=tuple(args.datasets),
    )
    given = [Rankings.read(path) for path in args.rankings]
    for rows in floor(plan, args.seeds, Progress(status), given):
        output.print(floor_table(rows, args.seeds))


def run_rank(args: argparse.Namespace, limit: int | None, status: Console) -> Path:
    """Make golden rankings."""
    _check(args)
    return rank(
        args.model,
        get_dataset(args.dataset),
        args.split,
        GoldenConfig(score=args.score, block=args.block, window=args.window, stride=args.stride),
        limit=limit,
        dtype=args.dtype,
        device=args.device,
        out=args.out,
        progress=Progress(status),
    )


def run_fit(args: argparse.Namespace, status: Console) -> tuple[Path, float]:
    """Fit a predictor, ranking images first if no rankings are given."""
    config = FitConfig(arch=args.arch, loss=args.loss, seed=args.seed)
    train, val = list(args.rankings), list(args.val)
    for name in args.dataset:
        for split, files in (("train", train), ("val", val)):
            files.append(
                rank(
                    args.model,
                    get_dataset(name),
                    split,  # type: ignore[arg-type]
                    GoldenConfig(block=args.block),
                    limit=args.limit,
                    dtype="float32",
                    device="cpu",
                    out=None,
                    progress=Progress(status),
                )
            )
    if not train or not val:
        raise ValueError("nothing to learn from: give --dataset, or --rankings and --val")
    return fit(args.model, train, val, config, out=args.out, progress=Progress(status))


def _conditions(args: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """Return the fields of ``Plan`` that every measuring command takes from the same flags."""
    same = ("split", "seed", "device", "dtype")
    return {"limit": limit, **{name: getattr(args, name) for name in same}}


def _check(args: argparse.Namespace) -> None:
    """Refuse values that would fail late.

    Raises:
        ValueError: dtype, device, keep rate, batch size or rounds.
    """
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype {args.dtype!r}: {expected(args.dtype, DTYPES)}")
    for keep in getattr(args, "keeps", ()):
        if not 0 < keep <= 1:
            raise ValueError(f"--keeps {keep:g}: expected fractions in (0, 1], such as 0.6")
    for option, values in (
        ("batches", getattr(args, "batches", ())),
        ("rounds", [getattr(args, "rounds", 1)]),
    ):
        for value in values:
            if value < 1:
                raise ValueError(f"--{option} {value}: expected a number from 1")
    import torch

    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device!r} can't be used here: {error}") from error
