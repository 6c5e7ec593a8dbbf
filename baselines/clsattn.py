"""CLS attention: drop the patches that the class token attends to least.

Where a tower has none but pools by attention, the pool's own query stands in for it.
"""

from dataclasses import dataclass

from torch import Tensor

from zoo.core.reducer import PoolingBlock, Pruner, ReducerConfig, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class ClsAttentionConfig(ReducerConfig):
    """Settings of CLS attention."""

    needs_query = True


@register_method("clsattn")
class ClsAttention(Pruner):
    """Importance = the class token's softmax attention to each patch, mean over heads.

    It is that of the reduction point's own block, computed on its input for the class token's query alone.
    """

    Config = ClsAttentionConfig

    def importance(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tensor:
        return block.pooling_attention(tokens)
