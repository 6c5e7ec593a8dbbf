"""Windows of patches, what merging one does, and how window scores become patch scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.merger import DISTANCE, pair_costs, scale_places
from zoo.core.tokens import Tokens


def windows(grid: tuple[int, int], window: int, stride: int) -> Tensor:
    """List the square windows of a patch grid, (W, window * window) int64 patch positions.

    A last window touches the border, so that a stride of at most ``window`` leaves no patch out.

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

    The paper divides by the window's area, which would give patches at the border, covered by fewer windows, less.
    """
    cover = members(cells, count).to(scores.dtype)
    return scores @ cover / cover.sum(dim=0)


class Merges(NamedTuple):
    """Windows of patch tokens, each merged into the rest of its image; positions in the sequence."""

    gone: Tensor  # (W, r * r) int64 the tokens of each window
    into: Tensor  # (B, W, r * r) int64 the token outside the window that each goes into: its nearest
    merged: Tensor  # (B, W, r * r, D) what becomes of ``into``; the same for all of a window that share it
    size: Tensor  # (B, W, r * r) number of patches that ``merged`` stands for
    place: Tensor | None  # (B, W, r * r, 2) the mean place of these, None in towers whose tokens hold their places

    def copies(self, tokens: Tokens) -> tuple[Tokens, Tensor]:
        """Write each merge as a sequence of N tokens, a token of size s being s equal ones.

        These stay equal and get the attention of one of size s, so that no other token can tell the difference.

        Returns:
            ``tokens`` with ``merged`` behind them, and (B, W, N) int64 positions among these.
        """
        batch, kinds, window, dim = self.merged.shape
        owner = tokens.token_of_patch().unsqueeze(1)
        rows = torch.arange(kinds * window, device=owner.device).view(kinds, window) + tokens.patch_count
        idx = owner.expand(-1, kinds, -1)
        for place in range(window):
            became = (owner == self.gone[:, place, None]) | (owner == self.into[..., place, None])
            idx = rows[:, place, None].where(became, idx)
        x = torch.cat((tokens.x, self.merged.reshape(batch, -1, dim)), dim=1)
        patch_idx = torch.cat((tokens.patch_idx, tokens.patch_idx.gather(1, self.into.flatten(1))), dim=1)
        places = None if self.place is None else torch.cat((tokens.places(), self.place.flatten(1, 2)), dim=1)
        return tokens._replace(x=x, patch_idx=patch_idx, place=places), idx


def merge_windows(tokens: Tokens, cells: Tensor) -> Merges:
    """Merge each window of ``cells`` (W, r * r), positions in the sequence, as ``Tokens.merge`` does, rescaled."""
    x, sizes = tokens.patches.float(), tokens.sizes()
    inside = members(cells, tokens.patch_count)
    far = distances(tokens)[:, cells].masked_fill(inside.unsqueeze(1), torch.inf)  # (B, W, r * r, n)
    into = far.argmin(dim=-1)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    # Whatever of a window goes into one token goes at once.
    shares = (into.unsqueeze(-1) == into.unsqueeze(-2)).float()  # (B, W, r * r, r * r)
    weighted, norms = x * sizes.unsqueeze(-1), x.norm(dim=-1)
    size = sizes[image, into] + (shares @ sizes[:, cells].unsqueeze(-1)).squeeze(-1)
    merged = (weighted[image, into] + shares @ weighted[:, cells]) / size.unsqueeze(-1)
    longest = (shares * norms[:, cells].unsqueeze(-2)).amax(dim=-1).maximum(norms[image, into])
    merged = merged * (longest / merged.norm(dim=-1)).unsqueeze(-1)
    place = None
    if tokens.positional is not None:
        sums = tokens.places() * sizes.unsqueeze(-1)
        place = (sums[image, into] + shares @ sums[:, cells]) / size.unsqueeze(-1)
    return Merges(cells, into, merged, size, place)


def distances(tokens: Tokens) -> Tensor:
    """Return how unlike patch tokens are to ``rankmerge``, (B, n, n), before sizes and ranks count."""
    return pair_costs(tokens.patches.float(), scale_places(tokens, DISTANCE), None)
