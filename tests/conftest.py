"""What holds for every test: no hub, no display, fixed seeds, honest skips."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest
import torch

# A shared machine stalls now and then, and the same commit must give the same verdict twice.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--network", action="store_true", help="also run tests that ask a package registry"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = {}
    if not config.getoption("--network"):
        absent["network"] = "needs --network"
    if not torch.cuda.is_available():
        absent["cuda"] = "needs a CUDA device"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Run on one thread: towers this small lose time to a second one, and tox runs two workers."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_width() -> None:
    """Print as into a pipe; xdist tells its workers a width that no terminal has."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
