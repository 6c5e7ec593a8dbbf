"""Fitting from rankings: tokens meet their own importance, are computed once, fits go on."""

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import zoo
from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Split
from harness.golden import fit as module
from harness.golden.fit import entering, gather, held_out
from harness.golden.store import Rankings
from harness.models.towers import Tower
from zoo.core.files import cache_folder
from zoo.learning.fit import FitConfig, fit_predictor
from zoo.loading.learned_files import find_predictor

MODEL = "clip_vit_b16.openai"
QUICK = FitConfig(arch="mlp", width=16, epochs=3)
Compute = Callable[..., tuple[torch.Tensor, Split]]
pytestmark = pytest.mark.usefixtures("miniature")
fit = partial(module.fit, out=None, progress=Progress())


@torch.no_grad()
def test_tokens_and_importance_are_of_the_same_image(tower, write, dense, parts, toy):
    """Several rankings are strung together; the order of rows in one doesn't matter."""
    found = [Rankings.read(write("train")), Rankings.read(write("val", 5))]
    found[0] = found[0].take(found[0].image_ids[::-1])
    gathered = gather(tower, found, Progress())
    data = gathered.data
    tokens = data.tokens[torch.arange(17)]
    assert (data.prefix, data.grid, tokens.dtype) == (1, (8, 8), torch.float16)
    examples = [*toy.split("train"), *list(toy.split("val"))[:5]]
    assert len(tokens) == len(data) == len(examples)
    assert gathered.image_ids == tuple(example.image_id for example in examples)
    for i, example in enumerate(examples):
        image = parts.preprocess(example.image)[None]
        entering, _ = dense.advance(dense.embed(image), stop=3)
        assert torch.allclose(tokens[i].float(), entering.x[0], atol=2e-3, rtol=2e-3)
        importance = (found[0] if i < 12 else found[1]).of([example.image_id])[0]
        assert np.array_equal(data.importance[i].numpy(), importance)


def test_equals_fitting_by_hand(tower, write):
    train, val = write("train"), write("val")
    path, tau = fit(MODEL, [train], [val], QUICK)
    data = [gather(tower, [Rankings.read(file)], Progress()).data for file in (train, val)]
    slow = fit_predictor(*data, QUICK)
    stored = find_predictor("clip_vit_b16", "openai", 3)
    assert stored.path == path
    assert (stored.block, stored.options) == (3, {"arch": "mlp", "width": 16})
    for name, tensor in stored.load().items():
        assert torch.equal(tensor, slow.state_dict()[name].half())
    with torch.no_grad():
        predicted = slow(data[1].tokens[torch.arange(9)].float(), 1, (8, 8))
    taus = [kendalltau(p.numpy(), g.numpy()).statistic for p, g in zip(predicted, data[1].importance, strict=True)]
    assert tau == pytest.approx(np.mean(taus))


@pytest.mark.parametrize(("val", "options", "match"), [
    ({"block": 2}, {}, "rankings of several reduction points: [2, 3]; one at a time"),
    ({"score": "label"}, {}, "rankings of several scores: ['label', 'preservation']"),
    ({}, {"block": 2}, "--block 2: these rankings are of block 3; leave it out"),
    ({"weights": "0" * 16}, {}, "made with weights='0000000000000000', wanted"),
    ({"revision": "0" * 12}, {}, "made with revision='000000000000', wanted"),
    ({}, {"shots": 3}, "--shots 3: class 'house' of 'toy' has 2 ranked images"),
], ids=str)  # fmt: skip
def test_refused(val, options, match, write):
    files = [write("train", 10)], [write("val", 4, **val)]
    with pytest.raises(ValueError, match=re.escape(match)):
        fit(MODEL, *files, QUICK, **options)


def test_stopped_and_asked_again_it_goes_on(write, tmp_path, monkeypatch):
    """The second epoch is broken off; the same call does it and the third, to the same bytes."""
    files = [write("train")], [write("val")]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    fit(MODEL, *files, QUICK, out=whole)
    monkeypatch.setattr(zoo.ReducedViT, "advance", None)  # the tokens are there
    monkeypatch.setattr(zoo.ReducedViT, "embed", None)
    fit(MODEL, *files, replace(QUICK, arch="linear", loss="bce"), shots=2)
    epochs: list[int] = []

    def update(done: int) -> None:
        epochs.append(done)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    watched = Progress()
    monkeypatch.setattr(watched, "task", lambda name, total, **_: nullcontext(update))
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, *files, QUICK, out=stopped, progress=watched)
    assert not stopped.exists()
    [kept] = (cache_folder() / "fits").iterdir()
    other, _ = fit(MODEL, *files, replace(QUICK, seed=5))
    assert kept.is_file()
    fit(MODEL, *files, QUICK, out=stopped, progress=watched)
    assert epochs == [1, 2, 3]
    assert stopped.read_bytes() == whole.read_bytes() != other.read_bytes()
    assert list((cache_folder() / "fits").iterdir()) == []


def test_shots_are_ranked_images_of_each_class(tower, write, toy, tmp_path):
    """Of each store; what is left is as if the others had never been ranked."""
    stores = [Rankings.read(write("train")), Rankings.read(write("test"))]
    gathered = gather(tower, stores, Progress(), shots=2, seed=4)
    labels = {e.image_id: e.label for split in ("train", "test") for e in toy.split(split)}
    drawn = Counter((name.split("-")[0], labels[name]) for name in gathered.image_ids)
    assert drawn == {(f"toy/{s}", label): 2 for s in ("train", "test") for label in range(4)}
    assert len(gathered.data) == 16
    whole = gather(tower, stores, Progress())
    rows = torch.tensor([whole.image_ids.index(name) for name in gathered.image_ids])
    assert torch.equal(gathered.data.importance, whole.data.importance[rows])
    torch.testing.assert_close(gathered.data.tokens[torch.arange(16)], whole.data.tokens[rows])  # in float16


def test_a_fifth_is_held_out_whatever_the_order(ranked):
    whole = ranked("train", 12)
    [learn], [stop] = held_out([whole])
    assert (len(learn), len(stop)) == (10, 2)
    assert {*learn.image_ids, *stop.image_ids} == set(whole.image_ids)
    turned = whole.take(whole.image_ids[::-1])
    assert {*held_out([turned])[1][0].image_ids} == {*stop.image_ids}
    assert np.array_equal(stop.of(stop.image_ids), whole.of(stop.image_ids))
    with pytest.raises(ValueError, match="4 ranked images of 'toy' are too few to hold one in 5"):
        held_out([whole.take(whole.image_ids[:4])])
    with pytest.raises(ValueError, match="1 images have no ranking, such as 'nowhere'"):
        whole.take(["nowhere"])


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Count the images that go through the tower, batch by batch."""
    calls: list[int] = []
    advance = module._advance
    monkeypatch.setattr(module, "_advance", lambda *a: calls.append(len(a[1])) or advance(*a))
    return calls


@pytest.fixture
def compute(tower: Tower, toy: Dataset, ranked: Callable[..., Rankings]) -> Compute:
    def call(count: int = 5, ids: list[str] | None = None, **facts: Any) -> tuple[torch.Tensor, Split]:
        rankings = ranked("val", count)
        names = rankings.image_ids if ids is None else ids
        return entering(replace(rankings.provenance, **facts), toy.split("val"), names, tower, Progress())

    return call


def files() -> list[Path]:
    return sorted((cache_folder() / "tokens").glob("*"))


def test_only_wanted_images_are_drawn_and_only_once(compute, toy, monkeypatch):
    drawn, draw = [], Split.__getitem__

    def noted(split: Split, index: Any) -> Any:
        found = draw(split, index)
        if not isinstance(index, slice):
            drawn.append(found)
        return found

    monkeypatch.setattr(Split, "__getitem__", noted)
    ids = ["toy/val-6", "toy/val-1", "toy/val-4"]
    with pytest.raises(ValueError, match="2 ranked images are not in toy val, such as 'toy/val-98'; make rankings"):
        compute(count=0, ids=[*ids, "toy/val-99", "toy/val-98"])
    assert drawn == files() == []
    (_, first), (_, again) = compute(count=0, ids=ids), compute(count=0, ids=ids)
    assert [example.image_id for example in drawn] == ["toy/val-1", "toy/val-4", "toy/val-6"]
    assert first.image_ids == again.image_ids == ("toy/val-1", "toy/val-4", "toy/val-6")
    assert first.labels.tolist() == [1, 0, 2]
    assert compute(count=0, ids=["toy/val-4/2", "toy/val-6"])[1].image_ids == ("toy/val-6", "toy/val-4/2")
    assert drawn[-1].image == toy.split("val").variant(2)[4].image


def test_tokens_are_computed_once_for_a_tower_and_images(compute, passes):
    first, images = compute()
    again, others = compute(ids=list(images.image_ids[::-1]))  # in whatever order
    assert torch.equal(first, again)
    assert images.image_ids == others.image_ids
    compute(score="label")  # how rankings were made does not matter
    assert passes == [5]
    [tokens] = files()
    whole, wanted = tokens.read_bytes(), first.clone()
    for harmed in (whole[:-1], whole.replace(b"<f2", b"<i2")):
        tokens.write_bytes(harmed)
        assert torch.equal(compute()[0], wanted)
    assert (tokens.read_bytes(), passes) == (whole, [5, 5, 5])
    for facts in ({"weights": "0" * 16}, {"block": 2}, {"revision": "0" * 12}, {"count": 4}):
        compute(**facts)
    assert passes[3:] == [5, 5, 5, 4]
    assert len(files()) == 5


def test_a_full_disk_leaves_nothing(compute, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        compute()
    assert files() == []
