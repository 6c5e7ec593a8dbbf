"""Pages of the site that are made when it is built: mkdocs.yml names this file as a hook.

It needs rich and no other package of ours, so that the site is built without torch.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any


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
    """Return a section per command, with its help, in Markdown."""
    from harness.cli.command import CommandParser, Formatter
    from harness.cli.entry import COMMANDS

    lines = ["## Commands"]
    for path, command in COMMANDS.items():
        parser = CommandParser(command)
        parser.formatter_class = partial(Formatter, width=98)
        lines += ["", f"### {path}", "```text", parser.format_help() + "```"]
    return "\n".join([*lines, ""])
