"""Our figures beside the paper's, as JSON values."""

from typing import Any

from harness.reproduction.measures import GFLOPS, LATENCY, MATCH, TOP1, mean_of
from harness.reproduction.sheet import Comparison, Found
from harness.shown import json_values

UNITS = {TOP1: "percent", MATCH: "percent", GFLOPS: "1e9 multiply-adds", LATENCY: "ms per image"}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return rows by dataset and as mean, ours and the paper's."""
    found: dict[str, Any] = json_values(
        {
            "name": comparison.recipe.name,
            "title": comparison.title,
            "tower": comparison.tower,
            "images_by_dataset": comparison.images,
            "comparable": comparison.same,
            "rows": [_row(one, comparison.datasets) for one in comparison.found],
        }
    )
    return found


def _row(one: Found, datasets: tuple[str, ...]) -> dict[str, Any]:
    paper = None
    if one.paper is not None:
        paper = {
            "by_dataset": {name: one.paper.values.get(name) for name in datasets},
            "mean": one.paper_mean(datasets),
            "mean_compared": one.paper_to(datasets),
            "source": one.paper.source,
        }
    whole = set(one.ours) == set(datasets)
    ours = {
        "by_dataset": one.ours,
        "mean": mean_of(list(one.ours.values())) if one.ours and whole else None,
        "compared_by_dataset": one.to,
    }
    return {
        "name": one.row.name,
        "measure": one.row.measure,
        "unit": UNITS[one.row.measure],
        "compared_with": one.row.against,
        "ours": ours,
        "paper": paper,
        "gflops_share_of_dense": one.share,
        "missing_because": one.row.empty or None,
    }
