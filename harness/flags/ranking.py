"""The flags of the subcommands that make and look at golden rankings."""

from pathlib import Path

from harness.flags.command import Command, CommandParser
from harness.flags.shared import (
    SPLITS,
    block,
    data,
    datasets,
    device,
    golden_windows,
    images,
    machine,
    rounds,
    seeds,
)


def _rank(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is ranked")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    one = what.add_mutually_exclusive_group(required=True)
    one.add_argument("--dataset", metavar="NAME", help="see `datasets list`; or PREFIX:PATH")
    one.add_argument("--images", type=Path, metavar="FOLDER", help="any images, unlabelled")
    images(what, 250, "test", "images; class-balanced")
    data(parser)
    how = parser.add_argument_group("golden rankings")
    how.add_argument("--score", default="preservation", help="preservation, label, confidence")
    block(how)
    how.add_argument(
        "--window", type=int, metavar="N", help="side in patches; 2 if nothing is said"
    )
    how.add_argument("--stride", type=int, metavar="N", help="in patches; 1 if nothing is said")
    how.add_argument("--greedy", type=int, metavar="K", help="iterative search, K go per round")
    how.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    how.add_argument("--budget", type=float, metavar="N", help="best way within N passes")
    where = parser.add_argument_group("conditions")
    where.add_argument(
        "--batch", type=int, metavar="N", help="sequences per pass; default: from free memory"
    )
    where.add_argument("--compile", action="store_true", help="use torch.compile")
    device(where, "such as cuda, one per worker")
    where.add_argument("--workers", type=int, metavar="N", help="Ray actors that share the work")
    where.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16, or auto: the fastest"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--out", type=Path, metavar="DIR", help="folder; default: in the user's cache"
    )
    files.add_argument("--shard-size", type=int, metavar="N", default=64, help="images per file")


def _show(parser: CommandParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, or dataset:split:index")
    what = parser.add_argument_group("what is drawn")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument(
        "--keep", nargs="+", type=float, metavar="RATE", default=[0.6], help="in (0, 1)"
    )
    what.add_argument(
        "--by", metavar="RANKING", help="that decides what is kept; default: the predictor"
    )
    what.add_argument(
        "--methods", nargs="*", metavar="METHOD", default=[], help="more columns; see `list`"
    )
    what.add_argument("--dataset", metavar="NAME", help="whose classes the files may show")
    what.add_argument(
        "--classes", metavar="NAMES", default="", help="their names instead, as a,b,c"
    )
    what.add_argument(
        "--label", nargs="*", metavar="CLASS", default=[], help="of all files, or of each"
    )
    data(parser)
    golden_windows(parser)
    where = parser.add_argument_group("conditions and files")
    where.add_argument("--out", type=Path, metavar="FILE", default=Path("show.png"), help="a PNG")
    where.add_argument("--scale", type=float, metavar="X", default=1.0, help="of the figure's size")
    device(where)


def _objects(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument("--dataset", metavar="NAME", default="fashion", help="one with masks")
    what.add_argument(
        "--scores",
        nargs="*",
        metavar="SCORE",
        default=["preservation", "label", "confidence"],
        help="golden ones",
    )
    what.add_argument(
        "--methods",
        nargs="*",
        metavar="METHOD",
        default=["patchrank", "clsattn", "random"],
        help="see `list`",
    )
    data(parser)
    golden_windows(parser)
    how = parser.add_argument_group("conditions")
    images(how, 60, "val", "images")
    device(how)


def _curve(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    datasets(what)
    block(what)
    seeds(what, 3, "random orders")
    data(parser)
    how = parser.add_argument_group("conditions and files")
    images(how, 60, "val")
    rounds(how, 3, "timings; 0: none")
    machine(how, what="of removed windows, exact excepted")
    how.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results/curve"), help="folder"
    )


def _speed(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument("--random-weights", action="store_true", help="where none can be had")
    what.add_argument("--dataset", metavar="NAME", default="fashion", help="where images are from")
    what.add_argument("--split", default="val", choices=SPLITS, help="of the dataset")
    what.add_argument("--images", type=int, metavar="N", default=4, help="how many")
    what.add_argument(
        "--precisions",
        nargs="+",
        metavar="DTYPE",
        default=["float32", "bfloat16"],
        help="of the engine",
    )
    what.add_argument(
        "--batches", nargs="*", type=int, metavar="N", default=[], help="default: its own choice"
    )
    what.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    data(parser)
    golden_windows(parser)
    how = parser.add_argument_group("conditions and files")
    rounds(how, 5, "samples of each way")
    how.add_argument("--threads", type=int, metavar="N", help="default: torch's choice")
    device(how)
    how.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the record")


COMMANDS = (
    Command(
        path="rank",
        group="rankings",
        what="Make golden rankings of images; the same command goes on where it stopped.",
        flags=_rank,
        run="harness.golden.rank_command:run_rank",
        examples=(
            (
                "rank --dataset fashion --split train --limit 100 --stride 2",
                "100 training images, as many of each class",
            ),
            ("rank --images photos --out ranked --full", "any folder of images"),
            ("rank --dataset emoji --budget 20", "the best way within 20 passes per image"),
        ),
        output="where the store is, on standard output; Parquet files in --out",
    ),
    Command(
        path="show",
        group="rankings",
        what="Draw images beside the importance of their patches by several rankings, as PNG.",
        flags=_show,
        run="harness.golden.commands:run_show",
        examples=(
            ("show fashion:val:3 --keep 0.6 0.3", "an image of a dataset"),
            ("show photo.jpg --dataset fashion --label bag", "a file of a known class"),
        ),
        output="the figure in --out; its notes on standard output",
    ),
    Command(
        path="objects",
        group="rankings",
        what="Measure how well rankings find the object, where a dataset knows its mask.",
        flags=_objects,
        run="harness.golden.commands:run_objects",
        examples=(("objects --dataset fashion --split val --limit 60 --stride 2", "60 images"),),
        output="a table on standard output; no files",
    ),
    Command(
        path="curve",
        group="rankings",
        what="Measure what cheaper golden rankings cost and are worth; `rank --budget` picks from "
        "it.",
        flags=_curve,
        run="harness.golden.commands:run_curve",
        examples=(("curve --datasets fashion emoji --split val --limit 60", "two datasets"),),
        output="a table on standard output; curve.json, curve.md and curve.svg in --out. The same "
        "command goes on where it stopped",
    ),
    Command(
        path="speed",
        group="rankings",
        what="Measure how fast golden rankings are made, against the straightforward way.",
        flags=_speed,
        run="harness.golden.commands:run_speed",
        examples=(
            ("speed --images 2 --stride 2 --out speed.json", "on the tower that ships"),
            ("speed --model clip_vit_b16 --random-weights --stride 2 --images 1", "a larger one"),
        ),
        output="a table on standard output; the record in --out",
    ),
)
