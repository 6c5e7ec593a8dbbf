"""Tables of the report sort by mouse and by keyboard."""

from typing import Any

import pytest

# What runs with it in tox warns of its own ways.
pytestmark = pytest.mark.filterwarnings("ignore")
COLUMN = """
const [table, column] = arguments;
return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
"""


def figures(cells: list[str]) -> list[float]:
    return [
        float(cell.split("*")[0].split(" ")[0].split("\u00a0")[0]) for cell in cells if cell != "–"
    ]


@pytest.mark.parametrize("way", ["click", "Enter", "Space"])
def test_headings_sort_by_figures_and_dashes_stay_last(page: Any, way: str):
    from selenium.webdriver.common.keys import Keys

    page.refresh()
    table = page.find_element("css selector", "table[data-sortable]")
    heads = [head.text for head in table.find_elements("css selector", "thead th")]
    column = next(at for at, head in enumerate(heads) if head.startswith("To dense"))
    head = table.find_elements("css selector", "thead th")[column]
    button = head.find_element("css selector", "button")
    before = page.execute_script(COLUMN, table, column)

    def act() -> list[str]:
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        if way == "click":
            page.execute_script("arguments[0].click()", button)
        else:
            button.send_keys({"Enter": Keys.ENTER, "Space": Keys.SPACE}[way])
        return page.execute_script(COLUMN, table, column)

    rising = act()
    assert head.get_attribute("aria-sort") == "ascending"
    assert figures(rising) == sorted(figures(before))
    assert figures(rising) != figures(before)
    assert rising[-1] == "–"
    falling = act()
    assert head.get_attribute("aria-sort") == "descending"
    assert figures(falling) == sorted(figures(before), reverse=True)
    assert falling[-1] == "–"
    said = page.find_element("css selector", "[role=status]").get_attribute("textContent")
    assert said == "To dense: descending"
    assert act() == before
    assert head.get_attribute("aria-sort") is None


def test_numbers_sort_as_numbers_and_names_as_names(page: Any):
    page.refresh()
    table = page.find_element("css selector", "table[data-sortable]")
    for column, key in ((0, str), (1, lambda cell: float(cell.split("\u00a0")[0]))):
        button = table.find_elements("css selector", "thead button")[column]
        page.execute_script("arguments[0].click()", button)
        cells = page.execute_script(COLUMN, table, column)
        assert cells == sorted(cells, key=key)
        heads = table.find_elements("css selector", "[aria-sort]")
        assert len(heads) == 1
