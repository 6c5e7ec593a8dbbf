"""A report of the committed run, in a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.cli.entry import main

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


@pytest.fixture(
    scope="module",
    params=[(1400, "light"), (400, "dark")],
    ids=lambda given: f"{given[0]}-{given[1]}",
)
def page(report: Path, request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    width, scheme = request.param
    with browser(tmp_path_factory.mktemp("profile"), width, scheme) as driver:
        driver.get(report.as_uri())
        yield driver


@pytest.fixture(scope="session")
def script() -> Callable[[str], str]:
    """Return what reads a script beside this file."""
    return lambda name: (Path(__file__).parent / name).read_text("utf-8")
