"""TCA's condensation: prune what no head attends to, merge what is in between (arXiv 2410.14729, section 3).

Between attention and MLP each head ranks the patch tokens by the class token's attention, and a token's score is the
mean of its ranks. Those of lowest score are pruned, those of highest stay, and
those between are merged: some are chosen as centres, each as far from those before as possible (a
coreset), and the others go into the nearest. That two of three are merged, that there are four centres and that this
happens in blocks 3, 6 and 9 isn't in the text that we have: these are facts about its code (MIT), read in others'
ports and notes. There the first centre is random and the mean weighs a token by one over its distance, which leaves
the centre as it was; here the first centre is the token of highest score, and the mean is plain.

What makes TCA an adaptation to a stream of images is left out: its reservoir of class tokens of images
seen before needs text and remembers, and so do its anchors in the attention and its correction of logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.core.attention import Attended, PoolingQuery
from zoo.core.reducer import Reducer, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens, rows


@dataclass(frozen=True, kw_only=True)
class TCAConfig(ReducerConfig):
    """Settings of TCA's condensation.

    Attributes:
        centers: tokens that the merged ones become, at each stage; fewer where fewer are left in all.
        merged: how many tokens are merged for each one that is pruned, of those that don't stay whole.
    """

    reduce_at: tuple[int, ...] | None = (3, 6, 9)
    centers: int = limit(4, "[1, inf)")
    merged: float = limit(2.0, "(0, 1000]")
    needs_query = True


@register_method("tca")
class TCA(Reducer):
    """Prune the tokens that all heads rank low, merge those between into a few centres."""

    Config = TCAConfig
    config: TCAConfig
    by_default = False
    in_block = True

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Condense to the scheduled count; with all tokens kept nothing is computed."""
        count, arrived = self.count_after(index, tokens), tokens.patch_count
        if count >= arrived:
            return tokens
        centers = min(self.config.centers, count)
        whole = count - centers
        pruned = min(int((arrived - whole) / (1 + self.config.merged)), arrived - count)
        assert attended.pooling is not None
        score = cross_head_score(attended.pooling())
        if pruned == arrived - count:  # every token between is a centre
            return tokens.prune(index, score, count)
        order = score.argsort(dim=1, descending=True, stable=True)
        between, lost = order[:, whole : arrived - pruned], order[:, arrived - pruned :]
        center, gone, into = clusters(tokens.patches, between, arrived - pruned - whole, centers)
        kept = torch.cat((order[:, :whole], center), dim=1).sort(dim=1).values
        merged = tokens._replace(size=None).merge(
            index, gone, into, score.gather(1, gone), count + pruned, stay=torch.cat((kept, lost), dim=1)
        )
        last = merged.history[-1]
        ranked = last.importance.scatter(1, lost, score.gather(1, lost))
        after = merged.patch_idx[:, :count]
        return merged._replace(
            x=merged.x[:, : tokens.prefix + count],
            patch_idx=after,
            patch_count=count,
            place=None if merged.place is None else merged.place[:, :count],
            size=None,
            history=(*tokens.history, last._replace(after=after, importance=ranked)),
        )


def cross_head_score(pooling: PoolingQuery) -> Tensor:
    """Return the mean over heads of each patch token's rank, (B, n) float32, 0 = attended to least."""
    key = pooling.key[:, :, pooling.prefix :]
    logits = (pooling.query @ key.transpose(-2, -1)).squeeze(2).float()  # softmax keeps their order
    ranks = logits.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return ranks.float().mean(dim=1)


def clusters(x: Tensor, between: Tensor, count: int, centers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose centres among the ``count`` tokens at ``between`` (B, count) of ``x`` (B, n, D).

    The first is the first of ``between``, each next one the farthest from its nearest centre.

    Returns:
        Positions of the centres (B, centers), of all others (B, count - centers), and of the centre
        that each of these is nearest to; int64, in the sequence of ``x``.
    """
    x = rows(x, between).float()
    square = (x * x).sum(dim=-1)
    product = (x @ x.transpose(1, 2)).float()
    distance = (square.unsqueeze(2) + square.unsqueeze(1) - 2 * product).clamp(min=0.0)
    chosen = between[:, :1] * 0
    columns = [distance[..., 0]]
    nearest = columns[0].scatter(1, chosen, -1.0)  # a centre is never chosen again
    for _ in range(centers - 1):
        farthest = nearest.argmax(dim=1, keepdim=True)
        columns.append(distance.gather(2, farthest.unsqueeze(1).expand(-1, count, -1)).squeeze(2))
        chosen = torch.cat((chosen, farthest), dim=1)
        nearest = torch.minimum(nearest, columns[-1]).scatter(1, chosen, -1.0)
    others = torch.zeros_like(between).scatter(1, chosen, 1).argsort(dim=1, stable=True)[:, : count - centers]
    goal = torch.stack(columns, dim=2).argmin(dim=2).gather(1, others)
    return between.gather(1, chosen), between.gather(1, others), between.gather(1, chosen.gather(1, goal))
