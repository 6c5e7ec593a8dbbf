"""A-ViT: halt tokens by a score that one of their channels holds (arXiv 2112.07658, section 3).

A-ViT trains the whole network to write halting scores into that channel. Weights that weren't trained so have no
halting channel: what is measured of them is the mechanism with meaningless scores, not A-ViT. It is left out unless it
is named.

After each block a token's score is added up, and the token with the largest sum goes next. The schedule says how many
go, the same number for all images, where A-ViT halts each token once its sum reaches 1 - epsilon. Its code masks
halted tokens, here they are dropped. The class token never halts, and its last state is read instead of the mean of
its states, weighted by halting scores.
"""

from dataclasses import dataclass

from torch import Tensor

from zoo.core.reducer import HostSpec, PoolingBlock, Pruner, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class AViTConfig(ReducerConfig):
    """Settings of A-ViT; the score of a token is sigmoid(gamma * channel + beta).

    Attributes:
        reduce_at: blocks before which tokens go, from 1 on: block 0 has no score to go by.
        channel: of the residual stream, which holds the score.
        gamma: factor on the channel, above 0.
        beta: what is added, mostly below 0, so that a token takes several blocks to halt.
    """

    reduce_at: tuple[int, ...] | None = None
    schedule: str | tuple[float, ...] = "linear"
    channel: int = limit(0, "[0, inf)")
    gamma: float = limit(5.0, "(0, 1000]")
    beta: float = limit(-10.0, "(-1000, 1000]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce_at is not None and self.reduce_at[0] == 0:
            raise ValueError("reduce_at=0: no block has scored the tokens by then; expected blocks from 1")

    def points(self, depth: int) -> tuple[int, ...]:
        if self.reduce_at is not None:
            return super().points(depth)
        if depth < 2:
            raise ValueError(f"a tower of depth {depth}: tokens halt between two blocks")
        return tuple(range(1, depth))


@register_method("avit")
class AViT(Pruner):
    """Importance = minus the sum of a token's halting scores after all blocks so far."""

    Config = AViTConfig
    config: AViTConfig
    by_default = False

    def __init__(self, config: AViTConfig, host: HostSpec) -> None:
        super().__init__(config, host)
        if config.channel >= host.embed_dim:
            raise ValueError(f"channel={config.channel}: this tower has channels 0 to {host.embed_dim - 1}")

    @property
    def first_block(self) -> int:
        """Scores are summed up from the output of block 0 on."""
        return 1

    def before_block(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tokens:
        if 0 < index <= self.points[-1]:
            channel = tokens.patches[:, :, self.config.channel].float()
            score = (self.config.gamma * channel + self.config.beta).sigmoid()
            total = -score if tokens.importance is None else tokens.importance - score
            tokens = tokens._replace(importance=total)
        return super().before_block(index, tokens, block)

    def importance(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tensor:
        assert tokens.importance is not None
        return tokens.importance
