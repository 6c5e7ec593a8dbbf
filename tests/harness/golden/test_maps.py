"""Importance for figures: what the model itself computes, golden, predicted or attended."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from harness.datasets.base import Dataset
from harness.golden import maps
from harness.golden.maps import class_text, golden_maps, method_maps, most_important, reduced
from zoo.loading.clip import ClipParts, class_features, image_transform
from zoo.ranking.golden import SCORES, GoldenConfig, golden_importance

CONFIG = GoldenConfig(window=2, stride=2)
MODEL = "clip_vit_b16.openai"
pytestmark = pytest.mark.usefixtures("predictor_file")


@pytest.fixture
def images(toy: Dataset, parts: ClipParts) -> Tensor:
    return torch.stack([parts.preprocess(toy.split("test")[i].image) for i in range(3)])


def test_scores_that_share_their_passes_are_those_made_alone(tower, images):
    text, scale = class_text(tower, ("cat", "dog", "house"), ("a photo of a {}.",))
    facts = {"text": text, "scale": scale, "labels": torch.tensor([2, 0, 1])}
    found = golden_maps(tower.vit, images, SCORES, CONFIG, **facts)
    assert list(found) == list(SCORES)
    for score, importance in found.items():
        alone = golden_importance(tower.vit, images, replace(CONFIG, score=score), **facts)
        assert torch.allclose(importance, alone, atol=1e-6)
        assert importance.std() > 1e-5
    assert golden_maps(tower.vit, images, [], CONFIG) == {}


def test_class_text(tower):
    templates = ("a photo of a {}.", "{}")
    text, scale = class_text(tower, ("dog", "cat"), templates)
    assert torch.allclose(text, class_features(tower.clip.model, tower.clip.tokenizer, ("dog", "cat"), templates))
    assert scale == pytest.approx(20.0)
    with pytest.raises(ValueError, match=r"class 'zebra': .* never saw 'zebra'"):
        class_text(tower, ("dog", "zebra"), templates)
    with pytest.raises(ValueError, match=r"clip_vit_b16\.openai has no text tower here"):
        class_text(tower._replace(clip=None), ("dog",), templates)


@pytest.mark.parametrize("method", ["patchrank", "evitfuse"])
def test_every_method_keeps_what_its_trace_says(method, tower, images):
    vit = reduced(tower, method, keep=0.6, block=3)
    importance, kept = method_maps(vit, images)
    trace = vit.trace(images)
    assert torch.equal(importance, trace.scores)
    assert trace.final_tokens == round(0.6 * 64)
    for row, places in zip(kept, trace.reductions[-1].after, strict=True):
        assert row.nonzero().flatten().tolist() == sorted(place for place in places.tolist() if place >= 0)
    if method == "patchrank":  # the other's last token is no patch
        assert torch.equal(kept, most_important(importance, 0.6))
    tied = torch.tensor([[1.0, 5.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])  # of equals the first
    assert most_important(tied, 0.4).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("method", "block", "error", "match"), [
    ("clsatn", 3, ValueError, "method 'clsatn': did you mean 'clsattn'"),
    ("patchrank", 4, FileNotFoundError, rf"{MODEL} at block 4: .* \(fitted so far: bl"),
])  # fmt: skip
def test_methods_that_can_not_be_had(method, block, error, match, tower):
    with pytest.raises(error, match=match):
        reduced(tower, method, keep=0.5, block=block)


def test_normalisation_is_undone_whatever_its_constants(parts):
    """A tower that sees 48 x 80 pixels; the image has these already."""
    vit = timm.create_model("clip_vit_b16", img_size=(48, 80), pretrained_cfg_overlay={
        "input_size": (3, 48, 80), "std": (0.1, 0.5, 0.9)})  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    preprocess = image_transform(vit)
    image = preprocess(Image.fromarray(pixels))[None]
    seen = maps.undo_preprocess(preprocess, image)
    assert seen.shape == (1, 3, 48, 80)
    assert np.abs(seen[0].permute(1, 2, 0).numpy() * 255 - pixels).max() < 0.01
    assert maps.patch_grid(vit, image) == (3, 5)
    other = parts.preprocess(Image.fromarray(pixels))[None]
    assert torch.allclose(maps.undo_preprocess(parts.preprocess, other), seen, atol=1e-5)
