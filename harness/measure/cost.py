"""What rows and predictors cost: multiply-adds, activations, parameters, tokens and time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.table import Cell, Column, Table
from harness.base.terminal import Progress
from harness.measure.rows import Variant
from harness.measure.timing import Call, interleaved, random_images
from harness.models.cost import gflops
from harness.records.conditions import DENSE, DTYPES, GOLDEN
from harness.records.record import Times, lacking
from harness.records.statistics import Interval
from zoo.core.host import Host
from zoo.core.predictor import Predictor

COUNTED = 20  # runs on an image that take about as long as counting a row's multiply-adds


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Carry what can be counted of a row, regardless of images."""

    gflops: float  # 1e9 multiply-adds per image
    uncounted_operators: tuple[str, ...] = ()  # whose cost is unknown and missing from it
    activations: int  # elements that products give per image
    params: int
    tokens_per_block: tuple[int, ...]  # leaving each block, prefix tokens included
    final_tokens: int  # patch tokens left at the end


def counts(rows: Sequence[Variant], progress: Progress) -> dict[str, Counts]:
    """Count multiply-adds, activations, parameters and tokens of rows that can be run, by key."""
    counted = {}
    with progress.task("multiply-adds", len(rows), units=COUNTED) as update:
        for done, row in enumerate(rows, start=1):
            like, size = next(row.vit.parameters()), row.vit.input_size
            cost = gflops(row.vit, size)
            if lack := lacking(cost.unsupported):
                progress.say(f"{row.key}: {lack}")
            with torch.inference_mode():
                trace = row.vit.trace(torch.zeros(1, 3, *size).to(like))
            counted[row.key] = Counts(
                gflops=cost.gflops,
                uncounted_operators=cost.unsupported,
                activations=cost.activations,
                params=cost.params,
                tokens_per_block=tuple(trace.tokens_per_block),
                final_tokens=trace.final_tokens,
            )
            update(done)
    return counted


def costs(rows: Sequence[Variant], rounds: Mapping[int, int], progress: Progress) -> dict[str, dict[str, Any]]:
    """Measure what every row costs, latency included, as fields of ``Record`` by the row's key.

    ``rounds`` are those of each batch size. A golden row is no model one could run, so it has none of them.
    """
    real = [row for row in rows if row.method != GOLDEN]
    facts: dict[str, dict[str, Any]] = {row.key: {} for row in rows}
    for key, counted in counts(real, progress).items():
        facts[key] = dict(vars(counted))
        del facts[key]["final_tokens"]  # the images' own say that
    latencies: dict[str, list[Times]] = {row.key: [] for row in real}
    dense = next((row.key for row in real if row.method == DENSE), "")  # none beside prompts
    for batch, count in rounds.items():
        weight, size = next(real[0].vit.parameters()), real[0].vit.input_size
        images = random_images(batch, size, weight.device, weight.dtype)
        with progress.task(f"latency at batch {batch}", count, units=batch * len(real)) as update:
            timings = interleaved({row.key: row.vit for row in real}, images, count, warmup=1, tick=update)
        for key, timing in timings.items():
            latencies[key].append(timing.latency(None if key == dense else timings.get(dense)))
    for key, entries in latencies.items():
        facts[key]["latency"] = tuple(entries)
    return facts


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What one predictor costs beside the dense tower that it serves."""

    arch: str
    width: int  # channels inside
    params: int
    gflops: float  # 1e9 multiply-adds per image, fvcore's
    share: float  # of the dense tower's
    uncounted: tuple[str, ...]  # operators of unknown cost, which ``gflops`` lacks
    latency: Interval  # time by the dense tower's, median over rounds in which both were timed


class _Alone(nn.Module):
    """A predictor on tokens (B, T, D), which the counter gives it as an image (B, D, T, 1)."""

    def __init__(self, predictor: Predictor, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.predictor, self.prefix, self.grid = predictor, prefix, grid

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        scores: Tensor = self.predictor(tokens, self.prefix, self.grid)
        return scores


def overhead(
    vit: Host, shapes: Sequence[tuple[str, int]], *, batch: int, rounds: int, dtype: str, progress: Progress
) -> list[Overhead]:
    """Count and time predictors with random weights, which cost what fitted ones do.

    ``shapes`` are their architectures and widths, ``vit`` the dense tower on its device.
    """
    vit = vit.to(dtype=DTYPES[dtype])
    weight, size = next(vit.parameters()), vit.input_size
    grid, prefix = vit.grid, vit.prefix_count
    count = prefix + grid[0] * grid[1]
    images = random_images(batch, size, weight.device, weight.dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, count, vit.embed_dim, generator=generator).to(images)
    tokens = tokens.transpose(1, 2)[..., None]  # as an image, and contiguous for the predictor
    nets: dict[tuple[str, int], nn.Module] = {}
    for arch, width in shapes:
        shape = (arch, vit.embed_dim, width, grid)
        predictor = Predictor(*shape, weight.device, weight.dtype).eval()
        nets[arch, width] = _Alone(predictor, prefix, grid)

    def on_tokens(net: nn.Module) -> Call:
        return lambda _images: net(tokens)

    calls: dict[str, Call] = {DENSE: vit}
    calls |= {f"{arch} {width}": on_tokens(net) for (arch, width), net in nets.items()}
    with progress.task(f"latency at batch {batch}", 1) as update:
        timings = interleaved(calls, images, rounds)
        update(1)
    whole, rows = gflops(vit, size).gflops, []
    for (arch, width), net in nets.items():
        cost = gflops(net, (count, 1), channels=vit.embed_dim)
        facts: dict[str, Any] = {"arch": arch, "width": width, "params": cost.params}
        facts |= {"gflops": cost.gflops, "share": cost.gflops / whole}
        latency = timings[f"{arch} {width}"].ratio_to(timings[DENSE])
        rows.append(Overhead(**facts, uncounted=cost.unsupported, latency=latency))
    return rows


def overhead_table(rows: Sequence[Overhead], title: str) -> Table:
    """Lay predictors out beside the tower."""
    lack = lacking(dict.fromkeys(name for row in rows for name in row.uncounted))
    heads = ("network", "width", "parameters", "GFLOPs", "share, %", "time, %")
    cells = []
    for row in rows:
        ratio, low, high = (100 * value for value in row.latency)
        time = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        size, share = (str(row.width), f"{row.params:,}"), f"{100 * row.share:.2f}"
        cells.append([*map(Cell, (row.arch, *size, f"{row.gflops:.4f}", share, time))])
    return Table(
        title=title,
        caption="share: of the dense tower's multiply-adds; time: ratio to the dense tower's, "
        f"median [interval] of rounds in turn{'; ' if lack else ''}{lack}",
        columns=[Column(heading=head, left=head == "network") for head in heads],
        rows=cells,
    )
