"""DiffRate's pruning and merging, without its learned counts (arXiv 2305.17997), as its public code reduces.

Between attention and MLP of every block but the first, patch tokens are ordered by the class token's attention, mean
over heads. The tail is pruned, and the tail of what is left is merged: each token into the most similar of those
before it, by the cosine of the residual stream. The mean is plain, and a token's size grows by the size of what it
receives times their cosine; attention goes by size. DiffRate learns how many tokens are pruned and merged in each
block. Here the schedule says how many go, for which ``patchrank fit schedule`` searches, and ``pruned`` how many of
these are pruned.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from zoo.core.attention import Attended, cls_attention
from zoo.core.reducer import Reducer, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens, rows


@dataclass(frozen=True, kw_only=True)
class DiffRateConfig(ReducerConfig):
    """Settings of DiffRate's reduction.

    Attributes:
        reduce_at: blocks that reduce between attention and MLP; None for all but the first.
        pruned: share of those that go which is pruned, the others are merged; in [0, 1].
    """

    reduce_at: tuple[int, ...] | None = None
    schedule: str | tuple[float, ...] = "linear"
    pruned: float = limit(0.5, "[0, 1]")

    needs_query = True

    def points(self, depth: int) -> tuple[int, ...]:
        return super().points(depth)[(self.reduce_at is None and depth > 1) :]


@register_method("diffrate")
class DiffRate(Reducer):
    """Prune what is attended to least, merge what is attended to little into what is alike."""

    Config = DiffRateConfig
    config: DiffRateConfig
    by_default = False
    in_block = True

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        return tokens.size_bias()

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        count = self.count_after(index, tokens)
        r = tokens.patch_count - count
        if r <= 0:
            return tokens
        merged = r - round(self.config.pruned * r)
        assert attended.pooling is not None
        attention = cls_attention(*attended.pooling(), size=tokens.size)
        tokens = tokens._replace(importance=attention).prune(index, attention, count + merged)
        return _merge_tail(index, tokens, count) if merged else tokens


def _merge_tail(index: int, tokens: Tokens, count: int) -> Tokens:
    """Merge all but the ``count`` tokens of highest importance, each into the most similar of those."""
    assert tokens.importance is not None
    order = tokens.importance.argsort(dim=1, descending=True, stable=True)
    head, tail = order[:, :count].sort(dim=1).values, order[:, count:]
    metric, size = F.normalize(tokens.patches.float(), dim=-1), tokens.sizes()
    similarity, partner = (rows(metric, tail) @ rows(metric, head).transpose(1, 2)).float().max(dim=-1)
    turn = tokens.importance.gather(1, tail)
    size = size.scatter(1, tail, size.gather(1, tail) * similarity.clamp(min=0.0))
    after = tokens._replace(size=None, key_weight=size).merge(index, tail, head.gather(1, partner), turn, stay=head)
    return after._replace(size=after.key_weight, key_weight=None, importance=None)
