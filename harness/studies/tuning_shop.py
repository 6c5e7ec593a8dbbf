"""Where studies of learned tokens get their models: tuned once for each draw, and kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timm.models import save_for_hf

from harness.datasets.base import Dataset, SplitName
from harness.few_shot import require_apart
from harness.fit import fit
from harness.golden.rank import Source
from harness.studies.base import Line
from harness.studies.found import find_or_rank
from harness.studies.workshop import Fitted, Workshop
from harness.towers import load_tower
from harness.tuning import Tuned
from harness.variants import DENSE, Variant, rows_of
from zoo.adopt import add_prompts
from zoo.golden import GoldenConfig
from zoo.predictor_file import PredictorFile
from zoo.tune_config import TuneConfig
from zoo.weights import cache_folder, fingerprint

STOPPED_BY = 100  # val images that end a fit; ranking a tuned tower takes long, its prefix is long


class TuningShop:
    """Tune a study's models on one dataset.

    Args:
        shop: makes rankings, predictors and untuned models.
        dataset: whose classes and labelled images these are.

    Raises:
        ValueError: the study judges by images that models learn from.
    """

    def __init__(self, shop: Workshop, dataset: Dataset) -> None:
        """Tune nothing yet."""
        require_apart(dataset, shop.config.split)
        self.shop, self.dataset = shop, dataset
        self.arch, _, self.tag = shop.tower.name.partition(".")
        self.tuner = shop.tuner(dataset)

    def row(self, keep: float) -> Variant:
        """Return the dense model (keep rate 1), or Patch Ranking.

        Its predictor is the one that is found, or with ``own_predictors`` the dataset's own, that
        of the study's first seed.

        Args:
            keep: keep rate.
        """
        if keep < 1 and self.shop.config.own_predictors:
            fits = self.shop.fitted([self.dataset.images_of], self.shop.golden())[:1]
            (own,) = self.shop.predicted(fits, keep, None, "own predictor")
            return own
        asked = (DENSE, 1.0) if keep == 1 else ("patchrank", keep)
        (row,) = rows_of(self.shop.dense, self.arch, self.tag, [asked])
        return row

    def recipe(self, **changes: Any) -> TuneConfig:
        """Return the study's recipe with some of it changed."""
        return replace(self.shop.config.tune, **changes)

    def tuned(self, row: Variant, config: TuneConfig) -> list[Tuned]:
        """Tune a row once for each of the study's seeds, which draw images and initial tokens."""
        study = self.shop.config
        found = []
        for seed in range(config.seed, config.seed + study.seeds):
            recipe = replace(config, seed=seed)
            found.append(self.tuner.tuned([row], study.labelled, seed, recipe)[row.key])
        return found

    def moved(self, row: Variant, tuned: Sequence[Tuned]) -> list[Tuned]:
        """Give a row the prompts that were tuned on another one of the tower."""
        return [Tuned.of(row.vit, one.file) for one in tuned]

    def line(
        self, labels: dict[str, str], group: str, row: Variant, tuned: Sequence[Tuned]
    ) -> Line:
        """Return a line of the table: one model, tuned from several seeds."""
        return Line(labels=labels, rows=[row] * len(tuned), asked=group, prompts=list(tuned))

    def untuned(self, labels: dict[str, str], group: str, row: Variant) -> Line:
        """Return a line of the table: a model by its class captions."""
        return Line(labels=labels, rows=[row], asked=group)

    def ranked_after(self, one: Tuned, golden: GoldenConfig) -> Fitted:
        """Fit a predictor to golden rankings of a dense tower that was tuned before.

        Args:
            one: the tuned dense tower.
            golden: how its rankings are made.

        Returns:
            The predictor, which needs the tower's learned tokens as well.
        """
        shop, seed = self.shop, int(one.file.recipe["seed"])
        folder = cache_folder() / "studies" / f"{self.arch}-{one.digest}"
        if not (folder / "config.json").is_file():
            dense = load_tower(shop.tower.name).vit
            save_for_hf(add_prompts(dense, one.file), str(folder), safe_serialization=True)
        path = folder / f"predictor-{golden.block}.safetensors"
        name = f"local-dir:{folder}"
        if not path.is_file():
            told: dict[str, Any] = {"device": shop.config.device, "progress": shop.progress}
            weights = fingerprint(one.vit)
            limits: tuple[tuple[SplitName, int | None], ...] = (
                ("train", shop.config.train_limit),
                ("val", STOPPED_BY),
            )
            train, stop = (
                find_or_rank(name, weights, Source.of(self.dataset, split), golden, limit, **told)
                for split, limit in limits
            )
            recipe = replace(shop.config.fit, seed=seed)
            fit(name, [train], [stop], recipe, out=path, progress=shop.progress)
        file = PredictorFile.read(path)
        return Fitted(file=file, seed=seed, images=shop.config.train_limit or 0)
