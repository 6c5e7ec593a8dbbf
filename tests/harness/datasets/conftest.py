"""Datasets that a test gives by their path are forgotten after it."""

from collections.abc import Iterator

import pytest

from harness.datasets import forget


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget()
