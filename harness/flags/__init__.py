"""Every subcommand with its flags; a new one is a line in `COMMANDS`.

Nothing heavy is imported here, so that help comes at once: flags are added to a parser when it is
chosen, their defaults are read from the source of the settings they stand for (`declared`), and
what runs a command is named and not imported.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from harness.flags import (
    checking,
    data,
    latency,
    learning,
    measuring,
    publishing,
    ranking,
    reporting,
    tuning,
)
from harness.flags.command import GROUPS, Command, CommandParser, Subcommands, add_shared
from harness.flags.help_text import EXIT_CODES, listing
from harness.flags.version import Version

COMMANDS: dict[str, Command] = {
    command.path: command
    for module in (
        measuring,
        latency,
        checking,
        reporting,
        ranking,
        tuning,
        learning,
        publishing,
        data,
    )
    for command in module.COMMANDS
}
# Of first words that have subcommands of their own.
FAMILIES = {"fit": "Fit a predictor, or tune prompts.", "datasets": "List datasets, or check one."}

DESCRIPTION = """Compare token reduction methods for CLIP vision transformers.

Results go to standard output; progress, notes and errors to standard error."""
EPILOG = f"""examples:
  # what there is
  {{program}} list
  # two methods side by side on what ships
  {{program}} compare --methods patchrank evit --limit 100
  # flags and examples of a command
  {{program}} compare --help

exit codes: {"; ".join(f"{code} {text}" for code, text in EXIT_CODES.items())}"""


class _Root(CommandParser):
    """The parser of the program: its help lists subcommands by what they are for."""

    def format_help(self) -> str:
        """Return the help."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        listing(formatter, list(by_group()))
        formatter.start_section("flags")
        formatter.add_arguments(action for action in self._actions if action.option_strings)
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def by_group() -> Iterator[tuple[str, list[Command]]]:
    """List the subcommands by what they are for, each group with its title."""
    for group, title in GROUPS.items():
        yield title, [command for command in COMMANDS.values() if command.group == group]


def build_parser(program: str = "python -m harness") -> CommandParser:
    """Return the parser; of what it parses, ``command`` is a key of `COMMANDS`."""
    parser = _Root(
        prog=program,
        usage=f"{program} COMMAND [flags]",
        description=DESCRIPTION,
        epilog=EPILOG.format(program=program),
    )
    parser.add_argument("--version", action=Version, help="of this package and what it rests on")
    add_shared(parser)
    told: dict[str, Any] = {"action": Subcommands, "required": True, "parser_class": CommandParser}
    commands = parser.add_subparsers(**told, metavar="COMMAND")
    families: dict[str, Any] = {}
    for word, what in FAMILIES.items():
        family = commands.add_parser(word, help=what, description=what, prog=f"{program} {word}")
        families[word] = family.add_subparsers(**told, metavar="WHAT")
    for command in COMMANDS.values():
        first, _, second = command.path.partition(" ")
        place = families[first] if second else commands
        leaf = place.add_parser(
            second or first,
            help=command.what,
            description=command.what,
            command=command,
            prog=f"{program} {command.path}",
        )
        leaf.set_defaults(command=command.path)
    return parser


def leaves(parser: CommandParser) -> dict[str, CommandParser]:
    """Return the parsers of all subcommands by path, with their flags."""
    found: dict[str, CommandParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                filled = child.filled()
                found |= {filled.command.path: filled} if filled.command else leaves(filled)
    return found
