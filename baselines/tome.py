"""ToMe: merge similar tokens in every block (arXiv 2210.09461), written from the paper."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention import Attended
from zoo.reducer import Reducer, ReducerConfig, register_method
from zoo.tokens import Reduction, Tokens


@dataclass(frozen=True, kw_only=True)
class ToMeConfig(ReducerConfig):
    """Settings of ToMe.

    Attributes:
        r: tokens merged away per block, as in the paper; given instead of ``keep``. A block
            merges at most half of its patch tokens.
        proportional: attend in proportion to the number of patches behind a token.
    """

    reduce_at: tuple[int, ...] | None = None
    schedule: str = "linear"
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
        """Return log(size) of each key, (B, 1, 1, T), once something was merged."""
        if tokens.size is None or not self.config.proportional:
            return None
        return F.pad(tokens.size.log(), (tokens.prefix, 0))[:, None, None].to(tokens.x.dtype)

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

    x, idx = tokens.patches, tokens.patch_idx
    size = torch.ones_like(idx, dtype=torch.float32) if tokens.size is None else tokens.size
    into, dim = partner.gather(1, gone), x.shape[-1]
    size_a, size_b, moved = size[:, 1::2], size[:, ::2], size[:, 1::2].gather(1, gone)
    sum_b = size_b.scatter_add(1, into, moved)
    weighted = x[:, 1::2].gather(1, _rows(gone, dim)) * moved.unsqueeze(-1).to(x.dtype)
    merged = x[:, ::2] * size_b.unsqueeze(-1).to(x.dtype)
    merged = merged.scatter_add(1, _rows(into, dim), weighted) / sum_b.unsqueeze(-1).to(x.dtype)

    importance = torch.full_like(size, torch.inf)
    importance = importance.scatter(1, 2 * gone + 1, -similarity.gather(1, gone))
    after = torch.cat((idx[:, 1::2].gather(1, stay), idx[:, ::2]), dim=1)
    became = idx.scatter(1, 2 * gone + 1, idx[:, ::2].gather(1, into))
    unmerged = x[:, 1::2].gather(1, _rows(stay, dim))
    return tokens._replace(
        x=torch.cat((tokens.x[:, : tokens.prefix], unmerged, merged), dim=1),
        patch_idx=after,
        patch_count=tokens.patch_count - r,
        size=torch.cat((size_a.gather(1, stay), sum_b), dim=1),
        history=(*tokens.history, Reduction(index, idx, after, importance, became)),
    )


def _rows(idx: Tensor, dim: int) -> Tensor:
    return idx.unsqueeze(-1).expand(-1, -1, dim)
