"""The ways to make golden rankings whose speed is compared."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.towers import Tower, load_tower, split_name
from zoo.clip import image_transform
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.vit import ReducedViT
from zoo.windows import mean_over_windows, members, outside, windows

STRAIGHTFORWARD = "straightforward"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A way to rank.

    Attributes:
        name: as in tables.
        precision: of the patch tokens.
        batch: sequences per forward pass.
        run: from images (B, C, H, W) to importance (B, N).
    """

    name: str
    precision: str
    batch: int
    run: Callable[[Tensor], Tensor]


def runners(
    vit: ReducedViT,
    golden: GoldenConfig,
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    *,
    compiled: bool,
) -> Iterator[Runner]:
    """Prepare the straightforward way, then the engine in every precision and batch."""
    yield Runner(
        name=STRAIGHTFORWARD,
        precision="float32",
        batch=len(windows(vit.patch_embed.grid_size, golden.window, golden.stride)),
        run=Plain(vit, golden).importance,
    )
    for precision in precisions:
        for batch in batches or (None,):
            for ahead in (False, True)[: 1 + compiled]:
                engine = GoldenEngine(vit, golden, precision=precision, compiled=ahead, batch=batch)
                yield Runner(
                    name=f"engine, {precision}" + (", compiled" if ahead else ""),
                    precision=precision,
                    batch=engine.suffix.batch,
                    run=engine.importance,
                )


def random_tower(name: str) -> Tower:
    """Build a dense model of ours without weights; time doesn't depend on them, rankings do.

    Raises:
        ValueError: not a dense model of ours.
    """
    arch, _ = split_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = timm.create_model(name, pretrained=False)
    return Tower(vit.eval(), image_transform(vit), f"{arch} (random weights)")


def find_tower(name: str, *, random_weights: bool) -> Tower:
    """Load a tower, or build it without weights."""
    return random_tower(name) if random_weights else load_tower(name)


class Plain:
    """Rank one image at a time, all its windows as one batch, by feature preservation.

    This is how one would write it first.

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
