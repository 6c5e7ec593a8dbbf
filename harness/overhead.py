"""What a predictor costs beside the tower that it serves: multiply-adds, parameters, time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from harness.conditions import DTYPES
from harness.cost import gflops, lacking
from harness.latency.timing import interleaved
from harness.progress import Progress
from harness.statistics import Interval
from zoo.predictor import Predictor
from zoo.vit import ReducedViT

TOWER = "dense"


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """One predictor beside the dense tower.

    Attributes:
        arch: architecture.
        width: channels inside.
        params: number of parameters.
        gflops: 1e9 multiply-adds per image, fvcore's.
        share: of the dense tower's.
        uncounted: operators of unknown cost, which ``gflops`` lacks.
        latency: time by the dense tower's, median over rounds in which both were timed.
    """

    arch: str
    width: int
    params: int
    gflops: float
    share: float
    uncounted: tuple[str, ...]
    latency: Interval


class _Alone(nn.Module):
    """A predictor on tokens (B, T, D)."""

    def __init__(self, predictor: Predictor, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.predictor, self.prefix, self.grid = predictor, prefix, grid

    def forward(self, image: Tensor) -> Tensor:
        """Take tokens as an image (B, D, T, 1), as the counter gives them."""
        scores: Tensor = self.predictor(image.flatten(2).transpose(1, 2), self.prefix, self.grid)
        return scores


def overhead(
    vit: ReducedViT,
    shapes: Sequence[tuple[str, int]],
    *,
    batch: int,
    rounds: int,
    dtype: str,
    progress: Progress,
) -> list[Overhead]:
    """Count and time predictors with random weights, which cost what fitted ones do.

    Args:
        vit: the dense tower, on its device.
        shapes: architecture and width of each.
        batch: images per call.
        rounds: timed calls of each, in turn.
        dtype: of tower and predictors.
        progress: where to show how far things are.
    """
    vit = vit.to(dtype=DTYPES[dtype])
    like = next(vit.parameters())
    size, grid, prefix = vit.patch_embed.img_size, vit.patch_embed.grid_size, vit.num_prefix_tokens
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator).to(like.device, like.dtype)
    count = prefix + grid[0] * grid[1]
    tokens = torch.randn(batch, count, vit.embed_dim, generator=generator).to(images)
    whole = gflops(vit, size).gflops
    found, timed = {}, dict[str, Callable[[Tensor], object]]()
    timed[TOWER] = vit
    for arch, width in shapes:
        net = Predictor(arch, vit.embed_dim, width, grid, like.device, like.dtype).eval()
        cost = gflops(_Alone(net, prefix, grid), (count, 1), channels=vit.embed_dim)
        name = f"{arch} {width}"
        found[name] = (arch, width, cost)
        timed[name] = _on(net, tokens, prefix, grid)
    with progress.task(f"latency at batch {batch}", 1) as update:
        timings = interleaved(timed, images, rounds)
        update(1)
    rows = []
    for name, (arch, width, cost) in found.items():
        told: dict[str, Any] = {"arch": arch, "width": width, "params": cost.params}
        told |= {"gflops": cost.gflops, "uncounted": cost.unsupported}
        ratio = timings[name].ratio_to(timings[TOWER])
        rows.append(Overhead(share=cost.gflops / whole, latency=ratio, **told))
    return rows


def _on(
    net: Predictor, tokens: Tensor, prefix: int, grid: tuple[int, int]
) -> Callable[[Tensor], object]:
    """Return the predictor on these tokens, whatever images it is called with."""
    return lambda _images: net(tokens, prefix, grid)


def overhead_table(rows: Sequence[Overhead], title: str) -> Table:
    """Lay predictors out beside the tower."""
    lost = lacking(dict.fromkeys(name for row in rows for name in row.uncounted))
    table = Table(
        title=title,
        caption="share: of the dense tower's multiply-adds; time: ratio to the dense tower's, "
        f"median \\[interval] of rounds in turn{'; ' if lost else ''}{lost}",
    )
    for head in ("network", "width", "parameters", "GFLOPs", "share, %", "time, %"):
        table.add_column(head, justify="left" if head == "network" else "right", no_wrap=True)
    for row in rows:
        ratio, low, high = (100 * value for value in row.latency)
        table.add_row(
            row.arch,
            str(row.width),
            f"{row.params:,}",
            f"{row.gflops:.4f}",
            f"{100 * row.share:.2f}",
            f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
        )
    return table
