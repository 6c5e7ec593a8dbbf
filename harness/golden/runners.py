"""The ways to make golden rankings whose speed is compared, each with its matrix products alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from harness.golden.plain import Plain
from harness.golden.products import (
    Geometry,
    engine_products,
    multiply_adds,
    plain_products,
    prefix_products,
    replay,
)
from harness.towers import Tower, load_tower, split_name
from zoo.clip import image_transform
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.vit import ReducedViT
from zoo.windows import windows

STRAIGHTFORWARD = "straightforward"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A way to rank.

    Attributes:
        name: as in tables.
        precision: of the patch tokens.
        batch: sequences per forward pass.
        run: from images (B, C, H, W) to importance (B, N).
        multiply_adds: that ``run`` takes per image.
        matmuls: the products of one forward pass alone; what it is given is not looked at.
        matmul_multiply_adds: that ``matmuls`` takes.
    """

    name: str
    precision: str
    batch: int
    run: Callable[[Tensor], Tensor]
    multiply_adds: int
    matmuls: Callable[[object], None]
    matmul_multiply_adds: int


def plain_runner(vit: ReducedViT, golden: GoldenConfig) -> Runner:
    """Prepare the straightforward way."""
    of, device = Geometry.of(vit), next(vit.parameters()).device
    count = len(windows(of.grid, golden.window, golden.stride))
    removed = plain_products(of, golden.block, count, of.tokens - golden.window**2)
    whole = plain_products(of, golden.block, 1, of.tokens)
    return Runner(
        name=STRAIGHTFORWARD,
        precision="float32",
        batch=count,
        run=Plain(vit, golden).importance,
        multiply_adds=multiply_adds([*prefix_products(of, golden.block), *whole, *removed]),
        matmuls=replay(removed, device),
        matmul_multiply_adds=multiply_adds(removed),
    )


def engine_runner(
    vit: ReducedViT,
    golden: GoldenConfig,
    precision: str,
    *,
    batch: int | None = None,
    compiled: bool = False,
) -> Runner:
    """Prepare the engine; without ``batch`` it chooses its own."""
    engine = GoldenEngine(vit, golden, precision=precision, compiled=compiled, batch=batch)
    of, size = Geometry.of(vit), engine.suffix.batch
    left = of.tokens - golden.window**2
    removed = engine_products(of, golden.block, size, left, precision)
    return Runner(
        name=f"engine, {precision}" + (", compiled" if compiled else ""),
        precision=precision,
        batch=size,
        run=engine.importance,
        multiply_adds=image_multiply_adds(of, golden, precision),
        matmuls=replay(removed, engine.suffix.device),
        matmul_multiply_adds=multiply_adds(removed),
    )


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


def runners(
    vit: ReducedViT,
    golden: GoldenConfig,
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    *,
    compiled: bool,
) -> Iterator[Runner]:
    """Prepare the straightforward way, then the engine in every precision and batch."""
    yield plain_runner(vit, golden)
    for precision in precisions:
        for batch in batches or (None,):
            for ahead in (False, True)[: 1 + compiled]:
                yield engine_runner(vit, golden, precision, batch=batch, compiled=ahead)
