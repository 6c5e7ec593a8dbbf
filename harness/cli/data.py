"""Subcommands that show what there is: ``list``, ``datasets``, ``completion``."""

from argparse import Namespace
from typing import TYPE_CHECKING

from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from rich.console import Console

    from harness.console.table import Shown


def _no_flags(parser: CommandParser) -> None:
    """Add nothing."""


def _run_list(args: Namespace, status: "Console") -> "Shown":
    from harness.cli.runs import run_list

    return run_list(args, status)


def _run_datasets_list(args: Namespace, status: "Console") -> "Shown":
    from harness.cli.runs import run_datasets

    return run_datasets(args, status)


def _check_flags(parser: CommandParser) -> None:
    parser.add_argument("dataset", metavar="NAME", help="see `datasets list`; or PREFIX:PATH")
    flags.root(parser)
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument("--fast", action="store_true", help="decode no image")


def _run_datasets_check(args: Namespace, status: "Console") -> "Shown":
    from harness.check.datasets import run_check

    return run_check(args, status)


COMMANDS = (
    Command(
        path="datasets list",
        what="Show what datasets there are, and where.",
        flags=flags.root,
        run=_run_datasets_list,
        examples=(("datasets list", "those that ship or lie below CLIP_PATCHRANK_DATA"),),
    ),
    Command(
        path="datasets check",
        what="Verify a local copy before hours are spent on it: counts, checksums, every image.",
        flags=_check_flags,
        run=_run_datasets_check,
        examples=(
            ("datasets check emoji", "a dataset that ships"),
            ("datasets check folder:photos --fast", "your own images, by their names alone"),
        ),
        output="a table of the classes and a line per problem, on standard output",
        problems="the dataset has problems",
    ),
    Command(
        path="list",
        what="Show models, methods, weights and datasets.",
        flags=_no_flags,
        run=_run_list,
        examples=(("list", "all there is"), ("list --json", "for a program")),
        output="tables on standard output",
    ),
)
