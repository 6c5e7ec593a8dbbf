"""What `show`, `objects`, `curve` and `speed` do: from parsed arguments to figures and tables."""

import argparse
from collections.abc import Collection
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness.commands import check_device, limit_of
from harness.console import Progress
from harness.golden.budget import Curve
from harness.golden.chart import curve_table, write_curve
from harness.golden.objects import find_objects, objects_table, shares_data
from harness.golden.speed import SpeedConfig, measure_speed, speed_forms
from harness.layout import fewer
from harness.report.show import ShowConfig, find_pictures, show
from harness.shown import Forms, Shown, json_values
from harness.studies.curve import CurveConfig, measure_curve
from zoo.golden import GoldenConfig

# Columns that a narrow terminal does without.
OBJECTS = ("images", "chance", "lift")


def run_show(args: argparse.Namespace, status: Console) -> Shown:
    """Draw images beside the importance of their patches."""
    check_device(args.device)
    pictures = find_pictures(
        args.images,
        dataset=args.dataset,
        classes=[name.strip() for name in args.classes.split(",")] if args.classes else [],
        labels=args.label,
    )
    config = ShowConfig(
        keeps=tuple(args.keep),
        by=args.by,
        methods=tuple(args.methods),
        golden=GoldenConfig(block=args.block, window=args.window, stride=args.stride),
        scale=args.scale,
    )
    told: dict[str, Any] = {"device": args.device, "progress": Progress(status)}
    figure = show(args.model, pictures, config, args.out, **told)
    data = {"path": str(figure.path), "columns": figure.columns, "notes": figure.notes}
    return Shown(parts=(*figure.notes, f"wrote {figure.path}"), data=json_values(data))


def run_objects(args: argparse.Namespace, status: Console) -> Shown:
    """Measure how well rankings find objects."""
    check_device(args.device)
    config = GoldenConfig(block=args.block, window=args.window, stride=args.stride)
    found = find_objects(
        args.model,
        args.dataset,
        args.split,
        limit=limit_of(args),
        scores=args.scores,
        methods=args.methods,
        config=config,
        device=args.device,
        progress=Progress(status),
    )
    title = (
        f"objects of {args.dataset} ({args.split}), {args.model}; golden: {config.window} x "
        f"{config.window} patches, stride {config.stride}, before block {config.block}"
    )
    rankings = [{"ranking": name, **shares_data(shares)} for name, shares in found.items()]
    told = {"model": args.model, "dataset": args.dataset, "split": args.split}
    golden = {"block": config.block, "window": config.window, "stride": config.stride}
    table = objects_table(found, title)
    return Shown(
        parts=(two(table, OBJECTS),),
        data={**told, "golden": golden, "rankings": rankings},
    )


def run_curve(args: argparse.Namespace, status: Console) -> Shown:
    """Measure cheaper golden rankings and write JSON, Markdown and plot."""
    check_device(args.device)
    same = ("model", "split", "block", "seeds", "rounds", "dtype", "device")
    config = CurveConfig(
        datasets=tuple(args.datasets),
        limit=limit_of(args),
        **{name: getattr(args, name) for name in same},
    )
    found = measure_curve(config, Progress(status))
    write_curve(found, args.out)
    status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(curve_forms(found),), data=json_values(found))


def curve_forms(curve: Curve) -> Forms:
    """Return the table of a curve as it is, and with tau and the last difference alone."""
    table = curve_table(curve)
    heads = [str(column.header) for column in table.columns]
    return two(table, [head for head in heads if head.startswith(("time", "match", "top-1"))])


def run_speed(args: argparse.Namespace, status: Console) -> Shown:
    """Measure how fast golden rankings are made and write a record."""
    check_device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads {args.threads}: expected a number from 1")
        torch.set_num_threads(args.threads)
    config = SpeedConfig(
        model=args.model,
        random_weights=args.random_weights,
        dataset=args.dataset,
        split=args.split,
        images=args.images,
        golden=GoldenConfig(block=args.block, window=args.window, stride=args.stride),
        precisions=tuple(args.precisions),
        batches=tuple(args.batches),
        compiled=args.compile,
        rounds=args.rounds,
        device=args.device,
    )
    speed = measure_speed(config, Progress(status))
    if args.out is not None:
        speed.write(args.out)
        status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(speed_forms(speed),), data=json_values(speed))


def two(table: Table, heads: Collection[str]) -> Forms:
    """Return a table as it is, and without some columns."""
    return Forms((table, fewer(table, heads)))
