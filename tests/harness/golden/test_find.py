"""Where rankings are looked for: what ships, then the user's cache."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.golden import store as module
from harness.golden.store import Rankings, find_rankings, own_store, store_name
from zoo.golden import GoldenConfig

Make = Callable[..., Rankings]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point data folder and user's cache at empty folders; return the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    return tmp_path / "data"


MODEL = "clip_vit_s14.imgfocus_lit"
NAME = "golden-clip_vit_s14.imgfocus_lit-fashion-test.parquet"


def own(name: str) -> Path:
    """A file beside the stores in the user's cache."""
    folder = own_store(MODEL, "fashion", "test", GoldenConfig()).parent
    return folder / f"golden-{MODEL}-fashion-{name.replace('.', '-b3w2s1.')}"


def test_every_setting_has_a_store_of_its_own(shipped: Path):
    settings = [
        GoldenConfig(),
        GoldenConfig(block=0),
        GoldenConfig(stride=2),
        GoldenConfig(window=3),
        GoldenConfig(greedy=8),
        GoldenConfig(score="label"),
    ]
    assert len({own_store(MODEL, "fashion", "test", config) for config in settings}) == 6


def test_rankings_for_another_reduction_point_are_left_alone(shipped: Path, rankings: Make):
    rankings(2).write(shipped / NAME)
    rankings(5, block=0).write(own("test.parquet"))
    assert len(find_rankings(MODEL, "fashion", "test").image_ids) == 2
    assert len(find_rankings(MODEL, "fashion", "test", block=0).image_ids) == 5


def test_rankings_are_found(shipped: Path, tmp_path: Path, rankings: Make):
    ask = (MODEL, "fashion", "test")
    assert find_rankings(*ask) is None
    rankings(2).write(own("test.parquet"))
    assert len(find_rankings(*ask).image_ids) == 2
    assert find_rankings(MODEL, "fashion", "val") is None
    assert find_rankings("clip_vit_b16.openai", "fashion", "test") is None


def test_the_shipped_ones_come_first_unless_they_know_fewer(
    shipped: Path, tmp_path: Path, rankings: Make
):
    rankings(3).write(shipped / NAME)
    rankings(2).write(own("test.parquet"))
    assert len(find_rankings(MODEL, "fashion", "test").image_ids) == 3


def test_more_images_of_the_users_own_win_over_the_shipped_ones(
    shipped: Path, tmp_path: Path, rankings: Make
):
    """Shipped rankings may cover a part of the split; ``rank --full`` then makes the rest count."""
    rankings(2).write(shipped / NAME)
    rankings(3).write(own("test.parquet"))
    assert len(find_rankings(MODEL, "fashion", "test").image_ids) == 3


def test_a_store_in_the_cache_is_found_once_it_has_a_shard(
    shipped: Path, tmp_path: Path, store: Path, rankings: Make
):
    rankings(3).write(shipped / NAME)
    there = own_store(MODEL, "fashion", "test", GoldenConfig())
    there.mkdir(parents=True)
    ask = (MODEL, "fashion", "test")
    assert len(find_rankings(*ask).image_ids) == 3
    there.rmdir()
    store.replace(there)
    assert len(find_rankings(*ask).image_ids) == 10


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ((MODEL, "emoji", "val"), "golden-clip_vit_s14.imgfocus_lit-emoji-val"),
        (("open_clip:ViT-B-16/laion2b", "my photos", "all", "label"),
         "golden_label-open_clip-ViT-B-16-laion2b-my-photos-all"),
    ],
)  # fmt: skip
def test_names_of_stores_are_names_of_folders(facts: tuple[str, ...], name: str):
    assert store_name(*facts) == name
