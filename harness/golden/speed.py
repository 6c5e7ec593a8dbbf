"""Measure how fast golden rankings are made, against the straightforward way."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness.agreement import kendall_tau
from harness.commit import git_commit
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.evaluate import subset
from harness.golden.runners import Runner, find_tower, runners
from harness.latency.timing import Timing, interleaved
from harness.measure import device_name
from harness.progress import Progress
from harness.records import utc_now
from harness.statistics import Interval
from zoo.files import write_whole
from zoo.golden import GoldenConfig
from zoo.reducer import expected
from zoo.suffix import PRECISIONS
from zoo.windows import windows

SCHEMA_VERSION = 1
TIE = 1e-5  # scores that differ by no more are equal


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What to measure, and how.

    Attributes:
        model: dense name, as for ``load_tower``.
        random_weights: whether to do without weights; only for models of ours.
        dataset: where images come from.
        split: of the dataset.
        images: how many.
        golden: block and windows; preservation, one-shot, exact.
        precisions: of the engine.
        batches: sequences per forward pass; none for the engine's own choice.
        compiled: whether to measure the compiled engine as well.
        rounds: samples of each way.
        device: torch device.
    """

    model: str = "clip_vit_s14"
    random_weights: bool = False
    dataset: str = "fashion"
    split: SplitName = "val"
    images: int = 4
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    batches: tuple[int, ...] = ()
    compiled: bool = False
    rounds: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise ValueError(f"precisions={precision!r}: {expected(precision, PRECISIONS)}")
        counts = [("images", self.images), ("rounds", self.rounds)]
        for name, value in counts + [("batches", batch) for batch in self.batches]:
            if value < 1:
                raise ValueError(f"{name}={value}: expected a number from 1")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How fast one way makes the rankings.

    Attributes:
        name: ``straightforward``, or ``engine`` with its precision.
        precision: of the patch tokens.
        batch: sequences per forward pass.
        samples_ms: for all images, one per round.
        windows_per_s: at the median time, at the third and at the first quartile.
        speed_up: time of the straightforward way by this one's, median over rounds.
        tau: Kendall tau-b to the straightforward way's importance, mean over images.
        tau_least: the same, least over images.
        same: share of the images whose ranking is the straightforward way's, up to ties.
    """

    name: str
    precision: str
    batch: int
    samples_ms: tuple[float, ...]
    windows_per_s: Interval
    speed_up: Interval
    tau: float
    tau_least: float
    same: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured under which conditions; the straightforward way is the first."""

    schema_version: int = SCHEMA_VERSION
    created: str
    git_commit: str | None
    model: str
    random_weights: bool
    block: int
    window: int
    stride: int
    windows: int
    images: int
    dataset: str
    device: str
    threads: int
    versions: Mapping[str, str]
    ways: tuple[Way, ...]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def measure_speed(config: SpeedConfig, progress: Progress) -> Speed:
    """Measure all ways in turn, round by round.

    Raises:
        ValueError: a name or setting that doesn't fit.
        FileNotFoundError: the weights are out of reach.
    """
    tower = find_tower(config.model, random_weights=config.random_weights)
    vit, golden = tower.vit.to(config.device), config.golden
    split = subset(get_dataset(config.dataset).split(config.split), config.images)
    images = torch.stack([tower.preprocess(example.image) for example in split]).to(config.device)
    ways = list(runners(vit, golden, config.precisions, config.batches, compiled=config.compiled))
    importance = []
    with progress.task("once, not timed", len(ways)) as show:
        for done, way in enumerate(ways, start=1):
            importance.append(way.run(images).numpy())
            show(done)
    calls: dict[str, Callable[[Tensor], object]] = {}
    for index, way in enumerate(ways):
        calls[str(index)] = way.run
    progress.say(f"{config.rounds} rounds")
    timings = list(interleaved(calls, images, config.rounds, warmup=0).values())
    count = len(windows(vit.patch_embed.grid_size, golden.window, golden.stride))
    first = (timings[0], importance[0])
    found = [
        _way(way, timing, first, scores, count)
        for way, timing, scores in zip(ways, timings, importance, strict=True)
    ]
    return Speed(
        created=utc_now(),
        git_commit=git_commit(),
        model=tower.name,
        random_weights=config.random_weights,
        block=golden.block,
        window=golden.window,
        stride=golden.stride,
        windows=count,
        images=len(images),
        dataset=f"{config.dataset} ({config.split})",
        device=device_name(config.device),
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        ways=tuple(found),
    )


def same_ranking(ours: ArrayLike, theirs: ArrayLike, tie: float = TIE) -> NDArray[np.bool_]:
    """Tell of each image whether no two patches stand the other way round.

    Args:
        ours: (B, N) importance.
        theirs: (B, N) importance; where it differs by ``tie`` or less, either order is right.
        tie: such a difference.

    Returns:
        (B,) bool.
    """
    a, b = np.asarray(ours), np.asarray(theirs)
    ahead = b[:, :, None] - b[:, None, :] > tie
    same: NDArray[np.bool_] = ~(ahead & (a[:, :, None] <= a[:, None, :])).any(axis=(1, 2))
    return same


def _way(
    runner: Runner,
    timing: Timing,
    first: tuple[Timing, NDArray[np.float32]],
    importance: NDArray[np.float32],
    count: int,
) -> Way:
    """Put together what was measured of one way; ``count`` windows per image."""
    images = timing.batch
    fast, slow = timing.quartiles_ms
    per_s = [1000 * images * count / ms for ms in (timing.median_ms, slow, fast)]
    taus = kendall_tau(importance, first[1])
    told: dict[str, Any] = {name: getattr(runner, name) for name in ("name", "precision", "batch")}
    return Way(
        **told,
        samples_ms=timing.samples_ms,
        windows_per_s=Interval(*per_s),
        speed_up=first[0].ratio_to(timing),
        tau=float(taus.mean()),
        tau_least=float(taus.min()),
        same=float(same_ranking(importance, first[1]).mean()),
    )
