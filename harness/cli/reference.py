"""Every subcommand and flag as a list that a test holds still, and as a page of docs/.

``python -m harness.cli.reference`` in a checkout writes both anew.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.cli.command import ALIASES, EXIT_CODES, PROGRAM, CommandParser, default_text, leaves
from harness.cli.parser import COMMANDS, build_parser
from zoo.files import write_whole

LIST = Path("tests/harness/commands.txt")
PAGE = Path("docs/commands.md")
REWRITE = "python -m harness.cli.reference"
BEGIN, END = f"<!-- generated: {REWRITE} -->", "<!-- end of what is generated -->"


def frozen() -> str:
    """Return a line per argument of each subcommand: its name, and all that parsing rests on."""
    parser = build_parser()
    lines = [_line("", action) for action in parser._actions if action.option_strings]
    for path, leaf in leaves(parser).items():
        lines += [_line(path, action) for action in leaf._actions]
        lines += [
            f"{path} one of: {', '.join(action.dest for action in group._group_actions)}"
            for group in leaf._mutually_exclusive_groups
        ]
    return "".join(f"{line}\n" for line in sorted(lines))


def _line(path: str, action: argparse.Action) -> str:
    words = [path, *(action.option_strings or [action.dest])]
    facts = {
        "action": type(action).__name__.strip("_").removesuffix("Action").lower(),
        "nargs": action.nargs,
        "type": getattr(action.type, "__name__", None),
        "default": None if action.default is argparse.SUPPRESS else action.default,
        "choices": None if action.choices is None else list(action.choices),
        "required": action.required or None,
    }
    told = [f"{name}={_value(value)}" for name, value in facts.items() if value is not None]
    return " ".join(filter(None, [*words, *told]))


def _value(value: object) -> str:
    return repr(value.as_posix()) if isinstance(value, Path) else str(value).replace(" ", "")


def page() -> str:
    """Return the generated part of docs/commands.md: a section per subcommand."""
    parsers = leaves(build_parser())
    lines = [BEGIN, "", "## Commands", ""]
    lines += [f"- [`{path}`](#{path.lower().replace(' ', '-')})" for path in parsers]
    pairs = ", ".join(f"`{alias}` for `{flag}`" for flag, alias in ALIASES.items())
    lines += ["", f"These spellings are taken as well: {pairs}."]
    for path, parser in parsers.items():
        lines += ["", *_section(path, parser)]
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    lines += ["", "## Exit codes", "", "| code | meaning |", "| ---: | --- |", *codes]
    return "\n".join([*lines, "", END]) + "\n"


def _section(path: str, parser: CommandParser) -> Iterator[str]:
    command = COMMANDS[path]
    yield from (f"### {path}", command.what, "", "```text", parser.usage or "", "```", "")
    yield from ("| | what | default |", "| --- | --- | --- |")
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if group.title != "every command"]
        if shown and group.title not in ("arguments", "flags"):
            yield f"| **{group.title}** | | |"
        for action in shown:
            yield _row(action)
    yield from ("", "```sh")
    for line, purpose in command.examples:
        yield from (f"# {purpose}", f"{PROGRAM} {line}")
    problems = f" Exit code 1: {command.problems}." if command.problems else ""
    yield from ("```", "", f"Output: {command.output}.{problems}")


def _row(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        choices = "\\|".join(map(str, action.choices or ()))
        value = action.metavar or choices or action.dest.upper()
        name += f" {value}"
    if action.nargs in ("+", "*"):
        name += " ..."
    text = (action.help or "").replace("|", "\\|")
    default = default_text(action)
    return f"| `{name}` | {text} | {'' if default is None else f'`{default}`'} |"


def spliced(text: str) -> str:
    """Return a page's text with the generated part in the place of the old one.

    Raises:
        ValueError: it has no such place.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise ValueError(f"{PAGE.as_posix()} lacks the lines {BEGIN!r} and {END!r}")
    return before + page() + after


def rewrite(root: Path) -> list[Path]:
    """Write list and page anew below a checkout's root, and return where.

    Raises:
        FileNotFoundError: it is no checkout.
        ValueError: the page has no place for what is generated.
    """
    content = {root / LIST: frozen(), root / PAGE: spliced((root / PAGE).read_text("utf-8"))}
    for path, text in content.items():
        write_whole(path, text.encode())
    return list(content)


if __name__ == "__main__":
    sys.stdout.writelines(f"wrote {path}\n" for path in rewrite(Path.cwd()))
