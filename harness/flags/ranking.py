"""The flags of the subcommands that make and look at golden rankings."""

from pathlib import Path
from typing import Any

from harness.flags.shared import add, data, golden_windows


def add_rank(commands: Any) -> None:
    """Add ``rank``."""
    parser = add(
        commands,
        "rank",
        "Make golden rankings of images; the same command goes on where it stopped.",
        "rank --model clip_vit_s14 --dataset fashion --split train --limit 100 --stride 2",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", help="see `datasets list`; or PREFIX:PATH")
    images.add_argument("--images", type=Path, metavar="FOLDER", help="any images, unlabelled")
    data(parser)
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


def add_show(commands: Any) -> None:
    """Add ``show``."""
    parser = add(
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
    data(parser)
    parser.add_argument("--classes", default="", help="their names instead, as a,b,c")
    parser.add_argument("--label", nargs="*", default=[], help="class of all files, or of each")
    golden_windows(parser)
    parser.add_argument("--out", type=Path, default=Path("show.png"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the figure's size")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")


def add_objects(commands: Any) -> None:
    """Add ``objects``."""
    parser = add(
        commands,
        "objects",
        "Measure how well rankings find the object, where a dataset knows its mask.",
        "objects --dataset fashion --split val --limit 60 --stride 2",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--dataset", default="fashion")
    data(parser)
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=60, help="images")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--scores", nargs="*", default=["preservation", "label", "confidence"])
    parser.add_argument("--methods", nargs="*", default=["patchrank", "clsattn", "random"])
    golden_windows(parser)
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")


def add_curve(commands: Any) -> None:
    """Add ``curve``."""
    parser = add(
        commands,
        "curve",
        "Measure what cheaper golden rankings cost and are worth; `rank --budget` picks from it.",
        "curve --model clip_vit_s14 --datasets fashion emoji --split val --limit 60",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    data(parser)
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--seeds", type=int, default=3, help="random orders")
    parser.add_argument("--rounds", type=int, default=3, help="timings; 0: none")
    parser.add_argument("--out", type=Path, default=Path("results/curve"), help="folder")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=60, help="images per dataset")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="of removed windows, exact excepted")


def add_speed(commands: Any) -> None:
    """Add ``speed``."""
    parser = add(
        commands,
        "speed",
        "Measure how fast golden rankings are made, against the straightforward way.",
        "speed --model clip_vit_b16 --random-weights --stride 2 --images 1 --estimate 1281167",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--random-weights", action="store_true", help="where none can be had")
    parser.add_argument("--dataset", default="fashion", help="where images come from")
    data(parser)
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--images", type=int, default=4, help="how many")
    golden_windows(parser)
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
