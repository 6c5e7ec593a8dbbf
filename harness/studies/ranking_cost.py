"""What does a cheaper golden ranking cost in passes, and how well does it agree with the exact one?"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from harness.base.table import Table
from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.golden.rank import Curve, Point, Worth
from harness.models.towers import Tower
from harness.records.metrics import Importance
from harness.records.record import device_name
from harness.records.statistics import bootstrap_mean, kendall_tau, match_at_k
from zoo.core.files import fingerprint
from zoo.core.reducer import final_count
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig, GoldenEngine

KEEPS = (60, 50, 30)  # percent of the patches
PART = 10  # images per call
POINTS = (
    *(Point(window=window, stride=stride) for window, stride in ((2, 2), (3, 2), (4, 2), (3, 3), (4, 4), (5, 5))),
    *(Point(approximate=f"follow:{count}") for count in (0, 1, 2, 4, 8, 16, 32, 64)),
)


def measure_curve(
    tower: Tower,
    splits: Mapping[str, Split],
    block: int,
    *,
    split: str,
    dtype: str,
    progress: Progress,
    points: Sequence[Point] = POINTS,
) -> Curve:
    """Rank images by the exact way in float32, and by those of ``points`` that the tower can do.

    ``splits`` are the images by dataset, ``split`` their name; windows are removed in ``dtype``.

    Raises:
        ValueError: a block outside the tower, or fewer than two images.
    """
    vit = tower.vit
    if not 0 <= block < vit.depth:
        raise ValueError(f"--block {block}: this tower has blocks 0 to {vit.depth - 1}")
    if sum(map(len, splits.values())) < 2:
        raise ValueError("a curve needs at least two images")
    effort = Effort.of(vit, block)
    every = [Point(), *(point for point in points if point.fits(effort))]
    orders: dict[Point, dict[str, Importance]] = {}
    with progress.task("study ranking-cost, ways", len(every)) as update:
        for done, point in enumerate(every, start=1):
            config = GoldenConfig(block=block, window=point.window, stride=point.stride, approximate=point.approximate)
            removes = point.approximate is None and point != Point()
            engine = GoldenEngine(vit, config, precision=dtype if removes else "float32")
            orders[point] = {name: _rank(engine, tower, images) for name, images in splits.items()}
            update(done)
    worths = [_worth(point, orders[point], orders[Point()], point.passes(effort)) for point in every]
    return Curve(
        model=tower.name, weights=fingerprint(vit), block=block, split=split, dtype=dtype,
        device=device_name(str(next(vit.parameters()).device)), images={name: len(own) for name, own in splits.items()},
        effort=effort, worths=worths,
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
    )  # fmt: skip


def _rank(engine: GoldenEngine, tower: Tower, split: Split) -> Importance:
    """Return the importance (n, N) of the patches of n images."""
    parts = []
    for first in range(0, len(split), PART):
        images = torch.stack([tower.preprocess(example.image) for example in split[first : first + PART]])
        parts.append(engine.importance(images).numpy())
    return np.concatenate(parts)


def _worth(point: Point, own: Mapping[str, Importance], exact: Mapping[str, Importance], passes: float) -> Worth:
    taus = {name: kendall_tau(order, exact[name]) for name, order in own.items()}
    truth, order = (np.concatenate(list(one.values())) for one in (exact, own))
    counts = {str(percent): final_count(truth.shape[1], percent / 100) for percent in KEEPS}
    return Worth(
        point=point,
        passes=passes,
        tau=bootstrap_mean(np.concatenate(list(taus.values())), seed=0),
        tau_of={name: float(tau.mean()) for name, tau in taus.items()},
        match={percent: float(match_at_k(truth, order, count).mean()) for percent, count in counts.items()},
    )


def curve_table(curve: Curve) -> Table:
    """Lay a curve out, cheapest first, with a star where no other way is as cheap and closer."""
    rows, best = [], -1.0
    for worth in sorted(curve.worths, key=lambda worth: (worth.passes, -worth.tau.estimate)):
        star, best = "*" if worth.tau.estimate > best else "", max(best, worth.tau.estimate)
        tau = "{:.3f} [{:.3f}, {:.3f}]".format(*worth.tau)
        matches = (f"{match:.3f}" for match in worth.match.values())
        rows.append((star, worth.point.label, f"{worth.passes:.1f}", tau, *matches))
    heads = ("", "way", "passes", "Kendall tau", *(f"match at keep {percent}" for percent in KEEPS))
    images = ", ".join(f"{count} of {name}" for name, count in curve.images.items())
    caption = (
        f"{curve.split} images: {images}. Tau and match are with the exact ranking (window 2, stride 1, float32); "
        f"removed windows of the others in {curve.dtype}. * = no other way is at least as cheap and closer."
    )
    title = f"{curve.model}, before block {curve.block}, preservation"
    return Table.of(title, heads, rows, words={"", "way"}, wide=set(heads[4:]), caption=caption)
