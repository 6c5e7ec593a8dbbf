"""What to compare, and under which conditions."""

from dataclasses import dataclass

import torch

from harness.datasets.base import SplitName

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare.

    Attributes:
        models: dense timm names, with weight tag or without.
        methods: from ``variants.known_methods``; ``dense`` is always there.
        keeps: keep rates.
        datasets: names.
        shots: labelled training images per class; 0 takes the text classifier.
        limit: images per dataset, None for the whole split.
        split: test or val.
        seed: of the choice of shots.
        device: torch device.
        dtype: name in ``DTYPES``.
        batches: batch sizes for latency, none to skip it.
        rounds: latency samples.
        match: what each keep rate's rows have in common: None for the keep rate itself, ``gflops``
            for the cost, the other methods' keep rates being solved for it.
        match_to: the method that has the keep rates asked for, and whose cost the others meet.
    """

    models: tuple[str, ...] = ("clip_vit_s14",)
    methods: tuple[str, ...]
    keeps: tuple[float, ...] = (0.6, 0.3)
    datasets: tuple[str, ...] = ("fashion", "emoji")
    shots: tuple[int, ...] = (0,)
    limit: int | None = 250
    split: SplitName = "test"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    batches: tuple[int, ...] = (1, 32)
    rounds: int = 5
    match: str | None = None
    match_to: str = "patchrank"
