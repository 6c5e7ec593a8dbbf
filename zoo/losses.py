"""Losses between predicted importance and the golden one, by name.

All take predictions p (B, N) and golden importance t (B, N), normalised per image to mean 0 and
deviation 1, higher = keep, and return the mean over images.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from zoo.reducer import expected


def listnet(predicted: Tensor, target: Tensor) -> Tensor:
    """Return -sum_i softmax(t)_i log softmax(p)_i: listwise cross-entropy.

    Least at p = t up to a constant. Cao et al., Learning to Rank, ICML 2007, top-one form.
    """
    return -(target.softmax(dim=1) * predicted.log_softmax(dim=1)).sum(dim=1).mean()


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Return mean_i (p_i - t_i)^2: pointwise regression. Least at p = t."""
    return (predicted - target).square().mean()


def bce(predicted: Tensor, target: Tensor) -> Tensor:
    """Return mean_i -(y_i log sigmoid(p_i) + (1 - y_i) log(1 - sigmoid(p_i))).

    y_i is the share of keep counts k = 1..N at which golden top-k pruning keeps patch i, shifted by
    half a place so that it lies inside (0, 1): binary classification of kept and dropped, over all
    keep rates at once. Only the golden order counts; ties share their places. Least at
    p = logit(y).
    """
    return F.binary_cross_entropy_with_logits(predicted, kept_share(target))


def kept_share(target: Tensor) -> Tensor:
    """Return for each patch how often it is kept over all keep counts, (B, N) in (0, 1)."""
    above = (target.unsqueeze(2) - target.unsqueeze(1)).sign()  # 1, or 0 for a tie, or -1
    return 0.5 + 0.5 * above.mean(dim=2)


def ranknet(predicted: Tensor, target: Tensor) -> Tensor:
    """Return sum_ij w_ij log(1 + exp(p_j - p_i)) / sum_ij w_ij with w_ij = max(0, t_i - t_j).

    Pairwise logistic loss over all pairs of an image, a pair weighing as much as its patches
    differ, so that near ties, which are noise, hardly count. Burges et al., Learning to Rank using
    Gradient Descent, ICML 2005, there unweighted.
    """
    weight = (target.unsqueeze(2) - target.unsqueeze(1)).clamp(min=0)
    lead = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    total = (weight * F.softplus(-lead)).sum(dim=(1, 2))
    return (total / weight.sum(dim=(1, 2)).clamp(min=1e-6)).mean()


def paper(predicted: Tensor, target: Tensor) -> Tensor:
    """Return -sum_i sigmoid(t_i) log sigmoid(p_i), as printed in arXiv 2409.14607, section 3.3.

    Degenerate: every prediction lowers it by growing, whatever its target, so that it has no
    minimum and its infimum 0 says nothing of the ranking. Only weights that can't grow fast enough
    leave some order in what it fits. Kept to be compared, not to be used.
    """
    return -(target.sigmoid() * F.logsigmoid(predicted)).sum(dim=1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "listnet": listnet,
    "mse": mse,
    "paper": paper,
    "ranknet": ranknet,
}


def loss_of(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Return the loss ``name`` between predictions (B, N) and normalised importance (B, N).

    Raises:
        ValueError: unknown loss.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r}: {expected(name, LOSSES)}")
    return LOSSES[name](predicted, target)
