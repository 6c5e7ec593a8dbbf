"""Records made by hand: metrics and their parts are given by keyword, such as ``tau``, ``tau_low``, ``match_at``."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from harness.records.metrics import METRICS, MetricInput, MetricValue, pack
from harness.records.record import Record, Times, read_records

T = TypeVar("T")
FROZEN = Path(__file__).parents[1] / "harness" / "schema" / "record.jsonl"
[KNOWN] = read_records(FROZEN)
BY_TEXT: dict[str, Any] = {"shots": 0, "tuning": None, "prompt_tokens": None}
UNLABELLED: dict[str, Any] = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high"))
NOTHING = MetricInput(features=torch.zeros(1, 1))
_OTHERS = {
    "cosine_distance": "cosine", "dense_agreement": "agreement", "kl_to_dense": "kl", "neighbour_overlap": "overlap",
    "diff_to_dense": "diff", "match_at_k": "match",
}  # fmt: skip
PARTS = {
    f"{short}_{part}": (name, part)
    for name in METRICS
    for short in (name, _OTHERS.get(name, name))
    for part in ("low", "high", "values", "at", "chance")
} | {
    "match_k": ("match_at_k", "at"),
    "correct_bits": ("top1", "values"),
    "agreement_bits": ("dense_agreement", "values"),
}


# Of each condition and setting another value than records of tests have.
ANOTHER = {
    **{"version": "0.2.0", "model": "clip_vit_s14_random50", "method": "evit", "keep": 0.5},
    **{"method_config": {"keep": 0.5}, "tag": "other", "weights_sha256": "cd", "dataset": "emoji"},
    **{"dataset_revision": "34cd", "split": "val", "shots": 8, "tuning": "v", "prompt_tokens": 4},
    **{"seed": 1, "device": "cuda:0", "device_name": "another processor", "precision": "bfloat16"},
    **{"threads": 3, "torch": "2.14.0", "timm": "1.0.32", "images_sha256": "cd" * 32},
    **{"image_size": (224, 224), "classes_judged": (4, 7), "caption_count": 3, "image_count": 8},
}


def apart(changes: dict[str, Any], known: dict[str, MetricValue]) -> tuple[dict[str, Any], dict[str, MetricValue]]:
    """Return the changed fields, and the metrics with their changed parts; one whose mean is None is gone."""
    parts = {n: dataclasses.asdict(own) for n, own in (changes.pop("metrics", known) or {}).items()}
    fields = {}
    for name, value in changes.items():
        if name not in METRICS and name not in PARTS:
            fields[name] = value
            continue
        of, part = PARTS.get(name, (name, "mean"))
        if isinstance(value, MetricValue):
            parts[of] = dataclasses.asdict(value)
        elif value is not None or of in parts:
            parts.setdefault(of, {"mean": None})[part] = value
    return fields, {name: MetricValue(**own) for name, own in parts.items() if own["mean"] is not None}


def replace(thing: T, **changes: Any) -> T:
    """Return a record with other fields and metrics; whatever else as dataclasses do."""
    if not isinstance(thing, Record):
        return dataclasses.replace(thing, **changes)
    fields, metrics = apart(changes, thing.metrics)
    return dataclasses.replace(thing, **fields, metrics=metrics)


def answers(right: Any) -> dict[str, Any]:
    """Return the fields of a record that is right where (n,) flags are."""
    flags = np.asarray(right, dtype=bool)
    share = float(flags.mean())
    told = {"correct_bits": pack(flags), "image_count": len(flags)}
    return told | {"top1": share, "top1_low": share / 2, "top1_high": 1.0}


def timed(
    batch: int, median_ms: float = 8.0, ratio: float | None = None, low: float | None = None, high: float | None = None
) -> Times:
    """Return times, and their ratio to dense with its ends, which may be the ratio itself."""
    ends = {"ratio_to_dense": ratio, "ratio_low": low or ratio, "ratio_high": high or ratio}
    quartiles = {"q1_ms": median_ms / 2, "q3_ms": 2 * median_ms}
    return Times(batch=batch, median_ms=median_ms, images_per_s=1000 * batch / median_ms, **quartiles, **ends)


def make(**values: Any) -> Record:
    fields, metrics = apart(values, {})
    return Record(**fields, metrics=metrics)


def part(record: Record, name: str) -> Any:
    """Return a part of a metric, or a field, by its name."""
    of, own = PARTS.get(name, (name, "mean"))
    if of not in METRICS:
        return getattr(record, name)
    return getattr(record.metrics[of], own) if of in record.metrics else None


def per_image(name: str, values: Any) -> dict[str, MetricValue]:
    found = dataclasses.replace(METRICS[name], function=lambda: np.asarray(values), needs=()).measure(NOTHING)
    return {} if found is None else {name: found}
