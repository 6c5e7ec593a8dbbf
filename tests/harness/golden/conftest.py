"""Shards and stores of random rankings, and a job small enough to be run again and again."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import zoo  # noqa: F401  (registers the models)
from harness.base.store import LOCK, shard_path
from harness.base.terminal import Progress
from harness.cli import main
from harness.datasets.base import Dataset
from harness.golden import rank as module
from harness.golden.rank import Job, Ranked, Source, rank
from harness.golden.store import Provenance, Rankings, Shard
from harness.models.towers import Tower
from zoo.loading.clip import ClipParts
from zoo.ranking.golden import GoldenConfig, GoldenEngine

TOWER = {"model": "clip_vit_s14.imgfocus_lit", "weights": "0123456789abcdef"}
SOURCE = {"dataset": "fashion", "revision": "feedbeef0000", "split": "test"}
WAY: dict[str, Any] = {**asdict(GoldenConfig()), "dtype": "float32", "batch": 8}
PROVENANCE = Provenance(**TOWER, **SOURCE, **WAY, versions={"torch": "2.6"})
MakeShard = Callable[..., Shard]
Run = Callable[..., Ranked]
SPARSE = GoldenConfig(window=2, stride=2)


@pytest.fixture
def provenance() -> Provenance:
    return PROVENANCE


@pytest.fixture
def make_shard() -> MakeShard:
    """Make a shard of random rankings; every third image has no label."""

    def make(index: int = 0, count: int = 4, size: int = 4, **facts: Any) -> Shard:
        first = index * size
        importance = np.random.default_rng(index).normal(size=(count, 6)).astype(np.float32)
        labels = np.where(np.arange(count) % 3 == 2, -1, np.arange(count) + first)
        place = {"first": first, "size": size, "provenance": PROVENANCE}
        ids = tuple(f"fashion/ü-{first + i}" for i in range(count))
        return Shard.from_importance(importance, labels, **{**place, "image_ids": ids, **facts})

    return make


@pytest.fixture
def store(tmp_path, make_shard: MakeShard) -> Path:
    """Write a store of ten images in shards of four."""
    folder = tmp_path / "store"
    folder.mkdir()
    for index, count in enumerate((4, 4, 2)):
        shard_path(folder, index).write_bytes(make_shard(index, count).encode())
    return folder


class Small(NamedTuple):
    """A command that ranks 60 random pictures with a random tower, and where it runs."""

    command: list[str]  # without `--output`; 30 shards
    folder: Path  # where relative paths in it hold
    whole: Path  # the store that an undisturbed run in one process wrote

    def shards(self, out: Path) -> dict[str, bytes]:
        """Return the content of a store's files by name, whatever they are but its lock."""
        paths = sorted(path for path in out.iterdir() if path.name != LOCK)
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[[Path, int], None]:
    """Fill a new folder with random pictures, ``0.png`` on."""

    def draw(folder: Path, count: int) -> None:
        folder.mkdir()
        generator = np.random.default_rng(0)
        for i in range(count):
            pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    return draw


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Any) -> Small:
    folder = tmp_path_factory.mktemp("small")
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
    torch.manual_seed(15)
    tower = timm.create_model("clip_vit_b16.openai", num_classes=7, **shape)
    save_for_hf(tower, folder / "tower", safe_serialization=True)
    draw_pictures(folder / "pictures", 60)
    paths = ["--model", f"local-dir:{folder / 'tower'}", "--images", str(folder / "pictures")]
    flags = "--full --block 0 --shard-size 2 --batch 8 --dtype float32"
    command = ["rank", *paths, *flags.split()]
    whole = folder / "whole"
    assert main([*command, "--output", str(whole)]) == 0
    small = Small(command, folder, whole)
    assert len(small.shards(whole)) == 30
    return small


@pytest.fixture
def run(parts: ClipParts, toy: Dataset, monkeypatch) -> Run:
    """Rank ten toy images with the miniature tower, in shards of four."""
    tower = Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)

    def call(config: GoldenConfig = SPARSE, progress: Progress | None = None, **facts: Any) -> Ranked:
        defaults = {"source": Source.of(toy, "test"), "limit": 10, "shard_size": 4, "batch": 16}
        job = Job(model="clip_vit_b16", config=config, **defaults | facts)
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
