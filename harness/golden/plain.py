"""Golden rankings the straightforward way, as one would write them first: what speed is against."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.golden import GoldenConfig
from zoo.vit import ReducedViT
from zoo.windows import mean_over_windows, members, outside, windows


class Plain:
    """Rank one image at a time, all its windows as one batch, by feature preservation.

    The blocks before the reduction point run once per image; all others, the last included, run for
    every token; attention weights are formed (timm's blocks without fused attention).

    Args:
        model: dense tower in float32, in evaluation mode.
        config: block and windows.
    """

    def __init__(self, model: ReducedViT, config: GoldenConfig) -> None:
        """Take a copy, since the blocks are told not to fuse."""
        self.model = copy.deepcopy(model)
        self.config = config
        blocks: Any = self.model.blocks
        for block in blocks:
            block.attn.fused_attn = False

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def importance(self, images: Tensor) -> Tensor:
        """Score the patches of images (B, C, H, W); (B, N) float32 on the CPU, higher = keep."""
        device = next(self.model.parameters()).device
        return torch.stack([self._importance(image[None].to(device)).cpu() for image in images])

    def _importance(self, image: Tensor) -> Tensor:
        start, _ = self.model.advance(self.model.embed(image), stop=self.config.block)
        cells = windows(start.grid, self.config.window, self.config.stride).to(start.x.device)
        left = outside(members(cells, start.patch_count))
        prefix = start.x[:, : start.prefix].expand(len(cells), -1, -1)
        sequences = torch.cat((prefix, start.patches[0, left]), dim=1)
        scores = F.cosine_similarity(self._features(sequences), self._features(start.x))
        return -mean_over_windows(scores[None], cells, start.patch_count)[0]

    def _features(self, x: Tensor) -> Tensor:
        blocks: Any = self.model.blocks
        for block in blocks[self.config.block :]:
            x = block(x)
        features: Tensor = self.model.forward_head(self.model.norm(x))
        return features
