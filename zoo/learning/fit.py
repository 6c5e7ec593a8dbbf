"""Fit a predictor to golden rankings (arXiv 2409.14607, section 3.3), by training that goes on from a file.

All losses take predictions p and golden importance t (B, N), the latter normalised per image, and return the mean.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.digests import digest
from zoo.core.errors import is_out_of_memory
from zoo.core.files import write_whole
from zoo.core.learned import Predictor
from zoo.core.recipes import FitConfig
from zoo.loading.learned_files import write_learned

_FIELDS = ("mark", "epoch", "since", "best", "best_weights")  # of a checkpoint, beside three states


@dataclass(kw_only=True)
class FitState:
    """The state of a fit: all that decides how it goes on, and its best epoch."""

    mark: str  # digest of recipe and data; a checkpoint continues only its own fit
    model: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator  # draws the order of the images
    epoch: int = 0  # epochs done
    since: int = 0  # epochs since the best one
    best: float = math.inf  # the best epoch's validation loss
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def run(
        self,
        learn: Callable[[], float],
        validate: Callable[[], float],
        *,
        most: int,
        patience: int,
        on_epoch: Callable[[int, float, float], None],
        checkpoint: Path | None,
    ) -> None:
        """Learn and validate in turn; leave the model with the weights of its best epoch.

        It stops after ``patience`` epochs without a better validation loss. ``on_epoch`` is called with epoch, training
        loss and validation loss. ``checkpoint`` keeps the state after each epoch, and the fit goes on from it.

        Raises:
            ValueError: a loss that is NaN, or a checkpoint of another fit.
        """
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)
        while self.epoch < most and self.since < patience:
            epoch, loss, val_loss = self.epoch, learn(), validate()
            if math.isnan(val_loss):
                raise ValueError(f"validation loss is NaN in epoch {epoch}; lower learning_rate")
            self.epoch += 1
            self.since += 1
            if val_loss < self.best:
                self.best, self.since = val_loss, 0
                self.best_weights = {k: v.clone() for k, v in self.model.state_dict().items()}
            if checkpoint is not None:
                self._save(checkpoint)
            on_epoch(epoch, loss, val_loss)
        self.model.load_state_dict(self.best_weights)

    def descend(self, loss: Tensor, rates: Sequence[float]) -> float:
        """Take a step down a loss at the rates of the groups of parameters; return the loss."""
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def _save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"generator": self.generator.get_state()} | {name: getattr(self, name) for name in _FIELDS}
        content = io.BytesIO()
        torch.save(state, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())

    def _resume(self, path: Path) -> None:
        try:
            # Tensors and numbers only: a file in a cache must not be able to run code.
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            mark = state["mark"]
        except Exception as error:  # torch raises whatever a damaged file leads it to
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"checkpoint {str(path)!r} can't be read ({type(error).__name__}); delete it, and the fit starts anew"
            ) from error
        if mark != self.mark:
            raise ValueError(
                f"checkpoint {str(path)!r} is of another recipe or of other rankings; delete it, or give another path"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        for name in _FIELDS:
            setattr(self, name, state[name])


@dataclass(frozen=True, kw_only=True)
class RankedTokens:
    """What a predictor learns from: n images at the reduction point."""

    tokens: Tensor  # (n, prefix + N, D), of any float type
    importance: Tensor  # (n, N), higher = keep
    prefix: int
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.importance)


def listnet(predicted: Tensor, target: Tensor) -> Tensor:
    """Return -sum_i softmax(t)_i log softmax(p)_i. Cao et al., Learning to Rank, ICML 2007, top-one form."""
    return -(target.softmax(dim=1) * predicted.log_softmax(dim=1)).sum(dim=1).mean()


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Return mean_i (p_i - t_i)^2."""
    return (predicted - target).square().mean()


def bce(predicted: Tensor, target: Tensor) -> Tensor:
    """Return mean_i -(y_i log sigmoid(p_i) + (1 - y_i) log(1 - sigmoid(p_i))) with y of ``kept_share``."""
    return F.binary_cross_entropy_with_logits(predicted, kept_share(target))


def kept_share(target: Tensor) -> Tensor:
    """Return the share of keep counts k = 1..N at which golden top-k pruning keeps each patch, (B, N) in (0, 1).

    It is shifted by half a place; ties share their places.
    """
    above = (target.unsqueeze(2) - target.unsqueeze(1)).sign()  # 1, or 0 for a tie, or -1
    return 0.5 + 0.5 * above.mean(dim=2)


def ranknet(predicted: Tensor, target: Tensor) -> Tensor:
    """Return sum_ij w_ij log(1 + exp(p_j - p_i)) / sum_ij w_ij with w_ij = max(0, t_i - t_j).

    Burges et al., Learning to Rank using Gradient Descent, ICML 2005, there unweighted.
    """
    weight = (target.unsqueeze(2) - target.unsqueeze(1)).clamp(min=0)
    lead = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    total = (weight * F.softplus(-lead)).sum(dim=(1, 2))
    return (total / weight.sum(dim=(1, 2)).clamp(min=1e-6)).mean()


def paper(predicted: Tensor, target: Tensor) -> Tensor:
    """Return -sum_i sigmoid(t_i) log sigmoid(p_i), as printed in the paper: it falls as any prediction grows."""
    return -(target.sigmoid() * F.logsigmoid(predicted)).sum(dim=1).mean()


LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    loss.__name__: loss for loss in (bce, listnet, mse, paper, ranknet)
}
CHUNK = 64  # images at a time where nothing is learnt


def fit_predictor(
    train: RankedTokens,
    val: RankedTokens,
    config: FitConfig,
    *,
    on_epoch: Callable[[int, float, float], None] = lambda *_: None,
    checkpoint: Path | None = None,
) -> Predictor:
    """Fit a predictor; keep the weights of the epoch with the best validation loss.

    The same data, recipe, machine and number of threads give the same weights bit for bit, whether or not the fit was
    stopped in between. ``val`` is for early stopping; ``on_epoch`` and ``checkpoint`` are those of ``FitState.run``.

    Raises:
        ValueError: no images, a loss that is NaN, or a checkpoint of another fit.
    """
    if not len(train) or not len(val):
        raise ValueError("nothing to fit: no images to learn from, or none for early stopping")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        torch.manual_seed(config.seed)
        predictor = Predictor(config.arch, train.tokens.shape[-1], config.width, train.grid)
    # What its scale and shift could do, the linear layer behind it can, in up to 39 % less time.
    predictor.norm.requires_grad_(False)
    rate, decay = config.learning_rate, config.weight_decay
    state = FitState(
        mark=_mark(config, train, val),
        model=predictor,
        optimiser=torch.optim.AdamW(predictor.net.parameters(), lr=rate, weight_decay=decay),
        generator=torch.Generator().manual_seed(config.seed),
    )
    target, target_val = _normalise(train.importance), _normalise(val.importance)
    state.run(
        lambda: _learn(state, train, target, config),
        lambda: _validate(predictor, val, target_val, config),
        most=config.epochs,
        patience=config.patience,
        on_epoch=on_epoch,
        checkpoint=checkpoint,
    )
    return predictor.eval()


def _mark(config: FitConfig, *data: RankedTokens) -> str:
    shapes = [[list(part.tokens.shape), part.prefix, part.grid] for part in data]
    importance = (part.importance.contiguous().numpy().tobytes() for part in data)
    return digest([asdict(config), shapes], *importance, length=64)


def _learn(state: FitState, train: RankedTokens, target: Tensor, config: FitConfig) -> float:
    rate = config.learning_rate * (0.5 * (1 + math.cos(math.pi * state.epoch / config.epochs)))
    total, count = 0.0, 0
    for _ in range(math.ceil(config.steps / math.ceil(len(target) / config.batch))):
        order = torch.randperm(len(target), generator=state.generator)
        for rows in order.split(config.batch):
            predicted = state.model(train.tokens[rows].float(), train.prefix, train.grid)
            total += state.descend(LOSS_FUNCTIONS[config.loss](predicted, target[rows]), [rate]) * len(rows)
            count += len(rows)
    return total / count


def _normalise(importance: Tensor) -> Tensor:
    importance = importance.float()
    centred = importance - importance.mean(dim=1, keepdim=True)
    return centred / importance.std(dim=1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def _validate(model: Predictor, val: RankedTokens, target: Tensor, config: FitConfig) -> float:
    model.eval()
    total = 0.0
    for rows in torch.arange(len(target)).split(CHUNK):
        predicted = model(val.tokens[rows].float(), val.prefix, val.grid)
        total += float(LOSS_FUNCTIONS[config.loss](predicted, target[rows])) * len(rows)
    model.train()
    return total / len(target)


@torch.inference_mode()
def predict(predictor: Predictor, data: RankedTokens) -> Tensor:
    """Return the predicted importance of all images, (n, N) float32."""
    rows = torch.arange(len(data)).split(CHUNK)
    return torch.cat([predictor(data.tokens[some].float(), data.prefix, data.grid) for some in rows])


def save_predictor(
    predictor: Predictor,
    path: Path,
    *,
    model: str,
    tag: str,
    block: int,
    config: FitConfig,
    provenance: dict[str, Any],
    weights: str | None = None,
) -> None:
    """Write a predictor as fp16 safetensors with the fields of ``PredictorFile``, whole or not at all."""
    fields: dict[str, Any] = {"model": model, "tag": tag, "block": block, "provenance": provenance, "weights": weights}
    fields |= {"options": {"arch": config.arch, "width": config.width}, "recipe": asdict(config)}
    write_learned(path, "predictor", {name: value.half() for name, value in predictor.state_dict().items()}, fields)
