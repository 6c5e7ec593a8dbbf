"""A fit in the middle of things: kept on disk after each epoch, so that a stopped one goes on."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.files import write_whole


@dataclass(kw_only=True)
class FitState:
    """All that decides how a fit goes on, and what is best so far.

    Attributes:
        mark: what is fitted to what; a checkpoint goes on only with its own.
        model: the network in training.
        optimiser: its optimiser.
        generator: draws the order of the images.
        epoch: epochs done.
        since: epochs since the best one.
        best: the best epoch's validation loss.
        best_weights: its weights.
    """

    mark: str
    model: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0
    since: int = 0
    best: float = math.inf
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
        """Learn and validate in turn; at the end the model has the weights of its best epoch.

        Args:
            learn: goes through an epoch, and returns its mean loss.
            validate: returns the validation loss.
            most: epochs at most.
            patience: epochs without a better validation loss before stopping.
            on_epoch: called with epoch, loss and validation loss.
            checkpoint: file that keeps the state after each epoch, and from which the fit goes on
                if it is there; it stays at the end.

        Raises:
            ValueError: a loss that is NaN, or a checkpoint of another fit.
        """
        if checkpoint is not None:
            self.resume(checkpoint)
        while self.epoch < most and self.since < patience:
            epoch, loss, val_loss = self.epoch, learn(), validate()
            if math.isnan(val_loss):
                raise ValueError(f"validation loss is NaN in epoch {epoch}; lower learning_rate")
            self.judge(val_loss)
            if checkpoint is not None:
                self.save(checkpoint)
            on_epoch(epoch, loss, val_loss)
        self.model.load_state_dict(self.best_weights)

    def judge(self, loss: float) -> None:
        """Take the epoch that ended into account, by its validation loss."""
        self.epoch += 1
        self.since += 1
        if loss < self.best:
            self.best, self.since = loss, 0
            self.best_weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write everything whole or not at all."""
        content = io.BytesIO()
        torch.save(
            {
                "mark": self.mark,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                **{name: getattr(self, name) for name in ("epoch", "since", "best")},
                "best_weights": self.best_weights,
            },
            content,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())

    def resume(self, path: Path) -> Self:
        """Go on from a checkpoint; from the start if there is none.

        Raises:
            ValueError: the file is no checkpoint, or one of another recipe or other data.
        """
        if not path.is_file():
            return self
        try:
            # Tensors and numbers only: a file in a cache must not be able to run code.
            facts: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            mark = facts["mark"]
        except Exception as error:  # torch raises whatever a damaged file leads it to
            raise ValueError(
                f"checkpoint {str(path)!r} can't be read ({type(error).__name__}); delete it, and "
                "the fit starts anew"
            ) from error
        if mark != self.mark:
            raise ValueError(
                f"checkpoint {str(path)!r} is of another recipe or of other rankings; delete it, "
                "or give another path"
            )
        self.model.load_state_dict(facts["model"])
        self.optimiser.load_state_dict(facts["optimiser"])
        self.generator.set_state(facts["generator"])
        self.epoch, self.since, self.best = facts["epoch"], facts["since"], facts["best"]
        self.best_weights = facts["best_weights"]
        return self
