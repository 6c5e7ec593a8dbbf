"""Measure how fast golden rankings are made, against the straightforward way."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness import git_commit
from harness.base.table import NOT_MEASURED, Table
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.datasets.few_shot import subset
from harness.measure.timing import LEAST_ROUNDS, interleave
from harness.models.towers import find_tower
from harness.records.agreement import kendall_tau
from harness.records.conditions import device_name
from harness.records.record import utc_now
from harness.records.statistics import Interval
from zoo.core.messages import expected
from zoo.core.precision import PRECISIONS
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.windows import mean_over_windows, members, outside, windows
from zoo.towers.vit import ReducedViT

Call = Callable[[Tensor], Tensor]  # from images (B, C, H, W) to importance (B, N)
TIE = 1e-5  # scores that differ by no more are equal


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What to measure, and how."""

    model: str = "clip_vit_s14"  # dense name, as for ``load_tower``
    random_weights: bool = False  # do without weights; only for models of ours
    dataset: str = "fashion"
    split: SplitName = "val"
    images: int = 4  # number of images
    golden: GoldenConfig = field(default_factory=GoldenConfig)  # block and windows; preservation, one-shot, exact
    precisions: tuple[str, ...] = ("float32", "bfloat16")  # of the engine
    batches: tuple[int, ...] = ()  # sequences per forward pass; none for the engine's own choice
    compiled: bool = False  # measure the compiled engine as well
    rounds: int = 5  # samples of each way
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
class SpeedWay:
    """How fast one way makes the rankings."""

    name: str  # ``straightforward``, or ``engine`` with its precision
    batch: int  # sequences per forward pass
    samples_ms: tuple[float, ...]  # for all images, one per round
    windows_per_s: Interval  # at the median time, at the third and at the first quartile
    speed_up: Interval  # time of the straightforward way by this one's, median over rounds
    tau: float  # Kendall tau-b to the straightforward way's importance, mean over images
    tau_least: float  # the same, least over images
    same: float  # share of the images whose ranking is the straightforward way's, up to ties


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured under which conditions; the straightforward way is the first."""

    created: str
    git_commit: str | None
    model: str
    config: SpeedConfig
    windows: int
    device_name: str
    threads: int
    versions: Mapping[str, str]
    ways: tuple[SpeedWay, ...]


class Plain:
    """Rank one image at a time, all its windows as one batch, by feature preservation.

    The blocks before the reduction point run once per image; all others, the last included, run for
    every token; attention weights are formed (timm's blocks without fused attention).
    """

    def __init__(self, model: ReducedViT, config: GoldenConfig) -> None:
        """Copy a dense float32 tower in evaluation mode, as fused attention is turned off."""
        self.model = copy.deepcopy(model)
        self.config = config
        blocks: Any = self.model.blocks
        for block in blocks:
            block.attn.fused_attn = False

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def importance(self, images: Tensor) -> Tensor:
        """Score the patches of images (B, C, H, W); (B, N) float32 on the CPU, higher = keep."""
        device = next(self.model.parameters()).device
        return torch.stack([self._importance(image[None].to(device)).cpu() for image in images])

    def _importance(self, image: Tensor) -> Tensor:
        start, _ = self.model.advance(self.model.embed(image), stop=self.config.block)
        cells = windows(start.grid, self.config.window, self.config.stride).to(start.x.device)
        left = outside(members(cells, start.patch_count))
        prefix = start.x[:, : start.prefix].expand(len(cells), -1, -1)
        sequences = torch.cat((prefix, start.patches[0, left]), dim=1)
        scores = F.cosine_similarity(self._features(sequences), self._features(start.x))
        return -mean_over_windows(scores[None], cells, start.patch_count)[0]

    def _features(self, x: Tensor) -> Tensor:
        blocks: Any = self.model.blocks
        for block in blocks[self.config.block :]:
            x = block(x)
        features: Tensor = self.model.forward_head(self.model.norm(x))
        return features


def _runners(vit: ReducedViT, config: SpeedConfig, count: int) -> Iterator[tuple[str, int, Call]]:
    """Prepare the straightforward way, then the engine in every precision and batch: name, batch, call."""
    yield "straightforward", count, Plain(vit, config.golden).importance
    ahead = (False, True) if config.compiled else (False,)
    for precision, batch, compiled in product(config.precisions, config.batches or (None,), ahead):
        engine = GoldenEngine(vit, config.golden, precision=precision, compiled=compiled, batch=batch)
        yield f"engine, {precision}{', compiled' if compiled else ''}", engine.suffix.batch, engine.importance


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
    count = len(windows(vit.patch_embed.grid_size, golden.window, golden.stride))
    names, batches, calls = zip(*_runners(vit, config, count), strict=True)
    with progress.task("study speed", len(calls) + config.rounds) as show:
        importance = []
        for done, call in enumerate(calls, start=1):  # once, not timed
            importance.append(call(images).numpy())
            show(done)
        numbered = {str(index): call for index, call in enumerate(calls)}
        on_round = lambda done: show(len(calls) + done)  # noqa: E731
        timings = list(interleave(numbered, images, config.rounds, warmup=0, tick=on_round).values())
    ways = []
    for name, batch, timing, scores in zip(names, batches, timings, importance, strict=True):
        median, fast, slow = timing.spread_ms
        taus = kendall_tau(scores, importance[0])
        way = SpeedWay(
            name=name, batch=batch, samples_ms=timing.samples_ms, speed_up=timings[0].ratio_to(timing),
            windows_per_s=Interval(*(1e3 * len(images) * count / time for time in (median, slow, fast))),
            tau=float(taus.mean()), tau_least=float(taus.min()),
            same=float(same_ranking(scores, importance[0]).mean()),
        )  # fmt: skip
        ways.append(way)
    return Speed(
        created=utc_now(), git_commit=git_commit(), model=tower.name, config=config, windows=count,
        device_name=device_name(config.device), threads=torch.get_num_threads(), ways=tuple(ways),
        versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
    )  # fmt: skip


def same_ranking(ours: ArrayLike, theirs: ArrayLike, tie: float = TIE) -> NDArray[np.bool_]:
    """Tell, (B,) bool, whether two importances (B, N) put no two patches the other way round.

    Where ``theirs`` differ by ``tie`` or less, either order is right.
    """
    a, b = np.asarray(ours), np.asarray(theirs)
    ahead = b[:, :, None] - b[:, None, :] > tie
    same: NDArray[np.bool_] = ~(ahead & (a[:, :, None] <= a[:, None, :])).any(axis=(1, 2))
    return same


def speed_table(speed: Speed) -> Table:
    """Lay out all ways, the straightforward one first."""
    config, golden = speed.config, speed.config.golden
    rows = []
    for way in speed.ways:
        rate = "{:.1f} [{:.1f}, {:.1f}]".format(*way.windows_per_s)
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*way.speed_up)
        alike = f"{way.tau:.3f} ({way.tau_least:.3f})", f"{100 * way.same:.0f} %"
        if config.random_weights:  # all patches are as good as each other
            alike = NOT_MEASURED, NOT_MEASURED
        rows.append([way.name, str(way.batch), rate, ratio, *alike])
    ends = "95 % intervals" if config.rounds >= LEAST_ROUNDS else "their range"
    return Table.of(
        f"{speed.model}, before block {golden.block}, {speed.windows} windows (side {golden.window}, stride "
        f"{golden.stride}), images of {config.dataset} ({config.split}): {config.images}",
        ("way", "batch", "windows/s", "speed-up", "tau (least)", "same"),
        rows,
        words={"way"},
        wide={"batch", "tau (least)"},
        caption=f"{speed.device_name}, threads: {speed.threads}. {config.rounds} rounds: medians [quartiles], ratios "
        f"with {ends}. same: share of rankings equal to the first row's up to scores within {TIE:g}.",
    )
