"""The command line: parse, call, print, exit (see ``flags.help_text.EXIT_CODES``)."""

import json
import logging
import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from harness.flags import COMMANDS, FAMILIES, build_parser
from harness.layout import fitted, whole
from harness.shown import Forms, Part, Shown
from harness.tables import Table
from harness.terminal import errors, has_width, notes, results

SCRIPT = "patchrank"  # as installed
BROKEN_PIPE = 141  # as a shell tells of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments, those of the process if None.

    Returns:
        Exit code, of `EXIT_CODES`.

    Raises:
        SystemExit: after help or version (0), or for words that can't be parsed (2).
    """
    # Quiet by intention: open_clip logs every tokenizer it builds.
    logging.disable(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m harness")
    if not words or words in [[name] for name in FAMILIES]:
        text = parser.format_help() if not words else _family_help(parser, words[0])
        print(text, end="", file=sys.stderr)
        return 2
    args = parser.parse_args(words)
    args.argv = own_words(words)
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go: leave nothing to fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError) as error:
        # Not wrapped, so that a command or a path in it can be copied.
        text = f"[bold red]error:[/] {escape(str(error))}"
        errors(args.color).print(text, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        told = "stopped; what is done is kept, the same command goes on from there"
        notes(args).print(told)
        return 130
    return code


def _family_help(parser: Any, word: str) -> str:
    text: str = parser._subparsers._group_actions[0].choices[word].format_help()
    return text


def own_words(words: Sequence[str]) -> list[str]:
    """Leave out the flags that every command takes: what is measured doesn't depend on them."""
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*left, word, *rest]
        if word == "--color":
            next(rest, None)
        elif word not in ("--json", "--quiet", "-q") and not word.startswith("--color="):
            left.append(word)
    return left


def _run(args: Namespace) -> int:
    from harness.datasets import forget
    from harness.given import name_datasets

    status, output = notes(args), results(args)
    try:
        name_datasets(args, status)
        found = COMMANDS[args.command].function()(args, status)
        if isinstance(found, Generator):
            found = _through(found, None if args.json else output)
        shown: Shown = found
        if not args.json:
            for part in shown.parts:
                _print(part, output)
        elif shown.data is not None:
            print(_document(args.command, shown.data))
    finally:
        forget()
    return shown.code


def _document(command: str, data: Any) -> str:
    try:
        return json.dumps(data, allow_nan=False, ensure_ascii=False, indent=1)
    except ValueError as error:  # ours, and no wrong use
        raise AssertionError(f"{command}: {error}") from error


def _through(work: Generator[Part, None, Shown], output: Console | None) -> Shown:
    """Print parts as they come, unless there is nowhere to, and return what is left to show."""
    while True:
        try:
            part = next(work)
        except StopIteration as end:
            shown: Shown = end.value
            return shown
        if output is not None:
            _print(part, output)


def _line(text: str, width: int) -> str:
    """Wrap a line between words, for paths to stay whole; several lines are someone's own."""
    if "\n" in text:
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _print(part: Part, output: Console) -> None:
    if isinstance(part, str):
        print(_line(part, output.width) if has_width() else part)
        return
    forms: tuple[RichTable, ...]
    if isinstance(part, Table):
        forms = part.forms()
    else:
        forms = part.forms if isinstance(part, Forms) else (part,)
    if has_width():
        output.print(fitted(forms, output.width))
    else:
        table, width = whole(forms[0])
        output.print(table, width=width)
