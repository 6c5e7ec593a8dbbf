"""docs/commands.md is what the parser says, and its own words stay."""

from pathlib import Path

import pytest

from harness.cli.entry import COMMANDS
from tools.write_commands import BEGIN, END, PAGE, REWRITE, page, splice


def test_the_page_is_what_the_parser_says():
    text = (Path(__file__).parents[2] / PAGE).read_text("utf-8")
    assert splice(text) == text, f"docs/commands.md is out of date; run: {REWRITE}"
    heads = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert [path for path in COMMANDS if f"`{path}`" not in heads] == []  # of JSON documents
    assert splice(f"before\n{BEGIN}\nold\n{END}\nafter\n") == f"before\n{page()}after\n"
    with pytest.raises(ValueError, match=r"docs/commands\.md lacks the lines"):
        splice(f"{END}\n")
