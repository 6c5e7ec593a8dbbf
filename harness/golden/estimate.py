"""Estimate what golden rankings of many images take, in time and room, from multiply-adds."""

from dataclasses import dataclass

import numpy as np

from harness.golden.points import Point
from harness.golden.products import Geometry, engine_products, multiply_adds, prefix_products
from harness.golden.provenance import Provenance
from harness.golden.runners import image_multiply_adds
from harness.golden.shards import Shard
from harness.golden.speed import Speed
from zoo.effort import Effort
from zoo.golden import GoldenConfig

# Published peaks of dense bfloat16 matrix products in operations per second (data sheets of
# NVIDIA's A100 and H100 SXM); a multiply-add is two operations.
PEAKS = {"A100": 312e12, "H100": 989e12}
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
        multiply_adds: per image, all told.
        cpu_s: seconds for all images at the rate measured here.
        gpu_s: (GPU's name, how many) -> seconds for all images at the higher and at the lower of
            ``SHARES`` of its peak.
    """

    point: Point
    passes: float
    multiply_adds: int
    cpu_s: float
    gpu_s: dict[tuple[str, int], tuple[float, float]]


def estimates(speed: Speed, images: int) -> list[Estimate]:
    """Estimate every way that the tower can do, from the fastest engine that was measured.

    Args:
        speed: a measurement.
        images: how many are to be ranked.

    Raises:
        ValueError: images below 1.
    """
    if images < 1:
        raise ValueError(f"estimate={images}: expected a number of images from 1")
    fastest = max(speed.ways[1:], key=lambda way: way.windows_per_s)
    of, effort = speed.geometry, _effort(speed.geometry, speed.block)
    found = []
    for point in POINTS:
        if not point.fits(effort, speed.block):
            continue
        passes = point.passes(effort, speed.block)
        each = point_multiply_adds(of, speed.block, point, fastest.precision)
        everything = images * each
        found.append(
            Estimate(
                point=point,
                passes=passes,
                multiply_adds=each,
                cpu_s=everything / fastest.multiply_adds_per_s,
                gpu_s={
                    (name, count): _between(everything, count * peak / 2)
                    for name, peak in PEAKS.items()
                    for count in GPUS
                },
            )
        )
    return found


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
    sizes = {"prefix": of.prefix, "dim": of.dim, "hidden": of.hidden}
    return Effort(grid=of.grid, blocks=of.depth - block, **sizes)
