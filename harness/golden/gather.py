"""Gather what a figure shows of each image; what can't be had is left out with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.golden.maps import class_text, golden_maps, method_maps, most_important, reduced
from harness.golden.pictures import Picture
from harness.progress import Progress
from harness.towers import Tower
from zoo.golden import SCORES, GoldenConfig

NO_CLASSES = 'its classes are not known (--dataset NAME or --classes "a,b,c" names them)'
NO_LABEL = "its true class is not known (--label CLASS names it)"


@dataclass(kw_only=True)
class Gathering:
    """What is known of the patches of some images, by ranking and position of the image.

    Attributes:
        tower: the dense tower.
        pictures: the images and what is known about them.
        images: (B, C, H, W), the same images, preprocessed.
        keeps: keep rates, at least one.
        config: block and windows of golden scores; methods that rank at one block do so there.
        importance: ranking -> position -> (N,) float, higher = keep.
        kept: (ranking, keep rate) -> position -> (N,) bool.
        gaps: (ranking, position) -> why there is nothing.
    """

    tower: Tower
    pictures: Sequence[Picture]
    images: Tensor
    keeps: Sequence[float]
    config: GoldenConfig
    importance: dict[str, dict[int, NDArray[np.floating]]] = field(default_factory=dict)
    kept: dict[tuple[str, float], dict[int, NDArray[np.bool_]]] = field(default_factory=dict)
    gaps: dict[tuple[str, int], str] = field(default_factory=dict)

    def add_method(self, method: str, *, must: bool) -> None:
        """Run a registered method at each keep rate; its importance is that at the first one.

        Raises:
            FileNotFoundError: it has no predictor for this tower, and ``must``.
            ValueError: it can't do what is asked, and ``must``.
        """
        try:
            for keep in self.keeps:
                vit = reduced(self.tower, method, keep=keep, block=self.config.block)
                importance, kept = method_maps(vit, self.images)
                self.importance.setdefault(method, dict(enumerate(importance.numpy())))
                self.kept[method, keep] = dict(enumerate(kept.numpy()))
        except (FileNotFoundError, ValueError) as error:
            if must:
                raise
            # What the message offers beyond a command are arguments of functions.
            reason = str(error).partition("; or pass")[0]
            self.gaps |= {(method, i): reason for i in range(len(self.images))}

    def add_golden(self, progress: Progress) -> None:
        """Make golden rankings, by each score that an image has text and label for."""
        known: dict[tuple[str, ...], tuple[Tensor, float] | str] = {}
        with progress.task("golden rankings", len(self.pictures)) as update:
            for i, picture in enumerate(self.pictures):
                key = (*picture.templates, *picture.classes)
                if key not in known:
                    known[key] = self._text(picture)
                text = known[key]
                missing = {"label": text, "confidence": text} if isinstance(text, str) else {}
                if picture.label is None:
                    missing.setdefault("label", NO_LABEL)
                self.gaps |= {(score, i): reason for score, reason in missing.items()}
                features, scale = (None, 1.0) if isinstance(text, str) else text
                maps = golden_maps(
                    self.tower.vit,
                    self.images[i : i + 1],
                    [score for score in SCORES if score not in missing],
                    self.config,
                    text=features,
                    scale=scale,
                    labels=torch.tensor([picture.label or 0], device=self.images.device),
                )
                for score, importance in maps.items():
                    self._add(score, i, importance)
                update(i + 1)

    def _text(self, picture: Picture) -> tuple[Tensor, float] | str:
        """Return the features of an image's classes and the scale, or why there are none."""
        if self.tower.clip is not None and not picture.classes:
            return NO_CLASSES
        try:
            features, scale = class_text(self.tower, picture.classes, picture.templates)
        except ValueError as error:
            return str(error)
        return features.to(self.images.device), scale

    def _add(self, score: str, i: int, importance: Tensor) -> None:
        """Note a golden importance, (1, N), of image ``i`` and what it keeps."""
        self.importance.setdefault(score, {})[i] = importance[0].cpu().numpy()
        for keep in self.keeps:
            kept = most_important(importance, keep)[0].cpu().numpy()
            self.kept.setdefault((score, keep), {})[i] = kept
