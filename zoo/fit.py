"""Fit a predictor to golden rankings (arXiv 2409.14607, section 3.3)."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from zoo.predictor import ARCHITECTURES, Predictor
from zoo.reducer import expected

LOSSES = ("listnet", "mse")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Recipe of a predictor.

    Attributes:
        arch: architecture, see ``zoo.predictor``.
        width: channels inside.
        loss: ``listnet``: cross-entropy between the softmax of the per-image z-normalised golden
            importance and of the prediction; ``mse``: squared error to the z-normalised importance.
        epochs: most passes over the training images.
        patience: epochs without a better validation loss before stopping.
        batch: images per step.
        learning_rate: of AdamW, cosine to zero.
        weight_decay: of AdamW.
        seed: of initial weights and order.
    """

    arch: str = "conv"
    width: int = 64
    loss: str = "listnet"
    epochs: int = 40
    patience: int = 8
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r}: {expected(self.loss, LOSSES)}")
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch={self.arch!r}: {expected(self.arch, ARCHITECTURES)}")


@dataclass(frozen=True, kw_only=True)
class RankedTokens:
    """What a predictor learns from.

    Attributes:
        tokens: (n, prefix + N, D) tokens that enter the reduction point, any float type.
        importance: (n, N) golden importance, higher = keep.
        prefix: number of prefix tokens.
        grid: (rows, columns).
    """

    tokens: Tensor
    importance: Tensor
    prefix: int
    grid: tuple[int, int]


def fit_predictor(
    train: RankedTokens,
    val: RankedTokens,
    config: FitConfig,
    *,
    on_epoch: Callable[[int, float, float], None] = lambda *_: None,
) -> Predictor:
    """Fit a predictor; keep the weights of the epoch with the best validation loss.

    Args:
        train: images to learn from.
        val: other images, for early stopping only.
        config: recipe.
        on_epoch: called with epoch, training loss and validation loss.
    """
    torch.manual_seed(config.seed)
    dim = train.tokens.shape[-1]
    predictor = Predictor(config.arch, dim, config.width, train.grid, None, None)
    optimiser = torch.optim.AdamW(
        predictor.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    target, target_val = _normalised(train.importance), _normalised(val.importance)
    best, best_state, since = math.inf, predictor.state_dict(), 0
    for epoch in range(config.epochs):
        total = 0.0
        for group in optimiser.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
            group["lr"] = config.learning_rate * cosine
        order = torch.randperm(len(target))
        for rows in order.split(config.batch):
            predicted = predictor(train.tokens[rows].float(), train.prefix, train.grid)
            loss = loss_of(config.loss, predicted, target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        val_loss = _validate(predictor, val, target_val, config)
        on_epoch(epoch, total / len(target), val_loss)
        if math.isnan(val_loss):
            raise ValueError(f"validation loss is NaN in epoch {epoch}; lower learning_rate")
        since += 1
        if val_loss < best:
            best, since = val_loss, 0
            best_state = {k: v.clone() for k, v in predictor.state_dict().items()}
        if since >= config.patience:
            break
    predictor.load_state_dict(best_state)
    return predictor.eval()


def loss_of(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Return the loss between predictions (B, N) and z-normalised importance (B, N)."""
    if name == "listnet":
        return -(target.softmax(dim=1) * predicted.log_softmax(dim=1)).sum(dim=1).mean()
    return (predicted - target).square().mean()


def _normalised(importance: Tensor) -> Tensor:
    importance = importance.float()
    centred = importance - importance.mean(dim=1, keepdim=True)
    return centred / importance.std(dim=1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def _validate(predictor: Predictor, val: RankedTokens, target: Tensor, config: FitConfig) -> float:
    predictor.eval()
    total = 0.0
    for rows in torch.arange(len(target)).split(64):
        predicted = predictor(val.tokens[rows].float(), val.prefix, val.grid)
        total += float(loss_of(config.loss, predicted, target[rows])) * len(rows)
    predictor.train()
    return total / len(target)


def save_predictor(
    predictor: Predictor,
    path: Path,
    *,
    model: str,
    tag: str,
    block: int,
    config: FitConfig,
    provenance: dict[str, Any],
) -> None:
    """Write a predictor as fp16 safetensors with what it was fitted to, whole or not at all.

    Args:
        predictor: the network.
        path: the file.
        model: dense timm name of the tower.
        tag: its weight tag.
        block: reduction point.
        config: recipe.
        provenance: JSON-able facts about the rankings.
    """
    facts = {
        "model": model,
        "tag": tag,
        "block": block,
        "options": {"arch": config.arch, "width": config.width},
        "recipe": asdict(config),
        "provenance": provenance,
    }
    tensors = {k: v.half().contiguous() for k, v in predictor.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, {"predictor": json.dumps(facts, sort_keys=True)}))
    partial.replace(path)
