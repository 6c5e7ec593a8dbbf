"""How far a row's ranking and features agree with the golden ranking and the dense features."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.agreement import (
    border_chance,
    border_overlap,
    kendall_tau,
    match_at_k,
    match_chance,
    over_images,
    weighted_tau,
)
from harness.evaluate import Outcome


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def agreement(outcome: Outcome, golden: NDArray[np.float32] | None) -> dict[str, Any]:
    """Compare a row's ranking with the golden one, image by image.

    Args:
        outcome: the row's.
        golden: (n, N) golden importance, NaN rows where there is none; or None.

    Returns:
        Fields of ``Record``: mean Kendall tau-b, plain and top-weighted; the share of the golden
        top k that the row has in its own top k, k being the number of tokens it keeps; and the
        share of the patches around this border that are on golden's side. Nothing if fewer than
        two images have a tau.
    """
    if outcome.scores is None or golden is None:
        return {}
    known = ~np.isnan(golden).any(axis=1)
    truth, scores = golden[known], outcome.scores[known]
    tau = over_images(kendall_tau(truth, scores))
    if tau.mean is None:
        return {}
    cells = golden.shape[1]
    k = min(outcome.final_tokens, cells)
    weighted = over_images(weighted_tau(truth, scores))
    match = over_images(match_at_k(truth, scores, k))
    facts = {
        "tau": tau.mean,
        "tau_low": tau.low,
        "tau_high": tau.high,
        "weighted_tau": weighted.mean,
        "weighted_tau_low": weighted.low,
        "weighted_tau_high": weighted.high,
        "match_at_k": match.mean,
        "match_low": match.low,
        "match_high": match.high,
        "match_k": k,
        "match_chance": match_chance(k, cells),
        "golden_images": tau.counted,
        "tau_undefined": tau.undefined,
    }
    if k == cells:  # no border
        return facts
    border = over_images(border_overlap(truth, scores, k))
    return facts | {
        "border_overlap": border.mean,
        "border_low": border.low,
        "border_high": border.high,
        "border_chance": border_chance(k, cells),
    }


def fidelity(outcome: Outcome, dense: Outcome) -> dict[str, Any]:
    """Return the mean cosine of a row's features with the dense ones, as fields of ``Record``."""
    cosine = over_images((outcome.features * dense.features).sum(dim=1).numpy())
    return {
        "cosine_to_dense": cosine.mean,
        "cosine_low": cosine.low,
        "cosine_high": cosine.high,
    }
