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
    _add_show(commands)
    _add_objects(commands)
    _add_curve(commands)
    _add_speed(commands)
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
    parser.add_argument("--match", metavar="WHAT", help="gflops: rows of equal cost, not keep")
    parser.add_argument("--match-to", default="patchrank", help="has --keeps, others its cost")
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
        "Make golden rankings of images; the same command goes on where it stopped.",
        "rank --model clip_vit_s14 --dataset fashion --split train --limit 100 --stride 2",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", help="see `list`")
    images.add_argument("--images", type=Path, metavar="FOLDER", help="any images, unlabelled")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=250, help="images; class-balanced")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--score", default="preservation", help="preservation, label, confidence")
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--window", type=int, help="side in patches; 2 if nothing is said")
    parser.add_argument("--stride", type=int, help="in patches; 1 if nothing is said")
    parser.add_argument("--greedy", type=int, metavar="K", help="iterative search, K go per round")
    parser.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    parser.add_argument("--budget", type=float, metavar="N", help="best way within N passes")
    parser.add_argument("--out", type=Path, help="folder; default: in the user's cache")
    parser.add_argument("--shard-size", type=int, default=64, help="images per file")
    parser.add_argument("--batch", type=int, help="sequences per pass; default: from free memory")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16, or auto: the fastest"
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--device", default="cpu", help="such as cuda; torchrun shares them out")


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
    parser.add_argument(
        "--dataset", nargs="*", default=[], help="its rankings that ship; without them, rank first"
    )
    parser.add_argument("--limit", type=int, default=250, help="images to rank per split")
    parser.add_argument("--block", type=int, help="reduction point; 3 if nothing is said")
    path: dict[str, Any] = {"nargs": "*", "type": Path, "default": [], "metavar": "PATH"}
    parser.add_argument("--rankings", **path, help="stores or files of rankings to learn from")
    parser.add_argument("--val", **path, help="the same, of other images, for early stopping")
    parser.add_argument("--shots", type=int, metavar="K", help="images per class; default: all")
    parser.add_argument("--arch", default="conv", help="see zoo/architectures.py")
    parser.add_argument("--width", type=int, default=64, help="channels inside the predictor")
    parser.add_argument("--loss", default="listnet", help="see zoo/losses.py")
    parser.add_argument("--epochs", type=int, default=40, help="at most")
    parser.add_argument("--patience", type=int, default=8, help="epochs without a better one")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shots")
    parser.add_argument("--out", type=Path, help="default: the user's cache")


def _add_show(commands: Any) -> None:
    parser = _add(
        commands,
        "show",
        "Draw images beside the importance of their patches by several rankings, as PNG.",
        "show fashion:val:3 photo.jpg --keep 0.6 0.3 --dataset fashion --label bag",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, or dataset:split:index")
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.6], help="in (0, 1)")
    parser.add_argument("--by", help="ranking that decides what is kept; default: the predictor")
    parser.add_argument("--methods", nargs="*", default=[], help="more columns; see `list`")
    parser.add_argument("--dataset", help="whose classes the files may show")
    parser.add_argument("--classes", default="", help="their names instead, as a,b,c")
    parser.add_argument("--label", nargs="*", default=[], help="class of all files, or of each")
    _golden_windows(parser)
    parser.add_argument("--out", type=Path, default=Path("show.png"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the figure's size")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")


def _add_objects(commands: Any) -> None:
    parser = _add(
        commands,
        "objects",
        "Measure how well rankings find the object, where a dataset knows its mask.",
        "objects --dataset fashion --split val --limit 60 --stride 2",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--dataset", default="fashion")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=60, help="images")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--scores", nargs="*", default=["preservation", "label", "confidence"])
    parser.add_argument("--methods", nargs="*", default=["patchrank", "clsattn", "random"])
    _golden_windows(parser)
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")


def _golden_windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--window", type=int, default=2, help="side in patches")
    parser.add_argument("--stride", type=int, default=1, help="in patches")


def _add_curve(commands: Any) -> None:
    parser = _add(
        commands,
        "curve",
        "Measure what cheaper golden rankings cost and are worth; `rank --budget` picks from it.",
        "curve --model clip_vit_s14 --datasets fashion emoji --split val --limit 60",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--seeds", type=int, default=3, help="random orders")
    parser.add_argument("--rounds", type=int, default=3, help="timings; 0: none")
    parser.add_argument("--out", type=Path, default=Path("results/curve"), help="folder")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=60, help="images per dataset")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="of removed windows, exact excepted")


def _add_speed(commands: Any) -> None:
    parser = _add(
        commands,
        "speed",
        "Measure how fast golden rankings are made, against the straightforward way.",
        "speed --model clip_vit_b16 --random-weights --stride 2 --images 1 --estimate 1281167",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--random-weights", action="store_true", help="where none can be had")
    parser.add_argument("--dataset", default="fashion", help="where images come from")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--images", type=int, default=4, help="how many")
    _golden_windows(parser)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--batches", nargs="*", type=int, default=[], help="default: its own choice"
    )
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each way")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--estimate", type=int, metavar="IMAGES", help="what so many would take")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
