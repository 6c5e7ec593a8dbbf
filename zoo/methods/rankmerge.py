"""Rankmerge: at a few points of the tower, merge patch tokens into their nearest, the least important first."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.core.attention import Attended, cls_attention
from zoo.core.merger import pair_tokens, scale_places
from zoo.core.reducer import Reducer, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens

STAGES = 4
RANKS = ("none", "cls")


@dataclass(frozen=True, kw_only=True)
class RankMergeConfig(ReducerConfig):
    """Settings of rankmerge. Defaults were chosen on validation images; see docs/methods.md.

    Attributes:
        reduce_at: blocks that merge between attention and MLP; None for the first and the quarters of the depth,
            rounded up: blocks 0, 3, 6 and 9 of 12.
        distance: what a squared distance in the grid costs, the grid's side being 1; a cosine of 0 costs 1.
        size_power: a pair's cost grows with this power of each token's size.
        rescale: stretch a merged token to the norm of the longest of its parts.
        rank: what protects tokens: ``none``, or ``cls``, the class token's attention in the merging block, with which
            that of the reduction point before counts in equal parts.
        rank_at: block from which on ranks protect.
        rank_weight: how much ranks protect: the cost by which tokens go in turn grows with their rank, from
            exp(-rank_weight / 2) for the least important to exp(rank_weight / 2). Into which they go is left alone.
    """

    reduce_at: tuple[int, ...] | None = None
    schedule: str | tuple[float, ...] = "delayed"
    distance: float = limit(0.5, "[0, inf)")
    size_power: float = limit(0.125, "[0, inf)")
    rescale: bool = True
    rank: str = limit("none", RANKS)
    rank_at: int = limit(3, "[0, inf)")
    rank_weight: float = limit(0.5, "[0, inf)")

    @property
    def needs_query(self) -> bool:
        return self.rank == "cls"

    def points(self, depth: int) -> tuple[int, ...]:
        """Return the reduction points: blocks 0, 3, 5 and 7 of 9, say."""
        points = super().points(depth)
        if self.reduce_at is None:
            quarters = {-(-depth * stage // STAGES) for stage in range(STAGES)}
            points = tuple(sorted(quarters.intersection(range(depth))))
        if self.rank != "none" and points[-1] < self.rank_at:
            raise ValueError(f"rank_at={self.rank_at}: expected a block up to the last reduction point, {points[-1]}")
        return points

    def other_rules(self, depth: int) -> tuple[dict[str, Any], ...]:
        """Return what is better on some pictures: block 0 as strong as the other points, and without it."""
        later = self.points(depth)[1:]
        return {"schedule": "geometric"}, *([{"reduce_at": later}] if later else [])


@register_method("rankmerge")
class RankMerge(Reducer):
    """Merge patch tokens into their nearest, in a few blocks, between attention and MLP.

    A pair's cost is one minus the cosine of the residual stream, plus the squared distance in the grid, times what
    both tokens' sizes make of it. The cheapest go, each into its nearest of those that stay; ranks change the turn.
    """

    Config = RankMergeConfig
    config: RankMergeConfig
    in_block = True
    ordered = True

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        return tokens.size_bias()

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        count = self.count_after(index, tokens)
        ranked = self.config.rank != "none" and index >= self.config.rank_at and tokens.patch_count > count
        if ranked and attended.pooling is not None:
            carried = 0.0 if tokens.importance is None else _shares(tokens.importance, tokens.patch_count)
            attention = _shares(cls_attention(*attended.pooling()), tokens.patch_count)
            tokens = tokens._replace(importance=attention + carried)
        while tokens.patch_count > count:
            left, protection = max(count, tokens.patch_count - tokens.patch_count // 2), None
            if tokens.importance is not None:
                protection = (self.config.rank_weight * (_shares(tokens.importance, tokens.patch_count) - 0.5)).exp()
            weight = None if tokens.size is None else tokens.size**self.config.size_power
            place, r = scale_places(tokens, self.config.distance), tokens.patch_count - left
            gone, into, cost = pair_tokens(tokens.patches, place, weight, r, protection=protection)
            tokens = tokens.merge(index, gone, into, cost, rescale=self.config.rescale)
        return tokens


def _shares(importance: Tensor, count: int) -> Tensor:
    """Return the share of the other ``count`` - 1 tokens that each is more important than, (B, n)."""
    return importance.argsort(dim=1, stable=True).argsort(dim=1) / max(1, count - 1)
