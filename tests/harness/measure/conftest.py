"""The main jobs on the tiny tower and the toy dataset."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.datasets.base import Dataset
from harness.golden.store import Rankings, own_store
from harness.measure import compare
from harness.models import towers
from zoo.loading.clip import ClipParts
from zoo.ranking.golden import GoldenConfig


@pytest.fixture
def benchmark(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the tiny tower and the toy dataset, whatever the names."""
    monkeypatch.setattr(towers, "create_clip", lambda name: parts)
    monkeypatch.setattr(compare, "get_dataset", lambda name: toy)


@pytest.fixture
def shipped(ranked: Callable[..., Rankings]) -> Callable[..., Rankings]:
    """Write random rankings of the toy dataset where they are looked for."""

    def write(*split: Any, **facts: Any) -> Rankings:
        rankings = ranked(*split, **facts)
        own = own_store("clip_vit_b16.openai", "toy", rankings.provenance.split, GoldenConfig())
        rankings.write(own.with_name(f"{own.name}.parquet"))
        return rankings

    return write
