"""Linear probes of foreground: whether patches' features tell it, fitted to each row's and to the dense row's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Example, Split, SplitName
from harness.datasets.few_shot import batches, subset, undo_preprocess
from harness.measure.rows import Judge, Variant, patch_features, run_blocks
from zoo.core.host import Host

PROBE_SPLITS: tuple[SplitName, SplitName] = ("train", "val")  # that fit probes, and choose their strength
IMAGES = 100  # of train that probes are fitted to, and of val that choose strength and threshold
STRENGTHS = tuple(10.0**power for power in range(-6, 1))  # of ridge regression of -1 and 1 on unit features
THRESHOLDS = tuple(tenth / 10 for tenth in range(-6, 3))
Patches = Iterable[tuple[str, Tensor, Tensor]]  # a row's key, unit features (B, N, D) and foreground (B, N) bool


def fit_judge(dataset: Dataset, rows: Sequence[Variant], preprocess: Any, progress: Progress) -> Judge | None:
    """Fit each row's probe, the dense row first; return what judges by them, None where the dataset has no masks."""
    train, val = (subset(dataset.split(name), IMAGES) for name in PROBE_SPLITS)
    if not len(train) or train[0].mask is None:
        progress.say(f"{dataset.name} has no masks, so no probes of foreground")
        return None
    label = f"probes of foreground on {dataset.name}, images"
    with progress.task(label, len(train) + len(val)) as update, torch.inference_mode():
        # Both are lazy: val is run when the probes are fitted.
        fitted = patches_of(rows, train, preprocess, update)
        chosen = patches_of(rows, val, preprocess, lambda done: update(len(train) + done))
        probes = fit_probes(fitted, chosen)

    def judge(examples: Sequence[Example]) -> Callable[[str, Tensor], NDArray[np.float32]]:
        truth = true_foreground(examples, preprocess, rows[0].vit)
        return lambda key, patches: judge_foreground(probes, rows[0].key, key, patches, truth)

    return judge


def true_foreground(examples: Sequence[Example], preprocess: Any, vit: Host) -> Tensor:
    """Return which patches are at least half foreground by the images' masks, as a tower sees them, (B, N) bool."""
    masks = [Image.fromarray(mask).convert("RGB") for example in examples if (mask := example.mask) is not None]
    assert len(masks) == len(examples)
    seen = undo_preprocess(preprocess, torch.stack([preprocess(mask) for mask in masks]))
    return (F.adaptive_avg_pool2d(seen[:, 0], vit.grid).flatten(1) >= 0.5).to(next(vit.parameters()).device)


def patches_of(rows: Sequence[Variant], split: Split, preprocess: Any, update: Callable[[int], None]) -> Patches:
    """Yield each row's features of all patches, a batch of a split after the other; ``update`` takes images done."""
    like, done = next(rows[0].vit.parameters()), 0
    for examples, images in batches(split, preprocess):
        truth = true_foreground(examples, preprocess, rows[0].vit)
        for row, tokens in run_blocks(rows, images.to(like)):
            yield row.key, patch_features(row.vit, tokens), truth
        update(done := done + len(examples))


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over the union of sets of patches, (B, N, C) and (B, N) bool, (B, C); 1 of empty ones."""
    both, either = (sets.sum(dim=1) for sets in (predicted & truth.unsqueeze(2), predicted | truth.unsqueeze(2)))
    return torch.where(either > 0, both / either, 1.0)


def with_ones(features: Tensor) -> Tensor:
    """Return features (B, N, D) with a one behind each, for a bias, (B, N, D + 1)."""
    return F.pad(features, (0, 1), value=1.0)


def judge_foreground(
    probes: Mapping[str, Tensor], dense: str, key: str, features: Tensor, truth: Tensor
) -> NDArray[np.float32]:
    """Return the IoU of each image, (B, 2): by the ``dense`` row's probe, and by the one fitted to the row's own."""
    weights = torch.stack((probes[dense], probes[key]), dim=1)
    return iou(with_ones(features) @ weights > 0, truth).cpu().numpy()


def fit_probes(train: Patches, val: Patches) -> dict[str, Tensor]:
    """Fit a probe of foreground to each row's ``train`` patches by ridge regression, in closed form.

    Strength and threshold are those of the highest mean IoU on ``val``. Weights (D + 1,) are by the row's key, the
    bias last.
    """
    grams, moments = dict[str, Any](), dict[str, Any]()
    for key, features, truth in train:
        x, y = with_ones(features).flatten(0, 1), 2.0 * truth.flatten() - 1
        grams[key] = grams.get(key, 0) + (x.T @ x).double()
        moments[key] = moments.get(key, 0) + (x.T @ y).double()
    candidates = {key: _solve(gram, moments[key]).float() for key, gram in grams.items()}
    sums = {key: torch.zeros(weights.shape[1], device=weights.device) for key, weights in candidates.items()}
    for key, features, truth in val:
        sums[key] = sums[key] + iou(with_ones(features) @ candidates[key] > 0, truth).sum(dim=0)
    return {key: weights[:, sums[key].argmax()] for key, weights in candidates.items()}


def _solve(gram: Tensor, moment: Tensor) -> Tensor:
    """Return weights of each strength and threshold, (D + 1, C); the bias isn't penalised."""
    count, penalty = gram[-1, -1], torch.ones_like(moment)
    penalty[-1] = 0
    solved = [torch.linalg.solve(gram / count + strength * penalty.diag(), moment / count) for strength in STRENGTHS]
    every = torch.stack(solved, dim=1).repeat_interleave(len(THRESHOLDS), dim=1)
    every[-1] -= torch.tensor(THRESHOLDS, dtype=every.dtype, device=every.device).repeat(len(STRENGTHS))
    return every
