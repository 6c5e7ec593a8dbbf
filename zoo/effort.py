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
    """

    grid: tuple[int, int]
    blocks: int
    prefix: int = 1
    dim: int = 384
    hidden: int = 1536

    @classmethod
    def of(cls, model: ReducedViT, block: int) -> "Effort":
        """Describe a tower from ``block`` on."""
        rows, columns = model.patch_embed.grid_size
        mlp: Any = model.blocks[0].mlp
        return cls(
            grid=(int(rows), int(columns)),
            blocks=len(model.blocks) - block,
            prefix=model.num_prefix_tokens,
            dim=model.embed_dim,
            hidden=mlp.fc1.out_features,
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
    def whole(self) -> int:
        """Multiply-adds of one pass of a whole image: 1 in the unit of ``GoldenEngine.passes``."""
        return self.run(self.tokens, self.tokens)

    def run(self, tokens: int, seen: int, products: int = 2) -> int:
        """Count what it takes to run ``tokens`` tokens, each of which attends to ``seen``.

        Args:
            tokens: tokens that go through linear layers.
            seen: tokens that each of them attends to.
            products: matrix products in attention: 2 forwards, 5 backwards where the weights are
                computed anew, as fused attention does.
        """
        linear = 4 * self.dim**2 + 2 * self.dim * self.hidden
        attention = products * self.dim * seen
        # In the last block, keys and values of all, the rest for the class token.
        last = 2 * self.dim**2 * (tokens - 1) + linear + attention
        return (self.blocks - 1) * tokens * (linear + attention) + last
