"""Towers by name: ours, timm's, open_clip's; from files, caches and nowhere."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from harness.towers import load_tower, split_name
from zoo.weights import fingerprint

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
Saved = Callable[..., str]


def lively(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save a model as timm does and return the name that loads it."""

    def save(model: Any) -> str:
        save_for_hf(model, tmp_path / "mine", safe_serialization=True)
        return f"local-dir:{tmp_path / 'mine'}"

    return save


# --- names of ours


def test_the_embedded_tower_comes_with_its_text_side():
    tower = load_tower("clip_vit_s14")
    assert tower.name == "clip_vit_s14.imgfocus_lit"
    assert tower.clip is not None
    assert tower.vit is tower.clip.model.visual
    assert not tower.vit.training
    wanted = timm.create_model("clip_vit_s14", pretrained=True)
    assert fingerprint(tower.vit) == fingerprint(wanted)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("clip_vit_s14", ("clip_vit_s14", "imgfocus_lit")),
        ("clip_vit_b16", ("clip_vit_b16", "openai")),
        ("clip_vit_b16.laion2b", ("clip_vit_b16", "laion2b")),
    ],
)
def test_names_and_their_tags(name: str, found: tuple[str, str]):
    assert split_name(name) == found


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("clip_vit_s41", "model 'clip_vit_s41': did you mean 'clip_vit_s14'? expected one of"),
        ("clip_vit_s14_random60", "model 'clip_vit_s14_random60': "),
        ("clip_vit_b16.opnai", "weight tag 'opnai' of clip_vit_b16: did you mean 'openai'?"),
    ],
)
def test_refused_names(name: str, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        split_name(name)


# --- names of timm


def cached(folder: Path, repo: str, weights: dict[str, Tensor]) -> None:
    """Lay out a file as the Hugging Face cache has it."""
    entry = folder / f"models--{repo.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    (entry / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, entry / "snapshots" / ("0" * 40) / "model.safetensors")


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k"])
@torch.no_grad()
def test_a_timm_name_is_found_in_the_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = lively(timm.create_model("test_vit"))
    cached(tmp_path, "timm/test_vit.r160_in1k", model.state_dict())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    tower = load_tower(name)
    assert tower.name == "test_vit.r160_in1k"
    assert tower.clip is None
    images = torch.randn(2, 3, 160, 160)
    wanted = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
    assert tower.preprocess(Image.new("RGB", (300, 200))).shape == (3, 160, 160)


PLAIN = {
    "vit_small_patch16_224": {},
    "deit_small_patch16_224": {},
    "vit_small_patch14_dinov2": {"num_classes": 5},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_224": {"global_pool": "avg", "class_token": True},
    "vit_base_patch16_224.augreg_in21k": {"global_pool": "map", "num_classes": 9},
    "vit_base_patch16_siglip_224": {"class_token": True, "global_pool": "token"},
}


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_a_plain_vit_gives_its_pooled_features_not_its_logits(
    name: str, saved: Saved, images: Tensor
):
    model = lively(timm.create_model(name, **{**SMALL, **PLAIN[name]}))
    tower = load_tower(saved(model))
    wanted = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
    assert tower.vit.global_pool == model.global_pool
    assert type(tower.vit) is zoo.ReducedViT
    assert {p.dtype for p in tower.vit.parameters()} == {torch.float32}
    assert (tower.name, tower.clip) == ("local-dir:mine", None)
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    told = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    assert torch.equal(tower.preprocess(image), create_transform(**told)(image))


@pytest.mark.parametrize(
    ("name", "width", "bias", "projects"),
    [
        ("vit_base_patch16_clip_224.openai", 24, 0.0, True),
        ("vit_base_patch16_clip_224.laion2b_ft_in1k", 1000, 0.1, False),
        ("vit_base_patch16_clip_quickgelu_224.openai", 5, 0.1, False),
        ("vit_base_patch16_224", 24, 0.0, False),
        ("clip_vit_b16.openai", 512, 0.1, True),
        ("clip_vit_b16.openai", 100, 0.0, False),
    ],
)
@torch.no_grad()
def test_a_head_is_a_projection_or_goes(
    name: str, width: int, bias: float, projects: bool, saved: Saved, images: Tensor
):
    model = lively(timm.create_model(name, num_classes=width, **SMALL))
    model.head.bias.fill_(bias)
    wanted = model.forward_head(model.forward_features(images), pre_logits=not projects)
    for kept in (model, zoo.reduce(model, method="random", keep=0.5, reduce_at=1)):
        tower = load_tower(saved(kept))
        assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
        assert tower.vit.num_classes == (width if projects else 0)
        assert tower.vit.reducer is None


def test_of_a_reduced_model_the_dense_tower_is_taken(saved: Saved, images: Tensor):
    model = lively(
        timm.create_model("clip_vit_b16_random50", num_classes=512, reduce_at=1, **SMALL)
    )
    dense = load_tower(saved(model)).vit
    assert dense.reducer is None
    assert torch.equal(dense(images), zoo.reduce(model, method=None)(images))
    assert not torch.equal(dense(images), model(images))


# --- names of open_clip


@torch.no_grad()
def test_an_open_clip_name_brings_both_towers(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
):
    vision = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    theirs = lively(CLIP(**config))
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    tower = load_tower(f"open_clip:tiny/{tmp_path}/w.safetensors")
    assert tower.name == "open_clip:tiny/w.safetensors"
    assert torch.allclose(tower.vit(images), theirs.encode_image(images), atol=1e-5)
    assert tower.clip.model.visual is tower.vit
    assert tower.preprocess is tower.clip.preprocess
