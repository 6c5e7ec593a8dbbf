"""Fitting from ranking files: tokens meet their own importance, mixed-up files are refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import zoo
from harness import fit as module
from harness.datasets.base import Dataset
from harness.fit import fit, gather, tau_of
from harness.golden.store import Rankings
from harness.progress import Progress
from harness.towers import Tower
from harness.variants import variants
from zoo.clip import ClipParts
from zoo.fit import FitConfig, fit_predictor
from zoo.predictor import Predictor
from zoo.weights import find_predictor

MODEL = "clip_vit_b16.openai"
QUICK = FitConfig(arch="mlp", width=16, epochs=3)
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _miniature(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)


@pytest.fixture
def write(ranked: Callable[..., Rankings], tmp_path: Path) -> Write:
    def call(split: str, count: int | None = None, **facts: Any) -> Path:
        path = tmp_path / f"{split}-{len(list(tmp_path.iterdir()))}.parquet"
        ranked(split, count, **facts).write(path)
        return path

    return call


@pytest.mark.parametrize("block", [0, 3])
@torch.no_grad()
def test_tokens_and_importance_are_of_the_same_image(
    block: int, write: Write, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset
):
    """Several files are strung together; shuffled rows inside a file don't matter."""
    files = [write("train", block=block), write("val", 5, block=block)]
    stored = Rankings.read(files[0])
    turned = Rankings(
        image_ids=stored.image_ids[::-1],
        importance=stored.importance[::-1].copy(),
        provenance=stored.provenance,
    )
    turned.write(files[0])
    data, found = gather(MODEL, files, Progress())
    assert [len(rankings.image_ids) for rankings in found] == [12, 5]
    assert (data.prefix, data.grid, data.tokens.dtype) == (1, (8, 8), torch.float16)
    examples = [*toy.split("train"), *list(toy.split("val"))[:5]]
    assert len(data.tokens) == len(data.importance) == len(examples)
    for i, example in enumerate(examples):
        image = parts.preprocess(example.image)[None]
        entering, _ = dense.advance(dense.embed(image), stop=block)
        assert torch.allclose(data.tokens[i].float(), entering.x[0], atol=2e-3, rtol=2e-3)
        importance = (found[0] if i < 12 else found[1]).of([example.image_id])[0]
        assert np.array_equal(data.importance[i].numpy(), importance)


def test_equals_fitting_by_hand(write: Write):
    train, val = write("train"), write("val")
    path, tau = fit(MODEL, [train], [val], QUICK, out=None, progress=Progress())
    data = [gather(MODEL, [file], Progress())[0] for file in (train, val)]
    slow = fit_predictor(*data, QUICK)
    stored = find_predictor("clip_vit_b16", "openai")
    assert stored.path == path
    assert (stored.block, stored.options) == (3, {"arch": "mlp", "width": 16})
    for name, tensor in stored.tensors().items():
        theirs = slow.state_dict()[name.removeprefix("reducer.predictor.")]
        assert torch.equal(tensor, theirs.half())
    with torch.no_grad():
        predicted = slow(data[1].tokens.float(), 1, (8, 8))
    taus = [
        kendalltau(p.numpy(), g.numpy()).statistic
        for p, g in zip(predicted, data[1].importance, strict=True)
    ]
    assert tau == pytest.approx(np.mean(taus))


def test_the_result_serves_the_comparison(write: Write, dense: zoo.ReducedViT):
    fit(MODEL, [write("train", 6)], [write("val", 4)], QUICK, out=None, progress=Progress())
    [row] = variants(dense, "clip_vit_b16", "openai", ["patchrank"], [0.5])
    assert (row.config["arch"], row.config["width"]) == ("mlp", 16)


def test_another_place_for_the_result(write: Write, tmp_path: Path):
    out = tmp_path / "sub" / "p.safetensors"
    files = [write("train", 6, block=1)], [write("val", 4, block=1)]
    path, _ = fit("clip_vit_b16", *files, QUICK, out=out, progress=Progress())
    assert path == out
    assert find_predictor("clip_vit_b16", "openai", out).block == 1
    with pytest.raises(FileNotFoundError, match="no predictor for clip_vit_b16"):
        find_predictor("clip_vit_b16", "openai")


def test_tau_is_of_every_image_over_batches(write: Write):
    data, _ = gather(MODEL, [write("train")], Progress())
    torch.manual_seed(0)
    predictor = Predictor("conv", 48, 8, (8, 8), None, None).eval()
    found = tau_of(predictor, data)
    with torch.no_grad():
        for i in range(12):
            alone = predictor(data.tokens[i : i + 1].float(), 1, (8, 8))[0]
            slow = kendalltau(alone.numpy(), data.importance[i].numpy()).statistic
            assert found[i] == pytest.approx(slow, abs=1e-3)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"block": 2}, "rankings of several reduction points: [2, 3]; one at a time"),
        ({"score": "label"}, "rankings of several scores: ['label', 'preservation']"),
        ({"weights": "0" * 16}, "made with weights='0000000000000000', wanted"),
        ({"model": "clip_vit_l14.openai"}, "made with model='clip_vit_l14.openai', wanted"),
    ],
    ids=str,
)
def test_files_that_do_not_go_together(facts: dict, match: str, write: Write):
    files = [write("train", 6)], [write("val", 4, **facts)]
    with pytest.raises(ValueError, match=re.escape(match)):
        fit(MODEL, *files, QUICK, out=None, progress=Progress())


def test_images_may_not_judge_their_own_training(write: Write):
    files = [write("train", 6)], [write("val", 4), write("train", 8)]
    match = "6 images are in the rankings to learn from and in those for early stopping"
    with pytest.raises(ValueError, match=match):
        fit(MODEL, *files, QUICK, out=None, progress=Progress())


def test_rankings_of_a_folder_of_images_are_not_for_fitting(write: Write):
    files = [write("train", 6)], [write("val", 4)]
    stored = Rankings.read(files[0][0])
    replace(stored, provenance=replace(stored.provenance, split="all")).write(files[0][0])
    with pytest.raises(ValueError, match="ranks a folder of images, which is not at hand here"):
        fit(MODEL, *files, QUICK, out=None, progress=Progress())


def test_missing_files(tmp_path: Path):
    gone = [tmp_path / "gone.parquet"]
    with pytest.raises(FileNotFoundError, match=re.escape("gone.parquet' do not exist")):
        fit(MODEL, gone, gone, QUICK, out=None, progress=Progress())
