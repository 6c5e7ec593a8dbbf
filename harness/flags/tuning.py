"""The flags of learned tokens."""

import argparse
from pathlib import Path
from typing import Any

from harness.flags.shared import add, data
from zoo.tune_config import TuneConfig


def add_prompts(kinds: Any) -> None:
    """Add ``fit prompts``."""
    parser = add(
        kinds,
        "prompts",
        "Tune learned text and visual tokens on a few labelled images; "
        "timm.create_model(..., prompts=FILE) takes the result.",
        "fit prompts --model clip_vit_s14_patchrank60 --dataset emoji --shots 16 --tokens t",
    )
    parser.set_defaults(what="prompts")
    parser.add_argument("--model", default="clip_vit_s14_patchrank60", help="dense or reduced")
    parser.add_argument("--dataset", required=True, help="see `datasets list`; or PREFIX:PATH")
    data(parser)
    parser.add_argument("--shots", type=int, default=16, metavar="K", help="images per class")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of the recipe")
    recipe(parser)
    parser.add_argument("--rounds", type=int, default=TuneConfig.rounds, help="at most")
    parser.add_argument(
        "--patience", type=int, default=TuneConfig.patience, help="rounds without a better one"
    )
    parser.add_argument("--batch", type=int, default=TuneConfig.batch, help="images per step")
    for flag, what in (("learning-rate", "of text tokens"), ("visual-rate", "of visual ones")):
        default = getattr(TuneConfig, flag.replace("-", "_"))
        parser.add_argument(f"--{flag}", type=float, default=default, help=what)
    parser.add_argument(
        "--no-augment", dest="augment", action="store_false", help="see them as they are"
    )
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default=TuneConfig.dtype, help="float32 or bfloat16")
    parser.add_argument(
        "--checkpointing", action="store_true", help="less memory, a third more time"
    )
    parser.add_argument("--out", type=Path, help="default: the user's cache")


def recipe(parser: argparse.ArgumentParser, tokens: str = TuneConfig.tokens) -> None:
    """Add what is learned."""
    parser.add_argument("--tokens", default=tokens, help="t: text, v: visual, vt: both")
    parser.add_argument(
        "--num-tokens", type=int, default=TuneConfig.count, help="learned ones in a sequence"
    )
    parser.add_argument(
        "--depth", type=int, default=TuneConfig.depth, help="blocks that get tokens of their own"
    )
    parser.add_argument(
        "--independent", action="store_true", help="visual tokens are no image of text tokens"
    )
    parser.add_argument(
        "--class-specific", action="store_true", help="text tokens of each class's own"
    )
    parser.add_argument("--init", metavar="WORDS", help="that text tokens begin with")
    parser.add_argument(
        "--anchor", type=float, default=TuneConfig.anchor, help="to the templates' features"
    )
