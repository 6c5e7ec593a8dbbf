"""Ways to rank patches, cheap and dear, and the importance that each gives to some images."""

import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zoo
from harness.datasets.base import Split
from harness.golden.maps import method_maps
from harness.progress import Progress
from harness.towers import Tower
from zoo.approximate import KINDS, SHALLOW, Effort, approximate_passes, fitting
from zoo.files import write_whole
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.weights import cache_folder
from zoo.windows import windows

GOLDEN = "golden"
PART = 10  # images whose importance is kept as one file
EXACT = (2, 1)  # window and stride of the reference
COARSE = ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))
FOLLOWED = (0, 1, 2, 4, 8, 16, 32, 64)
DIRECTIONS = (4, 8, 16)
SHORTER = (3, 4)  # blocks that are left out at the end


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way to rank the patches of an image.

    Attributes:
        method: ``golden``, or a registered method that ranks at the reduction point.
        window: side of the window in patches, None for other methods.
        stride: step of the window in patches, None for other methods.
        approximate: see ``zoo.approximate``; None for removing every window.
        seed: of ``random``.
    """

    method: str = GOLDEN
    window: int | None = EXACT[0]
    stride: int | None = EXACT[1]
    approximate: str | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """Return its name in tables."""
        if self.method != GOLDEN:
            return self.method
        if self.approximate is None:
            return f"window {self.window}, stride {self.stride}"
        return self.approximate

    def fits(self, effort: Effort, block: int) -> bool:
        """Tell whether a tower can do it."""
        if self.window is None or self.stride is None:
            return True
        if self.window > min(effort.grid):
            return False
        if self.approximate is None:
            return True
        count = len(windows(effort.grid, self.window, self.stride))
        low, high = fitting(self.approximate, effort, block, self.window, count)
        return low <= int(self.approximate.partition(":")[2]) <= high

    def passes(self, effort: Effort, block: int) -> float:
        """Return what it costs per image, in passes of a whole image from the block on."""
        if self.window is None or self.stride is None:
            return 0.0
        count = len(windows(effort.grid, self.window, self.stride))
        return approximate_passes(self.approximate, effort, block, count)


def usual_points(effort: Effort, block: int, seeds: int) -> list[Point]:
    """List the points of a curve, the exact one first; random orders come last.

    Args:
        effort: of the tower from the reduction point on.
        block: reduction point.
        seeds: number of random orders.
    """
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

        Args:
            point: how.
            images: n images of a dataset; those that an earlier run ranked are not drawn.
            facts: JSON values that tell tower and dataset.
            name: of the dataset, to be shown.
            progress: where to show how far things are.

        Returns:
            (n, N) importance.
        """
        told = facts | vars(point) | {"block": self.block, "precision": self.precision(point)}
        key = json.dumps(told, sort_keys=True)
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
        found: dict[Point, list[float]] = {point: [] for point in points}
        for _ in range(rounds + 1):
            for point in points:
                begun = time.perf_counter()
                self.importance(point, images, "float32")
                found[point].append((time.perf_counter() - begun) / len(images))
        return {point: min(times[1:]) for point, times in found.items()}


def _digest(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]


def _save(path: Path, values: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_whole(path, buffer.getvalue())
