"""ToMe: merge similar tokens in every block (arXiv 2210.09461), written from the paper."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention import Attended
from zoo.reducer import Reducer, ReducerConfig, register_method
from zoo.tokens import Tokens, every_position


@dataclass(frozen=True, kw_only=True)
class ToMeConfig(ReducerConfig):
    """Settings of ToMe.

    Attributes:
        r: tokens merged away per block, as in the paper; given instead of ``keep``. A block
            merges at most half of its patch tokens.
        proportional: attend in proportion to the number of patches behind a token.
    """

    reduce_at: tuple[int, ...] | None = None
    schedule: str | tuple[float, ...] = "linear"
    r: int | None = None
    proportional: bool = True

    instead_of_keep: ClassVar[tuple[str, ...]] = ("r",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is not None:
            self.whole("r", 0)
        self.switch("proportional")


@register_method("tome")
class ToMe(Reducer):
    """Merge the most similar pairs of patch tokens between attention and MLP."""

    Config = ToMeConfig
    config: ToMeConfig

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many patch tokens leave each merging block.

        Raises:
            ValueError: the keep rate asks a block to merge more than half of its tokens.
        """
        counts: dict[int, int] = {}
        arrived = patches
        if self.config.keep is None:
            assert self.config.r is not None
            for index in self.points:
                arrived = counts[index] = arrived - min(self.config.r, arrived // 2)
            return counts
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
        """Merge the most similar pairs; similarity is the cosine of keys averaged over heads."""
        r = tokens.patch_count - self.count_after(index, tokens)
        if r <= 0:
            return tokens
        return merge(index, tokens, attended.key.mean(dim=1)[:, tokens.prefix :], r)


def merge(index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
    """Merge ``r`` pairs, at most n // 2, of most similar patch tokens by size-weighted mean.

    Patch tokens alternate into set B (even places) and set A (odd places); each token of A looks
    for its nearest in B by the cosine of ``metric`` (B, n, d). The order afterwards is prefix,
    unmerged A, B. ``index`` is the block's number, for the history.
    """
    metric = F.normalize(metric.float(), dim=-1)
    cosine = metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)
    similarity, partner = cosine.float().max(dim=-1)  # autocast makes the product low precision
    order = similarity.argsort(dim=1, descending=True, stable=True)
    gone, stay = order[:, :r], order[:, r:].sort(dim=1).values

    even = 2 * every_position(metric, (tokens.patch_count + 1) // 2)  # set B; set A has the odd places
    return tokens.merge(
        index,
        gone=2 * gone + 1,
        into=2 * partner.gather(1, gone),
        importance=-similarity.gather(1, gone),
        count=tokens.patch_count - r,
        stay=torch.cat((2 * stay + 1, even), dim=1),
    )
