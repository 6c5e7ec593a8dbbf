"""A job small enough to be run again and again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.golden import rank as module
from harness.golden.rank import Ranked, RankJob, Source, rank
from harness.models.towers import Tower
from zoo.ranking.golden import GoldenConfig, GoldenEngine

Run = Callable[..., Ranked]
SPARSE = GoldenConfig(window=2, stride=2)


@pytest.fixture
def run(tower: Tower, toy: Dataset, monkeypatch) -> Run:
    """Rank ten toy images with the miniature tower, in shards of four."""
    monkeypatch.setattr(module, "load_tower", lambda name: tower)

    def call(config: GoldenConfig = SPARSE, progress: Progress | None = None, **facts: Any) -> Ranked:
        defaults = {"source": Source.of(toy, "test"), "limit": 10, "shard_size": 4, "batch": 16}
        job = RankJob(model="clip_vit_b16", config=config, **defaults | facts)
        return rank(job, progress or Progress())

    return call


@pytest.fixture
def named(toy: Dataset, monkeypatch) -> None:
    """Give the toy images classes that the text tower has words for."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Count the images of each call of the engine."""
    calls: list[int] = []
    importances = GoldenEngine.importances

    def call(self: GoldenEngine, images: torch.Tensor, *args: Any) -> dict[str, torch.Tensor]:
        calls.append(len(images))
        return importances(self, images, *args)

    monkeypatch.setattr(GoldenEngine, "importances", call)
    return calls
