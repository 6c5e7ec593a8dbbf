"""The parser of the program, from the subcommands of each group."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from harness.cli import choose, data, export, golden, measure, report, study, vectors
from harness.cli.command import EXIT_CODES, PROGRAM, Command, CommandParser, Subcommands, Version, add_shared

if TYPE_CHECKING:
    from rich.console import Console

    from harness.base.table import Shown

SHELLS = ("bash", "zsh", "fish", "tcsh")


def _completion_flags(parser: CommandParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _run_completion(args: Namespace, _status: "Console") -> "Shown":
    from harness.base.table import Shown
    from harness.cli.completion import script

    text = script(args.shell, build_parser())
    return Shown(parts=(text.rstrip(),), data={"shell": args.shell, "script": text})


COMPLETION = Command(
    path="completion",
    what="Print a script that completes commands, flags and names in a shell.",
    flags=_completion_flags,
    run=_run_completion,
    examples=(
        ('completion bash > "$HOME/.patchrank.bash"', "then source it in .bashrc"),
        ('completion fish > "$HOME/.config/fish/completions/patchrank.fish"', "fish finds it"),
    ),
    output="the script on standard output; see docs/commands.md for where shells look for it",
)
GROUPS = (measure, choose, export, golden, vectors, report, data, study)
COMMANDS: dict[str, Command] = {
    command.path: command for command in (*(command for group in GROUPS for command in group.COMMANDS), COMPLETION)
}
# First words that have subcommands of their own.
FAMILIES = {
    "fit": "Fit a predictor to rankings, or tune prompts.",
    "datasets": "List datasets, or check one.",
    "study": "Research: random floor, cost of rankings, the paper's tables, questions.",
}
DESCRIPTION = """Compare token reduction methods for CLIP vision transformers.

Results go to standard output; progress, notes and errors to standard error."""
EPILOG = f"""examples:
  # what there is
  {PROGRAM} list
  # two methods side by side on what ships
  {PROGRAM} compare --methods patchrank evit --limit 100
  # flags and examples of a command
  {PROGRAM} compare --help

exit codes: {"; ".join(f"{code} {text}" for code, text in EXIT_CODES.items())}"""


def build_parser() -> CommandParser:
    """Return the parser; of what it parses, ``command`` is a path and ``run`` what runs it."""
    parser = CommandParser(prog=PROGRAM, usage=f"{PROGRAM} COMMAND [flags]", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action=Version, help="of this package and what it depends on")
    add_shared(parser)
    places = {"": _subcommands(parser, "COMMAND")}
    for path, command in COMMANDS.items():
        first, _, second = path.rpartition(" ")
        if first not in places:
            what, prog = FAMILIES[first], f"{PROGRAM} {first}"
            family = places[""].add_parser(first, help=what, description=what, prog=prog)
            places[first] = _subcommands(family, "WHAT")
        text = {"help": command.what, "description": command.what, "prog": f"{PROGRAM} {path}"}
        places[first].add_parser(second, command=command, **text)
    return parser


def _subcommands(parser: CommandParser, metavar: str) -> Any:
    kinds: dict[str, Any] = {"action": Subcommands, "parser_class": CommandParser}
    return parser.add_subparsers(required=True, title="commands", metavar=metavar, **kinds)
