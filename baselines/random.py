"""Random pruning: the honest floor of every table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.core.reducer import PoolingBlock, Pruner, ReducerConfig, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class RandomConfig(ReducerConfig):
    """Settings of random pruning: which of the random orders, from 0, serves all images."""

    seed: int = limit(0, "[0, inf)")


@register_method("random")
class RandomPrune(Pruner):
    """Importance = a pseudo-random number of the grid position, the same on every device.

    Free of state and of the batch: it compiles, exports, and gives an image the same result alone and in company.
    """

    Config = RandomConfig
    config: RandomConfig

    def importance(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tensor:
        """Look up the hashes of the grid positions.

        They are a constant of exported models: not every runtime has the hash's 64-bit integers.
        """
        count = tokens.grid[0] * tokens.grid[1]
        if torch.compiler.is_exporting():
            return torch.from_numpy(hash_positions(np.arange(count), self.config.seed))[tokens.patch_idx]
        return hash_positions(torch.arange(count, device=tokens.x.device), self.config.seed)[tokens.patch_idx]


def hash_positions(positions: Any, seed: int) -> Any:
    """Map int64 positions, a tensor or an array, to pseudo-random float32 in [0, 1), by a 32-bit integer mix."""
    mask = 0xFFFFFFFF
    h = (positions + 1) * 0x9E3779B1 + (seed * 0x85EBCA77 & mask)
    for multiplier in (0x7FEB352D, 0x846CA68B):
        h = h & mask
        h = ((h ^ (h >> 16)) * multiplier) & mask
    h = (h ^ (h >> 15)) & 0xFFFFFF
    return (h.float() if isinstance(h, Tensor) else h.astype(np.float32)) / float(1 << 24)
