"""Towers with or without weights, and what ranking with one takes."""

from typing import Any

import timm
import torch

from harness.golden.products import (
    Geometry,
    engine_products,
    multiply_adds,
    prefix_products,
)
from harness.towers import Tower, load_tower, split_name
from zoo.clip import image_transform
from zoo.golden import GoldenConfig
from zoo.windows import windows


def image_multiply_adds(of: Geometry, golden: GoldenConfig, precision: str = "float32") -> int:
    """Count what the engine does for one image: embedding, whole image, every window."""
    left = of.tokens - golden.window**2
    count = len(windows(of.grid, golden.window, golden.stride))
    products = [
        *prefix_products(of, golden.block),
        *engine_products(of, golden.block, 1, of.tokens, precision),
        *engine_products(of, golden.block, count, left, precision),
    ]
    return multiply_adds(products)


def random_tower(name: str) -> Tower:
    """Build a dense model of ours without weights; time doesn't depend on them, rankings do.

    Raises:
        ValueError: not a dense model of ours.
    """
    arch, _ = split_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = timm.create_model(name, pretrained=False)
    return Tower(vit.eval(), image_transform(vit), f"{arch} (random weights)")


def find_tower(name: str, *, random_weights: bool) -> Tower:
    """Load a tower, or build it without weights."""
    return random_tower(name) if random_weights else load_tower(name)
