"""The figures of docs/statistics.md are what the function gives."""

import re
from pathlib import Path

from harness.significance import minimum_detectable_difference

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_the_table_of_what_so_many_images_can_show():
    head, _, *lines = re.search(r"^\| images \|(?:.*\n)+?(?=\n)", PAGE, re.M)[0].splitlines()
    shares = [float(share) / 100 for share in re.findall(r"(\d+) %", head)]
    assert shares == [0.02, 0.05, 0.1, 0.2]
    assert len(lines) == 5
    for line in lines:
        images, *told = (cell.strip() for cell in line.strip("|").split("|"))
        found = [minimum_detectable_difference(int(images.replace(",", "")), s) for s in shares]
        assert told == ["–" if share is None else f"{100 * share:.1f}" for share in found]
