"""ToFu: prune similar tokens in early blocks, merge them in later ones (arXiv 2312.01026), as ports of it compute it.

Both go by ToMe's bipartite soft matching of keys. Blocks up to and including the middle drop the token of a pair that
would move. Later ones merge: the plain mean of the tokens that meet, times the largest of their norms over the norm
that the receiving token had. (To keep norms, as the abstract says, it would have to divide by the mean's own norm.)
Sizes weigh neither in means nor in attention. No repository of the authors was found.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.core.merger import Merger, MergerConfig, bipartite
from zoo.core.reducer import limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class ToFuConfig(MergerConfig):
    """Settings of ToFu.

    Attributes:
        merge_from: first block that merges, the earlier ones prune; None for the one after the middle of the tower.
    """

    schedule: str | tuple[float, ...] = "linear"
    merge_from: int | None = limit(None, "[0, inf)")

    proportional: ClassVar[bool] = False  # type: ignore[misc]


@register_method("tofu")
class ToFu(Merger):
    """Prune the more similar tokens in early blocks, and merge them in later ones, stretched."""

    Config = ToFuConfig
    config: ToFuConfig
    by_default = False
    ordered = True

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        gone, into, similarity, stay = bipartite(metric, r)
        if index < (self.depth // 2 + 1 if self.config.merge_from is None else self.config.merge_from):
            importance = torch.full_like(metric[..., 0], torch.inf, dtype=torch.float32)
            return tokens.select(index, importance.scatter(1, gone, -similarity), stay)
        norms = torch.linalg.vector_norm(tokens.patches.float(), dim=2)
        stretch = norms.scatter_reduce(1, into, norms.gather(1, gone), "amax") / norms.clamp(min=1e-12)
        factor = stretch.gather(1, stay).unsqueeze(2).to(tokens.x.dtype)
        merged = tokens._replace(size=None).merge(index, gone, into, -similarity, stay=stay)
        x = torch.cat((merged.x[:, : merged.prefix], merged.patches * factor), dim=1)
        return merged._replace(x=x, size=None)
