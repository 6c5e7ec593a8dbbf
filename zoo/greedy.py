"""Greedy golden rankings: remove the most dispensable patches, score the rest anew, repeat."""

import math

import torch
from torch import Tensor

from zoo.judge import Judge
from zoo.suffix import Suffix
from zoo.tokens import Tokens
from zoo.windows import mean_over_windows, members


def greedy_importance(
    suffix: Suffix, start: Tokens, judge: Judge, cells: Tensor, step: int
) -> Tensor:
    """Rank patches by when an iterative search removes them.

    In every round each window is removed together with all that went before, and what is left is
    scored against the whole image; a patch's score is the mean over the windows that cover it. The
    ``step`` patches of highest score then go for good.

    Args:
        suffix: the tower from the reduction point on.
        start: the tokens of B images that enter it.
        judge: the score.
        cells: (W, r * r) windows.
        step: patches that go in a round, at least 1.

    Returns:
        (B, N) float32 importance: 0 for the patch that goes first, N - 1 for the last.
    """
    count = start.patch_count
    inside = members(cells, count)
    alive = torch.ones(start.x.shape[0], count, dtype=torch.bool, device=cells.device)
    order = torch.zeros_like(alive, dtype=torch.float32)
    for gone in range(0, count, step):
        scores = _scores(suffix, start, judge, inside, alive)
        importance = -mean_over_windows(scores, cells, count)
        # What went before sorts behind everything that is left.
        importance = importance.where(alive, -torch.inf)
        best_first = importance.argsort(dim=1, descending=True, stable=True)
        left = count - gone
        going = best_first[:, max(0, left - step) : left]
        places = torch.arange(going.shape[1] - 1, -1, -1, device=cells.device) + gone
        order.scatter_(1, going, places.float().expand(len(going), -1))
        alive = alive.scatter(1, going, False)
    return order


def _scores(suffix: Suffix, start: Tokens, judge: Judge, inside: Tensor, alive: Tensor) -> Tensor:
    """Score every window of every image on top of what is gone already, (B, W).

    Windows with the same patches left are run once. Windows with none left get 0, which no patch
    that is left ever sees.
    """
    images, kinds = len(alive), len(inside)
    going = (inside & alive.unsqueeze(1)).flatten(0, 1)
    rows = torch.arange(images, device=alive.device).repeat_interleave(kinds)
    keyed = torch.cat((rows.unsqueeze(1), going.long()), dim=1)
    unique, which = keyed.unique(dim=0, return_inverse=True)
    row, sets = unique[:, 0], unique[:, 1:].bool()
    kept = alive[row] & ~sets
    found = torch.zeros(len(unique), device=alive.device)
    sizes = kept.sum(dim=1)
    for size in sizes.unique().tolist():
        # Sequences of one length share batches, whatever image they come from.
        some = ((sizes == size) & sets.any(dim=1)).nonzero().squeeze(1)
        if len(some):
            keep_idx = kept[some].nonzero()[:, 1].reshape(len(some), size)
            found[some] = judge(suffix.features(start, row[some], keep_idx), row[some])
    return found[which].reshape(images, kinds)


def greedy_passes(windows: int, patches: int, step: int) -> int:
    """Return how many sequences a greedy ranking runs per image, at most."""
    return windows * math.ceil(patches / step)
