"""The flags of every subcommand."""

import argparse
from pathlib import Path
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``command`` in what it parses is a key of ``cli.COMMANDS``."""
    parser = argparse.ArgumentParser(
        prog="python -m harness", description="Compare token reduction methods for CLIP ViTs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_eval(commands)
    _add_list(commands)
    _add_floor(commands)
    _add_rank(commands)
    _add_fit(commands)
    return parser


def _add(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"example: python -m harness {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=example.split(maxsplit=1)[0])
    return parser


def _conditions(parser: argparse.ArgumentParser, limit: int) -> None:
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=limit, help="images per dataset")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of shots")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")


def _add_compare(commands: Any) -> None:
    parser = _add(
        commands,
        "compare",
        "Measure methods side by side: accuracy, GFLOPs, latency, agreement.",
        "compare --methods patchrank evit --keeps 0.7 0.5 --datasets fashion --shots 0 16",
    )
    parser.add_argument("--models", nargs="+", default=["clip_vit_s14"], help="dense names")
    parser.add_argument("--methods", nargs="+", help="default: all; see `list`")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.6, 0.3], help="in (0, 1]")
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    parser.add_argument("--shots", nargs="+", type=int, default=[0], help="0: text classifier")
    parser.add_argument("--rounds", type=int, default=5, help="latency samples")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32], help="for latency")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    _conditions(parser, 250)


def _add_eval(commands: Any) -> None:
    parser = _add(
        commands,
        "eval",
        "Measure one model's accuracy and agreement on one dataset.",
        "eval clip_vit_s14_patchrank60 --dataset emoji",
    )
    parser.add_argument("model", help="a model's name, dense or reduced")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--shots", type=int, default=0, help="0: text classifier")
    _conditions(parser, 250)


def _add_list(commands: Any) -> None:
    _add(commands, "list", "Show models, methods, weights and datasets.", "list")


def _add_floor(commands: Any) -> None:
    parser = _add(
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
    _conditions(parser, 250)


def _add_rank(commands: Any) -> None:
    parser = _add(
        commands,
        "rank",
        "Make golden rankings of a dataset's images; a second call goes on where one stopped.",
        "rank --model clip_vit_s14 --dataset fashion --split train --limit 100 --stride 2",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--score", default="preservation", help="preservation, label, confidence")
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--window", type=int, default=2, help="side in patches")
    parser.add_argument("--stride", type=int, default=1, help="in patches")
    parser.add_argument("--out", type=Path, help="default: the user's cache")
    _conditions(parser, 250)


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser("fit", help="Fit a predictor.")
    kinds = fit.add_subparsers(required=True, metavar="WHAT")
    parser = _add(
        kinds,
        "predictor",
        "Fit a predictor to golden rankings, so that pretrained=True finds it.",
        "fit predictor --model clip_vit_b16.openai --dataset fashion",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--dataset", nargs="*", default=[], help="rank train and val images first")
    parser.add_argument("--limit", type=int, default=250, help="images to rank per split")
    parser.add_argument("--block", type=int, default=3, help="reduction point, if ranking first")
    parser.add_argument("--rankings", nargs="*", type=Path, default=[], help="to learn from")
    parser.add_argument("--val", nargs="*", type=Path, default=[], help="for early stopping")
    parser.add_argument("--arch", default="conv", help="conv, mixer or mlp")
    parser.add_argument("--loss", default="listnet", help="listnet or mse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: the user's cache")
