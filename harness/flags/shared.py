"""What the flags of several subcommands share."""

from pathlib import Path
from typing import Any

from harness.flags.command import CommandParser

SPLITS = ("train", "val", "test")
DEVICE = "torch device, such as cuda:0"
DTYPE = "float32, bfloat16 or float16"


def data(parser: CommandParser) -> None:
    """Add what says where datasets lie and how they are taken."""
    group = parser.add_argument_group("how datasets are taken")
    group.add_argument(
        "--root", type=Path, metavar="DIR", help="of datasets; default: CLIP_PATCHRANK_DATA's"
    )
    group.add_argument("--download", action="store_true", help="get what is missing")
    group.add_argument(
        "--templates", nargs="+", metavar="TEXT", help="prompts with {} for the class, not its own"
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be read"
    )


def datasets(group: Any) -> None:
    """Add several datasets, by default those that ship."""
    group.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        default=["fashion", "emoji"],
        help="see `datasets list`; or PREFIX:PATH",
    )


def images(group: Any, limit: int, split: str, what: str = "images per dataset") -> None:
    """Add which images, and how many."""
    group.add_argument("--split", default=split, choices=SPLITS, help="of the dataset")
    group.add_argument("--limit", type=int, default=limit, metavar="N", help=what)
    full(group)


def full(group: Any) -> None:
    """Add ``--full``."""
    group.add_argument("--full", action="store_true", help="all images, whatever --limit says")


def conditions(parser: CommandParser, limit: int) -> Any:
    """Add the conditions of a measurement and return their group."""
    group = parser.add_argument_group("conditions")
    images(group, limit, "test")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of shots")
    machine(group)
    return group


def machine(group: Any, dtype: str = "float32", what: str = DTYPE) -> None:
    """Add device and precision."""
    device(group)
    group.add_argument("--dtype", default=dtype, help=what)


def device(group: Any, what: str = DEVICE) -> None:
    """Add the device."""
    group.add_argument("--device", default="cpu", help=what)


def golden_windows(parser: CommandParser, *, window: int = 2, stride: int = 1) -> Any:
    """Add block, window and stride of golden rankings and return their group."""
    group = parser.add_argument_group("golden rankings")
    block(group)
    group.add_argument("--window", type=int, default=window, metavar="N", help="side in patches")
    group.add_argument("--stride", type=int, default=stride, metavar="N", help="in patches")
    return group


def block(group: Any, default: int | None = 3, what: str = "patches go before this block") -> None:
    """Add the reduction point."""
    group.add_argument("--block", type=int, default=default, metavar="N", help=what)


def seeds(group: Any, default: int, what: str) -> None:
    """Add how many seeds."""
    group.add_argument("--seeds", type=int, default=default, metavar="N", help=what)


def rounds(group: Any, default: int, what: str) -> None:
    """Add how many rounds of timing."""
    group.add_argument("--rounds", type=int, default=default, metavar="N", help=what)
