"""Shards and stores of random rankings, and a job small enough to be run again and again."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.base.store import Store
from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.golden import rank as module
from harness.golden.rank import Ranked, RankJob, Source, rank
from harness.golden.store import RANKINGS, Provenance, Rankings
from harness.models.towers import Tower
from zoo.ranking.golden import GoldenConfig, GoldenEngine

TOWER = {"model": "clip_vit_s14.imgfocus_lit", "weights": "0123456789abcdef"}
SOURCE = {"dataset": "fashion", "revision": "feedbeef0000", "split": "test"}
WAY: dict[str, Any] = {**asdict(GoldenConfig()), "dtype": "float32", "batch": 8}
PROVENANCE = Provenance(**TOWER, **SOURCE, **WAY, versions={"torch": "2.6"})
Make = Callable[..., Rankings]
Run = Callable[..., Ranked]
SPARSE = GoldenConfig(window=2, stride=2)


@pytest.fixture
def provenance() -> Provenance:
    return PROVENANCE


@pytest.fixture
def exact() -> Make:
    """Make random rankings of four images of a store; every third has no label."""

    def make(index: int = 0, count: int = 4) -> Rankings:
        importance = np.random.default_rng(index).normal(size=(count, 6)).astype(np.float32)
        labels = np.where(np.arange(count) % 3 == 2, -1, np.arange(count) + 4 * index)
        ids = [f"fashion/ü-{4 * index + i}" for i in range(count)]
        return Rankings.from_importance(importance, labels, ids, PROVENANCE)

    return make


@pytest.fixture
def store(tmp_path: Path, exact: Make) -> Path:
    """Write a store of ten images in shards of four."""
    made = Store(tmp_path / "store", RANKINGS, size=4, total=10)
    with made.open(print):
        for index, count in enumerate((4, 4, 2)):
            made.write(index, exact(index, count).table(), PROVENANCE)
    return made.folder


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


@pytest.fixture
def rankings(provenance: Provenance) -> Callable[..., Rankings]:
    """Make rankings of six patches that know no more than the small file."""

    def make(count: int = 3, **facts: Any) -> Rankings:
        ids = tuple(f"fashion/ü-{i}" for i in range(count))
        importance = np.random.default_rng(0).random((count, 6)).astype(np.float16)
        made = replace(provenance, **facts)
        return Rankings(image_ids=ids, importance=importance, provenance=made)

    return make
