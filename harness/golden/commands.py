"""What `show`, `objects`, `curve` and `speed` do: from parsed arguments to figures and tables."""

import argparse
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness.commands import check_device
from harness.golden.chart import write_curve
from harness.golden.curve import CurveConfig, measure_curve
from harness.golden.objects import find_objects, objects_table
from harness.golden.pictures import find_pictures
from harness.golden.show import ShowConfig, Shown, show
from harness.golden.speed import SpeedConfig, measure_speed
from harness.golden.speed_table import estimate_table, speed_table
from harness.golden.trade import Curve
from harness.progress import Progress
from zoo.golden import GoldenConfig


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
    return show(args.model, pictures, config, args.out, **told)


def run_objects(args: argparse.Namespace, limit: int | None, status: Console) -> Table:
    """Measure how well rankings find objects."""
    check_device(args.device)
    config = GoldenConfig(block=args.block, window=args.window, stride=args.stride)
    found = find_objects(
        args.model,
        args.dataset,
        args.split,
        limit=limit,
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
    return objects_table(found, title)


def run_curve(args: argparse.Namespace, limit: int | None, status: Console) -> Curve:
    """Measure cheaper golden rankings and write JSON, Markdown and plot."""
    check_device(args.device)
    same = ("model", "split", "block", "seeds", "rounds", "dtype", "device")
    config = CurveConfig(
        datasets=tuple(args.datasets), limit=limit, **{name: getattr(args, name) for name in same}
    )
    found = measure_curve(config, Progress(status))
    write_curve(found, args.out)
    status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    return found


def run_speed(args: argparse.Namespace, status: Console) -> list[Table]:
    """Measure how fast golden rankings are made and write a record."""
    check_device(args.device)
    for name in ("threads", "estimate"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected a number from 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    same = ("model", "random_weights", "dataset", "split", "images", "rounds", "device")
    config = SpeedConfig(
        golden=GoldenConfig(block=args.block, window=args.window, stride=args.stride),
        precisions=tuple(args.precisions),
        batches=tuple(args.batches),
        compiled=args.compile,
        **{name: getattr(args, name) for name in same},
    )
    speed = measure_speed(config, Progress(status))
    if args.out is not None:
        speed.write(args.out)
        status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    tables = [speed_table(speed)]
    return tables if args.estimate is None else [*tables, estimate_table(speed, args.estimate)]
