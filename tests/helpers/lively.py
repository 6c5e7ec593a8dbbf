"""Modules whose weights tell things apart: fresh ones attend uniformly, and their norms and biases are all alike."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Build = Callable[..., nn.Module]  # what the fixture ``tiny`` gives
M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def lively(module: M, noise: float = 0.1, generator: torch.Generator | None = None) -> M:
    """Add noise to every weight, and set the module to evaluation."""
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return module.eval()
