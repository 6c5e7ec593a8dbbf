"""Measure what cheaper golden rankings are worth, and pick one that fits into a budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.evaluate import subset, text_classifier
from harness.golden.points import Point, Ranker, usual_points
from harness.golden.trade import Curve, Worth, best_within
from harness.golden.worth import Hits, accuracy_facts, agreement_facts, pruned_hits
from harness.measure import device_name
from harness.progress import Progress
from harness.towers import load_tower
from zoo.approximate import Effort
from zoo.golden import GoldenConfig
from zoo.reducer import expected
from zoo.suffix import PRECISIONS
from zoo.weights import fingerprint

SHIPPED = Path(__file__).parent / "curve.json"
TIMED_IMAGES = 2
HEAD = 64  # dimensions of an attention head in every CLIP ViT


def recipe_for(
    budget: float,
    *,
    grid: tuple[int, int] = (14, 14),
    depth: int = 9,
    block: int = GoldenConfig.block,
    dim: int = 384,
    token_pooled: bool = True,
) -> dict[str, Any]:
    """Pick the most faithful golden ranking within a budget, by the curve that ships.

    Args:
        budget: passes per image from the block on, that of the whole image left out.
        grid: (rows, columns) of patches of the tower at hand.
        depth: its number of blocks.
        block: reduction point.
        dim: width of its tokens; that of the MLP is taken to be four times it.
        token_pooled: whether its features come from the class token, which ``follow`` and
            ``jacobian`` need.

    Returns:
        ``window``, ``stride`` and ``approximate`` for ``GoldenConfig``.

    Raises:
        ValueError: the budget is below the cheapest way, or the block outside the tower.
    """
    if not 0 <= block < depth:
        raise ValueError(f"block={block}: this tower has blocks 0 to {depth - 1}")
    heads = max(1, dim // HEAD)
    effort = Effort(grid=grid, blocks=depth - block, dim=dim, hidden=4 * dim, heads=heads)
    point = best_within(Curve.read(SHIPPED), budget, effort, block, removal_only=not token_pooled)
    return {"window": point.window, "stride": point.stride, "approximate": point.approximate}


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """What to measure, and how.

    Attributes:
        model: dense timm name.
        datasets: names.
        split: of the datasets.
        limit: images per dataset, see ``evaluate.subset``; None for all.
        block: reduction point.
        seeds: number of random orders.
        rounds: timings of each way; 0 leaves time out.
        dtype: of removed windows, the exact ranking excepted, which is float32.
        device: torch device.
    """

    model: str = "clip_vit_s14"
    datasets: tuple[str, ...] = ("fashion", "emoji")
    split: SplitName = "val"
    limit: int | None = 60
    block: int = GoldenConfig.block
    seeds: int = 3
    rounds: int = 3
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        if self.dtype not in PRECISIONS:
            raise ValueError(f"dtype={self.dtype!r}: {expected(self.dtype, PRECISIONS)}")
        for name, low in (("seeds", 1), ("rounds", 0), ("block", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number from {low}")


def measure_curve(
    config: CurveConfig, progress: Progress, points: Sequence[Point] | None = None
) -> Curve:
    """Measure ways to rank on some images; what an earlier run ranked is read from the cache.

    Args:
        config: tower, images, conditions.
        progress: where to show how far things are.
        points: what to measure beside the exact ranking; None for the usual.

    Raises:
        ValueError: a name or setting that doesn't fit, or fewer than two images.
    """
    tower = load_tower(config.model)
    tower.vit.to(config.device)
    depth = len(tower.vit.blocks)
    if config.block >= depth:
        raise ValueError(f"block={config.block}: this tower has blocks 0 to {depth - 1}")
    ranker = Ranker(tower, config.block, config.dtype)
    effort = Effort.of(tower.vit, config.block)
    usual = usual_points(effort, config.block, config.seeds)
    every = usual if points is None else [Point(), *points]
    found: dict[Point, list[NDArray[np.float32]]] = {point: [] for point in every}
    hits: dict[tuple[Point, float], list[Hits]] = {}
    images, named, sample = {}, {}, torch.empty(0)
    for name in config.datasets:
        dataset = get_dataset(name)
        split = subset(dataset.split(config.split), config.limit)
        images[name] = len(split)
        facts = {"weights": fingerprint(tower.vit), "dataset": name, "revision": dataset.revision}
        for point in every:
            found[point].append(ranker.ranked(point, split, facts, name, progress))
        few = [split[i] for i in range(min(TIMED_IMAGES, len(split)))]
        sample = torch.stack([tower.preprocess(example.image) for example in few])
        if tower.clip is not None:
            classifier, _ = text_classifier(tower.clip, dataset)
            known = np.flatnonzero(~classifier.isnan().any(dim=1).numpy()[split.labels])
            named[name] = len(known)
            orders = {point: found[point][-1][known] for point in every}
            shown = split.subset(known)
            right = pruned_hits(tower, config.block, shown, classifier, orders, progress)
            for key, answers in right.items():
                hits.setdefault(key, []).append(answers)
    if sum(images.values()) < 2:
        raise ValueError("a curve needs at least two images")
    ways: dict[Point, list[Point]] = {}
    for point in every:
        ways.setdefault(replace(point, seed=None), []).append(point)
    firsts = [members[0] for members in ways.values()]
    seconds = ranker.seconds(firsts, sample, config.rounds) if config.rounds else {}
    worths = []
    for way, members in ways.items():
        values = agreement_facts([found[point] for point in members], found[every[0]], images)
        values |= accuracy_facts(members, every[0], hits)
        if seconds:
            values["seconds"] = seconds[members[0]] / seconds[every[0]]
        worths.append(Worth(point=way, passes=way.passes(effort, config.block), **values))
    dense = np.concatenate(hits[every[0], 1.0]).mean() if hits else None
    return Curve(
        model=tower.name,
        weights=fingerprint(tower.vit),
        block=config.block,
        split=config.split,
        dtype=config.dtype,
        device=device_name(config.device),
        images=images,
        named=named,
        effort=effort,
        dense=None if dense is None else float(dense),
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        worths=worths,
    )
