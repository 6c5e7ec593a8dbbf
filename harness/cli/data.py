"""Subcommands that show what there is: ``list``, ``datasets``, ``completion``."""

from argparse import Namespace
from typing import TYPE_CHECKING

from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from rich.console import Console

    from harness.shown import Shown

SHELLS = ("bash", "zsh", "fish", "tcsh")


def _no_flags(parser: CommandParser) -> None:
    """Add nothing."""


def _run_list(args: Namespace, status: "Console") -> "Shown":
    from harness.listing import run_list

    return run_list(args, status)


def _run_datasets_list(args: Namespace, status: "Console") -> "Shown":
    from harness.listing import run_datasets

    return run_datasets(args, status)


def _check_flags(parser: CommandParser) -> None:
    parser.add_argument("dataset", metavar="NAME", help="see `datasets list`; or PREFIX:PATH")
    flags.root(parser)
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument("--fast", action="store_true", help="decode no image")


def _run_datasets_check(args: Namespace, status: "Console") -> "Shown":
    from harness.dataset_check import run_check

    return run_check(args, status)


def _completion_flags(parser: CommandParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _run_completion(args: Namespace, _status: "Console") -> "Shown":
    from harness.cli.completion import script
    from harness.shown import Shown

    text = script(args.shell)
    return Shown(parts=(text.rstrip(),), data={"shell": args.shell, "script": text})


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
    Command(
        path="completion",
        what="Print a script that completes commands, flags and names in a shell.",
        flags=_completion_flags,
        run=_run_completion,
        examples=(
            ('completion bash > "$HOME/.patchrank.bash"', "then source it in .bashrc"),
            ('completion fish > "$HOME/.config/fish/completions/patchrank.fish"', "fish finds it"),
        ),
        output="the script on standard output; see docs/commands.md for where shells look for it",
    ),
)
