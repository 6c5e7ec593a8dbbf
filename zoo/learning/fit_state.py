"""Training that stops early and goes on from a file."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.files import write_whole


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

        It stops after ``patience`` epochs without a better validation loss. ``checkpoint`` keeps
        the state after each epoch, and the fit goes on from it.

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

    def _save(self, path: Path) -> None:
        facts = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            **{k: getattr(self, k) for k in ("mark", "epoch", "since", "best", "best_weights")},
        }
        content = io.BytesIO()
        torch.save(facts, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())

    def _resume(self, path: Path) -> None:
        try:
            # Tensors and numbers only: a file in a cache must not be able to run code.
            facts: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            mark = facts["mark"]
        except Exception as error:  # torch raises whatever a damaged file leads it to
            raise ValueError(
                f"checkpoint {str(path)!r} can't be read ({type(error).__name__}); delete it, and the fit starts anew"
            ) from error
        if mark != self.mark:
            raise ValueError(
                f"checkpoint {str(path)!r} is of another recipe or of other rankings; delete it, or give another path"
            )
        self.model.load_state_dict(facts["model"])
        self.optimiser.load_state_dict(facts["optimiser"])
        self.generator.set_state(facts["generator"])
        for name in ("epoch", "since", "best", "best_weights"):
            setattr(self, name, facts[name])
