"""Estimate what golden rankings of many images take, in time and room, from multiply-adds."""

from dataclasses import dataclass

import numpy as np

from harness.golden.budget import Point
from harness.golden.products import Geometry, engine_products, multiply_adds, prefix_products
from harness.golden.provenance import Provenance
from harness.golden.runners import image_multiply_adds
from harness.golden.shards import Shard
from harness.golden.speed import Speed, Way
from zoo.approximate import Effort
from zoo.golden import GoldenConfig

# Published peaks of matrix products in operations per second: dense bfloat16, and float32 proper,
# which is what torch does unless TF32 is allowed (data sheets of NVIDIA's A100 and H100 SXM). A
# multiply-add is two operations.
PEAKS = {
    "A100": {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12},
    "H100": {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
}
SHARES = (0.5, 0.25)  # of the peak that may be reached: a guess, see docs/imagenet.md
GPUS = (1, 8, 64)
POINTS = (
    Point(),
    Point(stride=2),
    Point(window=3, stride=3),
    Point(window=4, stride=4),
    Point(approximate="follow:16"),
    Point(approximate="follow:4"),
    Point(approximate="follow:0"),
)
SHARD = 64  # images per file, as `rank` writes them by default


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What it takes to rank many images in one way.

    Attributes:
        point: the way.
        passes: per image, of a whole image from the block on; that of the whole image left out.
        precision: of most of its matrix products.
        multiply_adds: per image, all told.
        here_s: seconds for all images at the rate measured in that precision, None if none was.
        gpu_s: (GPU's name, how many) -> seconds for all images at the higher and at the lower of
            ``SHARES`` of its peak.
    """

    point: Point
    passes: float
    precision: str
    multiply_adds: int
    here_s: float | None
    gpu_s: dict[tuple[str, int], tuple[float, float]]


def fastest(speed: Speed, precision: str | None = None) -> Way | None:
    """Return the fastest engine that was measured, of one precision or of all."""
    engines = [way for way in speed.ways[1:] if precision in (None, way.precision)]
    return max(engines, key=lambda way: way.windows_per_s.estimate, default=None)


def estimates(speed: Speed, images: int) -> list[Estimate]:
    """Estimate every way that the tower can do.

    Windows are removed in the precision that was fastest; other ways are float32.

    Args:
        speed: a measurement, at least one engine among it.
        images: how many are to be ranked.

    Raises:
        ValueError: images below 1.
    """
    if images < 1:
        raise ValueError(f"estimate={images}: expected a number of images from 1")
    best = fastest(speed)
    assert best is not None
    effort = _effort(speed.geometry, speed.block)
    points = [point for point in POINTS if point.fits(effort, speed.block)]
    return [_estimate(speed, images, point, best.precision) for point in points]


def _estimate(speed: Speed, images: int, point: Point, precision: str) -> Estimate:
    """Estimate one way; ``precision`` is that in which windows are removed."""
    precision = precision if point.approximate is None else "float32"
    each = point_multiply_adds(speed.geometry, speed.block, point, precision)
    everything = images * each
    way = fastest(speed, precision)
    return Estimate(
        point=point,
        passes=point.passes(_effort(speed.geometry, speed.block), speed.block),
        precision=precision,
        multiply_adds=each,
        here_s=None if way is None else everything / way.multiply_adds_per_s,
        gpu_s={
            (name, count): _between(everything, count * peaks[precision] / 2)
            for name, peaks in PEAKS.items()
            for count in GPUS
        },
    )


def point_multiply_adds(of: Geometry, block: int, point: Point, precision: str) -> int:
    """Count the multiply-adds of one image: embedding, whole image, and its windows."""
    if point.approximate is None:
        assert point.window is not None
        assert point.stride is not None
        golden = GoldenConfig(block=block, window=point.window, stride=point.stride)
        return image_multiply_adds(of, golden, precision)
    effort = _effort(of, block)
    once = [*prefix_products(of, block), *engine_products(of, block, 1, of.tokens)]
    return multiply_adds(once) + round(point.passes(effort, block) * effort.whole)


def bytes_per_image(patches: int) -> float:
    """Write a shard of random rankings and return what an image takes in it."""
    provenance = Provenance(
        model="", weights="0" * 16, dataset="", revision="0" * 16, split="all",
        score="preservation", block=3, window=2, stride=1, dtype="bfloat16",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    importance = generator.normal(size=(SHARD, patches)).astype(np.float32)
    shard = Shard.of(
        importance,
        generator.integers(1000, size=SHARD),
        first=0,
        size=SHARD,
        image_ids=tuple(generator.bytes(8).hex() for _ in range(SHARD)),
        provenance=provenance,
    )
    return len(shard.encode()) / SHARD


def _between(multiply_adds: int, peak: float) -> tuple[float, float]:
    """Return the seconds at the higher and at the lower share of a peak per second."""
    high, low = (multiply_adds / (share * peak) for share in SHARES)
    return high, low


def _effort(of: Geometry, block: int) -> Effort:
    sizes = {name: getattr(of, name) for name in ("prefix", "dim", "hidden", "heads")}
    return Effort(grid=of.grid, blocks=of.depth - block, **sizes)
