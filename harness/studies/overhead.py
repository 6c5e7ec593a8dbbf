"""What predictors cost beside the dense tower that they serve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.table import Table
from harness.base.terminal import Progress
from harness.measure.cost import gflops
from harness.measure.timing import Call, interleave, random_images
from harness.records.conditions import DENSE, DTYPES
from harness.records.record import lacking
from harness.records.statistics import Interval
from zoo.core.host import Host
from zoo.core.predictor import Predictor


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
        timings = interleave(calls, images, rounds)
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
    cells = []
    for row in rows:
        time = "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in row.latency))
        size = str(row.width), f"{row.params:,}"
        cells.append((row.arch, *size, f"{row.gflops:.4f}", f"{100 * row.share:.2f}", time))
    heads = ("network", "width", "parameters", "GFLOPs", "share, %", "time, %")
    caption = (
        "share: of the dense tower's multiply-adds; time: ratio to the dense tower's, "
        f"median [interval] of rounds in turn{'; ' if lack else ''}{lack}"
    )
    return Table.of(title, heads, cells, words={"network"}, caption=caption)
