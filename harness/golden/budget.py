"""Cheaper golden rankings: what each costs and is worth, and the best within a budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from harness.records.conditions import GOLDEN
from harness.records.statistics import Interval
from zoo.core.files import from_json, write_whole
from zoo.core.host import Host
from zoo.ranking.approximate import Effort, parse, passes
from zoo.ranking.windows import windows

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "curve.json"
EXACT = (2, 1)  # window and stride of the reference


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way to rank the patches of an image."""

    method: str = GOLDEN  # or a registered method that ranks at the reduction point
    window: int | None = EXACT[0]  # side in patches, None for other methods
    stride: int | None = EXACT[1]  # in patches, None for other methods
    approximate: str | None = None  # see `zoo.ranking.approximate`; None for removing every window
    seed: int | None = None  # of random

    @property
    def label(self) -> str:
        """Return its name in tables."""
        if self.method != GOLDEN:
            return self.method
        return self.approximate or f"window {self.window}, stride {self.stride}"

    def fits(self, effort: Effort) -> bool:
        """Tell whether a tower can do it."""
        if self.window is None or self.stride is None:
            return True
        if self.window > min(effort.grid):
            return False
        return self.approximate is None or parse(self.approximate) <= effort.patches - self.window**2

    def passes(self, effort: Effort) -> float:
        """Return what it costs per image, in passes of a whole image from the block on."""
        if self.window is None or self.stride is None:
            return 0.0
        count = len(windows(effort.grid, self.window, self.stride))
        return passes(self.approximate, effort, count)


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a way to rank costs and is worth; without a value: not measured.

    Mappings from keep rates in percent say so; those to `Interval` have 95 % intervals.
    """

    point: Point
    passes: float  # per image, in passes of a whole image from the block on
    seconds: float | None = None  # per image, in those of the exact ranking
    tau: Interval  # Kendall tau-b to the exact ranking, mean over images
    tau_of: Mapping[str, float]  # the same by dataset
    match: Mapping[str, float]  # keep rate -> share of the exact ranking's kept patches
    top1: Mapping[str, float] = field(default_factory=dict)  # keep rate -> of the pruned model
    # Keep rate -> top1 minus that of the exact ranking, paired.
    difference: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Ways to rank, measured on the same images."""

    model: str  # of the dense tower, with its weight tag
    weights: str  # fingerprint of the tower's weights
    block: int  # reduction point
    split: str  # of the datasets
    dtype: str  # of removed windows; the exact ranking is float32
    device: str  # where the time was measured
    images: Mapping[str, int]  # dataset -> number of images behind tau
    named: Mapping[str, int]  # dataset -> those of a class with a caption, behind accuracy
    effort: Effort  # of the tower from the block on
    dense: float | None  # top-1 of the dense model, None if not measured
    versions: Mapping[str, str]  # of the packages that computed it
    worths: Sequence[Worth]  # the exact one first

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
                f"{str(path)!r} is no curve of schema version {SCHEMA_VERSION}; make one with: patchrank study curve"
            )
        curve: Self = from_json(cls, facts, "curve")
        return curve


def best_within(curve: Curve, budget: float, effort: Effort, *, removal_only: bool = False) -> Point:
    """Choose the golden way of highest tau that a tower can do within a number of passes.

    ``effort`` is the tower's from the reduction point on; ``removal_only`` tells that windows have
    to be removed for real.

    Raises:
        ValueError: the budget is below the cheapest way; names it.
    """
    ways = [
        (worth.point.passes(effort), worth.tau.estimate, worth.point)
        for worth in curve.worths
        if worth.point.window is not None
        and worth.point.fits(effort)
        and not (removal_only and worth.point.approximate)
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


def best_within_budget(budget: float, vit: Host, block: int, *, removal_only: bool = False) -> Point:
    """Choose the way of ``best_within`` for a tower, by the curve that ships.

    Raises:
        ValueError: the budget is below the cheapest way, or the block outside the tower.
    """
    if not 0 <= block < vit.depth:
        raise ValueError(f"block={block}: this tower has blocks 0 to {vit.depth - 1}")
    return best_within(Curve.read(SHIPPED), budget, Effort.of(vit, block), removal_only=removal_only)
