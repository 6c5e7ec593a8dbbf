"""Windows of patches, and how window scores become patch scores."""

import torch
from torch import Tensor


def windows(grid: tuple[int, int], window: int, stride: int) -> Tensor:
    """List the square windows of a patch grid, (W, window * window) int64 patch positions.

    A last window touches the border, so that with a stride of at most ``window``, both in patches,
    every patch is in at least one window.

    Raises:
        ValueError: the window is larger than the grid.
    """
    if window > min(grid):
        raise ValueError(f"window={window!r}: larger than the {grid[0]} x {grid[1]} patch grid")
    starts = [sorted({*range(0, side - window + 1, stride), side - window}) for side in grid]
    inside = (torch.arange(window)[:, None] * grid[1] + torch.arange(window)).flatten()
    corners = torch.tensor([row * grid[1] + column for row in starts[0] for column in starts[1]])
    return corners[:, None] + inside


def members(cells: Tensor, count: int) -> Tensor:
    """Turn windows (W, r * r) into a mask (W, count) bool of the patches inside each."""
    inside = torch.zeros(len(cells), count, dtype=torch.bool, device=cells.device)
    return inside.scatter(1, cells, True)


def outside(inside: Tensor) -> Tensor:
    """List the patches that sets (S, N) bool of one size leave, (S, k) int64 ascending."""
    return (~inside).nonzero()[:, 1].reshape(len(inside), -1)


def mean_over_windows(scores: Tensor, cells: Tensor, count: int) -> Tensor:
    """Average window scores (B, W) over the windows that cover each patch, (B, count).

    The paper divides by the window's area, which would give patches at the border, covered by
    fewer windows, less.
    """
    cover = members(cells, count).to(scores.dtype)
    return scores @ cover / cover.sum(dim=0)
