"""The embedded size loads offline, whole or in part, dense or reduced."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor

import zoo
from zoo.sizes import EMBEDDED
from zoo.weights import load_projection


@pytest.fixture(scope="module")
def dense() -> zoo.ReducedViT:
    return timm.create_model("clip_vit_s14", pretrained=True).eval()


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(1, 3, 196, 196)


def test_every_weight_is_the_files(dense: zoo.ReducedViT):
    stored = load_file(EMBEDDED / "clip_vit_s14.safetensors") | load_projection()
    state = dense.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name].float()) for name in state)
    assert dense.pretrained_cfg["tag"] == "imgfocus_lit"


@pytest.mark.parametrize("name", ["clsattn60", "evit60", "tome60", "random60"])
@torch.no_grad()
def test_reduced_names_load_the_same(name: str, dense: zoo.ReducedViT, picture: Tensor):
    model = timm.create_model(f"clip_vit_s14_{name}", pretrained=True).eval()
    assert model.trace(picture).final_tokens == 118
    assert torch.equal(zoo.reduce(model, method=None)(picture), dense(picture))


@torch.no_grad()
def test_other_heads_and_sizes(dense: zoo.ReducedViT, picture: Tensor):
    pooled = dense.forward_head(dense.forward_features(picture), pre_logits=True)
    headless = timm.create_model("clip_vit_s14", pretrained=True, num_classes=0).eval()
    assert torch.equal(headless(picture), pooled)
    other = timm.create_model("clip_vit_s14", pretrained=True, num_classes=3).eval()
    assert other(picture).shape == (1, 3)
    maps = timm.create_model("clip_vit_s14", pretrained=True, features_only=True).eval()
    assert all(m.shape == (1, 384, 14, 14) for m in maps(picture))
    large = timm.create_model("clip_vit_s14_random50", pretrained=True, img_size=224).eval()
    assert large.trace(torch.randn(1, 3, 224, 224)).final_tokens == 128


@pytest.mark.parametrize("outputs", [0, 3, 256])
@torch.no_grad()
def test_saved_and_back(outputs: int, picture: Tensor, tmp_path: Path):
    model = timm.create_model("clip_vit_s14_evit60", pretrained=True).eval()
    if outputs != model.num_classes:
        model.reset_classifier(outputs)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(picture), model(picture))
