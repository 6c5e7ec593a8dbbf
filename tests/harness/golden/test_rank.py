"""Golden rankings of a dataset: the right images, resumable, and told apart by what made them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from harness.datasets.base import Dataset
from harness.evaluate import subset, text_classifier
from harness.golden import rank as module
from harness.golden.rank import _to_half, rank
from harness.golden.store import Rankings, find_rankings
from harness.golden.store import ranked as ranked_positions
from harness.progress import Progress
from harness.variants import Tower
from zoo.clip import ClipParts
from zoo.golden import SCORES, GoldenConfig, golden_importance
from zoo.weights import fingerprint

CONFIG = GoldenConfig(window=2, stride=2)
Run = Callable[..., Path]


@pytest.fixture
def run(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Rank the toy images with the miniature tower."""
    tower = Tower(parts.model.visual, parts.preprocess)
    monkeypatch.setattr(module, "load_tower", lambda arch, tag: tower)
    monkeypatch.setattr(module, "create_clip", lambda name: parts)
    monkeypatch.setattr(module, "PART", 4)

    def call(config: GoldenConfig = CONFIG, split: str = "test", **options: object) -> Path:
        told = {"limit": 10, "dtype": "float32", "device": "cpu", "out": None} | options
        return rank("clip_vit_b16", toy, split, config, progress=Progress(), **told)

    return call


@pytest.fixture
def named(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the toy images classes that the text tower has words for."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))


@pytest.mark.parametrize("score", ["label", "confidence"])
def test_classes_without_words_leave_no_holes_in_rankings(score: str, run: Run):
    """The posterior would be NaN, and so would every importance."""
    match = f"score='{score}' needs every class named, but 1 of toy have words .*: zebra; use"
    with pytest.raises(ValueError, match=match):
        run(GoldenConfig(score=score))


@pytest.mark.parametrize("score", SCORES)
def test_ranks_like_one_call_on_all_images(
    score: str, run: Run, parts: ClipParts, toy: Dataset, dense: zoo.ReducedViT, named: None
):
    split = subset(toy.split("test"), 10)
    config = GoldenConfig(score=score, window=2, stride=2)
    found = Rankings.read(run(config))
    assert found.image_ids == tuple(example.image_id for example in split)
    images = torch.stack([parts.preprocess(example.image) for example in split])
    text = text_classifier(parts, toy)[0]
    labels = torch.from_numpy(split.labels)
    importance = golden_importance(
        dense, images, config, text=text, scale=20.0, labels=labels
    ).numpy()
    lifted = importance - importance.min(axis=1, keepdims=True)
    assert np.allclose(found.importance, lifted, rtol=2e-3, atol=2e-6)
    assert lifted.max() > 1e-4


def test_provenance(run: Run, toy: Dataset, dense: zoo.ReducedViT):
    Rankings.read(run()).require(
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
    )


def test_lands_where_compare_looks(run: Run, tmp_path: Path):
    path = run()
    found = find_rankings("clip_vit_b16.openai", "toy", "test")
    assert found.image_ids == Rankings.read(path).image_ids
    assert run(out=tmp_path / "mine.parquet") == tmp_path / "mine.parquet"
    assert Rankings.read(tmp_path / "mine.parquet").image_ids == found.image_ids


class StoppedError(Exception):
    """Somebody pulled the plug."""


def test_goes_on_where_it_stopped(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Ten images are parts of 4, 4 and 2: what is done isn't done again."""
    calls: list[int] = []

    def counted(model: object, images: torch.Tensor, *args: object, **kwargs: object) -> object:
        if len(calls) == limit:
            raise StoppedError
        calls.append(len(images))
        return golden_importance(model, images, *args, **kwargs)

    monkeypatch.setattr(module, "golden_importance", counted)
    limit = 2
    with pytest.raises(StoppedError):
        run(out=tmp_path / "r.parquet")
    assert not (tmp_path / "r.parquet").exists()
    limit = 99
    run(out=tmp_path / "r.parquet")
    assert calls == [4, 4, 2]
    run(out=tmp_path / "r.parquet")
    assert calls == [4, 4, 2]
    resumed = Rankings.read(tmp_path / "r.parquet")
    monkeypatch.setattr(module, "PART", 10)
    whole = Rankings.read(run(out=tmp_path / "w.parquet"))
    assert calls == [4, 4, 2, 10]
    assert whole.image_ids == resumed.image_ids
    assert np.allclose(whole.importance, resumed.importance, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(
    "other",
    [{"score": "confidence"}, {"block": 2}, {"window": 3}, {"stride": 1}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_parts_of_other_settings_are_not_mixed_in(other: dict, run: Run, named: None):
    first = Rankings.read(run())
    dtype = other.pop("dtype", "float32")
    again = Rankings.read(run(GoldenConfig(**{"window": 2, "stride": 2, **other}), dtype=dtype))
    assert again.image_ids == first.image_ids
    assert not np.array_equal(again.importance, first.importance)
    assert again.provenance != first.provenance


def test_float16_keeps_the_order():
    """Cosines crowd below 1, where float16 can't tell 0.9999 from 1; their differences it can."""
    generator = np.random.default_rng(0)
    importance = (-1 + 1e-3 * generator.random((5, 196))).astype(np.float32)
    half = _to_half(importance)
    assert half.dtype == np.float16
    assert half.min() == 0.0
    for before, after in zip(importance, half, strict=True):
        ordered = after[np.argsort(before, kind="stable")]
        assert (np.diff(ordered) >= 0).all()
        assert len(set(after)) > 180  # of 196
    assert len(set(importance.astype(np.float16)[0])) < 5


def test_the_ranked_part_of_a_split(toy: Dataset, ranked: Callable[..., Rankings]):
    split = toy.split("test").subset([20, 3, 6, 9])
    assert ranked_positions(split, ranked(count=7)).tolist() == [1, 2]
    assert ranked_positions(toy.split("val"), ranked(count=7)).tolist() == []


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (GoldenConfig(block=6), "block=6: this tower has blocks 0 to 5"),
        (GoldenConfig(window=9), "window=9: larger than the 8 x 8 patch grid"),
    ],
)
def test_refusals(config: GoldenConfig, match: str, run: Run):
    with pytest.raises(ValueError, match=re.escape(match)):
        run(config)


def test_unknown_towers(toy: Dataset):
    with pytest.raises(ValueError, match="model 'clip_vit_b61': did you mean 'clip_vit_b16'"):
        rank(
            "clip_vit_b61",
            toy,
            "test",
            CONFIG,
            limit=1,
            dtype="float32",
            device="cpu",
            out=None,
            progress=Progress(),
        )
