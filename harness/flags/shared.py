"""What the flags of several subcommands share."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand with one example, whose first word names it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"example: python -m harness {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=example.split(maxsplit=1)[0])
    return parser


def data(parser: argparse.ArgumentParser) -> None:
    """Add what says where datasets lie and how they are taken."""
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="of datasets; default: CLIP_PATCHRANK_DATA's"
    )
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument(
        "--templates", nargs="+", metavar="TEXT", help="prompts with {} for the class, not its own"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be read"
    )


def conditions(parser: argparse.ArgumentParser, limit: int) -> None:
    """Add the conditions of a measurement."""
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=limit, help="images per dataset")
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of shots")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")


def golden_windows(parser: argparse.ArgumentParser, *, window: int = 2, stride: int = 1) -> None:
    """Add block, window and stride of golden rankings."""
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument("--window", type=int, default=window, help="side in patches")
    parser.add_argument("--stride", type=int, default=stride, help="in patches")
