"""The figures of docs/statistics.md are what the function gives."""

import re
from pathlib import Path

import pytest

from harness.statistics import minimum_detectable_difference

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_the_table_of_what_so_many_images_can_show():
    head, _, *lines = re.search(r"^\| images \|(?:.*\n)+?(?=\n)", PAGE, re.M)[0].splitlines()
    shares = [float(share) / 100 for share in re.findall(r"(\d+) %", head)]
    assert shares == [0.02, 0.05, 0.1, 0.2]
    assert len(lines) == 5
    for line in lines:
        images, *told = (cell.strip() for cell in line.strip("|").split("|"))
        found = [minimum_detectable_difference(int(images.replace(",", "")), s) for s in shares]
        assert told == ["–" if share is None else f"{100 * share:.1f}" for share in found]


def test_every_family_that_a_table_names_is_on_the_page():
    sources = [path.read_text("utf-8") for path in (ROOT / "harness").rglob("*.py")]
    calls = [call for text in sources for call in re.findall(r"mark_note\(([^()]*)\)", text)]
    families = {name for call in calls for name in re.findall(r"[\"'](all [^\"']+)[\"']", call)}
    assert {"all rows of this table", "all of a column"} < families
    told = re.search(r"^\| where \| family \|(?:.*\n)+?(?=\n)", PAGE, re.M)
    assert told is not None
    assert [name for name in families if name not in told[0]] == []


@pytest.mark.parametrize("module", ["statistics", "significance", "judging"])
def test_the_page_names_the_code(module: str):
    assert f"`harness/{module}.py`" in PAGE
    assert (ROOT / "harness" / f"{module}.py").is_file()
