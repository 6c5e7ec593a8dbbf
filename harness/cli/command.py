"""A subcommand and its parser."""

import argparse
import itertools
import platform
import re
import shutil
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from harness import git_commit
from harness.base.hints import nearest
from harness.base.table import Shown, Work
from harness.base.terminal import Progress
from harness.cli.flags import add_flags

PROGRAM = "patchrank"  # however it was started
PACKAGE = "clip-patchrank"
WIDEST = 100  # columns of help
SHARED = ("--json", "--explain", "--quiet")  # flags that every command takes
TEXTS = tomllib.loads(Path(__file__).with_name("commands.toml").read_text("utf-8"))
EXIT_CODES = {
    0: "fine",
    1: "a regression or a problem was found",
    2: "wrong use, or a file is missing",
    130: "stopped by Ctrl-C",
    141: "the output was closed",
}


# Runs a command with its arguments, and where progress and notes go.
Run = Callable[[argparse.Namespace, Progress], Shown | Work]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand. Its functions import what they need, so that help comes at once."""

    path: str  # its words, such as "fit predictor"
    what: str  # one sentence
    run: Run
    examples: Sequence[Sequence[str]]  # lines without the program's name, and their purpose
    flags: Callable[["CommandParser"], None]  # adds them to a parser
    output: str = "a table on standard output"
    problems: str | None = None  # the meaning of exit code 1
    goes_on: bool = False  # from where it was stopped

    def epilog(self) -> str:
        """Return the end of the help: examples, where results go, exit codes."""
        lines = ["examples:" if len(self.examples) > 1 else "example:"]
        for line, purpose in self.examples:
            lines += [f"  # {purpose}", f"  {PROGRAM} {line}"]
        codes = EXIT_CODES | {1: self.problems or ""}
        meanings = "; ".join(f"{code} {text}" for code, text in codes.items() if text)
        return "\n".join([*lines, "", f"output: {self.output}", "", f"exit codes: {meanings}"])


def command(path: str, run: Run, arguments: Callable[["CommandParser"], None] = lambda _: None) -> Command:
    """Return a subcommand that ``commands.toml`` describes but for some arguments, which stand before its flags."""
    text = dict(TEXTS[path])
    groups = text.pop("flags", {})

    def add(parser: CommandParser) -> None:
        arguments(parser)
        add_flags(parser, groups)

    if text.get("goes_on"):
        text["output"] += ". If it is stopped, the same command continues"
    return Command(path=path, run=run, flags=add, **text)


class CommandParser(argparse.ArgumentParser):
    """A command's parser, which takes no abbreviated flags, and names the near match of a mistake."""

    def __init__(self, command: Command) -> None:
        """Add the command's flags, and those of every command."""
        super().__init__(
            prog=f"{PROGRAM} {command.path}".strip(), description=command.what, allow_abbrev=False, add_help=False,
            epilog=command.epilog(), formatter_class=Formatter,
        )  # fmt: skip
        self._positionals.title, self._optionals.title = "arguments", "flags"
        command.flags(self)
        words = []
        for action in self._actions:
            if action.required or not action.option_strings:
                name = " ".join([*action.option_strings[:1], str(action.metavar or action.dest.upper())])
                words.append(name if action.required else f"[{name}]")
        self.usage = " ".join([self.prog, *words, "[flags]"])
        quiet = "print results and errors only, no progress and no notes"
        shared = self.add_argument_group("every command")
        shared.add_argument("-h", "--help", action="help", help="show this and exit")
        shared.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
        shared.add_argument("--explain", action="store_true", help="explain each table's columns below it")
        shared.add_argument("--quiet", "-q", action="store_true", help=quiet)
        self.set_defaults(command=command.path, run=command.run)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; raise ValueError for a mistake, and SystemExit after help."""
        self._require_flags(args)
        values, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"no argument {rest[0]!r} is expected here")
        return values, rest

    def _require_flags(self, args: Sequence[str]) -> None:
        """Refuse unknown flags, and several values in two places, before argparse names missing ones."""
        given: set[str] = set()
        for word, after in itertools.zip_longest(args, args[1:]):
            flag, _, value = word.partition("=")
            if word == "--":
                return
            if (action := self._option_string_actions.get(flag)) is not None:
                if flag in given and action.nargs:
                    self.error(f"{flag} is given twice: give it once, with all its values")
                given.add(flag)
            if action is not None or " " in word or not re.match("--?[a-zA-Z]", flag):
                continue
            meant = nearest(flag, self._option_string_actions, cutoff=0.75)  # two dashes are alike in all
            if flag in ("--images", "--folder") and "--dataset" in self._option_string_actions:
                meant = f"did you mean '--dataset {flag[2:]}:{value or after or 'PATH'}'?"
            self.error(f"no flag {flag!r}: {meant}")

    def error(self, message: str) -> NoReturn:
        """Raise a mistake as a ValueError."""
        raise ValueError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, f"{_name(action)} {error.message}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(None, f"{_name(action)} {value!r}: {nearest(str(value), action.choices)}")


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


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
        text, default = (action.help or "").replace("%", "%%"), action.default
        if action.nargs == 0 or default in (None, "", argparse.SUPPRESS) or default == []:
            return text
        values: Sequence[object] = default if isinstance(default, list | tuple) else [default]
        shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{text} (default: {shown.replace('%', '%%')})"


def describe_versions() -> str:
    """Return the versions of the package and of the libraries that its figures depend on."""
    commit = f", commit {git_commit()}" if git_commit() else ""
    package = f"{PACKAGE} {metadata.version(PACKAGE)}{commit}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "open_clip_torch"))
    return f"{package}\npython {platform.python_version()}, {versions}"
