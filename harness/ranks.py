"""Rank vectors: the place of each patch, from rankings and from scores."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def rank_vector(ranking: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of each patch, 0 = most important, from a ranking.

    Args:
        ranking: (B, N) patch positions, most important first.

    Returns:
        (B, N) indexed by patch position in the original grid. **Lower = keep**: compare it with
        another rank vector only.

    Raises:
        ValueError: Not (B, N) integers, or a row is not a permutation of 0..N-1.
    """
    order = np.asarray(ranking)
    if order.ndim != 2 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"a ranking is (B, N) integers, got {order.shape} {order.dtype}")
    positions = np.arange(order.shape[1])
    wrong = (np.sort(order, axis=1) != positions).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"row {row} of the ranking is not a permutation of 0..{order.shape[1] - 1} "
            f"({int(wrong.sum())} of {len(order)} rows are not): {order[row].tolist()}"
        )
    ranks = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.broadcast_to(positions, order.shape), axis=1)
    return ranks


def ranking_importance(ranking: ArrayLike) -> NDArray[np.int64]:
    """Return an importance per patch, N - 1 (best) down to 0, from a ranking.

    Args:
        ranking: (B, N) patch positions, most important first.

    Returns:
        (B, N) indexed by patch position, **higher = keep**, so it compares with any importance.

    Raises:
        ValueError: As in `rank_vector`.
    """
    ranks = rank_vector(ranking)
    importance: NDArray[np.int64] = ranks.shape[1] - 1 - ranks
    return importance


def places(scores: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the place of each patch among its image's, 0 = most important.

    Args:
        scores: (B, N), **higher = keep**. Ties go to the lower patch position.

    Returns:
        (B, N), each row a permutation of 0..N-1: the `rank_vector` of the ranking by these scores.
    """
    # By way of dense ranks, as minus an unsigned score would be no order.
    order = np.argsort(-stats.rankdata(scores, method="dense", axis=1), axis=1, kind="stable")
    return rank_vector(order)
