"""Fitting from rankings: tokens meet their own importance, fits go on."""

import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.golden.store import Rankings
from harness.learning import predictor as module
from harness.learning.predictor import gather, split_rankings
from zoo.core.files import cache_folder
from zoo.core.recipes import FitConfig
from zoo.learning.fit import fit_predictor
from zoo.loading.learned_files import find_predictor

MODEL = "clip_vit_b16.openai"
QUICK = FitConfig(arch="mlp", width=16, epochs=3)
pytestmark = pytest.mark.usefixtures("miniature")
fit = partial(module.fit, out=None, progress=Progress())


@torch.no_grad()
def test_tokens_and_importance_are_of_the_same_image(tower, write, dense, parts, toy):
    """Several rankings are strung together; the order of rows in one doesn't matter."""
    found = [Rankings.read(write("train")), Rankings.read(write("val", 5))]
    found[0] = found[0].take(found[0].image_ids[::-1])
    data, image_ids = gather(tower, found, Progress())
    tokens = data.tokens[torch.arange(17)]
    assert (data.prefix, data.grid, tokens.dtype) == (1, (8, 8), torch.float16)
    examples = [*toy.split("train"), *list(toy.split("val"))[:5]]
    assert len(tokens) == len(data) == len(examples)
    assert image_ids == tuple(example.image_id for example in examples)
    for i, example in enumerate(examples):
        image = parts.preprocess(example.image)[None]
        entering, _ = dense.advance(dense.embed(image), stop=3)
        assert torch.allclose(tokens[i].float(), entering.x[0], atol=2e-3, rtol=2e-3)
        importance = (found[0] if i < 12 else found[1]).of([example.image_id])[0]
        assert np.array_equal(data.importance[i].numpy(), importance)


def test_equals_fitting_by_hand(tower, write):
    train, val = write("train"), write("val")
    path, tau = fit(MODEL, [train], [val], QUICK)
    data = [gather(tower, [Rankings.read(file)], Progress())[0] for file in (train, val)]
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
    fit(MODEL, *files, replace(QUICK, arch="linear", loss="bce"), shots=2)
    epochs: list[int] = []

    def update(done: int) -> None:
        epochs.append(done)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    watched = Progress()
    monkeypatch.setattr(watched, "task", lambda name, *_: nullcontext(update if "epochs" in name else print))
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


def test_shots_are_ranked_images_of_each_class(tower, write, toy):
    """Of each store; what is left is as if the others had never been ranked."""
    stores = [Rankings.read(write("train")), Rankings.read(write("test"))]
    data, image_ids = gather(tower, stores, Progress(), shots=2, seed=4)
    labels = {e.image_id: e.label for split in ("train", "test") for e in toy.split(split)}
    drawn = Counter((name.split("-")[0], labels[name]) for name in image_ids)
    assert drawn == {(f"toy/{s}", label): 2 for s in ("train", "test") for label in range(4)}
    assert len(data) == 16
    whole, every_id = gather(tower, stores, Progress())
    rows = torch.tensor([every_id.index(name) for name in image_ids])
    assert torch.equal(data.importance, whole.importance[rows])
    torch.testing.assert_close(data.tokens[torch.arange(16)], whole.tokens[rows])  # in float16


def test_a_fifth_is_held_out_whatever_the_order(ranked):
    whole = ranked("train", 12)
    [learn], [stop] = split_rankings([whole])
    assert (len(learn), len(stop)) == (10, 2)
    assert {*learn.image_ids, *stop.image_ids} == set(whole.image_ids)
    turned = whole.take(whole.image_ids[::-1])
    assert {*split_rankings([turned])[1][0].image_ids} == {*stop.image_ids}
    assert np.array_equal(stop.of(stop.image_ids), whole.of(stop.image_ids))
    with pytest.raises(ValueError, match="4 ranked images of 'toy' are too few to hold one in 5"):
        split_rankings([whole.take(whole.image_ids[:4])])
    with pytest.raises(ValueError, match="1 images have no ranking, such as 'nowhere'"):
        whole.take(["nowhere"])


def test_ranked_images_alone_are_drawn_in_the_order_of_the_split(tower, ranked, toy, monkeypatch):
    drawn, draw = [], Split.__getitem__

    def noted(split: Split, index: Any) -> Any:
        found = draw(split, index)
        if not isinstance(index, slice):
            drawn.append(found)
        return found

    monkeypatch.setattr(Split, "__getitem__", noted)
    ids = ("toy/val-4/2", "toy/val-6", "toy/val-1")
    rankings = replace(ranked("val", 3), image_ids=ids)
    with pytest.raises(ValueError, match="2 ranked images are not in toy val, such as 'toy/val-98'; make rankings"):
        gather(tower, [replace(rankings, image_ids=("toy/val-99", "toy/val-1", "toy/val-98"))], Progress())
    assert drawn == []
    wanted = ("toy/val-1", "toy/val-6", "toy/val-4/2")
    assert gather(tower, [rankings], Progress())[1] == tuple(one.image_id for one in drawn) == wanted
    assert drawn[-1].image == toy.split("val").variant(2)[4].image


def test_tokens_beyond_float16_are_refused(tower, ranked):
    with torch.no_grad():
        tower.vit.blocks[0].mlp.fc2.bias.fill_(1e5)
    with pytest.raises(ValueError, match="the tokens that enter block 3 are beyond float16's 65504"):
        gather(tower, [ranked("val", 5)], Progress())
