"""Importance of patches by every ranking that can be shown: golden, predicted, attended, others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harness.models.towers import Tower, no_text
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.tokens import top
from zoo.loading.adopt import reduce
from zoo.loading.clip import class_features
from zoo.loading.predictor_file import load_predictor, with_predictor
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.towers.vit import ReducedViT


@torch.inference_mode()
def golden_maps(
    dense: ReducedViT,
    images: Tensor,
    scores: Sequence[str],
    config: GoldenConfig,
    *,
    text: Tensor | None = None,
    scale: float = 100.0,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Score patches of (B, C, H, W) images by several golden scores; each window is removed once for all of them.

    Of ``config``, one-shot and exact, the score is not looked at. Scores ``label`` and ``confidence`` need ``text``,
    (classes, D) unit features, and ``scale``, the factor on cosines in the posterior; ``label`` the true ``labels``.

    Returns:
        Score -> (B, N) float32 importance, higher = keep, as ``golden_importance`` gives it.
    """
    assert (config.greedy, config.approximate) == (None, None), "each score has its own removals"
    if not scores:
        return {}
    engine = GoldenEngine(dense, replace(config, score=scores[0]), text=text, scale=scale)
    return engine.importances(images, scores, labels)


def class_text(tower: Tower, classes: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, float]:
    """Encode class names, (classes, D) unit features, and return the factor on cosines in the posterior, too.

    Raises:
        ValueError: no text tower, or a class that it has no words for.
    """
    if tower.clip is None:
        raise no_text(tower)
    model, _, tokenizer = tower.clip
    return class_features(model, tokenizer, classes, templates), float(model.logit_scale.detach().exp())


def reduced(tower: Tower, method: str, *, keep: float, block: int) -> ReducedViT:
    """Give a dense tower a registered method, with its predictor where it has one.

    Methods that rank at a block's input prune at ``block``; others keep their own points.

    Raises:
        FileNotFoundError: the method needs a predictor and there is none for this block.
        ValueError: unknown method, or a keep rate that the method can't do.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: {expected(method, METHODS)}")
    options: dict[str, Any] = {"keep": keep}
    if issubclass(METHODS[method], Pruner):
        options["reduce_at"] = (block,)
    options, file = with_predictor(tower.arch, tower.tag, method, options, tower.vit.depth)
    vit: ReducedViT = reduce(tower.vit, method=method, **options)
    if file is not None:
        load_predictor(vit, file)
    return vit.eval()


@torch.inference_mode()
def method_maps(vit: ReducedViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a reduced tower on (B, C, H, W) images and say what it ranked how, and what it kept.

    Returns:
        (B, N) float importance: when a patch went, then how it was ranked at that time; and
        (B, N) bool, the patches that have a token at the end. With nothing to reduce all tie.
    """
    trace = vit.trace(images)
    cells = trace.grid[0] * trace.grid[1]
    if trace.scores is None:
        everything = torch.ones(len(images), cells, dtype=torch.bool)
        return everything.float(), everything
    after = trace.reductions[-1].after
    # One cell more than the grid has takes a fused token, which has no place in it.
    places = after.where(after >= 0, cells)
    kept = torch.zeros(len(images), cells + 1, dtype=torch.bool, device=images.device)
    return trace.scores.float().cpu(), kept.scatter(1, places, True)[:, :cells].cpu()


def most_important(importance: Tensor, keep: float) -> Tensor:
    """Return which patches a keep rate leaves, (B, N) bool; ties go to the lower position."""
    kept = top(importance, final_count(importance.shape[1], keep))
    return torch.zeros_like(importance, dtype=torch.bool).scatter(1, kept, True)


def undo_preprocess(preprocess: Any, images: Tensor) -> Tensor:
    """Take the normalisation out of preprocessed images (B, C, H, W): what the model sees, as colours in [0, 1].

    Every preprocessing that ends in an affine map per channel is undone, whatever its constants:
    they are read off a black and a white image.
    """
    size = (images.shape[3], images.shape[2])
    black, white = (
        preprocess(Image.new("RGB", size, colour)).flatten(1).mean(dim=1)[:, None, None].float()
        for colour in ("black", "white")
    )
    return ((images.float().cpu() - black) / (white - black)).clamp(0.0, 1.0)


def patch_grid(dense: ReducedViT, images: Tensor) -> tuple[int, int]:
    """Return rows and columns of the patch grid of these images."""
    rows, columns = dense.patch_embed.dynamic_feat_size(images.shape[-2:])
    return int(rows), int(columns)
