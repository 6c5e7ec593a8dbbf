"""What rankings are worth beside the exact ones: agreement, and accuracy after pruning by them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.agreement import kendall_tau, match_at_k
from harness.datasets.base import Split
from harness.evaluate import batches, correct
from harness.golden.points import Point
from harness.progress import Progress
from harness.statistics import bootstrap_mean
from harness.towers import Tower
from zoo.reducer import final_count

KEEPS = (0.6, 0.5, 0.3)

Hits = NDArray[np.float64]  # (images,) 1 where the answer is right, else 0


@torch.inference_mode()
def pruned_hits(
    tower: Tower,
    block: int,
    split: Split,
    classifier: Tensor,
    orders: Mapping[Point, NDArray[np.float32]],
    progress: Progress,
) -> dict[tuple[Point, float], Hits]:
    """Prune the dense model by each ranking and see whether it is right.

    Args:
        tower: the dense tower.
        block: reduction point.
        split: n images.
        classifier: (classes, D) unit features.
        orders: rankings as (n, N) importance.
        progress: where to show how far things are.

    Returns:
        (point, keep rate) -> (images,) 1 where the answer is right; keep rate 1 is the dense model.
    """
    parts: dict[tuple[Point, float], list[Tensor]] = {}
    vit, done = tower.vit, 0
    device = next(vit.parameters()).device
    first = next(iter(orders))
    with progress.task("accuracy of pruned models", len(split)) as update:
        for examples, images in batches(split, tower.preprocess):
            start, _ = vit.advance(vit.embed(images.to(device)), stop=block)
            rows = slice(done, done + len(examples))
            for point, order in orders.items():
                for keep in (1.0, *KEEPS) if point == first else KEEPS:
                    importance = torch.from_numpy(order[rows]).to(device)
                    count = final_count(start.patch_count, keep)
                    left = start.prune(block, importance, count)
                    end, _ = vit.advance(left, block)
                    features = F.normalize(vit.finish(end).float(), dim=-1).cpu()
                    parts.setdefault((point, keep), []).append(features)
            done += len(examples)
            update(done)
    return {
        key: correct(torch.cat(values), classifier, split.labels).astype(np.float64)
        for key, values in parts.items()
    }


def agreement_facts(
    members: Sequence[Sequence[NDArray[np.float32]]],
    exact: Sequence[NDArray[np.float32]],
    datasets: Iterable[str],
) -> dict[str, Any]:
    """Compare rankings with the exact ones, as fields of ``Worth``; images and seeds averaged."""
    taus = [
        np.mean([kendall_tau(member[i], exact[i]) for member in members], axis=0)
        for i in range(len(exact))
    ]
    truth = np.concatenate(exact)
    match = {}
    for keep in KEEPS:
        count = final_count(truth.shape[1], keep)
        shares = [match_at_k(truth, np.concatenate(member), count) for member in members]
        match[_percent(keep)] = float(np.mean(shares))
    return {
        "tau": bootstrap_mean(np.concatenate(taus), seed=0),
        "tau_of": {name: float(tau.mean()) for name, tau in zip(datasets, taus, strict=True)},
        "match": match,
    }


def accuracy_facts(
    members: Sequence[Point], exact: Point, hits: Mapping[tuple[Point, float], list[Hits]]
) -> dict[str, Any]:
    """Compare accuracies with that of the exact ranking, as fields of ``Worth``."""
    if not hits:
        return {}
    top1, difference = {}, {}
    for keep in KEEPS:
        right = np.mean([np.concatenate(hits[point, keep]) for point in members], axis=0)
        top1[_percent(keep)] = float(right.mean())
        apart = right - np.concatenate(hits[exact, keep])
        difference[_percent(keep)] = bootstrap_mean(apart, seed=0)
    return {"top1": top1, "difference": difference}


def _percent(keep: float) -> str:
    return f"{100 * keep:.0f}"
