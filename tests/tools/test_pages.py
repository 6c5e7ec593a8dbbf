"""The generated pages: docs/commands.md is what the parser says, the table of docs/towers.md what trying gives."""

import re
from pathlib import Path

import pytest

from harness.cli.entry import COMMANDS
from tools import write_towers as towers
from tools.write_commands import PAGE, REWRITE, splice

TOWERS = (Path(__file__).parents[2] / towers.PAGE).read_text("utf-8")


def test_the_page_is_what_the_parser_says():
    text = (Path(__file__).parents[2] / PAGE).read_text("utf-8")
    assert splice(text) == text, f"docs/commands.md is out of date; run: {REWRITE}"
    heads = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert [path for path in COMMANDS if f"`{path}`" not in heads] == []  # of JSON documents


def test_the_table_has_a_row_for_every_tower_and_a_reason_for_every_no():
    text = TOWERS.partition(towers.BEGIN)[2].partition(towers.END)[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    kinds = [*towers.TOWERS, *towers.OPEN_CLIP, *towers.TRANSFORMERS]
    assert [row.split(":")[0].removeprefix("| ") for row in rows[1:]] == kinds
    reasons = set(re.findall(r"^(\d+)\. ", text, re.MULTILINE))
    assert set(re.findall(r"\((\d+)\)", " ".join(rows))) == reasons
    refused = [cell.strip() for row in rows for cell in row.split("|") if re.match(r" no\b", cell)]
    assert refused
    assert all(re.fullmatch(r"no \(\d+\)", cell) for cell in refused)


@pytest.mark.parametrize("kind", ["dinov2", "averaged", "coca"])
def test_a_row_is_what_trying_gives(kind: str):
    notes = [line.partition(". ")[2] for line in TOWERS.splitlines() if re.match(r"\d\. ", line)]
    assert f"| {' | '.join(towers.row_of(kind, list(notes)))} |" in TOWERS.splitlines()
