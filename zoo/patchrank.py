"""Patch Ranking: prune by a predictor of the golden ranking (arXiv 2409.14607, section 3)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.architectures import ARCHITECTURES
from zoo.predictor import Predictor
from zoo.pruner import Pruner
from zoo.reducer import HostSpec, ReducerConfig, expected, register_method
from zoo.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PatchRankConfig(ReducerConfig):
    """Settings of Patch Ranking.

    Attributes:
        arch: predictor architecture.
        width: channels inside the predictor.
    """

    arch: str = "conv"
    width: int = 64

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch={self.arch!r}: {expected(self.arch, ARCHITECTURES)}")
        self.whole("width", 1)


@register_method("patchrank")
class PatchRank(Pruner):
    """Predict a ranking at the first reduction point and drop the least important patches.

    With several points the one ranking is used at each: the predictor runs once.
    """

    Config = PatchRankConfig
    needs_predictor = True
    config: PatchRankConfig

    def __init__(self, config: PatchRankConfig, host: HostSpec) -> None:
        """Build the predictor with random weights."""
        super().__init__(config, host)
        self.predictor = Predictor(
            config.arch, host.embed_dim, config.width, host.grid, host.device, host.dtype
        )

    def importance(self, block: int, tokens: Tokens, module: Any) -> Tensor:
        """Predict at the first reduction point; later the same ranking is taken along."""
        if tokens.importance is not None:
            return tokens.importance
        scores: Tensor = self.predictor(tokens.x, tokens.prefix, tokens.grid)
        return scores
