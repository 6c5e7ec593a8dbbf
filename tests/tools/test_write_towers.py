"""The table of docs/towers.md is what trying gives."""

import re
from pathlib import Path

import pytest

from tools import write_towers as towers

PAGE = Path(__file__).parents[2] / "docs" / "towers.md"


def test_the_page_has_a_row_for_every_tower_and_a_reason_for_every_no():
    text = PAGE.read_text("utf-8").partition(towers.BEGIN)[2].partition(towers.END)[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(":")[0].removeprefix("| ") for row in rows[1:]] == [
        *towers.TOWERS,
        *towers.OPEN_CLIP,
        *towers.TRANSFORMERS,
    ]
    reasons = set(re.findall(r"^(\d+)\. ", text, re.MULTILINE))
    assert set(re.findall(r"\((\d+)\)", " ".join(rows))) == reasons
    refused = [cell.strip() for row in rows for cell in row.split("|") if re.match(r" no\b", cell)]
    assert refused
    assert all(re.fullmatch(r"no \(\d+\)", cell) for cell in refused)


@pytest.mark.parametrize("kind", ["dinov2", "averaged", "coca"])
def test_a_row_is_what_trying_gives(kind: str):
    notes = [line.partition(". ")[2] for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\d\. ", line)]
    known = len(notes)
    row = f"| {' | '.join(towers.row_of(kind, notes))} |"
    assert row in PAGE.read_text("utf-8").splitlines()
    assert len(notes) == known
