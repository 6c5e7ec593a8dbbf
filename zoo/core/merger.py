"""What methods share that merge tokens by bipartite soft matching (ToMe, arXiv 2210.09461)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.attention import Attended
from zoo.core.reducer import Reducer, ReducerConfig
from zoo.core.tokens import Tokens, every_position, rows


@dataclass(frozen=True, kw_only=True)
class MergerConfig(ReducerConfig):
    """Settings of methods that merge.

    Attributes:
        proportional: attend in proportion to the number of patches behind a token.
    """

    reduce_at: tuple[int, ...] | None = None
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.switch("proportional")


class Merger(Reducer):
    """A reducer that merges at most half of the patch tokens between a block's attention and its MLP."""

    config: MergerConfig

    @abstractmethod
    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        """Merge ``r`` patch tokens away; ``metric`` (B, n, d) is their keys, averaged over heads."""

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many patch tokens leave each merging block.

        Raises:
            ValueError: the keep rate asks a block to merge more than half of its tokens.
        """
        counts: dict[int, int] = {}
        arrived = patches
        for index, left in super().counts(patches).items():
            if arrived - left > arrived // 2:
                raise ValueError(
                    f"keep={self.config.keep!r} asks block {index} to merge {arrived - left} of "
                    f"{arrived} patch tokens, at most half can; raise keep or add reduction points"
                )
            arrived = counts[index] = left
        return counts

    def needs_attention(self, index: int) -> bool:
        """In every block that merges."""
        return index in self.points

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        """Attend in proportion to size, if so set."""
        return tokens.size_bias() if self.config.proportional else None

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Merge to the scheduled count; with all tokens kept nothing is computed."""
        r = tokens.patch_count - self.count_after(index, tokens)
        if r <= 0:
            return tokens
        return self.merge(index, tokens, attended.key.mean(dim=1)[:, tokens.prefix :], r)


class Pairs(NamedTuple):
    """The r most similar pairs of one matching; all are positions in the current sequence.

    Attributes:
        gone: (B, r) int64 tokens of set A, the most similar pair's first.
        into: (B, r) int64 the tokens of set B that they are nearest to.
        similarity: (B, r) float32 cosine of each pair.
        stay: (B, n - r) int64 what is left of the matched tokens: A in order, then B.
    """

    gone: Tensor
    into: Tensor
    similarity: Tensor
    stay: Tensor


def bipartite(metric: Tensor, count: int, r: int, order: Tensor | None = None) -> Pairs:
    """Match tokens of two sets by the cosine of ``metric`` (B, n, d), and return the ``r`` nearest pairs.

    ``count`` tokens, those at ``order`` (B, count) or all n in their own order, alternate into set B
    (even places) and set A (odd places); each of A looks for its nearest in B. r <= count // 2.
    """
    if order is not None:
        metric = rows(metric, order)
    metric = F.normalize(metric.float(), dim=-1)
    cosine = metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)
    similarity, partner = cosine.float().max(dim=-1)  # autocast makes the product low precision
    ranked = similarity.argsort(dim=1, descending=True, stable=True)
    nearest, rest = ranked[:, :r], ranked[:, r:].sort(dim=1).values
    even = 2 * every_position(metric, (count + 1) // 2)
    places = (2 * nearest + 1, 2 * partner.gather(1, nearest), torch.cat((2 * rest + 1, even), dim=1))
    gone, into, stay = places if order is None else (order.gather(1, place) for place in places)
    return Pairs(gone, into, similarity.gather(1, nearest), stay)
