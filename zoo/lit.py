"""Locked-image tuning: projection and text tower for a frozen image tower (arXiv 2111.07991)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.text import CompactText


@dataclass(frozen=True, kw_only=True)
class LitConfig:
    """Recipe.

    Attributes:
        steps: optimiser steps.
        batch: images per step.
        learning_rate: peak, cosine to zero after ``warmup`` steps.
        weight_decay: AdamW's.
        warmup: steps of linear growth.
        noise: standard deviation of feature noise, as a share of the features' own.
        seed: of batches, captions and noise.
        checkpoint_every: steps from one checkpoint to the next.
    """

    steps: int = 2000
    batch: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    noise: float = 0.1
    seed: int = 0
    checkpoint_every: int = 200


class LitModel(nn.Module):
    """What is trained: projection of the class token, text tower, logit scale."""

    def __init__(self, dim: int, text: CompactText, features: int) -> None:
        """Build for class tokens of width ``dim`` and a joint space of width ``features``."""
        super().__init__()
        self.project = nn.Linear(dim, features)
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def train(
    model: LitModel,
    images: Tensor,
    captions: Sequence[Sequence[int]],
    tokens: Tensor,
    config: LitConfig,
    *,
    weights: Tensor,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Fit projection and text tower with a contrastive loss over sets of captions.

    In a batch, an image and a caption are a positive pair whenever the caption is one of the
    image's, not only where they were drawn together; targets are spread evenly over positives.

    Args:
        model: trained in place.
        images: (n, D) float32 class tokens after the final norm.
        captions: for each image the rows of ``tokens`` that describe it.
        tokens: (m, L) token ids, one row per distinct caption.
        config: recipe.
        weights: (n,) how often an image is drawn, relative.
        checkpoint: file that is written as training goes and resumed from if it exists.
        on_step: called with the step and its loss.

    Raises:
        ValueError: the checkpoint was made with another recipe.
    """
    torch.manual_seed(config.seed)
    optimiser = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.learning_rate)
    start = _resume(model, optimiser, config, checkpoint)
    spread = images.std(dim=0) * config.noise
    member = [torch.tensor(list(c)) for c in captions]
    for step, rows in _batches(weights, config, start):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        noise = torch.randn(len(rows), images.shape[1], generator=generator) * spread
        drawn = torch.stack([_draw(member[int(row)], generator) for row in rows])
        texts = drawn.unique()
        positive = torch.zeros(len(rows), len(texts))
        place = {int(text): i for i, text in enumerate(texts)}
        for i, row in enumerate(rows):
            for text in captions[int(row)]:
                if text in place:
                    positive[i, place[text]] = 1.0
        image = F.normalize(model.project(images[rows] + noise), dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            text_features = model.text(tokens[texts])
        text_features = F.normalize(text_features.float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100.0) * image @ text_features.T
        loss = 0.5 * (_spread_loss(logits, positive) + _spread_loss(logits.T, positive.T))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_step(step, loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            _save(model, optimiser, config, step + 1, checkpoint)


def _spread_loss(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(dim=1, keepdim=True)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _draw(choices: Tensor, generator: torch.Generator) -> Tensor:
    return choices[torch.randint(len(choices), (), generator=generator)]


def _batches(weights: Tensor, config: LitConfig, start: int) -> Iterator[tuple[int, Tensor]]:
    for step in range(start, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 500_000)
        yield step, torch.multinomial(weights, config.batch, replacement=True, generator=generator)


def _schedule(step: int, config: LitConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Decay matrices only: no biases, norms, tables or the scale."""
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def _save(
    model: nn.Module, optimiser: torch.optim.Optimizer, config: LitConfig, step: int, path: Path
) -> None:
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "config": asdict(config),
        "step": step,
    }
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    model: nn.Module, optimiser: torch.optim.Optimizer, config: LitConfig, path: Path
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state.get("config") != asdict(config):
        raise ValueError(
            f"checkpoint {str(path)!r} was made with another recipe, {state.get('config')}; "
            "remove it to start anew"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
