"""The report in a browser: desk and phone, light and dark, offline, by keyboard and sorted."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.cli.entry import main

keys = pytest.importorskip("selenium.webdriver.common.keys", reason="tox -e clients has selenium")
Keys = keys.Keys
# What selenium and its dependencies warn of.
pytestmark = pytest.mark.filterwarnings("ignore")
RESULTS = Path(__file__).parents[3] / "docs" / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main(["report", str(RESULTS), "--output", str(folder)]) == 0
    return folder / "report.html"


@contextmanager
def browser(profile: Path, width: int, scheme: str) -> Iterator[Any]:
    """Start a browser of that width that reports what it fetches and says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="tox -e clients has selenium")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    program = shutil.which("chromedriver")
    if chromium is None or program is None:
        pytest.skip("no chromium with its chromedriver: apt install chromium-driver has both")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    root = ("--no-sandbox",) if os.name == "posix" and os.geteuid() == 0 else ()
    for flag in (*FLAGS, *root, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module", params=[(1400, "light"), (400, "dark")], ids=str)
def page(report: Path, request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    width, scheme = request.param
    with browser(tmp_path_factory.mktemp("profile"), width, scheme) as driver:
        driver.get(report.as_uri())
        yield driver


def script(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def test_nothing_is_fetched_and_nothing_goes_wrong(page: Any, report: Path):
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = {request["request"]["url"] for request in requests}
    ours = {url for url in urls if not url.startswith(("chrome", "data:"))}
    assert ours == {report.as_uri()}
    assert page.get_log("browser") == []


def resize(page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_only_tables_and_pictures_scroll_sideways(page: Any):
    own = page.execute_script("return innerWidth")
    for width in (320, own):
        resize(page, width)
        wide = page.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide[0] <= wide[1]


def test_text_has_contrast(page: Any):
    contrasts = page.execute_script(script("contrast.js"))
    assert len(contrasts) > 500
    assert min(contrasts)[0] >= 4.5, sorted(contrasts)[:5]


def test_what_assistive_technology_needs_is_there(page: Any):
    assert page.execute_script(script("access.js")) == []


COLUMN = """
const [table, column] = arguments;
return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
"""


def figures(cells: list[str]) -> list[float]:
    return [float(re.split(r"[* \u00a0]", cell)[0]) for cell in cells if cell != "–"]


@pytest.mark.parametrize("way", ["click", "Enter"])
def test_headings_sort_by_figures_and_dashes_stay_last(page: Any, way: str):
    page.refresh()
    table = page.find_element("css selector", "#table-1 table[data-sortable]")
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
            button.send_keys(Keys.ENTER)
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
    said = page.find_element("css selector", "#table-1 [role=status]").get_attribute("textContent")
    assert said == "To dense: descending"
    assert act() == before
    assert head.get_attribute("aria-sort") is None


SHOWN = """
const parts = [...document.querySelectorAll(".panels [class^=series]"), ...document.querySelectorAll("tbody tr")];
return parts.filter((part) => getComputedStyle(part).display !== "none").length;
"""


@pytest.mark.parametrize("way", ["click", "Enter"])
def test_a_name_of_the_legend_hides_its_method_in_plots_and_tables_and_shows_it_again(page: Any, way: str):
    page.refresh()
    [button] = [b for b in page.find_elements("css selector", ".legend button") if b.text.strip() == "tome"]
    rows = page.find_elements("css selector", "tbody tr")
    own = [row for row in rows if row.find_element("css selector", "th").get_attribute("textContent") == "tome"]
    assert own
    counts = [page.execute_script(SHOWN)]
    for pressed in ("false", "true"):
        if way == "click":
            page.execute_script("arguments[0].click()", button)
        else:
            button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == pressed
        assert {row.is_displayed() for row in own} == {pressed == "true"}
        counts.append(page.execute_script(SHOWN))
    assert counts[1] < counts[0] == counts[2]
