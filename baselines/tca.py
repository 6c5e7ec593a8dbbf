"""TCA's condensation: fuse what is attended to least, merge what is in between (arXiv 2410.14729), as its code does it.

Between attention and MLP patch tokens are ordered by the class token's attention, mean over heads. (Ranks by head, the
paper's score, are computed there and never used.) When n tokens arrive and d go by the drop rate, the last d become
one token, their sum weighted by attention, as in EViT. The 2 (d + 1) before them become four: centres are chosen
farthest first by Euclidean distance, and each is the mean of its cluster, weighted by one over the distance to it. The
others stay whole: n - 3 d + 3 are left. Here d follows from how many are to be left. The first centre is random there;
it is the most attended token here.

What makes TCA an adaptation to a stream of images is left out: its reservoir of class tokens needs text and remembers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.core.attention import Attended, cls_attention
from zoo.core.reducer import Reducer, StagedConfig, limit, register_method
from zoo.core.tokens import Tokens, append_fused, rows


@dataclass(frozen=True, kw_only=True)
class TCAConfig(StagedConfig):
    """Settings of TCA's condensation.

    Attributes:
        centers: tokens that those in between become at each stage; fewer where fewer are left in all.
    """

    centers: int = limit(4, "[1, inf)")

    needs_query = True


@register_method("tca")
class TCA(Reducer):
    """Fuse the tokens that are attended to least into one, merge those before them into a few centres."""

    Config = TCAConfig
    config: TCAConfig
    by_default = False
    in_block = True

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        count, arrived = self.count_after(index, tokens), tokens.patch_count
        if count >= arrived:
            return tokens
        assert attended.pooling is not None
        score = cls_attention(*attended.pooling())
        centers = min(self.config.centers, count - 1)
        fused = max((arrived - count + 3) // 3, arrived - count + 1 if not centers else 0)
        kept = tokens.prune(index, score, arrived - fused)
        whole, between = count - 1 - centers, arrived - fused - (count - 1 - centers)
        short = append_fused(kept, tokens, score)
        if between <= centers:
            return short
        assert kept.importance is not None
        order = kept.importance.argsort(dim=1, descending=True, stable=True)[:, whole:]
        gone, into, distance = clusters(kept.patches, order, between, centers)
        weight = torch.ones_like(short.patch_idx, dtype=torch.float32).scatter(1, gone, 1 / distance.clamp(min=1e-6))
        turn = kept.importance.gather(1, gone)
        return short._replace(size=weight).merge(index, gone, into, turn)._replace(size=None)


def clusters(x: Tensor, between: Tensor, count: int, centers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose centres among the ``count`` tokens at ``between`` (B, count) of ``x`` (B, n, D).

    The first is the first of ``between``, each next one the farthest from its nearest centre.

    Returns:
        Positions of those that are no centres (B, count - centers) and of the centre that each is nearest to, int64,
        in the sequence of ``x``; and how far away that is, float32.
    """
    x = rows(x, between).float()
    square = (x * x).sum(dim=-1)
    product = (x @ x.transpose(1, 2)).float()
    distance = (square.unsqueeze(2) + square.unsqueeze(1) - 2 * product).clamp(min=0.0).sqrt()
    chosen = between[:, :1] * 0
    columns = [distance[..., 0]]
    nearest = columns[0].scatter(1, chosen, -1.0)  # a centre is never chosen again
    for _ in range(centers - 1):
        farthest = nearest.argmax(dim=1, keepdim=True)
        columns.append(distance.gather(2, farthest.unsqueeze(1).expand(-1, count, -1)).squeeze(2))
        chosen = torch.cat((chosen, farthest), dim=1)
        nearest = torch.minimum(nearest, columns[-1]).scatter(1, chosen, -1.0)
    rest = torch.zeros_like(between).scatter(1, chosen, 1).argsort(dim=1, stable=True)[:, : count - centers]
    goal = torch.stack(columns, dim=2).argmin(dim=2).gather(1, rest)
    return between.gather(1, rest), between.gather(1, chosen.gather(1, goal)), nearest.gather(1, rest)
