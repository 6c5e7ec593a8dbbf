"""Multiply-adds by formula against fvcore's count of what really runs."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn

import zoo
from harness.cost import gflops
from zoo.approximate import Effort
from zoo.attention import attend_cls


class Part(nn.Module):
    """Embed an image, run it up to a block and, if ``rest``, on from there for CLS alone."""

    def __init__(self, tower: zoo.ReducedViT, block: int, rest: bool) -> None:
        super().__init__()
        self.tower, self.block, self.rest = tower, block, rest

    def forward(self, images: Tensor) -> Tensor:
        start, _ = self.tower.advance(self.tower.embed(images), stop=self.block)
        if not self.rest:
            return start.x
        last = len(self.tower.blocks) - 1
        end, _ = self.tower.advance(start, self.block, last)
        return attend_cls(self.tower.blocks[last], end.x)


@pytest.mark.parametrize("block", [0, 3, 5])
@pytest.mark.parametrize("prefix", [1, 4])
def test_a_whole_pass_counts_what_fvcore_counts(
    block: int, prefix: int, tiny: Callable[..., nn.Module]
):
    tower = tiny("clip_vit_b16", num_classes=0, reg_tokens=prefix - 1)

    def products(rest: bool) -> float:
        counted = gflops(Part(tower, block, rest), 64).by_operator
        return sum(n for name, n in counted.items() if "norm" not in name)

    effort = Effort.of(tower, block)
    assert (effort.grid, effort.tokens, effort.blocks) == ((8, 8), 64 + prefix, 6 - block)
    assert effort.whole == pytest.approx(1e9 * (products(True) - products(False)), rel=1e-6)
