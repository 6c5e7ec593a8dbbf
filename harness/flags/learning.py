"""The flags of the subcommands that fit and study predictors."""

from pathlib import Path
from typing import Any

from harness.flags.shared import add


def add_fit(commands: Any) -> None:
    """Add ``fit``."""
    fit = commands.add_parser("fit", help="Fit a predictor.")
    kinds = fit.add_subparsers(required=True, metavar="WHAT")
    parser = add(
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
