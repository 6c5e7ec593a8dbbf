"""The spec ``follow:N`` of an approximate golden ranking, which towers it suits, and what it costs.

It recomputes the class token and N patch tokens per window; docs/rankings.md says how well that agrees.
"""

import re
from dataclasses import dataclass

from torch import nn

from zoo.core.host import Host

FOLLOWED = "follow:0"  # the only approximation that a greedy search or merging can take


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Multiply-adds of a tower's last ``blocks`` blocks, the very last one for the class token alone.

    ``dim`` is the width D of the tokens, ``hidden`` that of the MLP's hidden layer.
    """

    grid: tuple[int, int]
    blocks: int
    prefix: int = 1
    dim: int = 384
    hidden: int = 1536
    heads: int = 6

    @classmethod
    def of(cls, model: Host, start: int) -> "Effort":
        """Describe a tower from block ``start`` on, with a hidden layer that makes its linear layers as costly."""
        dim, block = model.embed_dim, model.block(0)
        layers = [m for m in block.module.modules() if isinstance(m, nn.Linear)]
        linear = sum(layer.in_features * layer.out_features for layer in layers)
        return cls(
            grid=model.grid,
            blocks=model.depth - start,
            prefix=model.prefix_count,
            dim=dim,
            hidden=(linear - 4 * dim**2) // (2 * dim),
            heads=block.heads,
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
    def _linear(self) -> int:  # of a block's linear layers for one token
        return 4 * self.dim**2 + 2 * self.dim * self.hidden

    def _inner(self, tokens: int, visible: int) -> int:  # all blocks but the last
        return (self.blocks - 1) * tokens * (self._linear + 2 * self.dim * visible)

    @property
    def whole(self) -> int:
        """Multiply-adds of one pass of a whole image: 1 in the unit of ``GoldenEngine.passes``."""
        # ``ViTBlock.first`` forms no keys and values: each head's query meets the tokens themselves.
        return self._inner(self.tokens, self.tokens) + self._linear + 2 * self.heads * self.dim * self.tokens

    def follow(self, count: int, windows: int, merged: int = 0) -> int:
        """Count those per image of recomputing ``count`` patch tokens and ``merged`` ones per window."""
        moved = self.prefix + count + merged
        choice = windows * self.patches**2 * (self.blocks - 1) if count else 0
        if count:  # fused attention doesn't return the weights that choose the carriers
            choice += self.tokens * (self.tokens * (self.blocks - 1) + 1) * self.dim
        visible = self.tokens + moved
        last = 2 * self.dim**2 * (moved - 1) + self._linear + 2 * self.dim * visible
        return windows * (self._inner(moved, visible) + last) + choice


def parse(spec: str) -> int:
    """Return the patch tokens that a spec such as ``follow:4`` recomputes per window; raise ValueError for others."""
    if not (found := re.fullmatch(r"follow:([0-9]+)", spec)):
        raise ValueError(f"approximate={spec!r}: expected follow:N with an integer N from 0, patch tokens per window")
    return int(found[1])


def check(spec: str, model: Host, block: int, window: int) -> None:
    """Raise ValueError for more tokens than a window leaves, or a tower whose features ``follow`` can't compute."""
    most = model.grid[0] * model.grid[1] - window**2
    if parse(spec) > most:
        raise ValueError(f"approximate={spec!r}: expected a number from 0 to {most} here")
    if not model.pools_first:
        raise ValueError(
            f"approximate={spec!r} needs features that come from the class token, which this tower pools with others "
            "or lacks; expected none"
        )
    if model.block(block).pairs_places:
        raise ValueError(f"approximate={spec!r} knows no bias for pairs of places, which this tower has; expected none")


def passes(spec: str | None, effort: Effort, windows: int, *, merge: bool = False) -> float:
    """Return what the windows of an image cost, 1 being a pass of a whole image from the block on.

    A window removed, or merged, for real counts as 1; the whole image's own pass is left out.
    """
    return windows if spec is None else effort.follow(parse(spec), windows, int(merge)) / effort.whole
