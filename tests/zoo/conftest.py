"""Towers small enough for a test, with weights lively enough to tell methods apart."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import zoo

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
