"""Count the matrix products that golden rankings are made of, and run them alone as a yardstick."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from zoo.suffix import PRECISIONS
from zoo.vit import ReducedViT


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product that is done several times.

    Attributes:
        dtype: name in ``PRECISIONS``.
        rows: of the first matrix.
        inner: its columns, and rows of the second.
        columns: of the second matrix.
        batch: pairs of matrices; 1 for a linear layer, whose second matrix is shared.
        times: how often.
    """

    dtype: str
    rows: int
    inner: int
    columns: int
    batch: int = 1
    times: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all of them."""
        return self.times * self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes of a tower that decide what it costs.

    Attributes:
        grid: (rows, columns) of patches.
        pixels: numbers in a patch of the image.
        prefix: prefix tokens.
        dim: width of the tokens.
        hidden: width of the MLP's hidden layer.
        heads: attention heads.
        depth: blocks.
        features: width of what the head gives, 0 for no head.
        token_pooled: whether features come from the class token alone.
        normed_keys: whether attention normalises its keys.
    """

    grid: tuple[int, int]
    pixels: int
    prefix: int
    dim: int
    hidden: int
    heads: int
    depth: int
    features: int
    token_pooled: bool = True
    normed_keys: bool = False

    @classmethod
    def of(cls, model: ReducedViT) -> "Geometry":
        """Measure a tower."""
        block: Any = model.blocks[0]
        grid = model.patch_embed.grid_size
        return cls(
            grid=(int(grid[0]), int(grid[1])),
            pixels=prod(model.patch_embed.proj.weight.shape[1:]),
            prefix=model.num_prefix_tokens,
            dim=model.embed_dim,
            hidden=block.mlp.fc1.out_features,
            heads=block.attn.num_heads,
            depth=len(model.blocks),
            features=getattr(model.head, "out_features", 0),
            token_pooled=model.global_pool == "token",
            normed_keys=not isinstance(block.attn.k_norm, nn.Identity),
        )

    @property
    def patches(self) -> int:
        """Number N of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens of a whole image."""
        return self.prefix + self.patches

    def linear(self, rows: int, inner: int, columns: int, dtype: str = "float32") -> Product:
        """Describe a linear layer."""
        return Product(dtype=dtype, rows=rows, inner=inner, columns=columns)

    def attention(self, count: int, asking: int, asked: int, dtype: str) -> list[Product]:
        """Describe queries times keys and weights times values of ``count`` sequences."""
        size, batch = self.dim // self.heads, count * self.heads
        return [
            Product(dtype=dtype, batch=batch, rows=asking, inner=size, columns=asked),
            Product(dtype=dtype, batch=batch, rows=asking, inner=asked, columns=size),
        ]

    def after_attention(self, rows: int, dtype: str = "float32") -> list[Product]:
        """Describe projection and MLP of ``rows`` tokens."""
        shapes = ((self.dim, self.dim), (self.dim, self.hidden), (self.hidden, self.dim))
        return [self.linear(rows, inner, columns, dtype) for inner, columns in shapes]

    def block(self, count: int, tokens: int, dtype: str = "float32") -> list[Product]:
        """Describe a block for all tokens of ``count`` sequences."""
        return [
            self.linear(count * tokens, self.dim, 3 * self.dim, dtype),
            *self.attention(count, tokens, tokens, dtype),
            *self.after_attention(count * tokens, dtype),
        ]


def prefix_products(of: Geometry, block: int) -> list[Product]:
    """List the products of one image's embedding and the blocks before the reduction point."""
    embedding = of.linear(of.patches, of.pixels, of.dim)
    return [embedding, *_times(of.block(1, of.tokens), block)]


def plain_products(of: Geometry, block: int, count: int, tokens: int) -> list[Product]:
    """List those of sequences from the reduction point on, the straightforward way."""
    pooled = count if of.token_pooled else count * tokens
    head = [of.linear(pooled, of.dim, of.features)] if of.features else []
    return [*_times(of.block(count, tokens), of.depth - block), *head]


def engine_products(
    of: Geometry, block: int, count: int, tokens: int, precision: str = "float32"
) -> list[Product]:
    """List those of sequences from the reduction point on, as ``zoo.suffix`` runs them.

    Args:
        of: the tower.
        block: reduction point.
        count: sequences in a batch.
        tokens: tokens per sequence.
        precision: of the patch tokens.
    """
    full = of.depth - block - of.token_pooled
    found = _times(of.block(count, tokens, precision), full)
    if precision != "float32":
        # The class token's own path, in float32 up to where it meets the patch tokens.
        own = [
            of.linear(count, of.dim, 3 * of.dim),
            *of.attention(count, 1, tokens, precision),
            of.attention(count, 1, 1, "float32")[0],
            *of.after_attention(count),
        ]
        found += _times(own, full)
    if of.token_pooled:
        found += [*_last(of, count, tokens), *of.after_attention(count)]
    head = [of.linear(count if of.token_pooled else count * tokens, of.dim, of.features)]
    return found + (head if of.features else [])


def _last(of: Geometry, count: int, tokens: int) -> list[Product]:
    """List those of the class token's attention where nothing else is read, as ``attend_cls``."""
    query = of.linear(count, of.dim, of.dim)
    if of.normed_keys:
        each = of.linear(count * tokens, of.dim, of.dim)
        return [query, each, each, *of.attention(count, 1, tokens, "float32")]
    size = of.dim // of.heads
    shapes = (
        (of.heads, count, size, of.dim),  # queries through the keys' weights
        (count, of.heads, of.dim, tokens),
        (count, of.heads, tokens, of.dim),
        (of.heads, count, of.dim, size),  # attended means through the values' weights
    )
    products = [
        Product(dtype="float32", batch=batch, rows=rows, inner=inner, columns=columns)
        for batch, rows, inner, columns in shapes
    ]
    return [query, *products]


def multiply_adds(products: Sequence[Product]) -> int:
    """Add up."""
    return sum(product.multiply_adds for product in products)


def replay(products: Sequence[Product], device: torch.device) -> Callable[[object], None]:
    """Prepare to do the products alone, by plain ``torch.mm`` and ``torch.bmm`` into place.

    Returns:
        What does them all; its argument is not looked at.
    """
    operands = []
    for product in products:
        dtype, shared = PRECISIONS[product.dtype], product.batch == 1
        batch = () if shared else (product.batch,)
        left = torch.randn(*batch, product.rows, product.inner, device=device).to(dtype)
        right = torch.randn(*batch, product.inner, product.columns, device=device).to(dtype)
        out = torch.empty(*batch, product.rows, product.columns, device=device, dtype=dtype)
        operands += [(torch.mm if shared else torch.bmm, left, right, out)] * product.times

    def run(_: object) -> None:
        for multiply, left, right, out in operands:
            multiply(left, right, out=out)

    return run


def _times(products: Sequence[Product], times: int) -> list[Product]:
    """Do all of them ``times`` times as often."""
    return [Product(**{**vars(p), "times": p.times * times}) for p in products if times]
