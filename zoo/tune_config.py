"""Recipe of learned tokens."""

import math
from dataclasses import dataclass

from zoo.reducer import expected

TOKENS = ("t", "v", "vt")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is learned, and how.

    Attributes:
        tokens: ``t``: text tokens before the class name; ``v``: visual tokens at the image tower's
            input; ``vt``: both.
        count: learned tokens in a sequence.
        depth: blocks that get tokens of their own at their input; 1 is the paper's.
        coupled: with ``vt``, the visual tokens are a linear image of the text tokens, as in the
            paper; else both are free.
        class_specific: every class has text tokens of its own; not with coupled ones.
        init: words that the text tokens begin with, next to the name; None for small random ones.
        anchor: weight of the tuned text features' distance to those of the templates (1 - cosine,
            mean over classes), lest a few images outweigh these (KgCoOp, 2303.13283); the paper
            has none.
        rounds: at most so many validations.
        steps: between two of them.
        patience: rounds without a better validation loss before stopping.
        batch: images per step.
        learning_rate: of text tokens; AdamW, cosine to zero.
        visual_rate: of visual tokens, or of the map that makes them.
        weight_decay: of AdamW.
        seed: of initial tokens, order and augmentation.
        augment: with visual tokens, mirror and shift the images to learn from at random.
        dtype: of the image tower's products; all else is float32.
        checkpointing: compute blocks again for their gradients, for less memory.
    """

    tokens: str = "vt"
    count: int = 16
    depth: int = 1
    coupled: bool = True
    class_specific: bool = False
    init: str | None = None
    anchor: float = 8.0
    rounds: int = 10
    steps: int = 10
    patience: int = 3
    batch: int = 16
    learning_rate: float = 2e-3
    visual_rate: float = 3e-4
    weight_decay: float = 0.0
    seed: int = 0
    augment: bool = True
    dtype: str = "bfloat16"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        for name, known in (("tokens", TOKENS), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r}: {expected(value, known)}")
        for name in ("count", "depth", "rounds", "steps", "patience", "batch"):
            self._need(name, getattr(self, name) >= 1, "a number from 1")
        for name in ("learning_rate", "visual_rate"):
            self._need(name, 0 < getattr(self, name) < math.inf, "a number above 0")
        for name in ("weight_decay", "anchor"):
            self._need(name, 0 <= getattr(self, name) < math.inf, "a number from 0")
        if self.class_specific and self.tokens == "vt" and self.coupled:
            raise ValueError(
                "class_specific=True: an image's tokens can't come from those of a class that is "
                "yet to be found; use coupled=False"
            )
        if self.tokens == "v" and (self.class_specific or self.init is not None):
            raise ValueError("class_specific and init are about text tokens; tokens='v' has none")

    def _need(self, name: str, fine: bool, what: str) -> None:
        if not fine:
            raise ValueError(f"{name}={getattr(self, name)!r}: expected {what}")
