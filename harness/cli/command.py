"""What a subcommand is, and its parser, which gets its flags when the command is chosen."""

import argparse
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pkgutil import resolve_name
from typing import Any, NoReturn

from rich.console import Console

from harness import git_commit
from harness.base.table import Shown, Work
from harness.base.terminal import WHENS

Run = Callable[[argparse.Namespace, Console], Shown | Work]
PROGRAM = "patchrank"  # however it was started
PACKAGE = "clip-patchrank"
WIDEST = 100  # columns of help
ANY = "NAME"  # a subcommand that stands for every word that isn't another one
EXIT_CODES = {
    0: "fine",
    1: "a regression or a problem was found",
    2: "wrong use, or something is missing",
    130: "stopped by Ctrl-C",
    141: "the output was closed",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand. Its functions import what they need, so that help comes at once."""

    path: str  # its words, such as "fit predictor"
    what: str  # one sentence
    run: Run  # called with the parsed arguments and the console for progress and notes
    examples: tuple[tuple[str, str], ...]  # lines without the program's name, and their purpose
    flags: Callable[["CommandParser"], None] = lambda _parser: None  # adds them to a parser
    output: str = "a table on standard output"
    problems: str | None = None  # the meaning of exit code 1

    def epilog(self) -> str:
        """Return the end of the help: examples, where results go, exit codes."""
        lines = ["examples:" if len(self.examples) > 1 else "example:"]
        for line, purpose in self.examples:
            lines += [f"  # {purpose}", f"  {PROGRAM} {line}"]
        codes = EXIT_CODES | {1: self.problems or ""}
        meanings = "; ".join(f"{code} {text}" for code, text in codes.items() if text)
        return "\n".join([*lines, "", f"output: {self.output}", "", f"exit codes: {meanings}"])


def imported(place: str) -> Run:
    """Return a function that imports another one, ``module:name``, once it is called."""

    def run(args: argparse.Namespace, status: Console) -> Shown | Work:
        outcome: Shown | Work = resolve_name(place)(args, status)
        return outcome

    return run


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no beginning of a flag for it, and names the near match of a mistake."""

    def __init__(self, *, command: Command | None = None, **kwargs: Any) -> None:
        """Prepare; the flags of ``command`` are added when it is filled."""
        # A command's --help stands with the flags that every command takes.
        own: dict[str, Any] = {"add_help": command is None, "formatter_class": Formatter}
        super().__init__(allow_abbrev=False, **own, **kwargs)
        self.command = command
        self._positionals.title, self._optionals.title = "arguments", "flags"

    def fill(self) -> "CommandParser":
        """Add the flags of the command unless they are there, and return the parser."""
        command = self.command
        if command is None or self._actions:
            return self
        command.flags(self)
        shared = self.add_argument_group("every command")
        shared.add_argument("-h", "--help", action="help", help="show this and exit")
        add_shared(shared, default=argparse.SUPPRESS)
        self.set_defaults(command=command.path, run=command.run)
        self.epilog = command.epilog().replace("%", "%%")
        self.usage = " ".join([self.prog, *self._required(), "[flags]"])
        return self

    def _required(self) -> list[str]:
        """Return what usage names: arguments, and flags that must be given."""

        def word(action: argparse.Action) -> str:
            name = " ".join([*action.option_strings[:1], str(action.metavar or action.dest.upper())])
            several = f"{name} ..." if action.nargs == "+" else name
            return several if action.required or action.option_strings else f"[{several}]"

        words = [word(action) for action in self._actions if action.required or not action.option_strings]
        groups = (group for group in self._mutually_exclusive_groups if group.required)
        return words + [f"({' | '.join(map(word, group._group_actions))})" for group in groups]

    def format_help(self) -> str:
        """Return the help, with the command's flags."""
        return super(CommandParser, self.fill()).format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, refusing what no argument takes; half a command prints its help.

        Raises:
            ValueError: a mistake.
            SystemExit: after help.
        """
        if self._subparsers is not None and not args:
            self.print_help(sys.stderr)
            self.exit(2)
        values, rest = super(CommandParser, self.fill()).parse_known_args(args, namespace)
        if rest:
            from zoo.core.messages import expected

            flag = rest[0].partition("=")[0]
            if flag.startswith("-"):
                flags = [name for action in self._actions for name in action.option_strings]
                near = expected(flag, flags, shown_by=f"{self.prog} --help")
                self.error(f"no flag {flag!r}: {near}")
            self.error(f"no argument {rest[0]!r} is expected here")
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Raise a mistake as a ValueError."""
        hint = f"{self.prog} --help"
        raise ValueError(message if hint in message else f"{message}; see {hint}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            text = f"{_name(action)} {error.message}"
            raise argparse.ArgumentError(None, text) from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices or ANY in choices:
            return
        from zoo.core.messages import expected

        near = expected(str(value), map(str, choices), shown_by=f"{self.prog} --help")
        raise argparse.ArgumentError(None, f"{_name(action)} {value!r}: {near}")


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def leaves(parser: CommandParser) -> dict[str, CommandParser]:
    """Return the parsers of all subcommands by path, with their flags."""
    found: dict[str, CommandParser] = {}
    for action in parser._actions:
        for child in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            found |= {child.command.path: child.fill()} if child.command else leaves(child)
    return found


class Subcommands(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Subcommands, of which one may be called `ANY` and take every other word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Go on with the parser of the chosen one."""
        words = values if values[0] in self.choices else [ANY, *values]
        super().__call__(parser, namespace, words, option_string)


class Formatter(argparse.HelpFormatter):
    """argparse's; indented lines stay as they are, and defaults read as they would be typed."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        """Take the terminal's width, up to `WIDEST`."""
        width = min(shutil.get_terminal_size().columns, WIDEST) - 2
        super().__init__(prog, **{"width": width, "max_help_position": 26} | kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.split("\n"):
            raw = not line or line.startswith("  ")
            lines += [line] if raw else textwrap.wrap(line, width, subsequent_indent=indent)
        return "\n".join(lines)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", default_text(action)
        return text if default is None else f"{text} (default: {default})".replace("%", "%%")

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        (name,) = self._metavar_formatter(action, default_metavar)(1)
        form = {"+": "{} ...", "*": "[{} ...]"}.get(str(action.nargs))
        return form.format(name) if form else super()._format_args(action, default_metavar)


def default_text(action: argparse.Action) -> str | None:
    """Return a flag's default as it would be typed; None where there is none to show."""
    default = action.default
    if action.nargs == 0 or default in (None, argparse.SUPPRESS) or default == []:
        return None
    values: Sequence[object] = default if isinstance(default, list | tuple) else [default]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def add_shared(group: Any, default: Any = None) -> None:
    """Add the flags that every command takes, before its name or after it.

    After it ``default`` is ``argparse.SUPPRESS``, so that what stood before stays.
    """
    off = False if default is None else default
    text = "print one JSON document for programs instead of tables"
    group.add_argument("--json", action="store_true", default=off, help=text)
    text = "no progress and no notes; results and errors stay"
    group.add_argument("--quiet", "-q", action="store_true", default=off, help=text)
    text = f"{', '.join(WHENS)}; auto: on a terminal; NO_COLOR and FORCE_COLOR are honoured"
    when = default or "auto"
    group.add_argument("--color", metavar="WHEN", choices=WHENS, default=when, help=text)


class Version(argparse.Action):
    """Print the versions of the package and of what its figures depend on, and exit."""

    def __init__(self, **kwargs: Any) -> None:
        """Take no value."""
        super().__init__(nargs=0, **{"default": argparse.SUPPRESS} | kwargs)

    def __call__(self, parser: Any, *args: Any) -> None:
        """Print them."""
        package = f"{PACKAGE} {metadata.version(PACKAGE)}"
        if (commit := git_commit()) is not None:
            package += f", commit {commit}"
        names = ("torch", "timm", "open_clip_torch")
        others = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        python = f"python {platform.python_version()}"
        parser._print_message(f"{package}\n{python}, {others}\n", sys.stdout)
        parser.exit()
