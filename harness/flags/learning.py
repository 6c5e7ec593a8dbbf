"""The flags of the subcommands that fit and study predictors."""

import argparse
from pathlib import Path
from typing import Any

from harness.flags.shared import add, data, golden_windows
from harness.flags.tuning import add_prompts, recipe
from zoo.fit import FitConfig
from zoo.tune_config import TuneConfig


def add_fit(commands: Any) -> None:
    """Add ``fit``."""
    fit = commands.add_parser("fit", help="Fit a predictor, or tune prompts.")
    kinds = fit.add_subparsers(required=True, metavar="WHAT")
    add_prompts(kinds)
    parser = add(
        kinds,
        "predictor",
        "Fit a predictor to golden rankings, so that pretrained=True finds it.",
        "fit predictor --model clip_vit_b16.openai --dataset fashion",
    )
    parser.set_defaults(what="predictor")
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument(
        "--dataset", nargs="*", default=[], help="its rankings that ship; without them, rank first"
    )
    data(parser)
    parser.add_argument("--limit", type=int, default=250, help="images to rank per split")
    parser.add_argument("--block", type=int, help="reduction point; 3 if nothing is said")
    path: dict[str, Any] = {"nargs": "*", "type": Path, "default": [], "metavar": "PATH"}
    parser.add_argument("--rankings", **path, help="stores or files of rankings to learn from")
    parser.add_argument("--val", **path, help="for early stopping; default: a fifth held out")
    parser.add_argument("--images", **path, help="folders that rankings of folders are of")
    parser.add_argument("--shots", type=int, metavar="K", help="images per class; default: all")
    predictor_recipe(parser)
    parser.add_argument("--out", type=Path, help="default: the user's cache")


def predictor_recipe(parser: argparse.ArgumentParser) -> None:
    """Add how a predictor is fitted."""
    parser.add_argument("--arch", default=FitConfig.arch, help="see zoo/architectures.py")
    parser.add_argument(
        "--width", type=int, default=FitConfig.width, help="channels inside the predictor"
    )
    parser.add_argument("--loss", default=FitConfig.loss, help="see zoo/losses.py")
    parser.add_argument("--epochs", type=int, default=FitConfig.epochs, help="at most")
    parser.add_argument(
        "--patience", type=int, default=FitConfig.patience, help="epochs without a better one"
    )
    parser.add_argument("--batch", type=int, default=FitConfig.batch, help="images per step")
    parser.add_argument("--learning-rate", type=float, default=FitConfig.learning_rate)
    parser.add_argument(
        "--seed", type=int, default=FitConfig.seed, help="of weights, order and shots"
    )


def add_study(commands: Any) -> None:
    """Add ``study``."""
    parser = add(
        commands,
        "study",
        "Answer a question about pruning by golden and predicted rankings.",
        "study scores --datasets fashion --keeps 0.6 0.5 --limit 100",
    )
    parser.add_argument("name", metavar="NAME", help="of the study, or `list`")
    parser.add_argument("--model", default="clip_vit_s14", help="needs a text tower")
    parser.add_argument("--datasets", nargs="+", default=["fashion", "emoji"])
    data(parser)
    parser.add_argument("--keeps", nargs="+", type=float, help="default: the study's own")
    parser.add_argument("--seeds", type=int, default=3, help="fits, and random orders")
    parser.add_argument(
        "--split", choices=("val", "test"), help="to judge by; test for learned tokens, else val"
    )
    parser.add_argument("--limit", type=int, default=300, help="images of it per dataset")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--train-limit", type=int, default=500, help="ranked images to learn from")
    parser.add_argument("--shots", type=int, metavar="K", help="of them per class; default: all")
    golden_windows(parser, window=3, stride=2)
    parser.add_argument(
        "--labelled", type=int, default=16, metavar="K", help="images per class that tokens see"
    )
    recipe(parser)
    parser.add_argument("--rounds", type=int, default=TuneConfig.rounds, help="of tuning, at most")
    parser.add_argument("--score", default="preservation", help="preservation, label, confidence")
    parser.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    predictor_recipe(parser)
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--output", type=Path, default=Path("results/studies"), help="folder")


def add_overhead(commands: Any) -> None:
    """Add ``overhead``."""
    parser = add(
        commands,
        "overhead",
        "Measure what predictors cost beside their tower: multiply-adds, parameters, time.",
        "overhead --model clip_vit_b16 --random-weights --archs conv mlp --batch 8",
    )
    parser.add_argument("--model", default="clip_vit_s14")
    parser.add_argument("--random-weights", action="store_true", help="where none can be had")
    parser.add_argument("--archs", nargs="+", help="default: all, and the paper's Mixer")
    parser.add_argument("--width", type=int, default=FitConfig.width, help="channels inside")
    parser.add_argument("--batch", type=int, default=32, help="images per call")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each, in turn")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
