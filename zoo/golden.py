"""Golden Rankings: remove windows of patch tokens and watch CLIP's output.

Source: arXiv 2409.14607, section 3.2, with the corrections that docs/design.md lists.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.greedy import greedy_importance, greedy_passes
from zoo.judge import SCORES, Judge
from zoo.reducer import expected
from zoo.suffix import PRECISIONS, Suffix, best_precision
from zoo.vit import ReducedViT
from zoo.windows import mean_over_windows, members, outside, windows

__all__ = ["SCORES", "GoldenConfig", "GoldenEngine", "best_precision", "golden_importance"]


@dataclass(frozen=True, kw_only=True)
class GoldenConfig:
    """How a golden ranking is made.

    Attributes:
        score: ``preservation`` (cosine of features with and without the window), ``label``
            (posterior of the true class), ``confidence`` (highest posterior).
        block: patches go at the input of this block, 0-based.
        window: side of the square window, in patches.
        stride: step of the window, in patches; a last window touches the border.
        greedy: patches that go for good in each round of an iterative search; None for one-shot.
        approximate: what replaces removing every window, see ``zoo.approximate``; None for nothing.
    """

    score: str = "preservation"
    block: int = 3
    window: int = 2
    stride: int = 1
    greedy: int | None = None
    approximate: str | None = None

    def __post_init__(self) -> None:
        """Validate."""
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r}: {expected(self.score, SCORES)}")
        for field, low in (("block", 0), ("window", 1), ("stride", 1), ("greedy", 1)):
            value = getattr(self, field)
            if field == "greedy" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{field}={value!r}: expected an integer from {low}")
        if self.stride > self.window:
            raise ValueError(
                f"stride={self.stride!r}: more than window={self.window} leaves patches out"
            )
        if self.greedy is not None and self.approximate is not None:
            raise ValueError(
                f"greedy={self.greedy} with approximate={self.approximate!r}: a greedy search "
                "removes every window; give one of the two"
            )


class GoldenEngine:
    """Make golden rankings of many images with one tower.

    Attributes:
        model: the tower.
        config: score, block, windows.
        suffix: the tower from the block on, in the precision asked for.
        text: (classes, D) unit class features or None.
        scale: factor on cosines in the posterior (CLIP's exp of the logit scale).
    """

    def __init__(
        self,
        model: ReducedViT,
        config: GoldenConfig,
        *,
        text: Tensor | None = None,
        scale: float = 100.0,
        precision: str = "float32",
        compiled: bool = False,
        batch: int | None = None,
    ) -> None:
        """Prepare the tower.

        Args:
            model: dense image tower in float32 whose head, if any, projects to the joint space.
            config: score, block, windows.
            text: (classes, D) unit class features; for ``label`` and ``confidence``.
            scale: factor on cosines in the posterior.
            precision: of the patch tokens after the block, see ``Suffix``; ``best_precision`` knows
                the fastest.
            compiled: use torch.compile; one-shot only.
            batch: sequences per forward pass, None for what the free memory allows.

        Raises:
            ValueError: the model reduces tokens itself or isn't float32, the block lies outside it,
                a window is larger than the grid, text is missing, or a value is out of range.
        """
        _check(model, config, text)
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: {expected(precision, PRECISIONS)}")
        if batch is not None and (isinstance(batch, bool) or batch < 1):
            raise ValueError(f"batch={batch!r}: expected an integer from 1")
        if compiled and config.greedy is not None:
            raise ValueError("compiled=True needs one sequence length; a greedy search has many")
        self.model = model
        self.config = config
        self.suffix = Suffix(
            model, config.block, batch=batch, precision=precision, compiled=compiled
        )
        self.text = None if text is None else text.to(self.suffix.device)
        self.scale = scale

    @property
    def passes(self) -> float:
        """Sequences per image that go through the tower from the block on, the whole image not."""
        grid = self.model.patch_embed.grid_size
        count = len(windows(grid, self.config.window, self.config.stride))
        if self.config.greedy is not None:
            return greedy_passes(count, grid[0] * grid[1], self.config.greedy)
        return count

    @torch.inference_mode()
    def importance(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score the patches of each image.

        Args:
            images: (B, C, H, W), moved to the tower's device as float32.
            labels: (B,) int64 true classes; for ``label``.

        Returns:
            (B, N) float32 importance on the CPU, higher = keep: minus the mean score of the windows
            that cover the patch; for a greedy search the place in the order of removal.

        Raises:
            ValueError: labels are missing or out of range.
        """
        labels = self._labels(labels, len(images))
        device = self.suffix.device
        embedded = self.model.embed(images.to(device, torch.float32))
        start, _ = self.model.advance(embedded, stop=self.config.block)
        rows = torch.arange(len(images), device=device)
        everything = torch.arange(start.patch_count, device=device).expand(len(images), -1)
        judge = Judge(
            score=self.config.score,
            target=self.suffix.features(start, rows, everything),
            text=self.text,
            scale=self.scale,
            labels=labels,
        )
        cells = windows(start.grid, self.config.window, self.config.stride).to(device)
        if self.config.greedy is not None:
            return greedy_importance(self.suffix, start, judge, cells, self.config.greedy).cpu()
        kept = outside(members(cells, start.patch_count))
        every = rows.repeat_interleave(len(cells))
        features = self.suffix.features(start, every, kept.repeat(len(images), 1))
        scores = judge(features, every).reshape(len(images), len(cells))
        return -mean_over_windows(scores, cells, start.patch_count).cpu()

    def _labels(self, labels: Tensor | None, count: int) -> Tensor | None:
        if self.config.score != "label":
            return None
        if labels is None or len(labels) != count:
            raise ValueError("score='label' needs labels: (B,) class indices")
        assert self.text is not None
        if labels.min() < 0 or labels.max() >= len(self.text):
            bad = next(int(k) for k in labels if not 0 <= k < len(self.text))
            raise ValueError(f"label {bad}: there are classes 0 to {len(self.text) - 1}")
        return labels.to(self.suffix.device)


def golden_importance(
    model: ReducedViT,
    images: Tensor,
    config: GoldenConfig,
    *,
    text: Tensor | None = None,
    scale: float = 100.0,
    labels: Tensor | None = None,
) -> Tensor:
    """Score the patches of some images once; ``GoldenEngine`` has more to choose.

    Args:
        model: dense image tower in float32.
        images: (B, C, H, W).
        config: score, block, windows.
        text: (classes, D) unit class features; for ``label`` and ``confidence``.
        scale: factor on cosines in the posterior.
        labels: (B,) int64 true classes; for ``label``.

    Returns:
        (B, N) float32 importance, higher = keep.

    Raises:
        ValueError: what ``GoldenEngine`` refuses.
    """
    return GoldenEngine(model, config, text=text, scale=scale).importance(images, labels)


def _check(model: ReducedViT, config: GoldenConfig, text: Tensor | None) -> None:
    """Refuse what can't be scored."""
    if model.reducer is not None:
        raise ValueError("golden rankings need the dense model: zoo.reduce(model, method=None)")
    if model.training:
        raise ValueError("golden rankings need the model in evaluation mode: model.eval()")
    kinds = {parameter.dtype for parameter in model.parameters()}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(str(kind) for kind in kinds))
        raise ValueError(
            f"golden rankings need a float32 tower, this one has {found}; "
            "precision='bfloat16' makes them fast"
        )
    if config.block >= len(model.blocks):
        raise ValueError(
            f"block={config.block}: this tower has blocks 0 to {len(model.blocks) - 1}"
        )
    windows(model.patch_embed.grid_size, config.window, config.stride)
    if config.score != "preservation" and text is None:
        raise ValueError(f"score={config.score!r} needs text: (classes, D) unit class features")
