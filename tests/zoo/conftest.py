"""Towers small enough for a test, with weights lively enough to tell methods apart."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from open_clip import factory, pretrained
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.open_clip_names import offer
from zoo.sizes import SIZES

TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}


def lively(model: nn.Module, noise: float) -> nn.Module:
    """Add noise to every parameter: fresh weights attend uniformly and LayerScale is near zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model.eval()


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Build any timm name as a tower of 64 patches, 6 blocks, 48 channels and 7 outputs."""

    def build(name: str, *, noise: float = 0.1, **overrides: object) -> nn.Module:
        return lively(timm.create_model(name, **{**TINY, "num_classes": 7, **overrides}), noise)

    return build


@pytest.fixture(params=sorted(zoo.METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def half(method: str, tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """Build a tiny tower that ends with 32 of its 64 patch tokens, by each method in turn."""
    return tiny(f"clip_vit_b16_{method}50")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


VISION = {"image_size": 224, "layers": 4, "width": 64, "patch_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
HUB = "models--timm--vit_base_patch32_clip_224.openai"


class SmallClip:
    """b32 as a tower of 49 patches, 4 blocks and 64 channels, its weights and a hub's cache."""

    NAMES = ("clip_vit_b32", "clip_vit_b32_clsattn50", "clip_vit_b32_tome50")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "cache" / "clip-patchrank" / "weights"
        self.open_clip = folder / "cache" / "clip-patchrank" / "open_clip"

    @torch.no_grad()
    def original(self, *, quick: bool = True) -> CLIP:
        """Make open_clip's model, always with the same weights."""
        torch.manual_seed(5)
        model = CLIP(512, VISION, TEXT, quick_gelu=quick).eval()
        for value in model.parameters():
            if value.ndim == 1:  # biases and norms begin the same in every model
                value.add_(0.1 * torch.randn_like(value))
        model.token_embedding.weight.mul_(20)  # small ones make all texts alike
        model.logit_scale.fill_(3.5)
        return model

    def cached(self, model: CLIP, entry: str = HUB) -> Path:
        """Lay a model into a fabricated cache of the hub."""
        entries = self.folder / "hub" / entry
        file = entries / "snapshots" / ("0" * 40) / "open_clip_model.safetensors"
        for path in (entries / "refs" / "main", file):
            path.parent.mkdir(parents=True)
        (entries / "refs" / "main").write_text("0" * 40)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
        return file


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SmallClip:
    args = {**SIZES["b32"].vit_args, "embed_dim": 64, "depth": 4, "num_heads": 1}
    monkeypatch.setitem(SIZES, "b32", dataclasses.replace(SIZES["b32"], vit_args=args))
    config = {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": TEXT}
    configs = {**factory._MODEL_CONFIGS, "ViT-B-32": config}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", configs)
    monkeypatch.setattr(pretrained, "_PRETRAINED", dict(pretrained._PRETRAINED))
    for name in SmallClip.NAMES:
        parts = zoo.MODELS[name]
        offer(name, "b32", parts.method, {"keep": parts.percent / 100} if parts.method else {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return SmallClip(tmp_path)
