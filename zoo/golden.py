"""Golden Rankings: remove windows of patch tokens and watch CLIP's output.

Source: arXiv 2409.14607, section 3.2, with the corrections that docs/design.md lists.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.approximate import approximate_passes, check, parse, quick_features, shortened
from zoo.effort import Effort
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
        if self.approximate is not None:
            parse(self.approximate)
        if self.greedy is not None and self.approximate is not None:
            raise ValueError(
                f"greedy={self.greedy} with approximate={self.approximate!r}: a greedy search "
                "removes every window; give one of the two"
            )

    def described(self) -> str:
        """Return the settings in words."""
        way = f"greedy by {self.greedy}" if self.greedy else self.approximate or "exact"
        return (
            f"{self.score} before block {self.block}, windows of {self.window} x {self.window} "
            f"by {self.stride}, {way}"
        )


class GoldenEngine:
    """Make golden rankings of many images with one tower.

    Attributes:
        model: the tower.
        config: score, block, windows.
        suffix: the tower from the block on, in the precision asked for; ``follow`` and ``jacobian``
            run in float32 whatever it is.
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
        if compiled and config.approximate is not None:
            raise ValueError(f"compiled=True with approximate={config.approximate!r}: exact only")
        self.model = model
        self.config = config
        judged = shortened(model, config.approximate)
        self.suffix = Suffix(
            judged, config.block, batch=batch, precision=precision, compiled=compiled
        )
        self.text = None if text is None else text.to(self.suffix.device)
        self.scale = scale

    @property
    def passes(self) -> float:
        """Passes per image through the tower from the block on, the whole image's left out."""
        grid = self.model.patch_embed.grid_size
        count = len(windows(grid, self.config.window, self.config.stride))
        if self.config.greedy is not None:
            return greedy_passes(count, grid[0] * grid[1], self.config.greedy)
        effort = Effort.of(self.model, self.config.block)
        return approximate_passes(self.config.approximate, effort, self.config.block, count)

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
        cells = windows(start.grid, self.config.window, self.config.stride).to(device)
        rows = torch.arange(len(images), device=device)
        every = rows.repeat_interleave(len(cells))
        quick = quick_features(self.config.approximate, self.suffix, start, cells)
        everything = torch.arange(start.patch_count, device=device).expand(len(images), -1)
        judge = Judge(
            score=self.config.score,
            target=quick[0] if quick else self.suffix.features(start, rows, everything),
            text=self.text,
            scale=self.scale,
            labels=labels,
        )
        if self.config.greedy is not None:
            return greedy_importance(self.suffix, start, judge, cells, self.config.greedy).cpu()
        if quick is None:
            kept = outside(members(cells, start.patch_count)).repeat(len(images), 1)
            features = self.suffix.features(start, every, kept)
        else:
            features = quick[1].flatten(0, 1)
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
    if model.prompts is not None and model.prompts.depth > max(1, config.block):
        raise ValueError(f"block={config.block}: later blocks get learned tokens of their own")
    count = len(windows(model.patch_embed.grid_size, config.window, config.stride))
    if config.approximate is not None:
        check(config.approximate, model, config.block, config.window, count)
    if config.score != "preservation" and text is None:
        raise ValueError(f"score={config.score!r} needs text: (classes, D) unit class features")
