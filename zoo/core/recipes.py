"""Recipes: how golden rankings are made, and how predictors, prompts and recoveries are learned from images."""

import math
import re
from dataclasses import asdict, dataclass

from zoo.core.learned import ARCHITECTURES
from zoo.core.settings import AUTO, check_fields

SCORES = ("preservation", "label", "confidence")
GREEDY_APPROXIMATION = "follow:0"  # the only approximation that a greedy search can take
LOSSES = ("bce", "listnet", "mse", "paper", "ranknet")
TOKENS = ("t", "v", "vt")
COUPLINGS = ("offset", "printed", "none")
RECOVERIES = ("head", "norm", "lora", "head+norm", "head+lora")
PRECISIONS = (AUTO, "float32", "bfloat16")
_TRAINING = {  # what fields of prompts' and recoveries' recipes may be
    **dict.fromkeys(("rounds", "steps", "patience", "batch"), "[1, inf)"),
    "learning_rate": "(0, inf)",
    "precision": PRECISIONS,
}


@dataclass(frozen=True, kw_only=True)
class GoldenConfig:
    """Settings of a golden ranking.

    Attributes:
        score: what is left of an image scores by ``preservation``, the cosine with the whole image's features; by
            ``label``, the posterior of the true class; or by ``confidence``, the highest of any class.
        block: patches go at the input of this block, 0-based.
        window: side of the square window, in patches.
        stride: step of the window, in patches; a last window touches the border.
        greedy: single patches that go for good in each round of an iterative search; None for one-shot.
        approximate: ``follow:N`` recomputes the class token and N patch tokens per window, see ``follow``; None for
            removing every window. A greedy search takes ``follow:0`` alone, for single patches.
    """

    score: str = "preservation"
    block: int = 3
    window: int = 2
    stride: int = 1
    greedy: int | None = None
    approximate: str | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("window", "stride", "greedy"), "[1, inf)")
        check_fields(self, score=SCORES, block="[0, inf)", **counts)
        if self.stride > self.window:
            raise ValueError(f"stride={self.stride!r}: more than window={self.window} leaves patches out")
        if self.approximate is not None:
            patches_to_follow(self.approximate)
        if self.greedy is None:
            return
        if self.approximate not in (None, GREEDY_APPROXIMATION):
            settings = f"greedy={self.greedy} with approximate={self.approximate!r}"
            raise ValueError(f"{settings}: expected none, or {GREEDY_APPROXIMATION!r}")
        if self.window > 1:
            raise ValueError(f"window={self.window}: this search goes by single patches; expected window=1")

    def describe(self) -> str:
        """Return the settings in words."""
        greedy = f"greedy by {self.greedy}" if self.greedy else ""
        search = ", ".join(filter(None, (greedy, self.approximate))) or "exact"
        size = f"{self.window} x {self.window} by {self.stride}"
        return f"{self.score} before block {self.block}, windows of {size}, {search}"


def patches_to_follow(spec: str) -> int:
    """Return how many patch tokens a spec such as ``follow:4`` recomputes per window; ValueError for other specs."""
    if not (match := re.fullmatch(r"follow:([0-9]+)", spec)):
        raise ValueError(f"approximate={spec!r}: expected follow:N with an integer N from 0, patch tokens per window")
    return int(match[1])


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Recipe of a predictor, by AdamW."""

    arch: str = "conv"  # of ``ARCHITECTURES``
    width: int = 64
    loss: str = "bce"  # of ``LOSSES``
    epochs: int = 40
    steps: int = 16  # least per epoch: few images are gone through several times in it
    patience: int = 8  # epochs without a better validation loss before stopping
    batch: int = 32
    learning_rate: float = 2e-3  # falls as a cosine to zero
    weight_decay: float = 0.05
    seed: int = 0  # of initial weights and order

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("width", "epochs", "steps", "patience", "batch"), "[1, inf)")
        positive = {"learning_rate": "(0, inf)", "weight_decay": "[0, inf)"}
        check_fields(self, arch=tuple(ARCHITECTURES), loss=LOSSES, **positive, **counts)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Recipe of learned tokens; the defaults were chosen on validation images of the embedded datasets.

    Attributes:
        tokens: ``t``: text tokens before the class name; ``v``: visual tokens at the image tower's input; ``vt``: both.
        count: learned tokens in a sequence.
        coupling: with ``vt``, how visual tokens P_v follow from text tokens P_t: ``offset`` by P_v = M P_t + p with M
            from zero, ``printed`` by the paper's P_v = M P_t with a random M; ``none``: both are free.
        class_specific: every class has text tokens of its own; not with coupled ones.
        anchor: weight of the tuned text features' distance to those of the templates, as in KgCoOp (2303.13283).
        rounds: validations at most, each after ``steps`` of AdamW on ``batch`` images.
        patience: rounds without a better validation loss before stopping; the best one's tokens are kept.
        learning_rate: of text tokens, falls as a cosine to zero; ``visual_rate`` is of visual ones, or of the map
            from text tokens.
        augment: with visual tokens, mirror and shift the images to learn from at random.
        precision: of the image tower's products, ``auto`` for the fastest of the device; all else is float32.
    """

    tokens: str = "vt"
    count: int = 4
    coupling: str = "offset"
    class_specific: bool = False
    anchor: float = 32.0
    rounds: int = 10
    steps: int = 10
    patience: int = 3
    batch: int = 16
    learning_rate: float = 2e-3
    visual_rate: float = 3e-4
    seed: int = 0
    augment: bool = True
    precision: str = AUTO

    def __post_init__(self) -> None:
        numbers = {"count": "[1, inf)", "anchor": "[0, inf)", "visual_rate": "(0, inf)"}
        check_fields(self, tokens=TOKENS, coupling=COUPLINGS, **numbers, **_TRAINING)
        if self.class_specific and self.tokens == "vt" and self.coupling != "none":
            raise ValueError(
                "class_specific=True: an image's tokens can't come from those of its class, which "
                "is unknown; use coupling='none'"
            )
        if self.tokens == "v" and self.class_specific:
            raise ValueError("class_specific=True is about text tokens; tokens='v' has none")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all rounds, at most."""
        return self.rounds * self.steps

    def rate(self, most: float, done: int) -> float:
        """Return the learning rate, ``most`` at first, after so many steps."""
        return most * 0.5 * (1 + math.cos(math.pi * (done / self.total_steps)))

    def describe(self) -> str:
        """Describe the recipe in words."""
        summary = ("tokens", "count", "seed", "rounds", "steps")
        fields = {name: value for name, value in asdict(self).items() if value is not False and name not in summary}
        recipe = ", ".join(f"{name}={value}" for name, value in fields.items())
        return f"{self.count} tokens ({self.tokens}), {self.total_steps:,} steps at most, {recipe}"


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """Recipe of a recovery.

    Attributes:
        what: ``head``: the linear map that gives the features, in closed form, so that no other field counts;
            ``norm``: vectors, that is norms, LayerScales and the biases of linear layers; ``lora``: low-rank updates
            of linear layers' weights, of ``rank``. ``head+norm`` and ``head+lora``: first one, then the other.
        rounds: validations at most, each after ``steps`` of the optimiser on ``batch`` images of all sets alike.
        patience: rounds without a better validation loss before stopping.
        learning_rate: of AdamW; it rises for a tenth of the steps, then falls as a cosine to zero.
        crop: least area of a random crop, a share of the image; 1 takes images as they are, mirrored.
        seed: of initial values, order and augmentation.
        precision: of training's products, ``auto`` for the fastest of the device; all else, validation too, is float32.
    """

    what: str = "norm"
    rank: int = 4
    rounds: int = 8
    steps: int = 40
    patience: int = 4
    batch: int = 24
    learning_rate: float = 5e-4
    crop: float = 0.6
    seed: int = 0
    precision: str = AUTO

    def __post_init__(self) -> None:
        check_fields(self, what=RECOVERIES, rank="[1, inf)", crop="(0, 1]", **_TRAINING)
