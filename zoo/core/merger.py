"""Which tokens merge into which: bipartite soft matching (ToMe, arXiv 2210.09461), and pairs by places and content."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.attention import Attended
from zoo.core.reducer import Reducer, ReducerConfig
from zoo.core.tokens import Tokens, ascending, every_position, lowest, rows


@dataclass(frozen=True, kw_only=True)
class MergerConfig(ReducerConfig):
    """Settings of methods that merge.

    Attributes:
        proportional: attend in proportion to the number of patches behind a token.
    """

    reduce_at: tuple[int, ...] | None = None
    proportional: bool = True


class Merger(Reducer):
    """A reducer that merges at most half of the patch tokens between a block's attention and its MLP."""

    config: MergerConfig
    in_block = True

    @abstractmethod
    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        """Merge ``r`` patch tokens away; ``metric`` (B, n, d) is their keys, averaged over heads."""

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many patch tokens leave each merging block; raise ValueError if one merges over half of them."""
        counts, arrived = super().counts(patches), patches
        for index, left in counts.items():
            if arrived - left > arrived // 2:
                asked = f"keep={self.config.keep!r} asks block {index} to merge {arrived - left} of {arrived}"
                raise ValueError(f"{asked} patch tokens, at most half can; raise keep or add reduction points")
            arrived = left
        return counts

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        """Attend in proportion to size, if so set."""
        return tokens.size_bias() if self.config.proportional else None

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Merge to the scheduled count; with all tokens kept nothing is computed."""
        r = tokens.patch_count - self.count_after(index, tokens)
        if r <= 0:
            return tokens
        metric = attended.key.mean(dim=1, dtype=attended.out.dtype)  # float32 in optimised towers
        return self.merge(index, tokens, metric[:, tokens.prefix :], r)


class Pairs(NamedTuple):
    """The r most similar pairs of one matching; all are int64 positions in the current sequence."""

    gone: Tensor  # (B, r) tokens of set A, the most similar pair's first
    into: Tensor  # (B, r) the tokens of set B that they are nearest to
    similarity: Tensor  # (B, r) float32 cosine of each pair
    stay: Tensor  # (B, n - r) what is left of the matched tokens: A in order, then B


def bipartite(metric: Tensor, r: int, order: Tensor | None = None) -> Pairs:
    """Match tokens of two sets by the cosine of ``metric`` (B, n, d), and return the ``r`` nearest pairs.

    The tokens at ``order`` (B, k), or all in their own order, alternate into two sets, and each of set A looks for its
    nearest in set B. Without an order the odd places are set A (ToMe), with one the even places (PiToMe). r <= k // 2.
    """
    if order is not None:
        metric = rows(metric, order)
    odd = int(order is None)  # whether set A has the odd places
    metric = F.normalize(metric.float(), dim=-1)
    cosine = metric[:, odd::2].bmm(metric[:, 1 - odd :: 2].transpose(1, 2))
    distance, partner = lowest(-cosine.float())  # autocast makes the product low precision
    ranked = ascending(distance)
    nearest, rest = ranked[:, :r], ranked[:, r:].sort(dim=1).values
    second = 2 * every_position(metric, (int(metric.shape[1]) + odd) // 2) + 1 - odd
    places = (2 * nearest + odd, 2 * partner.gather(1, nearest) + 1 - odd, torch.cat((2 * rest + odd, second), dim=1))
    gone, into, stay = places if order is None else (order.gather(1, place) for place in places)
    return Pairs(gone, into, -distance.gather(1, nearest), stay)


def scale_places(tokens: Tokens, distance: float) -> Tensor:
    """Return each patch token's row and column, (B, n, 2), so scaled that their squared distance is a cost."""
    return math.sqrt(distance) / max(tokens.grid) * tokens._replace(place=None).places()


def pair_tokens(
    patches: Tensor, places: Tensor, weight: Tensor | None, r: int, links: int = 4, protection: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose which ``r`` of n tokens, at most half, merge into which: greedy matching without a loop over pairs.

    Costs are symmetric, so the nearest token's own nearest is no further away: following the nearest from token to
    token ends at two that are one another's, of which the first stays. Then a token goes if its nearest stays, and
    stays if that goes; at the nearest's nearest's cost it goes, too, where too few do. The cheapest ``r`` go, each into
    its nearest of those that stay. On ties the lower position goes first.

    Args:
        patches: (B, n, D) tokens, compared in float32 by their cosine.
        places: (B, n, 2), whose squared distance adds to the cost.
        weight: (B, n) factors on the cost, None for 1.
        r: at least 1.
        links: how far chains are followed; beyond, a token may have to go into a farther one than need be.
        protection: (B, n) factors that set the order of merging, not the partners; None for 1.

    Returns:
        (B, r) positions of those that go, cheapest first, (B, r) of those that they go into, (B, r) costs.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        cost = pair_costs(patches.float(), places, weight)
        positions = torch.arange(patches.shape[1], device=patches.device)
        near, nearest = lowest(cost)
        second = nearest.gather(1, nearest)
        first = (second == positions) & (positions < nearest)
        first = first | (~first.any(dim=1, keepdim=True) & (positions == 0))  # rounding may leave no such two
        goes = rest = ~first
        for _ in range(links):
            goes = rest & ~goes.gather(1, nearest)
        beyond = cost.gather(2, second.unsqueeze(2)).squeeze(2)
        turn = near.where(goes, beyond)
        turn = turn if protection is None else turn * protection
        gone = ascending(turn.masked_fill(first, math.inf))[:, :r]
        went = (gone.unsqueeze(2) == positions).any(dim=1)
        near, into = lowest(rows(cost, gone).masked_fill_(went.unsqueeze(1), math.inf))
        return gone, into, near


def pair_costs(x: Tensor, places: Tensor, weight: Tensor | None) -> Tensor:
    """Return the cost of each pair, (B, n, n), infinite on the diagonal."""
    factor = 1 / torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)
    half = 0.5 + (places * places).sum(dim=-1, keepdim=True)
    ones = torch.ones_like(half)
    left, right = torch.cat((-2 * places, half, ones), dim=-1), torch.cat((places, ones, half), dim=-1)
    if weight is not None:
        factor, left, right = factor * weight, left * weight.unsqueeze(-1), right * weight.unsqueeze(-1)
    # ``bmm`` as ``@`` is exported with a copy of both; scaled afterwards and in place, which saves fresh memory.
    cosine = x.bmm(x.transpose(1, 2)).mul_(factor.unsqueeze(2)).mul_(factor.unsqueeze(1))
    positions = torch.arange(x.shape[1], device=x.device)
    diagonal = torch.where(positions == positions.unsqueeze(1), math.inf, 0.0)
    return left.bmm(right.transpose(1, 2)).sub_(cosine).add_(diagonal)
