"""Cheaper golden rankings: what each costs, how near the exact one it is, and the best within a budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from harness.records.statistics import Interval
from zoo.core.files import from_json, write_whole
from zoo.ranking.approximate import Effort, parse, passes
from zoo.ranking.windows import windows

SCHEMA_VERSION = 2
SHIPPED = Path(__file__).parent / "curve.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way to rank the patches of an image; the exact one by default."""

    window: int = 2  # side in patches
    stride: int = 1  # in patches
    approximate: str | None = None  # see `zoo.ranking.approximate`; None for removing every window

    @property
    def label(self) -> str:
        """Return its name in tables."""
        return self.approximate or f"window {self.window}, stride {self.stride}"

    def fits(self, effort: Effort) -> bool:
        """Tell whether a tower can do it."""
        if self.window > min(effort.grid):
            return False
        return self.approximate is None or parse(self.approximate) <= effort.patches - self.window**2

    def passes(self, effort: Effort) -> float:
        """Return what it costs per image, in passes of a whole image from the block on."""
        return passes(self.approximate, effort, len(windows(effort.grid, self.window, self.stride)))


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a way to rank costs and is worth; keep rates are in percent."""

    point: Point
    passes: float  # per image, in passes of a whole image from the block on
    tau: Interval  # Kendall tau-b to the exact ranking, mean over images, 95 %
    tau_of: Mapping[str, float]  # the same by dataset
    match: Mapping[str, float]  # keep rate -> share of the exact ranking's kept patches


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Ways to rank, measured on the same images."""

    model: str  # of the dense tower, with its weight tag
    weights: str  # fingerprint of the tower's weights
    block: int  # reduction point
    split: str  # of the datasets
    dtype: str  # of removed windows; the exact ranking is float32
    device: str
    images: Mapping[str, int]  # dataset -> number of images
    effort: Effort  # of the tower from the block on
    versions: Mapping[str, str]  # of the packages that computed it
    worths: Sequence[Worth]  # the exact one first

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"schema_version": SCHEMA_VERSION} | asdict(self)
        write_whole(path, (json.dumps(facts, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote; ValueError if it is something else."""
        facts = json.loads(path.read_bytes())
        if facts.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(
                f"{str(path)!r} is no curve of schema version {SCHEMA_VERSION}; make one with: patchrank study curve"
            )
        curve: Self = from_json(cls, facts, "curve")
        return curve


def best_within(curve: Curve, budget: float, effort: Effort, *, removal_only: bool = False) -> Point:
    """Choose the way of highest tau that a tower can do within a number of passes.

    ``effort`` is the tower's from the reduction point on; ``removal_only`` tells that windows have
    to be removed for real.

    Raises:
        ValueError: the budget is below the cheapest way; names it.
    """
    ways = [
        (worth.point.passes(effort), worth.tau.estimate, worth.point)
        for worth in curve.worths
        if worth.point.fits(effort) and not (removal_only and worth.point.approximate)
    ]
    within = [way for way in ways if way[0] <= budget]
    if not within:
        cost, _, point = min(ways, key=lambda way: way[0])
        cheapest = f"the cheapest golden ranking, {point.label}, takes {cost:.2f} passes per image here"
        raise ValueError(f"--budget {budget:g}: {cheapest}")
    # Of two equally good ways the cheaper one.
    return max(within, key=lambda way: (way[1], -way[0]))[2]
