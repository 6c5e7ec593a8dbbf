"""ToFu: prune similar tokens in early blocks, merge them in later ones (arXiv 2312.01026, section 3).

Both go by ToMe's bipartite soft matching. Early blocks are far from linear, so that a mean of two
tokens is no token of theirs: there the one that would move is dropped. Later it is merged by MLERP:
the mean of the tokens that meet, stretched to the largest of their norms. The paper's best depth is 6 of
12 blocks. Whether patches behind a token are counted isn't in the text that we have; here they weigh in
means and in attention as in ToMe, of which this is a change. A token that is dropped takes its own along.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.core.merger import Merger, MergerConfig, bipartite
from zoo.core.reducer import HostSpec, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class ToFuConfig(MergerConfig):
    """Settings of ToFu.

    Attributes:
        merge_from: first block that merges, the earlier ones prune; None for the middle of the tower.
    """

    schedule: str | tuple[float, ...] = "linear"
    merge_from: int | None = limit(None, "[0, inf)")


@register_method("tofu")
class ToFu(Merger):
    """Prune the more similar tokens in early blocks, and merge them in later ones, keeping norms."""

    Config = ToFuConfig
    config: ToFuConfig
    by_default = False

    def __init__(self, config: ToFuConfig, host: HostSpec) -> None:
        """Settle from which block on tokens are merged."""
        super().__init__(config, host)
        self.merge_from = host.depth // 2 if config.merge_from is None else config.merge_from

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        """Drop or merge one token of each of the most similar pairs."""
        count = tokens.patch_count - r
        gone, into, similarity, stay = bipartite(metric, tokens.patch_count, r)
        if index < self.merge_from:
            importance = torch.full_like(metric[..., 0], torch.inf, dtype=torch.float32)
            return tokens.select(index, importance.scatter(1, gone, -similarity), stay)._replace(patch_count=count)
        merged = tokens.merge(index, gone, into, -similarity, count, stay=stay, rescale=True)
        return merged._replace(mass=None)  # attention goes by size, as in ToMe
