"""ToMe: merge similar tokens in every block (arXiv 2210.09461), written from the paper."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.core.merger import Merger, MergerConfig, bipartite
from zoo.core.reducer import limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class ToMeConfig(MergerConfig):
    """Settings of ToMe.

    Attributes:
        r: tokens merged away per block, as in the paper; given instead of ``keep``. A block
            merges at most half of its patch tokens.
    """

    schedule: str | tuple[float, ...] = "linear"
    r: int | None = limit(None, "[0, inf)")

    instead_of_keep: ClassVar[tuple[str, ...]] = ("r",)


@register_method("tome")
class ToMe(Merger):
    """Merge the most similar pairs of patch tokens between attention and MLP."""

    Config = ToMeConfig
    config: ToMeConfig
    ordered = True

    def counts(self, patches: int) -> dict[int, int]:
        if self.config.r is None:
            return super().counts(patches)
        counts: dict[int, int] = {}
        arrived = patches
        for index in self.points:
            arrived = counts[index] = arrived - min(self.config.r, arrived // 2)
        return counts

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        return merge(index, tokens, metric, r)


def merge(index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
    """Merge ``r`` pairs, at most n // 2, of most similar patch tokens by size-weighted mean.

    The order afterwards is prefix, what is left of set A, set B. ``index`` is the block's number, for the history.
    """
    gone, into, similarity, stay = bipartite(metric, r)
    return tokens.merge(index, gone, into, -similarity, stay=stay)
