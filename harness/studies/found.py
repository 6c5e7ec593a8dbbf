"""Golden rankings of some images: those that ship, else one's own, made where they are missing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from harness.datasets.base import SplitName
from harness.evaluate import subset
from harness.golden.rank import AUTO, Job, Source, rank
from harness.golden.store import Rankings, own_store, shipped_rankings
from harness.progress import Progress
from zoo.golden import GoldenConfig


def find(
    model: str, weights: str, source: Source, golden: GoldenConfig, wanted: Sequence[str]
) -> Rankings | None:
    """Return the golden rankings that there are of some images: shipped, or the user's own.

    Args:
        model: name of the dense tower, with its weight tag.
        weights: its fingerprint.
        source: a dataset's split.
        golden: how they are made.
        wanted: ids of the images.

    Returns:
        Rankings of those of the images that have one, in their order; None where nobody has made
        any in this way, or some are broken.
    """
    shipped = shipped_rankings(model, source.name, cast(SplitName, source.split), golden.block)
    for path in (shipped, own_store(model, source.name, source.split, golden)):
        if path is None or not path.exists():
            continue
        try:
            found = Rankings.read(path)
        except ValueError:  # `rank` tells what is broken, and mends it
            continue
        facts = found.provenance
        same = all(getattr(facts, name) == value for name, value in asdict(golden).items())
        if same and (facts.weights, facts.revision) == (weights, source.revision):
            known = set(found.image_ids)
            if path != shipped or known >= set(wanted):
                return found.take([name for name in wanted if name in known])
    return None


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
    found = find(model, weights, source, golden, wanted)
    if found is None or len(found) < len(wanted):
        told: dict[str, Any] = {"limit": limit, "dtype": AUTO, "device": device}
        job = Job(model=model, source=source, config=golden, **told)
        found = Rankings.read(rank(job, progress).path)
    return found.take(wanted)
