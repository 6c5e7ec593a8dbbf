"""What a row costs: multiply-adds, parameters, tokens and latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.conditions import DENSE, GOLDEN
from harness.cost import gflops, lacking
from harness.latency.timing import Timing, interleaved
from harness.measure.rows import Variant
from harness.progress import Progress
from harness.records import Latency


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Carry what can be counted of a row, regardless of images.

    Attributes:
        gflops: 1e9 multiply-adds per image.
        uncounted_operators: whose cost is unknown and missing from ``gflops``.
        activations: elements that products give per image.
        params: number of parameters.
        tokens_per_block: leaving each block, prefix tokens included.
        final_tokens: patch tokens left at the end.
    """

    gflops: float
    uncounted_operators: tuple[str, ...] = ()
    activations: int
    params: int
    tokens_per_block: tuple[int, ...]
    final_tokens: int


def counts(rows: Sequence[Variant], progress: Progress) -> dict[str, Counts]:
    """Count every row's multiply-adds, activations, parameters and tokens.

    Returns:
        Counts by the row's key.
    """
    found = {}
    with progress.task("multiply-adds", len(rows)) as update:
        for done, row in enumerate(rows, start=1):
            like, size = next(row.vit.parameters()), row.vit.patch_embed.img_size
            cost = gflops(row.vit, size)
            if told := lacking(cost.unsupported):
                progress.say(f"{row.key}: {told}")
            with torch.inference_mode():
                trace = row.vit.trace(torch.zeros(1, 3, *size).to(like))
            found[row.key] = Counts(
                gflops=cost.gflops,
                uncounted_operators=cost.unsupported,
                activations=cost.activations,
                params=cost.params,
                tokens_per_block=tuple(trace.tokens_per_block),
                final_tokens=trace.final_tokens,
            )
            update(done)
    return found


def costs(
    rows: Sequence[Variant], batches: Sequence[int], rounds: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Measure multiply-adds, activations, parameters, tokens and latency of every row.

    A golden row is no model one could run, so it has none of them.

    Returns:
        Fields of ``Record`` by the row's key.
    """
    real = [row for row in rows if row.method != GOLDEN]
    like = next(real[0].vit.parameters())
    size = real[0].vit.patch_embed.img_size
    facts: dict[str, dict[str, Any]] = {row.key: {} for row in rows}
    for key, counted in counts(real, progress).items():
        facts[key] = dict(vars(counted))
        del facts[key]["final_tokens"]  # the images' own say that
    timings: dict[str, list[Latency]] = {row.key: [] for row in real}
    for batch in batches:
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(
            like.device, like.dtype
        )
        # Small batches are quick and noisy, so they get more rounds.
        count = rounds * (4 if batch < 8 else 1)
        with progress.task(f"latency at batch {batch}", 1) as update:
            found = interleaved({row.key: row.vit for row in real}, images, count, warmup=1)
            update(1)
        reference = found[next(row.key for row in real if row.method == DENSE)]
        for name, timing in found.items():
            timings[name].append(_latency(timing, reference))
    for name, entries in timings.items():
        facts[name]["latency"] = tuple(entries)
    return facts


def _latency(timing: Timing, reference: Timing) -> Latency:
    ratio = (None, None, None) if timing is reference else timing.ratio_to(reference)
    return Latency(
        batch=timing.batch,
        ratio_to_dense=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        **timing.summary,
    )
