"""EViT: keep what the class token attends to, inside the block (arXiv 2202.07800)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from zoo.core.attention import Attended, cls_attention
from zoo.core.reducer import Reducer, StagedConfig, limit, register_method
from zoo.core.tokens import Tokens, append_fused


@dataclass(frozen=True, kw_only=True)
class EViTConfig(StagedConfig):
    """Settings of EViT.

    Attributes:
        fuse: append one token, the attention-weighted sum of those dropped, at each stage.
        stage_rate: the paper's way to say how much stays: ceil(rate * tokens) at each stage,
            where an earlier fused token counts as a token; given instead of ``keep``.
    """

    fuse: bool = False
    stage_rate: float | None = limit(None, "(0, 1]")

    needs_query = True
    instead_of_keep: ClassVar[tuple[str, ...]] = ("stage_rate",)


@register_method("evit")
class EViT(Reducer):
    """Drop inattentive tokens between the attention and the MLP of each stage's block.

    The importance is the class token's attention in that very block. ``keep`` counts the tokens
    kept by attention; with ``fuse`` the sequence ends with one more, the last fused token.
    """

    Config = EViTConfig
    config: EViTConfig
    in_block = True

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many tokens each stage keeps by attention, the fused one not counted."""
        if self.config.stage_rate is None:
            return super().counts(patches)
        counts: dict[int, int] = {}
        arrived = patches
        for point in self.points:
            counts[point] = math.ceil(self.config.stage_rate * arrived)
            arrived = counts[point] + (self.config.fuse and counts[point] < arrived)
        return counts

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        count = self.count_after(index, tokens)
        if count >= tokens.patch_count:
            return tokens
        assert attended.pooling is not None
        importance = cls_attention(*attended.pooling())
        kept = tokens.prune(index, importance, count)
        return append_fused(kept, tokens, importance) if self.config.fuse else kept


@dataclass(frozen=True, kw_only=True)
class EViTFuseConfig(StagedConfig):
    """Settings of EViT with its fused token; ``evit`` has the paper's ``stage_rate``, too."""

    fuse: ClassVar[bool] = True
    stage_rate: ClassVar[None] = None
    needs_query = True


@register_method("evitfuse")
class EViTFuse(EViT):
    """EViT with its fused token, which is one of the round(keep * N) that are left."""

    Config = EViTFuseConfig  # type: ignore[assignment]
    by_default = False

    def count_after(self, index: int, tokens: Tokens) -> int:
        """Leave a place for the fused token, unless nothing is dropped."""
        count = super().count_after(index, tokens)
        return count - (count < tokens.patch_count)
