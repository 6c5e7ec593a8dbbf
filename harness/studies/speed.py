"""Measure how fast golden rankings are made, against the straightforward way."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from rich.table import Table
from torch import Tensor

from harness import git_commit
from harness.console.table import NOT_MEASURED, Forms, fewer
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.datasets.few_shot import subset
from harness.measure.timing import LEAST_ROUNDS, interleaved
from harness.models.towers import find_tower
from harness.records.agreement import kendall_tau
from harness.records.conditions import device_name
from harness.records.record import utc_now
from harness.records.statistics import Interval
from zoo.approximate import Effort
from zoo.files import write_whole
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.reducer import expected
from zoo.suffix import PRECISIONS
from zoo.vit import ReducedViT
from zoo.windows import mean_over_windows, members, outside, windows

SCHEMA_VERSION = 1
STRAIGHTFORWARD = "straightforward"
TIE = 1e-5  # scores that differ by no more are equal
DETAILS = ("batch", "tau (least)", "G per image", "G/s")  # columns for a wide terminal


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
        multiply_adds: per image, of embedding and blocks.
        multiply_adds_per_s: at the median time.
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
    multiply_adds: int
    multiply_adds_per_s: float


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


class Plain:
    """Rank one image at a time, all its windows as one batch, by feature preservation.

    The blocks before the reduction point run once per image; all others, the last included, run for
    every token; attention weights are formed (timm's blocks without fused attention).

    Args:
        model: dense tower in float32, in evaluation mode.
        config: block and windows.
    """

    def __init__(self, model: ReducedViT, config: GoldenConfig) -> None:
        """Take a copy, as fused attention is turned off."""
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


class _Runner(NamedTuple):
    """A way to rank: from images (B, C, H, W) to importance (B, N), and what is known of it."""

    name: str
    precision: str
    batch: int  # sequences per forward pass
    run: Callable[[Tensor], Tensor]
    multiply_adds: int  # per image, of embedding and blocks


def _runners(vit: ReducedViT, config: SpeedConfig, count: int) -> Iterator[_Runner]:
    """Prepare the straightforward way, then the engine in every precision and batch."""
    golden, effort = config.golden, Effort.of(vit, config.golden.block)
    without = effort.tokens - golden.window**2  # tokens of an image without a window
    weights: Any = vit.patch_embed.proj.weight
    once = effort.patches * weights.numel() + _blocks(effort, golden.block, effort.tokens)
    work = _blocks(effort, effort.blocks, effort.tokens)
    work += count * _blocks(effort, effort.blocks, without)
    yield _Runner(STRAIGHTFORWARD, "float32", count, Plain(vit, golden).importance, once + work)
    left = replace(effort, grid=(1, without - effort.prefix))
    work = once + effort.whole + count * left.whole
    ahead = (False, True) if config.compiled else (False,)
    for precision, batch, compiled in product(config.precisions, config.batches or (None,), ahead):
        engine = GoldenEngine(vit, golden, precision=precision, compiled=compiled, batch=batch)
        name = f"engine, {precision}{', compiled' if compiled else ''}"
        yield _Runner(name, precision, engine.suffix.batch, engine.importance, work)


def _blocks(effort: Effort, blocks: int, tokens: int) -> int:
    """Count blocks that are all run for every token; ``inner`` counts all but the last."""
    return replace(effort, blocks=blocks + 1).inner(tokens, tokens)


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
    runners = list(_runners(vit, config, count))
    importance = []
    with progress.task("once, not timed", len(runners)) as show:
        for done, runner in enumerate(runners, start=1):
            importance.append(runner.run(images).numpy())
            show(done)
    progress.say(f"{config.rounds} rounds")
    calls = {str(index): runner.run for index, runner in enumerate(runners)}
    timings = list(interleaved(calls, images, config.rounds, warmup=0).values())
    ways = []
    for runner, timing, scores in zip(runners, timings, importance, strict=True):
        median, fast, slow = timing.spread_ms
        taus = kendall_tau(scores, importance[0])
        way = Way(
            name=runner.name,
            precision=runner.precision,
            batch=runner.batch,
            samples_ms=timing.samples_ms,
            windows_per_s=Interval(*(1e3 * len(images) * count / t for t in (median, slow, fast))),
            speed_up=timings[0].ratio_to(timing),
            tau=float(taus.mean()),
            tau_least=float(taus.min()),
            same=float(same_ranking(scores, importance[0]).mean()),
            multiply_adds=runner.multiply_adds,
            multiply_adds_per_s=1000 * len(images) * runner.multiply_adds / median,
        )
        ways.append(way)
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
        ways=tuple(ways),
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


def speed_table(speed: Speed) -> Table:
    """Lay out all ways, the straightforward one first."""
    title = (
        f"{speed.model}, before block {speed.block}, {speed.windows} windows (side {speed.window}, "
        f"stride {speed.stride}), images of {speed.dataset}: {speed.images}"
    )
    rounds = len(speed.ways[0].samples_ms)
    ends = "95 % intervals" if rounds >= LEAST_ROUNDS else "their range"
    caption = (
        f"{speed.device}, threads: {speed.threads}. {rounds} rounds: medians \\[quartiles], "
        f"ratios with {ends}. same: share of rankings equal to the first row's up to scores "
        f"within {TIE:g}. G: 1e9 multiply-adds of embedding and blocks."
    )
    table = Table(title=title, caption=caption, caption_justify="left")
    heads = ("way", "batch", "windows/s", "speed-up", "tau (least)", "same", "G per image", "G/s")
    for head in heads:
        table.add_column(head, justify="left" if head == "way" else "right", no_wrap=True)
    for way in speed.ways:
        # Without weights all patches are as good as each other.
        agreement = [f"{way.tau:.3f} ({way.tau_least:.3f})", f"{100 * way.same:.0f} %"]
        if speed.random_weights:
            agreement = [NOT_MEASURED] * 2
        table.add_row(
            way.name,
            str(way.batch),
            _interval(way.windows_per_s, ".1f"),
            _interval(way.speed_up, ".2f"),
            *agreement,
            f"{way.multiply_adds / 1e9:.1f}",
            f"{way.multiply_adds_per_s / 1e9:.1f}",
        )
    return table


def speed_forms(speed: Speed) -> Forms:
    """Return the table as it is, and for a narrow terminal."""
    table = speed_table(speed)
    return Forms((table, fewer(table, DETAILS)))


def _interval(value: Interval, form: str) -> str:
    estimate, low, high = (format(number, form) for number in value)
    return f"{estimate} \\[{low}, {high}]"
