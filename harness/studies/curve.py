"""Measure what cheaper golden rankings cost and are worth: agreement, and accuracy by them."""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zoo
from harness.agreement import kendall_tau, match_at_k
from harness.conditions import DENSE, GOLDEN, device_name
from harness.console import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.golden.budget import Curve, Point, Worth
from harness.golden.maps import method_maps
from harness.measure.evaluate import Importance, correct, outcomes
from harness.measure.rows import Variant, golden_row
from harness.sampling import subset
from harness.statistics import bootstrap_mean
from harness.towers import Tower, load_tower, named, text_classifier
from zoo.approximate import KINDS, SHALLOW, Effort
from zoo.files import write_whole
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.reducer import ReducerConfig, expected, final_count
from zoo.suffix import PRECISIONS
from zoo.weights import cache_folder, fingerprint

TIMED_IMAGES = 2
KEEPS = (0.6, 0.5, 0.3)
PART = 10  # images whose importance is kept as one file
COARSE = ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))
FOLLOWED = (0, 1, 2, 4, 8, 16, 32, 64)
DIRECTIONS = (4, 8, 16)
SHORTER = (3, 4)  # blocks that are left out at the end

Hits = NDArray[np.float64]  # (images,) 1 where the answer is right, else 0


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


def usual_points(effort: Effort, block: int, seeds: int) -> list[Point]:
    """List the points of a curve, the exact one first; random orders come last."""
    specs = [f"follow:{n}" for n in FOLLOWED] + [f"jacobian:{n}" for n in DIRECTIONS]
    specs += [f"{SHALLOW}:{block + effort.blocks - 1 - n}" for n in SHORTER if n < effort.blocks]
    points = [
        Point(),
        *(Point(window=window, stride=stride) for window, stride in COARSE),
        *(Point(approximate=spec) for spec in specs),
        Point(method="clsattn", window=None, stride=None),
        *(Point(method="random", window=None, stride=None, seed=seed) for seed in range(seeds)),
    ]
    return [point for point in points if point.fits(effort, block)]


class Ranker:
    """Rank images by points.

    Args:
        tower: the dense tower, on its device.
        block: reduction point.
        dtype: of removed windows, the exact point excepted, which is float32.
    """

    def __init__(self, tower: Tower, block: int, dtype: str) -> None:
        """Prepare nothing yet."""
        self.tower, self.block, self.dtype = tower, block, dtype
        self._engines: dict[tuple[Point, str], GoldenEngine] = {}

    def precision(self, point: Point) -> str:
        """Return in what precision a point is computed."""
        removes = (
            point.approximate is None or KINDS[point.approximate.partition(":")[0]].run is None
        )
        return self.dtype if removes and point != Point() else "float32"

    def importance(self, point: Point, images: Tensor, precision: str | None = None) -> Tensor:
        """Rank images (B, C, H, W) by a point, (B, N) float32 on the CPU, higher = keep."""
        if point.method != GOLDEN:
            options: dict[str, Any] = {} if point.seed is None else {"seed": point.seed}
            vit = zoo.reduce(
                self.tower.vit, method=point.method, keep=0.5, reduce_at=(self.block,), **options
            )
            return method_maps(vit, images.to(next(vit.parameters()).device))[0]
        assert point.window is not None
        assert point.stride is not None
        precision = precision or self.precision(point)
        engine = self._engines.get((point, precision))
        if engine is None:
            config = GoldenConfig(
                block=self.block,
                window=point.window,
                stride=point.stride,
                approximate=point.approximate,
            )
            engine = GoldenEngine(self.tower.vit, config, precision=precision)
            self._engines[point, precision] = engine
        return engine.importance(images)

    def ranked(
        self,
        point: Point,
        images: Split,
        facts: dict[str, Any],
        name: str,
        progress: Progress,
    ) -> NDArray[np.float32]:
        """Rank images by a point, or read what an earlier run kept.

        Returns:
            (n, N) importance.
        """
        way = vars(point) | {"block": self.block, "precision": self.precision(point)}
        key = json.dumps(facts | way, sort_keys=True)
        folder = cache_folder() / "curve" / hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        parts = [images[first : first + PART] for first in range(0, len(images), PART)]
        paths = [folder / f"{_digest(part.image_ids)}.npy" for part in parts]
        begun = sum(len(part) for part, path in zip(parts, paths, strict=True) if path.is_file())
        effort = Effort.of(self.tower.vit, self.block)
        passes = point.passes(effort, self.block)
        done = begun
        with progress.long(f"{point.label} on {name}", len(images), begun, passes) as show:
            for part, path in zip(parts, paths, strict=True):
                if path.is_file():
                    continue
                batch = torch.stack([self.tower.preprocess(example.image) for example in part])
                _save(path, self.importance(point, batch).numpy())
                done += len(part)
                show(done)
        return np.concatenate([np.load(path, allow_pickle=False) for path in paths])

    def seconds(self, points: Sequence[Point], images: Tensor, rounds: int) -> dict[Point, float]:
        """Time points in turn, all in float32, the exact one first.

        Returns:
            Point -> least seconds per image of ``rounds`` rounds, one more not counted.
        """
        seconds: dict[Point, list[float]] = {point: [] for point in points}
        for _ in range(rounds + 1):
            for point in points:
                begun = time.perf_counter()
                self.importance(point, images, "float32")
                seconds[point].append((time.perf_counter() - begun) / len(images))
        return {point: min(times[1:]) for point, times in seconds.items()}


def _digest(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]


def _save(path: Path, values: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_whole(path, buffer.getvalue())


def pruned_hits(
    tower: Tower,
    block: int,
    split: Split,
    classifier: Tensor,
    orders: Mapping[Point, Importance],
    progress: Progress,
) -> dict[tuple[Point, float], Hits]:
    """Prune the dense model by each ranking and see whether it is right.

    Args:
        tower: the dense tower.
        block: reduction point.
        split: n images.
        classifier: (classes, D) unit features.
        orders: rankings as (n, N) importance, the first that of the exact way.
        progress: where to show how far things are.

    Returns:
        (point, keep rate) -> (images,) 1 where the answer is right; keep rate 1 is the dense model.
    """
    dense = Variant(model=tower.name, method=DENSE, keep=1.0, vit=tower.vit, config={})
    rows, importance = {(next(iter(orders)), 1.0): dense}, {}
    for number, (point, order) in enumerate(orders.items()):
        for keep in KEEPS:
            config = ReducerConfig(keep=keep, reduce_at=(block,))
            row = golden_row(tower.vit, f"{number} at {keep:g}", config)
            rows[point, keep], importance[row.key] = row, order
    like = next(tower.vit.parameters())
    with progress.task("accuracy of pruned models", len(split)) as update:
        results = outcomes(
            list(rows.values()),
            split,
            tower.preprocess,
            device=like.device,
            dtype=like.dtype,
            importance=importance,
            on_batch=update,
        )
    return {
        way: correct(results[row.key].features, classifier, split.labels).astype(np.float64)
        for way, row in rows.items()
    }


def agreement_facts(
    members: Sequence[Sequence[NDArray[np.float32]]],
    exact: Sequence[NDArray[np.float32]],
    datasets: Iterable[str],
) -> dict[str, Any]:
    """Compare rankings with the exact ones, as fields of ``Worth``; images and seeds averaged."""
    taus = [
        np.mean([kendall_tau(member[i], exact[i]) for member in members], axis=0)
        for i in range(len(exact))
    ]
    truth = np.concatenate(exact)
    match = {}
    for keep in KEEPS:
        count = final_count(truth.shape[1], keep)
        shares = [match_at_k(truth, np.concatenate(member), count) for member in members]
        match[_percent(keep)] = float(np.mean(shares))
    return {
        "tau": bootstrap_mean(np.concatenate(taus), seed=0),
        "tau_of": {name: float(tau.mean()) for name, tau in zip(datasets, taus, strict=True)},
        "match": match,
    }


def accuracy_facts(
    members: Sequence[Point], exact: Point, hits: Mapping[tuple[Point, float], list[Hits]]
) -> dict[str, Any]:
    """Compare accuracies with that of the exact ranking, as fields of ``Worth``."""
    if not hits:
        return {}
    top1, difference = {}, {}
    for keep in KEEPS:
        right = np.mean([np.concatenate(hits[point, keep]) for point in members], axis=0)
        top1[_percent(keep)] = float(right.mean())
        apart = right - np.concatenate(hits[exact, keep])
        difference[_percent(keep)] = bootstrap_mean(apart, seed=0)
    return {"top1": top1, "difference": difference}


def _percent(keep: float) -> str:
    return f"{100 * keep:.0f}"


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
    orders_of: dict[Point, list[Importance]] = {point: [] for point in every}
    hits: dict[tuple[Point, float], list[Hits]] = {}
    images, nameable, sample = {}, {}, torch.empty(0)
    for name in config.datasets:
        dataset = get_dataset(name)
        split = subset(dataset.split(config.split), config.limit)
        images[name] = len(split)
        facts = {"weights": fingerprint(tower.vit), "dataset": name, "revision": dataset.revision}
        for point in every:
            orders_of[point].append(ranker.ranked(point, split, facts, name, progress))
        few = [split[i] for i in range(min(TIMED_IMAGES, len(split)))]
        sample = torch.stack([tower.preprocess(example.image) for example in few])
        if tower.clip is not None:
            classifier, _ = text_classifier(tower.clip, dataset)
            known = np.flatnonzero(named(classifier)[split.labels])
            nameable[name] = len(known)
            orders = {point: orders_of[point][-1][known] for point in every}
            judged = split.subset(known)
            right = pruned_hits(tower, config.block, judged, classifier, orders, progress)
            for pruned, answers in right.items():
                hits.setdefault(pruned, []).append(answers)
    if sum(images.values()) < 2:
        raise ValueError("a curve needs at least two images")
    ways: dict[Point, list[Point]] = {}
    for point in every:
        ways.setdefault(replace(point, seed=None), []).append(point)
    firsts = [members[0] for members in ways.values()]
    seconds = ranker.seconds(firsts, sample, config.rounds) if config.rounds else {}
    worths = []
    for way, members in ways.items():
        values = agreement_facts(
            [orders_of[point] for point in members], orders_of[every[0]], images
        )
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
        named=nameable,
        effort=effort,
        dense=None if dense is None else float(dense),
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        worths=worths,
    )
