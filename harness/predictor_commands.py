"""What `fit` and `overhead` do: from parsed arguments to files and tables."""

import argparse
from pathlib import Path

from rich.console import Console

from harness.commands import check
from harness.conditions import device_name
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.fit import fit
from harness.golden.rank import Job, Source, rank
from harness.golden.store import shipped_rankings
from harness.latency.cost import overhead, overhead_table
from harness.progress import Progress
from harness.shown import Shown, json_values
from harness.towers import find_tower, load_tower
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.predictor import ARCHITECTURES


def run_fit(args: argparse.Namespace, status: Console) -> Shown:
    """Fit a predictor and say how well it agrees."""
    path, tau = fitted(args, status)
    text = f"wrote {path}; Kendall tau on the validation images {tau:.3f}"
    return Shown(parts=(text,), data=json_values({"path": path, "validation_tau": tau}))


def fitted(args: argparse.Namespace, status: Console) -> tuple[Path, float]:
    """Fit a predictor, ranking images first where no rankings are given and none ship."""
    config = fit_config(args)
    block = GoldenConfig.block if args.block is None else args.block
    train, val = list(args.rankings), list(args.val)
    tower = load_tower(args.model).name if args.dataset else ""
    for dataset in args.dataset:
        splits: tuple[tuple[SplitName, list[Path]], ...] = (("train", train), ("val", val))
        for split, files in splits:
            shipped = shipped_rankings(tower, dataset, split, block)
            if shipped is not None:
                files.append(shipped)
                continue
            job = Job(
                model=args.model,
                source=Source.of(get_dataset(dataset), split),
                config=GoldenConfig(block=block),
                limit=args.limit,
            )
            files.append(rank(job, Progress(status)).path)
    if not train:
        raise ValueError("nothing to learn from: give --dataset, or --rankings")
    told = {"shots": args.shots, "block": args.block, "out": args.out, "folders": args.images}
    return fit(args.model, train, val, config, progress=Progress(status), **told)


def run_overhead(args: argparse.Namespace, status: Console) -> Shown:
    """Measure predictors beside their tower."""
    check(args)
    tower = find_tower(args.model, random_weights=args.random_weights)
    width = int(tower.vit.embed_dim)
    shapes = [(arch, args.width) for arch in args.archs or ARCHITECTURES]
    if not args.archs:
        shapes.append(("mixer", width))
    for arch, _ in shapes:
        FitConfig(arch=arch, width=args.width)  # refuses what can't be built
    rows = overhead(
        tower.vit.to(args.device),
        shapes,
        batch=args.batch,
        rounds=args.rounds,
        dtype=args.dtype,
        progress=Progress(status),
    )
    title = f"predictors beside {tower.name}, batch {args.batch}, {args.dtype}"
    table = overhead_table(rows, f"{title}, {device_name(args.device)}")
    told = {"model": tower.name, "batch": args.batch, "dtype": args.dtype}
    told |= {"device_name": device_name(args.device), "predictors": json_values(rows)}
    return Shown(parts=(table,), data=told)


def fit_config(args: argparse.Namespace) -> FitConfig:
    """Return the recipe that the flags of ``fit`` and ``study`` ask for.

    Raises:
        ValueError: a value out of range.
    """
    names = ("arch", "width", "loss", "epochs", "patience", "batch", "learning_rate", "seed")
    return FitConfig(**{name: getattr(args, name) for name in names})
