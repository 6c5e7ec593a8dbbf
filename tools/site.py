"""Pages of the site that are made when it is built: mkdocs.yml names this file as a hook.

It needs rich and no other package of ours, so that the site is built without torch.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.cli.command import CommandParser

HEAD = ("| | what | default |", "| --- | --- | --- |")


def on_files(files: Any, config: Any) -> Any:
    """Make README the first page. Its links start at the root of the repository, those of pages in docs/."""
    from mkdocs.structure.files import File

    readme = Path(config.config_file_path).with_name("README.md").read_text("utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Append to the page of the command line what its parser says."""
    if page.file.src_uri != "commands.md":
        return markdown
    sys.path.append(str(Path(config.config_file_path).parent))
    return f"{markdown}\n{commands()}"


def commands() -> str:
    """Return groups of flags that commands share, a section per command, and the exit codes, in Markdown."""
    from harness.cli.command import EVERY, EXIT_CODES, leaves
    from harness.cli.entry import build_parser

    parsers = leaves(build_parser())
    every = [(str(group.title), tuple(_rows(group))) for parser in parsers.values() for group in parser._action_groups]
    shared: dict[tuple[str, tuple[str, ...]], str] = {}  # headings: a title that comes again gets a number
    for title, rows in dict.fromkeys(one for one in every if every.count(one) > 1):
        if rows and title not in ("arguments", EVERY):
            again = sum(title == other for other, _ in shared)
            shared[title, rows] = f"{title} ({again + 1})" if again else title
    lines = ["## Flags of several commands"]
    for (_, rows), heading in shared.items():
        lines += ["", f"### {heading}", *HEAD, *rows]
    lines += ["", "## Commands"]
    for path, parser in parsers.items():
        lines += ["", *_section(path, parser, shared)]
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    lines += ["", "## Exit codes", "", "| code | meaning |", "| ---: | --- |", *codes]
    return "\n".join([*lines, ""])


def _anchor(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _section(path: str, parser: "CommandParser", shared: dict[tuple[str, tuple[str, ...]], str]) -> Iterator[str]:
    from harness.cli.command import EVERY, PROGRAM
    from harness.cli.entry import COMMANDS

    command = COMMANDS[path]
    yield from (f"### {path}", command.what, "", "```text", parser.usage or "", "```", "", *HEAD)
    for group in parser._action_groups:
        rows, title = tuple(_rows(group)), str(group.title)
        if not rows or title == EVERY:
            continue
        if (title, rows) in shared:
            heading = shared[title, rows]
            yield f"| [{heading}](#{_anchor(heading)}) | | |"
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
    from harness.cli.command import default_text

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
