"""Multiply-adds of models that are run side by side, from the closed form."""

from collections.abc import Mapping

from harness.golden.products import Geometry, multiply_adds, prefix_products
from harness.variants import Variant


def whole(of: Geometry) -> int:
    """Return the multiply-adds of the dense tower, for an image."""
    return multiply_adds(prefix_products(of, of.depth))


def before(of: Geometry, row: Variant) -> int:
    """Return the multiply-adds of what a row shares with the dense tower."""
    return multiply_adds(prefix_products(of, row.first_block))


def alone(of: Geometry, row: Variant, prefix: int = 0) -> int:
    """Return the multiply-adds of what a row doesn't share with the dense tower.

    Args:
        of: the tower.
        row: the row.
        prefix: learned visual tokens, with which nothing is shared.
    """
    reducer = row.vit.reducer
    counts: Mapping[int, int] = {} if reducer is None else reducer.counts(of.patches)
    left, total = of.patches, 0
    for block in range(of.depth):
        left = counts.get(block, left)
        if prefix or block >= row.first_block:
            total += multiply_adds(of.block(1, of.prefix + prefix + left))
    return total
