"""What `fit prompts` does: from parsed arguments to a file."""

import argparse
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from harness.commands import check_device
from harness.conditions import DENSE
from harness.datasets import get_dataset
from harness.measure.rows import Variant, rows_of
from harness.measure.tuning import Tuner
from harness.progress import Progress
from harness.sampling import draw
from harness.shown import Shown, json_values
from harness.towers import load_clip, split_method
from zoo.clip import ClipParts
from zoo.files import write_whole
from zoo.prompt_learner import TuneConfig
from zoo.sizes import MODELS
from zoo.weights import fingerprint


@dataclass(frozen=True, kw_only=True)
class Report:
    """What tuning gave and took.

    Attributes:
        path: the file.
        parameters: numbers learned.
        seconds: time taken, near 0 if these prompts were there already.
        memory_mib: most memory of this process so far; on CUDA, of its tensors.
        train: images learnt from.
        val: images that it was stopped by.
        top1: on these, tuned.
        untuned: on these, by the templates.
    """

    path: Path
    parameters: int
    seconds: float
    memory_mib: float
    train: int
    val: int
    top1: float
    untuned: float

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"wrote {self.path}: {self.parameters:,} learned parameters, {self.train} images, "
            f"{self.seconds:.1f} s, {self.memory_mib:,.0f} MiB at most; top-1 on the {self.val} "
            f"validation images {100 * self.top1:.1f} % (untuned {100 * self.untuned:.1f} %)"
        )


def run_prompts(args: argparse.Namespace, status: Console) -> Shown:
    """Tune prompts and say what that took and gave."""
    report = tuned(args, status)
    return Shown(parts=(str(report),), data=json_values(report))


def tuned(args: argparse.Namespace, status: Console) -> Report:
    """Tune prompts and write them."""
    config = tune_config(args)
    check_device(args.device)
    dataset = get_dataset(args.dataset)
    drawn = draw(dataset, args.shots, args.seed)  # refuses before anything is loaded
    parts, row, tag = load_row(args.model)
    weights = fingerprint(row.vit)
    parts.model.to(args.device)
    tuner = Tuner(
        parts, dataset, model=dense_name(row), tag=tag, weights=weights, progress=Progress(status)
    )
    begin = time.perf_counter()
    found = tuner.tuned([row], args.shots, args.seed, config)[row.key]
    seconds = time.perf_counter() - begin
    path = found.file.path
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.out, path.read_bytes())
        path = args.out
    untuned, top1 = tuner.judge(row, found, drawn.val)
    return Report(
        path=path,
        parameters=found.file.provenance["parameters"],
        seconds=seconds,
        memory_mib=_memory_mib(args.device),
        train=len(drawn.train),
        val=len(drawn.val),
        top1=top1,
        untuned=untuned,
    )


def load_row(name: str) -> tuple[ClipParts, Variant, str]:
    """Load a model with its text tower, dense or reduced.

    Args:
        name: one of our models, or any dense tower of ``load_clip`` that has a text tower.

    Returns:
        The towers, the model as a row, and the weight tag.

    Raises:
        ValueError: unknown name, or no text tower here.
    """
    dense, method, keep = split_method(name)
    parts, arch, tag = load_clip(dense)
    (row,) = rows_of(parts.model.visual, arch, tag, [(method or DENSE, keep)])
    parts.model.visual = row.vit
    return parts, row, tag


def dense_name(row: Variant) -> str:
    """Return the name of a row's dense tower."""
    known = MODELS.get(row.model)
    return row.model if known is None else known.dense


def tune_config(args: argparse.Namespace) -> TuneConfig:
    """Return the recipe that the flags of ``fit prompts`` and ``study`` ask for.

    ``study`` has flags of the same names for predictors; there the rest is the default.

    Raises:
        ValueError: a value out of range.
    """
    flags = vars(args)
    names = ["tokens", "depth", "class_specific", "init", "anchor", "rounds", "seed"]
    if args.command == "fit prompts":
        names += ["patience", "batch", "learning_rate", "visual_rate"]
        names += ["augment", "dtype", "checkpointing"]
    told = {name: flags[name] for name in names}
    return TuneConfig(**told, count=args.num_tokens, coupled=not args.independent)


def _memory_mib(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
