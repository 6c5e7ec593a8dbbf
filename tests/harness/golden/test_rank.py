"""Golden rankings of a dataset: the right images, resumable, and told apart by what made them."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import zoo
from harness.datasets.base import Dataset
from harness.evaluate import subset, text_classifier, turns
from harness.golden import rank as module
from harness.golden.rank import Ranked, Source
from harness.golden.store import Rankings, find_rankings, shard_path, shard_paths
from harness.golden.store import ranked as ranked_positions
from harness.progress import Progress
from zoo.clip import ClipParts
from zoo.golden import SCORES, GoldenConfig, GoldenEngine
from zoo.weights import fingerprint

Run = Callable[..., Ranked]


@pytest.mark.parametrize("score", SCORES)
def test_ranks_like_one_call_on_all_images(
    score: str, run: Run, parts: ClipParts, toy: Dataset, dense: zoo.ReducedViT, named: None
):
    whole = toy.split("test")
    split = whole.subset(turns(whole.labels)[:10])
    config = GoldenConfig(score=score, window=2, stride=2)
    found = Rankings.read(run(config).path)
    assert found.image_ids == split.image_ids
    assert found.labels.tolist() == split.labels.tolist()
    images = torch.stack([parts.preprocess(example.image) for example in split])
    engine = GoldenEngine(dense, config, text=text_classifier(parts, toy)[0], scale=20.0)
    exact = engine.importance(images, torch.from_numpy(split.labels)).numpy()
    assert np.allclose(found.importance + found.least[:, None], exact, rtol=2e-3, atol=2e-6)
    assert np.ptp(exact, axis=1).max() > 1e-4
    for importance, ranking in zip(exact, found.ranking, strict=True):
        assert (np.diff(importance[ranking]) <= 1e-6).all()


def test_provenance(run: Run, toy: Dataset, dense: zoo.ReducedViT):
    found = Rankings.read(run().path)
    found.require(
        model="clip_vit_b16.openai",
        weights=fingerprint(dense),
        dataset="toy",
        revision=toy.revision,
        split="test",
        score="preservation",
        block=3,
        window=2,
        stride=2,
        dtype="float32",
        greedy=None,
        approximate=None,
    )
    assert found.provenance.versions["torch"] == version("torch")


def test_lands_where_compare_looks(run: Run, tmp_path: Path):
    done = run()
    assert done == (done.path, 10, 21, True)
    found = find_rankings("clip_vit_b16.openai", "toy", "test")
    assert found.image_ids == Rankings.read(done.path).image_ids
    assert run(out=tmp_path / "mine").path == tmp_path / "mine"
    assert Rankings.read(tmp_path / "mine").image_ids == found.image_ids


class StoppedError(Exception):
    """Somebody pulled the plug."""


def test_goes_on_where_it_stopped(
    run: Run, counted: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Ten images are shards of 4, 4 and 2: what is done isn't done again."""
    whole = run(out=tmp_path / "whole").path
    counted.clear()

    def stop(*args: Any) -> None:
        raise StoppedError

    write = module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda *a: stop() if a[1] == 2 else write(*a))
    with pytest.raises(StoppedError):
        run(out=tmp_path / "r")
    assert sorted(shard_paths(tmp_path / "r")) == [0, 1]
    monkeypatch.setattr(module, "write_shard", write)
    assert counted == [4, 4, 2]
    run(out=tmp_path / "r")
    assert counted == [4, 4, 2, 2]
    run(out=tmp_path / "r")
    assert counted == [4, 4, 2, 2]
    for name in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        assert (tmp_path / "r" / name).read_bytes() == (whole / name).read_bytes()


def test_a_larger_limit_redoes_only_the_last_shard(run: Run, counted: list[int], tmp_path: Path):
    run(out=tmp_path / "r", limit=6)
    assert counted == [4, 2]
    first = shard_path(tmp_path / "r", 0).stat().st_mtime_ns
    assert run(out=tmp_path / "r", limit=9).images == 9
    assert counted == [4, 2, 4, 1]
    assert shard_path(tmp_path / "r", 0).stat().st_mtime_ns == first
    assert run(out=tmp_path / "r", limit=5).images == 5
    assert run(out=tmp_path / "r", limit=None).images == 21
    assert counted == [4, 2, 4, 1, 4, 4, 4, 1]
    found = Rankings.read(tmp_path / "r")
    assert len(set(found.image_ids)) == 21


def test_any_number_of_first_images_is_class_balanced(toy: Dataset):
    labels = np.array([0] * 30 + [1] * 5 + [2] * 9 + [-1] * 2)
    order = turns(labels)
    assert sorted(order) == list(range(46))
    for count in (4, 8, 11, 20):
        given = [int((labels[order[:count]] == label).sum()) for label in (0, 1, 2)]
        assert max(given) - min(given) <= 1 or count > 15
    images = toy.split("test")
    part = [subset(images, count) for count in (5, 9)]
    assert set(part[0].image_ids) < set(part[1].image_ids)
    assert set(part[1].image_ids) == set(images.subset(turns(images.labels)[:9]).image_ids)


def test_a_broken_shard_is_found_told_and_made_again(run: Run, counted: list[int], tmp_path: Path):
    run(out=tmp_path / "r")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    broken = shard_path(tmp_path / "r", 1)
    broken.write_bytes(whole[broken.name][:100])
    counted.clear()
    console = Console(record=True, width=200)
    run(out=tmp_path / "r", progress=Progress(console))
    assert counted == [4]
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == whole
    said = console.export_text()
    assert said.count("is broken") == 1
    assert "part-00001.parquet is broken (cut off, or no Parquet file): removed" in said
    assert "golden rankings of toy test: 6 of 10 images are there" in said


@pytest.mark.parametrize(
    "other",
    [
        {"score": "confidence"},
        {"block": 2},
        {"window": 3},
        {"stride": 1},
        {"greedy": 16},
        {"dtype": "bfloat16"},
        {"shard_size": 2},
    ],
    ids=str,
)
def test_other_settings_never_mix(other: dict, run: Run, named: None, tmp_path: Path):
    """Not in one folder, which keeps what it has; in another folder they give something else."""
    first = run(out=tmp_path / "r").path
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    job = {name: other.pop(name) for name in ("dtype", "shard_size") if name in other}
    config = GoldenConfig(**{"window": 2, "stride": 2, **other})
    with pytest.raises(ValueError, match=r"made with other settings: .* Use another --out"):
        run(config, out=tmp_path / "r", **job)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    if "shard_size" not in job:
        again = Rankings.read(run(config, out=tmp_path / "other", **job).path)
        assert again.image_ids == Rankings.read(first).image_ids
        assert not np.array_equal(again.importance, Rankings.read(first).importance)


def test_auto_is_the_precision_of_the_store_else_the_fastest(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(module, "best_precision", lambda device: "bfloat16")
    run(out=tmp_path / "new", dtype="auto")
    assert Rankings.read(tmp_path / "new").provenance.dtype == "bfloat16"
    run(out=tmp_path / "old", dtype="float32", limit=4)
    run(out=tmp_path / "old", dtype="auto")
    assert Rankings.read(tmp_path / "old").provenance.dtype == "float32"


def test_a_damaged_image_ends_the_run_with_its_name_and_finished_shards_stay(
    run: Run, tmp_path: Path
):
    (tmp_path / "holiday").mkdir()
    for i in range(9):
        Image.new("RGB", (64, 64), (20 * i, 0, 0)).save(tmp_path / "holiday" / f"{i}.png")
    last = int(turns(np.full(9, -1))[-1])
    (tmp_path / "holiday" / f"{last}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{last}.png"):
        run(source=Source.folder(tmp_path / "holiday"), out=tmp_path / "r")
    assert sorted(shard_paths(tmp_path / "r")) == [0, 1]


def test_too_little_memory_names_a_smaller_batch(run: Run, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GoldenEngine, "importance", full)
    with pytest.raises(ValueError, match=r"out of memory on cpu with --batch 16: try --batch 8"):
        run()


def test_the_ranked_part_of_a_split(toy: Dataset, ranked: Callable[..., Rankings]):
    split = toy.split("test").subset([20, 3, 6, 9])
    assert ranked_positions(split, ranked(count=7)).tolist() == [1, 2]
    assert ranked_positions(toy.split("val"), ranked(count=7)).tolist() == []
