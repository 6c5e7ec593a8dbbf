"""Patch Ranking: prune by a predictor of the golden ranking (arXiv 2409.14607, section 3)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.core.predictor import Predictor, architecture, require_any_subset
from zoo.core.reducer import HostSpec, Pruner, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PatchRankConfig(ReducerConfig):
    """Settings of Patch Ranking.

    Attributes:
        rescore: score the patches that are left anew at each reduction point, by a predictor of
            its own; else the first point's ranking is carried along.
    """

    arch: str = "conv"
    width: int = limit(64, "[1, inf)")
    rescore: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        architecture(self.arch)

    def predictor_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the first reduction point, or with ``rescore`` all of them."""
        points = self.points(depth)
        return points if self.rescore else points[:1]


@register_method("patchrank")
class PatchRank(Pruner):
    """Predict a ranking at the first reduction point and drop the least important patches.

    With several points the one ranking is used at each, or with ``rescore`` each has a predictor
    of its own: the first point's is ``predictor``, the others' are in ``rescorers`` by block.
    """

    Config = PatchRankConfig
    config: PatchRankConfig

    def __init__(self, config: PatchRankConfig, host: HostSpec) -> None:
        super().__init__(config, host)
        _, *later = config.predictor_blocks(host.depth)
        if later:
            require_any_subset(config.arch, later[0])
        shape = (config.arch, host.embed_dim, config.width, host.grid, host.device, host.dtype)
        self.predictor = Predictor(*shape)
        self.rescorers = nn.ModuleDict({str(index): Predictor(*shape) for index in later})

    def importance(self, index: int, tokens: Tokens, block: Any) -> Tensor:
        """Predict; without ``rescore`` only once, later the same ranking is taken along."""
        own = str(index) in self.rescorers
        if not own and tokens.importance is not None:
            return tokens.importance
        predictor = self.rescorers[str(index)] if own else self.predictor
        scores: Tensor = predictor(tokens.x, tokens.prefix, tokens.grid)
        return scores
