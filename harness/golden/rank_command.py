"""What `rank` does: from parsed arguments to a store."""

import argparse

from rich.console import Console

from harness.commands import check_device
from harness.conditions import DTYPES
from harness.datasets import get_dataset
from harness.golden.job import AUTO, Job, Source
from harness.golden.rank import Ranked, rank
from harness.golden.work import team
from harness.progress import Progress
from harness.shown import Shown
from zoo.golden import GoldenConfig
from zoo.reducer import expected


def run_rank(args: argparse.Namespace, status: Console) -> Shown:
    """Make golden rankings; under torchrun, a part of them."""
    done = ranked(args, status)
    if not done.leads:
        return Shown(parts=(), data=None)
    text = f"wrote {done.path}: {done.images} of {done.total} images"
    told = {"path": str(done.path), "images": done.images, "images_there": done.total}
    return Shown(parts=(text,), data=told)


def ranked(args: argparse.Namespace, status: Console) -> Ranked:
    """Make golden rankings, and return where they are."""
    with team(args.device) as crew:
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
        )
        return rank(job, Progress(status), crew)


def _golden_config(args: argparse.Namespace) -> GoldenConfig:
    """Return the settings that the flags of ``rank`` ask for.

    Raises:
        ValueError: a value out of range, or one that ``--budget`` picks.
    """
    flags = {"window": "window", "stride": "stride", "greedy": "greedy", "approx": "approximate"}
    given = {flag: vars(args)[flag] for flag in flags if vars(args)[flag] is not None}
    if args.budget is not None and given:
        raise ValueError(
            f"--budget {args.budget:g} with --{next(iter(given))}: a budget picks window, stride "
            "and approximation itself; give one of the two"
        )
    named = {flags[flag]: value for flag, value in given.items()}
    return GoldenConfig(score=args.score, block=args.block, **named)
