"""Stand in for the tuner where nothing is to be tuned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from harness.few_shot import VAL_SHOTS, draw
from harness.progress import Progress
from harness.reproduction.work import alone, before
from harness.tuning import Tuned, Tuner
from harness.variants import Variant
from zoo.prompt_learner import TuneConfig
from zoo.prompts import PromptFile

if TYPE_CHECKING:
    from harness.reproduction.rehearsal import Rehearsal

TUNE = "tune tokens"


class RehearsedTuner(Tuner):
    """Take prompts that were tuned before; note others and return place holders.

    Args:
        shop: what notes them.
        like: the tuner that would tune them.
    """

    def __init__(self, shop: "Rehearsal", like: Tuner) -> None:
        told = {"model": like.model, "tag": like.tag, "weights": like.weights}
        super().__init__(like.parts, like.dataset, progress=Progress(), **told)
        self.shop = shop

    def tuned(
        self, rows: Sequence[Variant], shots: int, seed: int, config: TuneConfig
    ) -> dict[str, Tuned]:
        """Return prompts that are there, and place holders without a file."""
        return {row.key: self._one(row, shots, seed, config) for row in rows}

    def _one(self, row: Variant, shots: int, seed: int, config: TuneConfig) -> Tuned:
        draw(self.dataset, shots, seed)  # refuses what can't be drawn
        known = None if self.shop.missing(row.vit) else self.known(row, shots, seed, config)
        of = f"{config.tokens} for {row.model} on {self.dataset.name}"
        if known is not None:
            self.shop.note(TUNE, of, 1, 1, "tunings", 0.0)
            return known
        pace, classes = self.shop.pace, len(self.dataset.classes)
        stop = classes * min(shots, VAL_SHOTS)
        each = before(pace.geometry, row) + alone(pace.geometry, row)
        seconds = pace.tuning(config, self.dataset, each, stop)
        images = classes * shots + stop
        seconds += images * pace.reading(self.dataset)
        if config.tokens == "t":  # of which each image is encoded once
            seconds += pace.passing(images * each)
        self.shop.note(TUNE, of, 1, 0, "tunings", seconds)
        file = cast(PromptFile, None)  # never read: whoever looks asks ``missing`` first
        made = Tuned(vit=row.vit, classifier=torch.empty(0), file=file)
        self.shop.hollow(made)
        self.shop.recipes[id(made)] = config
        return made
