"""The spec ``follow:N`` of an approximate golden ranking, what towers can be followed, and what that costs.

It recomputes the class token and N patch tokens per window, by ``zoo.ranking.suffix.follow``.
docs/approximations.md says how well such rankings agree with exact ones.
"""

import re
from dataclasses import dataclass

from torch import nn

from zoo.core.host import Host

FOLLOWED = "follow:0"  # the only approximation that a greedy search or merging can take


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Count multiply-adds of a tower's last ``blocks`` blocks, the very last one for CLS alone.

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
    def linear(self) -> int:
        """Multiply-adds of a block's linear layers for one token."""
        return 4 * self.dim**2 + 2 * self.dim * self.hidden

    @property
    def whole(self) -> int:
        """Multiply-adds of one pass of a whole image: 1 in the unit of ``GoldenEngine.passes``."""
        # ``attend_cls`` forms no keys and values: each head's query meets the tokens themselves.
        last = self.linear + 2 * self.heads * self.dim * self.tokens
        return self.inner(self.tokens, self.tokens) + last

    def inner(self, tokens: int, visible: int) -> int:
        """Count all blocks but the last for ``tokens`` tokens, each attending to ``visible``."""
        return (self.blocks - 1) * tokens * (self.linear + 2 * self.dim * visible)

    def last(self, tokens: int, visible: int) -> int:
        """Count the last block: keys and values of ``tokens`` tokens, the rest for CLS alone."""
        return 2 * self.dim**2 * (tokens - 1) + self.linear + 2 * self.dim * visible


def follow_effort(effort: Effort, count: int, windows: int, merged: int = 0) -> int:
    """Count multiply-adds per image with ``merged`` tokens, the pass of the whole image left out."""
    moved = effort.prefix + count + merged
    choice = windows * effort.patches**2 * (effort.blocks - 1) if count else 0
    if count:  # fused attention doesn't return the weights that choose the carriers
        choice += effort.tokens * (effort.tokens * (effort.blocks - 1) + 1) * effort.dim
    visible = effort.tokens + moved
    return windows * (effort.inner(moved, visible) + effort.last(moved, visible)) + choice


def parse(spec: str) -> int:
    """Return the number of patch tokens that a spec such as ``follow:4`` recomputes per window.

    Raises:
        ValueError: anything else.
    """
    if not (found := re.fullmatch(r"follow:([0-9]+)", spec)):
        raise ValueError(
            f"approximate={spec!r}: expected follow:N with an integer N from 0 (patch tokens per window that feel "
            "its removal)"
        )
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

    As in ``GoldenEngine.passes`` a window removed, or merged with ``merge``, counts as 1, and the
    whole image's own pass is left out. ``effort`` is the tower's from the reduction point on.
    """
    if spec is None:
        return windows
    return follow_effort(effort, parse(spec), windows, int(merge)) / effort.whole
