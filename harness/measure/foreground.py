"""Linear probes that tell an image's foreground by the features of single patches, and their IoU with the true one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

IMAGES = 100  # of train that probes are fitted to, and of val that choose strength and threshold
STRENGTHS = tuple(10.0**power for power in range(-6, 1))  # of ridge regression of -1 and 1 on unit features
THRESHOLDS = tuple(tenth / 10 for tenth in range(-6, 3))
Patches = Iterable[tuple[str, Tensor, Tensor]]  # a row's key, unit features (B, N, D) and foreground (B, N) bool


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over the union of sets of patches, (B, N, C) and (B, N) bool, (B, C); 1 of empty ones."""
    both, either = (sets.sum(dim=1) for sets in (predicted & truth.unsqueeze(2), predicted | truth.unsqueeze(2)))
    return torch.where(either > 0, both / either, 1.0)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """A linear probe of each row, on the features' device."""

    weights: Mapping[str, Tensor]  # (D + 1,) by the row's key, the bias last
    dense: str  # the dense row's key

    def judge(self, key: str, features: Tensor, truth: Tensor) -> NDArray[np.float32]:
        """Return the IoU of each image, (B, 2): by the dense row's probe, and by the one fitted to the row's own."""
        weights = torch.stack((self.weights[self.dense], self.weights[key]), dim=1)
        return iou(with_ones(features) @ weights > 0, truth).cpu().numpy()


def with_ones(features: Tensor) -> Tensor:
    """Return features (B, N, D) with a one behind each, for a bias, (B, N, D + 1)."""
    return F.pad(features, (0, 1), value=1.0)


def fit_probes(train: Patches, val: Patches, dense: str) -> Probes:
    """Fit a probe to each row's ``train`` patches by ridge regression, in closed form.

    Strength and threshold are those of the highest mean IoU on ``val``.
    """
    grams, moments = dict[str, Any](), dict[str, Any]()
    for key, features, truth in train:
        x, y = with_ones(features).flatten(0, 1), 2.0 * truth.flatten() - 1
        grams[key] = grams.get(key, 0) + (x.T @ x).double()
        moments[key] = moments.get(key, 0) + (x.T @ y).double()
    candidates = {key: _solve(gram, moments[key]).float() for key, gram in grams.items()}
    sums = {key: torch.zeros(own.shape[1], device=own.device) for key, own in candidates.items()}
    for key, features, truth in val:
        sums[key] = sums[key] + iou(with_ones(features) @ candidates[key] > 0, truth).sum(dim=0)
    return Probes(weights={key: own[:, sums[key].argmax()] for key, own in candidates.items()}, dense=dense)


def _solve(gram: Tensor, moment: Tensor) -> Tensor:
    """Return weights of each strength and threshold, (D + 1, C); the bias isn't penalised."""
    count, penalty = gram[-1, -1], torch.ones_like(moment)
    penalty[-1] = 0
    solved = [torch.linalg.solve(gram / count + strength * penalty.diag(), moment / count) for strength in STRENGTHS]
    every = torch.stack(solved, dim=1).repeat_interleave(len(THRESHOLDS), dim=1)
    every[-1] -= torch.tensor(THRESHOLDS, dtype=every.dtype, device=every.device).repeat(len(STRENGTHS))
    return every
