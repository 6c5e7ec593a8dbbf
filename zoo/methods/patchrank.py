"""Patch Ranking: prune by a predictor of the golden ranking (arXiv 2409.14607, section 3)."""

from dataclasses import dataclass

from torch import Tensor

from zoo.core.learned import ARCHITECTURES, Predictor
from zoo.core.reducer import HostSpec, PoolingBlock, Pruner, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PatchRankConfig(ReducerConfig):
    """Settings of Patch Ranking."""

    arch: str = limit("conv", tuple(ARCHITECTURES))
    width: int = limit(64, "[1, inf)")

    def predictor_block(self, depth: int) -> int:
        return self.points(depth)[0]


@register_method("patchrank")
class PatchRank(Pruner):
    """Predict a ranking at the first reduction point and drop the least important patches.

    Later points drop by the same ranking.
    """

    Config = PatchRankConfig
    config: PatchRankConfig

    def __init__(self, config: PatchRankConfig, host: HostSpec) -> None:
        super().__init__(config, host)
        self.predictor = Predictor(config.arch, host.embed_dim, config.width, host.grid, host.device, host.dtype)

    def importance(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tensor:
        if tokens.importance is not None:
            return tokens.importance
        scores: Tensor = self.predictor(tokens.x, tokens.prefix, tokens.grid)
        return scores
