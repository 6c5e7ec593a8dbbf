"""What a subcommand is, and its parser, whose flags are added when it is chosen or shown."""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.flags.help_text import Formatter, examples_text

# In the order of `--help`.
GROUPS = {
    "measure": "Measure",
    "rankings": "Golden rankings",
    "learn": "Learn",
    "publish": "Publish",
    "look": "Look",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand.

    Attributes:
        path: its words, such as ``fit predictor``.
        group: of `GROUPS`.
        what: one sentence.
        flags: adds its flags to a parser; imports nothing heavy (see ``declared``).
        run: ``module:function``, called with the parsed arguments and the console for progress and
            notes; returns a ``shown.Shown``, or for long work is a ``shown.Work``.
        examples: command lines without the program's name, each with what it is good for.
        output: where results go beside standard output.
        problems: what exit code 1 stands for; None where there is no such thing.
    """

    path: str
    group: str
    what: str
    flags: Callable[["CommandParser"], None]
    run: str
    examples: tuple[tuple[str, str], ...]
    output: str = "a table on standard output"
    problems: str | None = None

    def __post_init__(self) -> None:
        """Validate."""
        assert self.group in GROUPS, f"{self.path} is in group {self.group!r}"
        assert self.examples, f"{self.path} has no example"

    def function(self) -> Callable[..., Any]:
        """Return what runs it."""
        module, _, name = self.run.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no beginning of a flag for it, and names the near match of a mistake."""

    def __init__(self, *, command: Command | None = None, **kwargs: Any) -> None:
        """Prepare; the flags of ``command`` are added when it is filled."""
        kwargs.setdefault("formatter_class", Formatter)
        # A command's --help stands with the flags that every command takes.
        super().__init__(allow_abbrev=False, add_help=command is None, **kwargs)
        self.command = command
        self._filled = command is None
        self._positionals.title, self._optionals.title = "arguments", "flags"

    def filled(self) -> "CommandParser":
        """Add the flags of the command unless they are there, and return the parser."""
        if not self._filled and self.command is not None:
            self._filled = True
            self.command.flags(self)
            shared = self.add_argument_group("every command")
            shared.add_argument("-h", "--help", action="help", help="show this and exit")
            add_shared(shared, default=argparse.SUPPRESS)
            program = self.prog.removesuffix(f" {self.command.path}")
            self.epilog = examples_text(self.command, program)
            self.usage = self._short_usage()
        return self

    def _short_usage(self) -> str:
        """Return the usage with what must be given, and the rest as [flags]."""
        words = [self.prog.replace("%", "%%")]
        for action in self._actions:
            if not action.option_strings:
                name = str(action.metavar or action.dest)
                name = f"{name} ..." if action.nargs == "+" else name
                words.append(name if action.required else f"[{name}]")
            elif action.required:
                words.append(f"{action.option_strings[-1]} {action.metavar or action.dest.upper()}")
        for group in self._mutually_exclusive_groups:
            if group.required:
                one = (f"{a.option_strings[-1]} {a.metavar or a.dest.upper()}" for a in _of(group))
                words.append(f"({' | '.join(one)})")
        return " ".join([*words, "[flags]"])

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, refusing what no argument takes."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(found, "parser", self).refuse(rest)
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            from zoo.reducer import expected

            raise argparse.ArgumentError(
                action, f"{value!r}: {expected(str(value), map(str, action.choices))}"
            )

    def refuse(self, words: list[str]) -> None:
        """Exit with code 2 for words that no argument takes.

        Raises:
            SystemExit: always.
        """
        from zoo.reducer import expected

        word = words[0]
        flags = [name for action in self._actions for name in action.option_strings]
        if word.startswith("-"):
            told = expected(word, flags, shown_by=f"{self.prog} --help")
            self.error(f"no flag {word.partition('=')[0]!r}: {told}")
        self.error(f"no argument {word!r} is expected here; see {self.prog} --help")


def _of(group: Any) -> list[argparse.Action]:
    actions: list[argparse.Action] = group._group_actions
    return actions


class Subcommands(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Subcommands whose parsers get their flags when they are chosen."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Fill the chosen parser and go on with it."""
        chosen = self.choices.get(values[0])
        if chosen is not None:
            namespace.parser = chosen.filled()
        super().__call__(parser, namespace, values, option_string)


def add_shared(group: Any, default: Any = None) -> None:
    """Add the flags that every command takes, before its name or after it.

    Args:
        group: of arguments.
        default: ``argparse.SUPPRESS`` after the name, so that what stood before it stays.
    """
    told = {} if default is None else {"default": default}
    text = "print one JSON document for programs instead of tables"
    group.add_argument("--json", action="store_true", help=text, **told)
    text = "no progress and no notes; results and errors stay"
    group.add_argument("--quiet", "-q", action="store_true", help=text, **told)
    text = "auto: on a terminal; NO_COLOR and FORCE_COLOR are honoured"
    whens = ("auto", "always", "never")
    group.add_argument(
        "--color", metavar="WHEN", choices=whens, default=default or "auto", help=_with(whens, text)
    )


def _with(choices: tuple[str, ...], text: str) -> str:
    return f"{', '.join(choices)}; {text}"
