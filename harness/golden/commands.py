"""What `show`, `objects`, `curve` and `speed` do: from parsed arguments to figures and tables."""

import argparse
from collections.abc import Collection
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness.commands import check_device, limit_of
from harness.golden.budget import Curve
from harness.golden.chart import curve_table, write_curve
from harness.golden.estimate import Estimate, estimates
from harness.golden.objects import find_objects, objects_table, shares_data
from harness.golden.speed import SpeedConfig, measure_speed
from harness.golden.speed_table import estimate_table, speed_table
from harness.layout import fewer
from harness.progress import Progress
from harness.report.show import ShowConfig, find_pictures, show
from harness.shown import Forms, Shown, json_values
from harness.studies.curve import CurveConfig, measure_curve
from zoo.golden import GoldenConfig

# Columns that a narrow terminal does without.
OBJECTS = ("images", "chance", "lift")
UNTOLD = ("batch", "tau (least)", "G per image", "G/s", "matmuls G/s", "share of matmuls")
UNTOLD_ESTIMATE = ("passes", "in", "G per image", "64 A100", "64 H100")


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
    tables, told = [two(speed_table(speed), UNTOLD)], json_values(speed)
    if args.estimate is not None:
        tables.append(two(estimate_table(speed, args.estimate), UNTOLD_ESTIMATE))
        told["estimates"] = [_estimate(one) for one in estimates(speed, args.estimate)]
    return Shown(parts=tuple(tables), data=told)


def two(table: Table, heads: Collection[str]) -> Forms:
    """Return a table as it is, and without some columns."""
    return Forms((table, fewer(table, heads)))


def _estimate(one: Estimate) -> dict[str, Any]:
    gpus = {f"{count} {name}": list(seconds) for (name, count), seconds in one.gpu_s.items()}
    return {**json_values(one), "gpu_s": gpus}
