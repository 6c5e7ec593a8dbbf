"""What all methods share that rank patches at a block's input and drop the least important."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from zoo.reducer import Reducer
from zoo.tokens import Tokens


class Pruner(Reducer):
    """A reducer that prunes before each of its reduction points; a method says by what."""

    @abstractmethod
    def importance(self, block: int, tokens: Tokens, module: Any) -> Tensor:
        """Score the patch tokens, (B, n) float, higher = keep.

        Args:
            block: the reduction point.
            tokens: what enters the block; ``tokens.importance`` holds the scores that an earlier
                reduction point gave those still here, None at the first.
            module: the timm block whose input this is.
        """

    def before_block(self, block: int, tokens: Tokens, module: Any) -> Tokens:
        """Prune to the scheduled count; with all tokens kept nothing is computed."""
        if block not in self.points:
            return tokens
        count = self.counts(tokens.grid[0] * tokens.grid[1])[block]
        if count >= tokens.patch_count:
            return tokens
        return tokens.prune(block, self.importance(block, tokens, module), count)
