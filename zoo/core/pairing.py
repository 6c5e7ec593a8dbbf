"""Pairs of patch tokens that are near one another: in what they hold, and in the grid."""

import math

import torch
from torch import Tensor

from zoo.core.tokens import Tokens, rows

DISTANCE = 0.5  # what a squared distance in the grid costs, the grid's side being 1; a cosine of 0 costs 1


def scale_places(tokens: Tokens, distance: float) -> Tensor:
    """Return each patch token's row and column, (B, n, 2), so scaled that their squared distance is a cost."""
    columns, idx = tokens.grid[1], tokens.patch_idx
    scale = math.sqrt(distance) / max(tokens.grid)
    return scale * torch.stack((idx // columns, idx % columns), dim=-1).float()


def pair_tokens(
    patches: Tensor, places: Tensor, weight: Tensor | None, r: int, links: int = 4, protection: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose which ``r`` of n tokens, at most half of them, merge into which.

    Greedy matching without a loop over pairs. Costs are symmetric, so the nearest token's own nearest is no further
    away: following the nearest from token to token ends at two that are one another's, of which the first stays. Then
    a token goes if its nearest stays, and stays if that goes; at the nearest's nearest's cost it goes, too, where too
    few do. The cheapest ``r`` go, each into its nearest of those that stay. On ties the lower position goes first.

    Args:
        patches: (B, n, D) tokens; they are compared in float32 by their cosine.
        places: (B, n, 2), whose squared distance adds to the cost.
        weight: (B, n) factors on the cost, None for 1.
        r: at least 1.
        protection: (B, n) factors on the cost of those that go, for whose turn it is alone; None for 1. On the cost of
            pairs it would send what matters into what doesn't, however unlike.
        links: how far chains are followed; beyond, a token may have to go into a farther one than need be.

    Returns:
        (B, r) positions of those that go, cheapest first, (B, r) of those that they go into, (B, r) costs.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        cost = pair_costs(patches.float(), places, weight)
        n, infinite = patches.shape[1], float("inf")
        own = torch.arange(n, device=patches.device)
        near, nearest = cost.min(dim=2)
        second = nearest.gather(1, nearest)
        first = (second == own) & (own < nearest)
        first = first | (~first.any(dim=1, keepdim=True) & (own == 0))  # rounding may leave no such two
        goes = ~first
        for _ in range(links):
            goes = ~first & ~goes.gather(1, nearest)
        beyond = cost.gather(2, second.unsqueeze(2)).squeeze(2)
        turn = near.where(goes, beyond)
        turn = turn if protection is None else turn * protection
        order = turn.masked_fill(first, infinite).argsort(dim=1, stable=True)
        gone = order[:, :r]
        went = torch.zeros_like(nearest).scatter(1, gone, 1) == 1
        near, into = rows(cost, gone).masked_fill_(went.unsqueeze(1), infinite).min(dim=2)
        return gone, into, near


def pair_costs(x: Tensor, places: Tensor, weight: Tensor | None) -> Tensor:
    """Return the cost of each pair, (B, n, n), infinite on the diagonal."""
    factor = 1 / torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)
    half = 0.5 + (places * places).sum(dim=-1, keepdim=True)
    left = torch.cat((-2 * places, half, torch.ones_like(half)), dim=-1)
    right = torch.cat((places, torch.ones_like(half), half), dim=-1)
    if weight is not None:
        factor, left, right = factor * weight, left * weight.unsqueeze(-1), right * weight.unsqueeze(-1)
    x = x * factor.unsqueeze(-1)
    cost = (left @ right.transpose(1, 2)).sub_(x @ x.transpose(1, 2))
    cost.flatten(1)[:, :: x.shape[1] + 1].fill_(float("inf"))
    return cost
