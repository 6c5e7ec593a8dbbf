"""What `rank` does: from parsed arguments to a store."""

import argparse

from rich.console import Console

from harness.commands import check_device
from harness.conditions import DTYPES
from harness.console import Progress
from harness.datasets import get_dataset
from harness.golden.rank import AUTO, Job, Source, rank
from harness.shown import Shown
from zoo.golden import GoldenConfig
from zoo.reducer import expected


def run_rank(args: argparse.Namespace, status: Console) -> Shown:
    """Make golden rankings and say where they are."""
    if args.dtype not in (AUTO, *DTYPES):
        raise ValueError(f"--dtype {args.dtype!r}: {expected(args.dtype, (AUTO, *DTYPES))}")
    check_device(args.device)
    if args.images is None:
        source = Source.of(get_dataset(args.dataset), args.split)
    else:
        source = Source.folder(args.images)
    job = Job(
        model=args.model,
        source=source,
        config=_golden_config(args),
        budget=args.budget,
        limit=None if args.full else args.limit,
        out=args.out,
        shard_size=args.shard_size,
        batch=args.batch,
        dtype=args.dtype,
        compiled=args.compile,
        device=args.device,
        workers=args.workers,
    )
    ranked = rank(job, Progress(status))
    text = f"wrote {ranked.path}: {ranked.images} of {ranked.total} images"
    data = {"path": str(ranked.path), "images": ranked.images, "images_there": ranked.total}
    return Shown(parts=(text,), data=data)


def _golden_config(args: argparse.Namespace) -> GoldenConfig:
    """Return the settings that the flags of ``rank`` ask for.

    Raises:
        ValueError: a value out of range, or one that ``--budget`` picks.
    """
    flags = {"window": "window", "stride": "stride", "greedy": "greedy", "approx": "approximate"}
    values = {flag: vars(args)[flag] for flag in flags if vars(args)[flag] is not None}
    if args.budget is not None and values:
        raise ValueError(
            f"--budget {args.budget:g} with --{next(iter(values))}: a budget picks window, stride "
            "and approximation itself; give one of the two"
        )
    settings = {flags[flag]: value for flag, value in values.items()}
    return GoldenConfig(score=args.score, block=args.block, **settings)
