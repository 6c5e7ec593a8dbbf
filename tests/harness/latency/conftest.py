"""A record of one model at one batch, and the same with another's facts."""

from collections.abc import Callable

import pytest

from harness.latency.record import LatencyRecord


@pytest.fixture
def record(latency_record: Callable[..., LatencyRecord]) -> Callable[..., LatencyRecord]:
    """Make a record of a dense model; ``samples`` and ``dense`` give it times and a ratio."""
    return latency_record
