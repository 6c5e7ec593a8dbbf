"""Towers and tokens for the baselines' tests."""

from collections.abc import Iterator

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


@pytest.fixture
def tower() -> VisionTransformer:
    """Build 64 patches, 6 blocks, 3 heads of 16 channels, with weights that tell tokens apart."""
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
