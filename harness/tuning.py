"""Rows with learned tokens, made or found (a stand-in until the real one comes)."""

# ruff: noqa: ARG001

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from harness.datasets.base import Dataset
from harness.plan import Tuning
from harness.progress import Progress
from harness.variants import Variant
from zoo.clip import ClipParts
from zoo.tune import TuneConfig
from zoo.vit import ReducedViT


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A row with what was learned for it.

    Attributes:
        vit: like the row's; carries learned visual tokens if there are some, else the row's own.
        classifier: (classes, D) unit float32, tuned text features.
        digest: 16 hex digits that tell these prompts from others.
    """

    vit: ReducedViT
    classifier: Tensor
    digest: str


def tuned(
    rows: Sequence[Variant],
    parts: ClipParts,
    dataset: Dataset,
    *,
    shots: int,
    seed: int,
    config: TuneConfig,
    device: str,
    weights: str,
    tag: str,
    progress: Progress,
) -> dict[str, Tuned]:
    """Tune rows on ``shots`` training images per class that ``seed`` draws; by their keys."""
    raise ValueError("learned tokens can't be made yet")


def tuning_of(path: Path) -> Tuning:
    """Return what a file of prompts was learned from."""
    raise ValueError(f"prompts {str(path)!r} can't be read yet")


def load_tuned(row: Variant, path: Path, dataset: Dataset) -> Tuned:
    """Read the prompts of a file into a row."""
    raise ValueError(f"prompts {str(path)!r} can't be read yet")
