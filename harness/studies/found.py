"""Golden rankings of some images: those that ship, else one's own, made where they are missing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from harness.datasets.base import SplitName
from harness.evaluate import subset
from harness.golden.job import AUTO, Job, Source
from harness.golden.rank import rank
from harness.golden.store import Rankings, shipped_rankings
from harness.progress import Progress
from zoo.golden import GoldenConfig


def find_or_rank(
    model: str,
    weights: str,
    source: Source,
    golden: GoldenConfig,
    limit: int | None,
    *,
    device: str,
    progress: Progress,
) -> Rankings:
    """Return the golden rankings of the first images of a split, in its order.

    Args:
        model: name of the dense tower, with its weight tag.
        weights: its fingerprint.
        source: a dataset's split.
        golden: how they are made.
        limit: images, see ``evaluate.subset``; None for all.
        device: where missing ones are made.
        progress: where to show how far things are.
    """
    wanted = subset(source.images, limit).image_ids
    split = cast(SplitName, source.split)
    shipped = shipped_rankings(model, source.name, split, golden.block)
    found = None if shipped is None else Rankings.read(shipped)
    if found is None or not _fits(found, golden, wanted, weights):
        told: dict[str, Any] = {"limit": limit, "dtype": AUTO, "device": device}
        job = Job(model=model, source=source, config=golden, **told)
        found = Rankings.read(rank(job, progress).path)
    return found.take(wanted)


def _fits(found: Rankings, golden: GoldenConfig, wanted: Sequence[str], weights: str) -> bool:
    """Tell whether rankings were made in the way and of the images that are wanted."""
    facts = found.provenance
    same = all(getattr(facts, name) == value for name, value in asdict(golden).items())
    return same and facts.weights == weights and set(wanted) <= set(found.image_ids)
