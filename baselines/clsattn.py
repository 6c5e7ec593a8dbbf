"""CLS attention: drop the patches that the class token attends to least.

Where a tower has none but pools by attention, the pool's own query stands in for it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.core.attention import Attended, cls_attention
from zoo.core.reducer import Pruner, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class ClsAttentionConfig(ReducerConfig):
    """Settings of CLS attention.

    Attributes:
        source: whose attention decides. ``input``: the reduction point's own block, computed on
            its input for the class token's query alone. ``previous``: the block before, whose
            queries and keys are there already; not for reduction point 0.
    """

    source: str = limit("input", ("input", "previous"))
    needs_query = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "previous" and (self.reduce_at is None or self.reduce_at[0] == 0):
            raise ValueError("source='previous': no block comes before reduction point 0")


@register_method("clsattn")
class ClsAttention(Pruner):
    """Importance = the class token's softmax attention to each patch, mean over heads."""

    Config = ClsAttentionConfig
    config: ClsAttentionConfig

    @property
    def first_block(self) -> int:
        """The block whose attention decides first."""
        return self.points[0] - (self.config.source == "previous")

    def needs_attention(self, index: int) -> bool:
        """Only the block before a reduction point, and only for ``previous``."""
        return self.config.source == "previous" and index + 1 in self.points

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Take the importance along to the next block's input."""
        assert attended.pooling is not None
        return tokens._replace(importance=cls_attention(*attended.pooling()))

    def importance(self, index: int, tokens: Tokens, block: Any) -> Tensor:
        """Compute the class token's attention, or take what the block before left."""
        if self.config.source == "previous":
            assert tokens.importance is not None
            return tokens.importance
        attention: Tensor = block.pooling_attention(tokens)
        return attention
