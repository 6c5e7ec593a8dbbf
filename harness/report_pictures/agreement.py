"""How rankings of rows agree, as numbers: mean Kendall tau-b of each pair over traced images."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.agreement import Agreement, kendall_tau, over_images
from harness.conditions import GOLDEN
from harness.records import Record
from harness.report_pictures.groups import Group, groups, label
from harness.traces import RowTraces


def taus(one: RowTraces, other: RowTraces) -> NDArray[np.float64]:
    """Return Kendall's tau-b of each image's two rankings, NaN where one is missing or all ties.

    Args:
        one: a row, n images.
        other: another on the same images.

    Returns:
        (n,) in [-1, 1].

    Raises:
        ValueError: the images differ.
    """
    if one.image_ids != other.image_ids:
        raise ValueError(f"{one.facts.model} and {other.facts.model} are of different images")
    known = one.ranked & other.ranked
    found = np.full(len(one), np.nan)
    found[known] = kendall_tau(one.importance[known], other.importance[known])
    return found


def pairs(rows: Sequence[RowTraces]) -> dict[tuple[int, int], Agreement]:
    """Return how each two rows agree, the mean over images with its interval, by their places."""
    return {
        (i, j): over_images(taus(rows[i], rows[j])[rows[i].ranked & rows[j].ranked])
        for i, j in combinations(range(len(rows)), 2)
    }


def compared(group: Group) -> Iterator[list[RowTraces]]:
    """Yield the rows whose rankings stand in one matrix, golden ones first; at least two."""
    for level in group.levels:
        rows = [row for row in (*group.golden, *level) if row.ranked.any() and not _oracle(row)]
        if len(rows) > 1:
            yield rows


def _oracle(row: RowTraces) -> bool:
    """Tell a row that prunes by the golden ranking, which stands there itself."""
    return bool(row.facts.method == GOLDEN)


def table(*runs: Path | str, records: Sequence[Record] | None = None) -> list[dict[str, Any]]:
    """Return the agreement matrices as rows of numbers, a pair each.

    Args:
        runs: folders of records, or the files of records in them.
        records: rows that are wanted; None for all.

    Returns:
        ``group`` (heading), ``dataset``, ``split``, ``tag``, ``shots``; ``a`` and ``b``, the rows;
        ``a_model``, ``b_model``; ``tau`` with ``tau_low`` and ``tau_high``, its 95 % bootstrap
        interval over images, None for fewer than two; ``images`` behind it; ``undefined``, images
        without a tau, as one of the rankings is all ties.

    Raises:
        ValueError: a file of traces is torn, somebody else's, or of a newer version.
    """
    return table_of(groups(runs, records))


def table_of(traced: Sequence[Group]) -> list[dict[str, Any]]:
    """Do what `table` does, of groups that were read already."""
    found = []
    for group in traced:
        for rows in compared(group):
            for (i, j), tau in pairs(rows).items():
                same = {name: getattr(group.facts, name) for name in _TOLD}
                found.append(
                    {"group": group.title}
                    | same
                    | {
                        "a": label(rows[i], rows),
                        "b": label(rows[j], rows),
                        "a_model": rows[i].facts.model,
                        "b_model": rows[j].facts.model,
                        "tau": tau.mean,
                        "tau_low": tau.low,
                        "tau_high": tau.high,
                        "images": tau.counted,
                        "undefined": tau.undefined,
                    }
                )
    return found


_TOLD = ("dataset", "split", "tag", "shots")
