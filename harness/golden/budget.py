"""Cheaper golden rankings: what each costs and is worth, and the best within a budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from harness.records.conditions import GOLDEN
from harness.records.statistics import Interval
from zoo.approximate import Effort, approximate_passes, fitting
from zoo.files import write_whole
from zoo.golden import GoldenConfig
from zoo.windows import windows

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "curve.json"
EXACT = (2, 1)  # window and stride of the reference
HEAD = 64  # dimensions of an attention head in every CLIP ViT


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


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a way to rank costs and is worth. None means not measured.

    Attributes:
        point: the way.
        passes: cost per image, in passes of a whole image from the block on.
        seconds: measured time per image, in that of the exact ranking.
        tau: Kendall tau-b to the exact ranking, mean over images, with its 95 % interval.
        tau_of: the same by dataset.
        match: keep rate in percent -> share of the exact ranking's kept patches that are kept.
        top1: keep rate in percent -> accuracy of the dense model pruned by this ranking.
        difference: keep rate in percent -> top1 minus that of the exact ranking, with its paired
            95 % interval.
    """

    point: Point
    passes: float
    seconds: float | None = None
    tau: Interval
    tau_of: Mapping[str, float]
    match: Mapping[str, float]
    top1: Mapping[str, float] = field(default_factory=dict)
    difference: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Ways to rank, measured on the same images.

    Attributes:
        model: name of the dense tower, with its weight tag.
        weights: fingerprint of the tower's weights.
        block: reduction point.
        split: of the datasets.
        dtype: of removed windows, the exact ranking excepted, which is float32.
        device: where the time was measured.
        images: dataset -> how many images are behind tau.
        named: dataset -> how many of them have a class with a caption; they are behind accuracy.
        effort: of the tower from the block on.
        dense: top-1 of the dense model, None if not measured.
        versions: of the packages that computed it.
        worths: the ways, the exact one first.
    """

    model: str
    weights: str
    block: int
    split: str
    dtype: str
    device: str
    images: Mapping[str, int]
    named: Mapping[str, int]
    effort: Effort
    dense: float | None
    versions: Mapping[str, str]
    worths: Sequence[Worth]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"schema_version": SCHEMA_VERSION} | asdict(self)
        write_whole(path, (json.dumps(facts, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            ValueError: something else.
        """
        facts = json.loads(path.read_bytes())
        if facts.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(
                f"{str(path)!r} is no curve of schema version {SCHEMA_VERSION}; make one with: "
                "python -m harness study curve"
            )
        effort = facts.pop("effort")
        effort = Effort(**effort | {"grid": tuple(effort["grid"])})
        return cls(effort=effort, worths=[_worth(w) for w in facts.pop("worths")], **facts)


def _worth(facts: dict[str, Any]) -> Worth:
    typed = {
        "point": Point(**facts["point"]),
        "tau": Interval(*facts["tau"]),
        "difference": {keep: Interval(*value) for keep, value in facts["difference"].items()},
    }
    return Worth(**facts | typed)


def best_within(
    curve: Curve, budget: float, effort: Effort, block: int, *, removal_only: bool = False
) -> Point:
    """Choose the golden way of highest tau that a tower can do within a number of passes.

    Args:
        curve: what was measured, maybe on another tower.
        budget: passes per image.
        effort: of the tower from the reduction point on.
        block: reduction point.
        removal_only: whether windows have to be removed for real.

    Raises:
        ValueError: the budget is below the cheapest way; names it.
    """
    cuts = curve.effort.blocks == effort.blocks and curve.block == block
    ways = [
        (worth.point.passes(effort, block), worth.tau.estimate, worth.point)
        for worth in curve.worths
        if worth.point.window is not None
        and worth.point.fits(effort, block)
        and not (removal_only and worth.point.approximate)
        # How much a block at the end matters is known for the measured tower alone.
        and (cuts or not (worth.point.approximate or "").startswith("shallow"))
    ]
    cheapest = min(ways, key=lambda way: way[0])
    within = [way for way in ways if way[0] <= budget]
    if not within:
        raise ValueError(
            f"--budget {budget:g}: the cheapest golden ranking, {cheapest[2].label}, takes "
            f"{cheapest[0]:.2f} passes per image here"
        )
    # Of two equally good ways the cheaper one.
    return max(within, key=lambda way: (way[1], -way[0]))[2]


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
