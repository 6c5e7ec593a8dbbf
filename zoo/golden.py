"""Golden Rankings: remove windows of patch tokens and watch CLIP's output.

Source: arXiv 2409.14607, section 3.2, with the corrections that docs/design.md lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention import attend_cls
from zoo.reducer import expected
from zoo.tokens import Tokens
from zoo.vit import ReducedViT

SCORES = ("preservation", "label", "confidence")


@dataclass(frozen=True, kw_only=True)
class GoldenConfig:
    """How a golden ranking is made.

    Attributes:
        score: ``preservation`` (cosine of features with and without the window), ``label``
            (posterior of the true class), ``confidence`` (highest posterior).
        block: patches go at the input of this block, 0-based.
        window: side of the square window, in patches.
        stride: step of the window, in patches; a last window touches the border.
        batch: sequences per forward pass.
    """

    score: str = "preservation"
    block: int = 3
    window: int = 2
    stride: int = 1
    batch: int = 128

    def __post_init__(self) -> None:
        """Validate."""
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r}: {expected(self.score, SCORES)}")
        for field, low in (("block", 0), ("window", 1), ("stride", 1), ("batch", 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{field}={value!r}: expected an integer from {low}")
        if self.stride > self.window:
            raise ValueError(
                f"stride={self.stride!r}: more than window={self.window} leaves patches out"
            )


def windows(grid: tuple[int, int], window: int, stride: int) -> Tensor:
    """List the windows of a patch grid.

    Args:
        grid: (rows, columns).
        window: side in patches, at most the shorter side of the grid.
        stride: step in patches.

    Returns:
        (W, window * window) int64 patch positions; every patch is in at least one window.

    Raises:
        ValueError: the window is larger than the grid.
    """
    if window > min(grid):
        raise ValueError(f"window={window!r}: larger than the {grid[0]} x {grid[1]} patch grid")
    starts = [sorted({*range(0, side - window + 1, stride), side - window}) for side in grid]
    inside = (torch.arange(window)[:, None] * grid[1] + torch.arange(window)).flatten()
    corners = torch.tensor([row * grid[1] + column for row in starts[0] for column in starts[1]])
    return corners[:, None] + inside


@torch.inference_mode()
def golden_importance(
    model: ReducedViT,
    images: Tensor,
    config: GoldenConfig,
    *,
    text: Tensor | None = None,
    scale: float = 100.0,
    labels: Tensor | None = None,
) -> Tensor:
    """Score the patches of each image by removing windows, one-shot against the full image.

    Args:
        model: dense image tower whose head projects to the joint space.
        images: (B, C, H, W).
        config: score, block, windows.
        text: (classes, D) unit class features; for ``label`` and ``confidence``.
        scale: factor on cosines in the posterior (CLIP's exp of the logit scale).
        labels: (B,) int64 true classes; for ``label``.

    Returns:
        (B, N) float32 importance, higher = keep: minus the mean score of the windows that cover the
        patch.

    Raises:
        ValueError: the model reduces tokens itself, the block lies outside it, or text or labels
            are missing.
    """
    _check(model, config, text, labels)
    start, _ = model.advance(model.embed(images), stop=config.block)
    full, _ = model.advance(start, start=config.block)
    target = F.normalize(model.finish(full).float(), dim=-1)
    cells = windows(start.grid, config.window, config.stride).to(images.device)
    scores = target.new_empty(len(images), len(cells))
    for rows, columns, features in _removed(model, start, cells, config):
        unit = F.normalize(features.float(), dim=-1)
        if config.score == "preservation":
            scores[rows, columns] = (unit * target[rows]).sum(dim=-1)
            continue
        assert text is not None
        posterior = (scale * unit @ text.float().T).softmax(dim=-1)
        if config.score == "confidence":
            scores[rows, columns] = posterior.amax(dim=-1)
        else:
            assert labels is not None
            scores[rows, columns] = posterior.gather(1, labels[rows, None]).squeeze(1)
    return -_mean_over_windows(scores, cells, start.patch_count)


def _check(
    model: ReducedViT, config: GoldenConfig, text: Tensor | None, labels: Tensor | None
) -> None:
    """Refuse what can't be scored."""
    if model.reducer is not None:
        raise ValueError("golden rankings need the dense model: zoo.reduce(model, method=None)")
    if config.block >= len(model.blocks):
        raise ValueError(
            f"block={config.block}: this tower has blocks 0 to {len(model.blocks) - 1}"
        )
    if config.score != "preservation" and text is None:
        raise ValueError(f"score={config.score!r} needs text: (classes, D) unit class features")
    if config.score == "label" and labels is None:
        raise ValueError("score='label' needs labels: (B,) class indices")


def _removed(
    model: ReducedViT, start: Tokens, cells: Tensor, config: GoldenConfig
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield image rows, window columns and features of the sequences without a window, batched.

    The windows of several images share a batch; its size is ``config.batch`` but for the last.
    """
    count, dim = start.patch_count, start.x.shape[-1]
    stays = torch.ones(len(cells), count, dtype=torch.bool, device=cells.device)
    stays = stays.scatter(1, cells, False)
    kept = stays.nonzero()[:, 1].reshape(len(cells), -1)
    pairs = torch.arange(start.x.shape[0] * len(cells), device=cells.device)
    for part in pairs.split(config.batch):
        rows, columns = part // len(cells), part % len(cells)
        idx = kept[columns]
        patches = start.patches[rows].gather(1, idx.unsqueeze(-1).expand(-1, -1, dim))
        x = torch.cat((start.x[rows, : start.prefix], patches), dim=1)
        tokens = start._replace(x=x, patch_idx=idx)
        tokens, _ = model.advance(tokens, config.block, len(model.blocks) - 1)
        # Only the class token leaves the tower, so the last block is run for it alone.
        last = attend_cls(model.blocks[-1], tokens.x)
        yield rows, columns, model.finish(tokens._replace(x=last))


def _mean_over_windows(scores: Tensor, cells: Tensor, count: int) -> Tensor:
    """Average window scores (B, W) over the windows that cover each patch, (B, count)."""
    cover = torch.zeros(len(cells), count, device=scores.device)
    cover.scatter_(1, cells, 1.0)
    return scores @ cover / cover.sum(dim=0)
