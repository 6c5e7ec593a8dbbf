"""The generated part of docs/commands.md: every subcommand and flag.

``python -m tools.write_commands`` in a checkout writes it anew; a test holds it still.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.cli.command import EVERY, EXIT_CODES, PROGRAM, CommandParser, default_text, leaves
from harness.cli.entry import COMMANDS, build_parser
from tools import replace_part
from zoo.core.files import write_whole

PAGE = Path("docs/commands.md")
REWRITE = "python -m tools.write_commands"
BEGIN, END = f"<!-- generated: {REWRITE} -->", "<!-- end of what is generated -->"
HEAD = ("| | what | default |", "| --- | --- | --- |")


def page() -> str:
    """Return the generated part of docs/commands.md: groups of flags that commands share, a section per subcommand."""
    parsers = leaves(build_parser())
    every = [(str(group.title), tuple(_rows(group))) for parser in parsers.values() for group in parser._action_groups]
    shared = {one: None for one in every if every.count(one) > 1 and one[1] and one[0] not in ("arguments", EVERY)}
    lines = [BEGIN, "", "## Commands", ""]
    lines += [f"- [`{path}`](#{path.lower().replace(' ', '-')})" for path in parsers]
    lines += ["", "## Flags of several commands"]
    for title, rows in shared:
        lines += ["", f"### {title}", *HEAD, *rows]
    for path, parser in parsers.items():
        lines += ["", *_section(path, parser, set(shared))]
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    lines += ["", "## Exit codes", "", "| code | meaning |", "| ---: | --- |", *codes]
    return "\n".join([*lines, "", END]) + "\n"


def _section(path: str, parser: CommandParser, shared: set[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    command = COMMANDS[path]
    yield from (f"### {path}", command.what, "", "```text", parser.usage or "", "```", "", *HEAD)
    for group in parser._action_groups:
        rows, title = tuple(_rows(group)), str(group.title)
        if not rows or title == EVERY:
            continue
        if (title, rows) in shared:
            yield f"| [{title}](#{title.lower().replace(' ', '-')}) | | |"
            continue
        if title not in ("arguments", "flags"):
            yield f"| **{title}** | | |"
        yield from rows
    yield from ("", "```sh")
    for line, purpose in command.examples:
        yield from (f"# {purpose}", f"{PROGRAM} {line}")
    problems = f" Exit code 1: {command.problems}." if command.problems else ""
    yield from ("```", "", f"Output: {command.output}.{problems}")


def _rows(group: argparse._ArgumentGroup) -> Iterator[str]:
    for action in group._group_actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            choices = "\\|".join(map(str, action.choices or ()))
            name += f" {action.metavar or choices or action.dest.upper()}"
        if action.nargs in ("+", "*"):
            name += " ..."
        default = default_text(action)
        text = (action.help or "").replace("|", "\\|")
        yield f"| `{name}` | {text} | {'' if default is None else f'`{default}`'} |"


def splice(text: str) -> str:
    """Return the text of docs/commands.md with the generated part in the place of the old one.

    Raises:
        ValueError: it has no such place.
    """
    return replace_part(text, page(), BEGIN, END, PAGE)


if __name__ == "__main__":
    write_whole(PAGE, splice(PAGE.read_text("utf-8")).encode())
    sys.stdout.write(f"wrote {PAGE}\n")
