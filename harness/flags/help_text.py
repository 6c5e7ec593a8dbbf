"""How help is laid out: at most 100 columns, defaults where there are any, examples last."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.flags.command import Command

WIDEST = 100
EXIT_CODES = {
    0: "fine",
    1: "a regression or a problem was found",
    2: "wrong use, or something is missing",
    130: "stopped by Ctrl-C",
    141: "the output was closed",
}


class Formatter(argparse.HelpFormatter):
    """argparse's, with lines that begin with two spaces left as they are."""

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
        text = action.help or ""
        default = default_text(action)
        return text if default is None else f"{text} (default: {default})".replace("%", "%%")

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        (name,) = self._metavar_formatter(action, default_metavar)(1)
        form = {"+": "{} ...", "*": "[{} ...]"}.get(str(action.nargs))
        return form.format(name) if form else super()._format_args(action, default_metavar)


def default_text(action: argparse.Action) -> str | None:
    """Return a flag's default as it would be typed; None where there is none to tell."""
    default = action.default
    if action.nargs == 0 or default in (None, argparse.SUPPRESS) or default == []:
        return None
    if isinstance(default, list | tuple):
        return " ".join(map(_typed, default))
    return _typed(default)


def _typed(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value.as_posix() if isinstance(value, Path) else str(value)


def examples_text(command: "Command", program: str) -> str:
    """Return what stands below the flags: examples, where results go, exit codes."""
    lines = ["examples:" if len(command.examples) > 1 else "example:"]
    for line, purpose in command.examples:
        lines += [f"  # {purpose}", f"  {program} {line}"]
    lines += ["", f"output: {command.output}"]
    codes = EXIT_CODES | {1: command.problems or ""}
    told = [f"{code} {text}" for code, text in codes.items() if text]
    return "\n".join([*lines, "", f"exit codes: {'; '.join(told)}"]).replace("%", "%%")


def listing(
    formatter: argparse.HelpFormatter, groups: Sequence[tuple[str, Sequence["Command"]]]
) -> None:
    """Add subcommands to a help text, by what they are for."""
    for title, commands in groups:
        formatter.start_section(title)
        for command in commands:
            told = {"dest": command.path, "metavar": command.path, "help": command.what}
            formatter.add_argument(argparse.Action([], **told))  # type: ignore[arg-type]
        formatter.end_section()
