"""What changed between two runs, as JSON values."""

from collections.abc import Sequence
from typing import Any

from harness.changes import Change, Changes
from harness.judging import together
from harness.records import Record
from harness.shown import json_values

_ROW = (
    "dataset", "split", "model", "tag", "method", "keep", "shots", "tuning", "prompt_tokens",
    "seed",
)  # fmt: skip


def changes_data(found: Changes) -> dict[str, Any]:
    """Return the pairs with what may be compared, conditions that differ, and rows of one run."""
    conditions = [
        {**json_values(difference), "rows": count} for difference, count in found.conditions()
    ]
    return {
        "pairs": [pair for group in found.groups() for pair in _pairs(group)],
        "conditions": conditions,
        "only_in_a": [_row(record) for record in found.only_a],
        "only_in_b": [_row(record) for record in found.only_b],
        "replaced": dict(zip("ab", found.replaced, strict=True)),
    }


def _row(record: Record) -> dict[str, Any]:
    return {name: json_values(getattr(record, name)) for name in _ROW}


def _pairs(group: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the rows of one table, which are judged together."""
    family = together({at: pair.p_value for at, pair in enumerate(group)})
    return [_pair(pair, family.adjusted.get(at)) for at, pair in enumerate(group)]


def _pair(pair: Change, adjusted: float | None) -> dict[str, Any]:
    only_a, only_b = pair.answers or (None, None)
    return {
        **_row(pair.a),
        "top1": {"a": pair.a.top1, "b": pair.b.top1},
        "top1_difference": json_values(pair.top1),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_value": json_values(pair.p_value),
        "p_value_holm": adjusted,
        "images_proven_the_same": pair.proven and not pair.other_images,
        "other_images": pair.other_images,
        "gflops": {"a": pair.a.gflops, "b": pair.b.gflops},
        "latency_ratio_by_batch": json_values(pair.latency),
        "latency_ratio_to_dense_by_batch": json_values(pair.latency_to_dense),
        "tau_difference": json_values(pair.tau),
        "costs": json_values(pair.costs),
        "conditions": json_values(pair.conditions),
    }
