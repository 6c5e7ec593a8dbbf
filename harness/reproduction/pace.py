"""How fast this machine is: what each kind of work takes, from a short measurement of each."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.cost import gflops
from harness.datasets.base import Dataset
from harness.latency.stopwatch import waiting
from harness.plan import DTYPES
from harness.reproduction.work import blocks, ranking, whole
from harness.studies.config import StudyConfig
from harness.towers import Tower, load_tower
from zoo.effort import Effort
from zoo.fit import FitConfig, fit_predictor
from zoo.golden import GoldenConfig, GoldenEngine, best_precision
from zoo.ranked import RankedTokens
from zoo.tune_config import TuneConfig
from zoo.tuning import Labelled, tune
from zoo.vit import ReducedViT

SOME = 8  # images, or classes, that are timed


class Pace:
    """Measure what is asked for, once, and scale it by multiply-adds, images or classes.

    Args:
        tower: the dense tower; it is copied where it has to change.
        config: says what it is called, where the work will be done and in which precision.
    """

    def __init__(self, tower: Tower, config: StudyConfig) -> None:
        """Measure nothing yet."""
        assert tower.clip is not None
        self.tower, self.clip, self.device = tower, tower.clip, torch.device(config.device)
        self.model, self.dtype = config.model, DTYPES[config.dtype]
        self.geometry = Effort.of(tower.vit, 0)
        self._known: dict[Any, float] = {}

    def ranking(self, golden: GoldenConfig) -> float:
        """Return the seconds that the golden ranking of an image takes."""
        precision = best_precision(self.device)
        work = ranking(self.geometry, golden)
        return work / self._once("ranking", lambda: self._ranking_rate(golden, precision))

    def loading(self) -> float:
        """Return the seconds until the tower is there, as it is loaded for each ranking and fit."""
        return self._once("loading", lambda: self._timed(lambda: load_tower(self.model)))

    def counting(self) -> float:
        """Return the seconds in which a model's multiply-adds are counted."""
        vit = self.tower.vit
        size = vit.patch_embed.img_size
        return self._once("counting", lambda: self._timed(lambda: gflops(vit, size)))

    def reading(self, dataset: Dataset) -> float:
        """Return the seconds that an image takes until it is a tensor."""

        def read() -> float:
            split = dataset.split("test")[:SOME]
            begun = time.perf_counter()
            for example in split:
                self.tower.preprocess(example.image)
            return (time.perf_counter() - begun) / len(split)

        return self._once(("reading", dataset.name), read)

    def passing(self, work: float) -> float:
        """Return the seconds that models take for so many multiply-adds."""
        return work / self._once("passing", self._passing_rate)

    def entering(self, block: int) -> float:
        """Return the seconds until an image's tokens enter a block, in float32 on the CPU."""
        work = blocks(self.geometry, block, self.geometry.tokens)
        return work / self._once("entering", lambda: self._rate(self.tower.vit, torch.float32))

    def fitting(self, recipe: FitConfig, images: int, stop: int) -> float:
        """Return the seconds that a fit takes that isn't stopped early."""
        step = self._once(("fitting", recipe.arch, recipe.width), lambda: self._fit_step(recipe))
        steps = max(recipe.steps, -(-images // recipe.batch))
        # An image that is only looked at takes about a third of one that is learnt from.
        return recipe.epochs * step * (steps + stop / recipe.batch / 3)

    def tuning(self, recipe: TuneConfig, dataset: Dataset, work: float, val: int) -> float:
        """Return the seconds that tuning takes that isn't stopped early.

        Args:
            recipe: what is learned.
            dataset: whose classes are told apart.
            work: multiply-adds of the model, for an image.
            val: images to stop by.
        """
        few = min(SOME, len(dataset.classes))
        alone = replace(recipe, tokens="t")
        text = self._once(("text", dataset.name), lambda: self._tune_step(alone, dataset))
        each = text * len(dataset.classes) / few
        if recipe.tokens == "t":
            return recipe.rounds * recipe.steps * each
        key = (recipe.tokens, dataset.name)
        both = self._once(key, lambda: self._tune_step(recipe, dataset))
        dense = whole(self.geometry)
        each += max(both - text, 0.0) * work / dense
        return recipe.rounds * (recipe.steps * each + self.passing(val * work))

    def _once(self, what: Any, measure: Callable[[], float]) -> float:
        if what not in self._known:
            self._known[what] = measure()
        return self._known[what]

    def _images(self, count: int) -> Tensor:
        size = self.tower.vit.patch_embed.img_size
        return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))

    def _ranking_rate(self, golden: GoldenConfig, precision: str) -> float:
        """Return multiply-adds per second of the engine, of the score that needs no text."""
        way = replace(golden, score="preservation", approximate=None, greedy=None)
        vit = copy.deepcopy(self.tower.vit).float().to(self.device)
        engine = GoldenEngine(vit, way, precision=precision)
        images = self._images(2)
        engine.importance(images[:1])
        seconds = self._timed(lambda: engine.importance(images))
        return 2 * ranking(self.geometry, way) / seconds

    def _passing_rate(self) -> float:
        vit = copy.deepcopy(self.tower.vit).to(self.device, self.dtype)
        return self._rate(vit, self.dtype)

    def _rate(self, vit: ReducedViT, dtype: torch.dtype) -> float:
        like = next(vit.parameters())
        images = self._images(SOME).to(like.device, dtype)
        work = SOME * whole(self.geometry)
        with torch.inference_mode():
            vit(images)
            return work / self._timed(lambda: vit(images))

    def _fit_step(self, recipe: FitConfig) -> float:
        of = self.geometry
        drawn = torch.Generator().manual_seed(0)

        def ranked(count: int) -> RankedTokens:
            tokens = torch.randn(count, of.tokens, of.dim, generator=drawn).half()
            importance = torch.randn(count, of.patches, generator=drawn)
            return RankedTokens(
                tokens=tokens, importance=importance, prefix=of.prefix, grid=of.grid
            )

        train, val = ranked(recipe.batch), ranked(2)

        def fit(steps: int) -> float:
            few = replace(recipe, epochs=1, steps=steps)
            return self._timed(lambda: fit_predictor(train, val, few))

        fit(1)
        return max(fit(5) - fit(2), 1e-6) / 3

    def _tune_step(self, recipe: TuneConfig, dataset: Dataset) -> float:
        """Return the seconds of a step with a few classes."""
        vit = copy.deepcopy(self.tower.vit).to(self.device, self.dtype)
        names = dataset.classes[:SOME]
        labels = torch.arange(recipe.batch) % len(names)
        images = self._images(recipe.batch)
        if recipe.tokens == "t":
            images = torch.randn(recipe.batch, self.tower.vit.num_classes)
        train, val = Labelled(images, labels), Labelled(images[:1], labels[:1])

        def learn(steps: int) -> float:
            few = replace(recipe, rounds=1, steps=steps, init=None)
            return self._timed(
                lambda: tune(vit, self.clip, names, dataset.templates, train, val, few)
            )

        learn(1)
        first = learn(1)
        return max(learn(3) - first, first / 4) / 2

    def _timed(self, work: Callable[[], object]) -> float:
        wait = waiting(self.device)
        wait()
        begun = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - begun
