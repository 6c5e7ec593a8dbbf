"""The flags of the subcommands that show what there is."""

from pathlib import Path

from harness.flags.command import Command, CommandParser


def _nothing(parser: CommandParser) -> None:
    """Add no flags."""


def _root(parser: CommandParser) -> None:
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="of datasets; default: CLIP_PATCHRANK_DATA's"
    )


def _check(parser: CommandParser) -> None:
    parser.add_argument("dataset", metavar="NAME", help="see `datasets list`; or PREFIX:PATH")
    _root(parser)
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument("--fast", action="store_true", help="decode no image")


def _completion(parser: CommandParser) -> None:
    parser.add_argument(
        "shell",
        metavar="SHELL",
        choices=("bash", "zsh", "fish", "tcsh"),
        help="bash, zsh, fish, tcsh",
    )


COMMANDS = (
    Command(
        path="list",
        group="look",
        what="Show models, methods, weights and datasets.",
        flags=_nothing,
        run="harness.listing:run_list",
        examples=(("list", "all there is"), ("list --json", "for a program")),
        output="tables on standard output",
    ),
    Command(
        path="datasets list",
        group="look",
        what="Show what datasets there are, and where.",
        flags=_root,
        run="harness.listing:run_datasets",
        examples=(("datasets list", "those that ship or lie below CLIP_PATCHRANK_DATA"),),
    ),
    Command(
        path="datasets check",
        group="look",
        what="Verify a local copy before hours are spent on it: counts, checksums, every image.",
        flags=_check,
        run="harness.dataset_check:run_check",
        examples=(
            ("datasets check emoji", "a dataset that ships"),
            ("datasets check folder:photos --fast", "your own images, by their names alone"),
        ),
        output="a table of the classes and a line per problem, on standard output",
        problems="the dataset has problems",
    ),
    Command(
        path="completion",
        group="look",
        what="Print a script that completes commands, flags and names in a shell.",
        flags=_completion,
        run="harness.completion:run_completion",
        examples=(
            ('completion bash > "$HOME/.patchrank.bash"', "then source it in .bashrc"),
            ('completion fish > "$HOME/.config/fish/completions/patchrank.fish"', "fish finds it"),
        ),
        output="the script on standard output; see docs/commands.md for where shells look for it",
    ),
)
