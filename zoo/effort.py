"""Multiply-adds of the part of a tower from one block on, the unit in which approximations pay."""

from dataclasses import dataclass
from typing import Any

from zoo.vit import ReducedViT


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Count multiply-adds of a tower from a block on, whose last block runs for CLS alone.

    Attributes:
        grid: (rows, columns) of patches.
        blocks: number of blocks that are run.
        prefix: prefix tokens.
        dim: width D of the tokens.
        hidden: width of the MLP's hidden layer.
        heads: attention heads.
    """

    grid: tuple[int, int]
    blocks: int
    prefix: int = 1
    dim: int = 384
    hidden: int = 1536
    heads: int = 6

    @classmethod
    def of(cls, model: ReducedViT, start: int) -> "Effort":
        """Describe a tower from block ``start`` on."""
        rows, columns = model.patch_embed.grid_size
        block: Any = model.blocks[0]
        return cls(
            grid=(int(rows), int(columns)),
            blocks=len(model.blocks) - start,
            prefix=model.prefix_count,
            dim=model.embed_dim,
            hidden=block.mlp.fc1.out_features,
            heads=block.attn.num_heads,
        )

    @property
    def patches(self) -> int:
        """Number N of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of tokens of a whole image."""
        return self.prefix + self.patches

    @property
    def linear(self) -> int:
        """Multiply-adds of a block's linear layers for one token."""
        return 4 * self.dim**2 + 2 * self.dim * self.hidden

    @property
    def whole(self) -> int:
        """Multiply-adds of one pass of a whole image: 1 in the unit of ``GoldenEngine.passes``."""
        # ``attend_cls`` forms no keys and values: each head's query meets the tokens themselves.
        last = self.linear + 2 * self.heads * self.dim * self.tokens
        return self.inner(self.tokens, self.tokens) + last

    def inner(self, tokens: int, seen: int, products: int = 2) -> int:
        """Count all blocks but the last for ``tokens`` tokens, each of which attends to ``seen``.

        Args:
            tokens: tokens that go through linear layers.
            seen: tokens that each of them attends to.
            products: matrix products in attention: 2 forwards, 5 backwards where the weights are
                computed anew, as fused attention does.
        """
        return (self.blocks - 1) * tokens * (self.linear + products * self.dim * seen)

    def last(self, tokens: int, seen: int, products: int = 2) -> int:
        """Count the last block: keys and values of ``tokens`` tokens, the rest for CLS alone."""
        return 2 * self.dim**2 * (tokens - 1) + self.linear + products * self.dim * seen
