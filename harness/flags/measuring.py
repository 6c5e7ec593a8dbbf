"""The flags of the subcommands that measure models."""

import argparse
from pathlib import Path
from typing import Any

from harness.flags.shared import add, conditions, data
from harness.plan import TRACED, Plan


def add_compare(commands: Any) -> None:
    """Add ``compare``."""
    parser = add(
        commands,
        "compare",
        "Measure methods side by side: accuracy, cost, latency, agreement; or tell what changed.",
        "compare --methods patchrank evit --keeps 0.7 0.5 --datasets fashion --shots 0 16",
    )
    text = "two files of records, or their folders: what changed; nothing is measured then"
    runs = parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", default=[], help=text)
    # Not "*": that takes nothing before the first flag, and refuses the runs after it.
    runs.required = False
    parser.add_argument("--models", nargs="+", default=["clip_vit_s14"], help="dense names")
    parser.add_argument("--methods", nargs="+", help="default: all; see `list`")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.6, 0.3], help="in (0, 1]")
    parser.add_argument("--match", metavar="WHAT", help="gflops: rows of equal cost, not keep")
    parser.add_argument("--match-to", default="patchrank", help="has --keeps, others its cost")
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    parser.add_argument("--shots", nargs="+", type=int, default=[0], help="0: text classifier")
    _learned(parser)
    parser.add_argument("--seeds", type=int, default=Plan.seeds, help="with shots; from --seed on")
    parser.add_argument("--rounds", type=int, default=5, help="latency samples")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32], help="for latency")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    text = "images of each dataset whose kept patches are stored; 0: none"
    parser.add_argument("--traces", type=int, default=TRACED, metavar="N", help=text)
    text = "store no small copies of these images"
    parser.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help=text)
    data(parser)
    conditions(parser, 250)


def _learned(parser: argparse.ArgumentParser) -> None:
    """Add what is learned from shots."""
    text = "learned from shots: t text, v visual, vt both, probe a linear classifier instead"
    parser.add_argument("--tokens", default=Plan.tokens, help=text)
    parser.add_argument("--num-tokens", type=int, default=Plan.num_tokens, help="learned tokens")


def add_eval(commands: Any) -> None:
    """Add ``eval``."""
    parser = add(
        commands,
        "eval",
        "Measure one model's accuracy and agreement on one dataset.",
        "eval clip_vit_s14_patchrank60 --dataset emoji",
    )
    parser.add_argument("model", help="a model's name, dense or reduced")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--shots", type=int, default=0, help="0: text classifier")
    _learned(parser)
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="learned before; no --shots")
    data(parser)
    conditions(parser, 250)


def add_list(commands: Any) -> None:
    """Add ``list``."""
    add(commands, "list", "Show models, methods, weights and datasets.", "list")


def add_floor(commands: Any) -> None:
    """Add ``floor``."""
    parser = add(
        commands,
        "floor",
        "Measure how far methods are above random pruning, over several random orders.",
        "floor --methods golden patchrank clsattn --keeps 0.6 0.5 0.3 --split val --full",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--methods", nargs="+", default=["golden", "patchrank", "clsattn"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.6, 0.5, 0.3])
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    parser.add_argument("--seeds", type=int, default=3, help="random orders")
    parser.add_argument("--rankings", nargs="*", type=Path, default=[], help="other golden files")
    data(parser)
    conditions(parser, 250)
