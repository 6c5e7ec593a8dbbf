"""Multiply-adds of models that are run side by side, from the closed form, without embedding."""

from collections.abc import Mapping
from dataclasses import replace

from harness.variants import Variant
from zoo.effort import Effort
from zoo.golden import GoldenConfig
from zoo.windows import windows


def blocks(of: Effort, count: int, tokens: int) -> int:
    """Return the multiply-adds of ``count`` blocks for so many tokens of an image."""
    return count * tokens * (of.linear + 2 * of.dim * tokens)


def whole(of: Effort) -> int:
    """Return the multiply-adds of the dense tower, for an image."""
    return blocks(of, of.blocks, of.tokens)


def ranking(of: Effort, golden: GoldenConfig) -> int:
    """Return the multiply-adds of an image's golden ranking by removing every window."""
    passes = 1 + len(windows(of.grid, golden.window, golden.stride))
    after = replace(of, blocks=of.blocks - golden.block)
    return blocks(of, golden.block, of.tokens) + passes * after.whole


def before(of: Effort, row: Variant) -> int:
    """Return the multiply-adds of what a row shares with the dense tower."""
    return blocks(of, row.first_block, of.tokens)


def alone(of: Effort, row: Variant, prefix: int = 0) -> int:
    """Return the multiply-adds of what a row doesn't share with the dense tower.

    Args:
        of: the tower.
        row: the row.
        prefix: learned visual tokens, with which nothing is shared.
    """
    reducer = row.vit.reducer
    counts: Mapping[int, int] = {} if reducer is None else reducer.counts(of.patches)
    left, total = of.patches, 0
    for block in range(of.blocks):
        left = counts.get(block, left)
        if prefix or block >= row.first_block:
            total += blocks(of, 1, of.prefix + prefix + left)
    return total
