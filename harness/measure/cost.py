"""What models cost: multiply-adds of one image, hiding no operator, and tokens."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.base.terminal import Progress
from harness.records.record import lacking
from zoo.deploy.runtime import RUNTIMES

if TYPE_CHECKING:
    from harness.measure.rows import Variant

# Counted as free, like everywhere in the field: one pass over the data, no contraction. fvcore
# itself counts LayerNorm as 5 per element (0.02 of ViT-B/16's 17.58 G) and knows more free ones
# (views, copies, gather, comparisons). An operator in neither list is reported as unsupported.
FREE_OPERATORS = frozenset(
    f"aten::{name}"
    for names in (
        # elementwise arithmetic and activations
        "abs add addcmul bernoulli clamp_max clamp_min clone cos div elu erf exp gelu "
        "hardsigmoid le lift_fresh log log1p logical_and logical_not logical_or lt maximum "
        "minimum mul ne neg pow reciprocal rsqrt rsub sigmoid silu sin sqrt sub tanh where",
        # integer arithmetic on bits
        "__lshift__ __or__ __rshift__ __xor__ bitwise_and bitwise_left_shift bitwise_or "
        "bitwise_right_shift bitwise_xor",
        # reductions and normalisations
        "adaptive_avg_pool1d all amax amin any argmax argmin cummax cumsum frobenius_norm "
        "linalg_vector_norm log_softmax logsumexp mean min norm prod softmax std sum var",
        # ordering and random numbers (comparisons, no multiplication)
        "argsort kthvalue one_hot rand rand_like randn randn_like randperm sort topk unique_dim",
        # moving data that fvcore does not list
        "broadcast_tensors embedding expand_as eye fill full index_add index_copy index_select "
        "is_floating_point masked_fill masked_select masked_scatter movedim new_ones ones_like "
        "pad repeat repeat_interleave scatter scatter_add scatter_reduce searchsorted swapaxes "
        "take_along_dim tensor tile tril triu unflatten view_as zero",
    )
    for name in names.split()
)

Handle = Callable[[list[Any], list[Any]], Any]  # an operator's inputs and outputs to its count


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """What one image costs a model."""

    gflops: float  # 1e9 multiply-adds per image, attention included
    by_operator: Mapping[str, float]  # the same per operator name without "aten::"
    unsupported: tuple[str, ...]  # operators whose cost is unknown and missing, sorted
    params: int  # trained or not


def gflops(model: nn.Module, image_size: int | tuple[int, int], channels: int = 3) -> OperatorCost:
    """Trace one image through the model in eval mode and count with fvcore.

    The model maps (1, channels, height, width) to a tensor. It stays on its device and in its dtype; training flags,
    random state and the attention fast path are restored.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    place = next(p for p in model.parameters() if p.is_floating_point())
    image = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with _undisturbed(model), torch.no_grad():
        from fvcore.nn import FlopCountAnalysis  # here, as importing it warns about torch.jit

        analysis = FlopCountAnalysis(model, (image.to(place),))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none").set_op_handle(**_HANDLES)
        counts = {name: count / 1e9 for name, count in analysis.by_operator().items()}
        free = {form for name in FREE_OPERATORS for form in (name, f"{name}_")}  # or in place
        unknown = set(analysis.unsupported_ops()) - free
    return OperatorCost(
        gflops=sum(counts.values()),
        by_operator=counts,
        unsupported=tuple(sorted(unknown)),
        params=sum(p.numel() for p in model.parameters()),
    )


def _shapes(values: Sequence[Any]) -> list[list[int]]:
    return [value.type().sizes() for value in values]


def _attention(inputs: list[Any], _outputs: list[Any]) -> int:
    """Count fused attention: queries times keys, then weights times values."""
    query, key, value = _shapes(inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _bmm(inputs: list[Any], _outputs: list[Any]) -> int:
    """Count a product of matrices, batched or not; fvcore's own handle fails with `out=`."""
    left, right = _shapes(inputs[:2])
    return prod(left) * right[-1]


def _cdist(inputs: list[Any], _outputs: list[Any]) -> int:
    """Count pairwise distances as the product of matrices that they hide."""
    left, right = _shapes(inputs[:2])
    return prod(left) * right[-2]


def _resize(_inputs: list[Any], outputs: list[Any]) -> int:
    """Count bicubic resizing, such as of position tables: 4 x 4 weights for each value."""
    return 16 * prod(_shapes(outputs)[0])


# What fvcore doesn't know, or counts wrongly.
_HANDLES: dict[str, Handle] = {
    f"aten::{name}": handle
    for names, handle in (
        ("scaled_dot_product_attention", _attention),
        ("addmm_ baddbmm addbmm", lambda inputs, outputs: _bmm(inputs[1:], outputs)),
        ("bmm", _bmm),
        ("cdist", _cdist),
        ("dot mv", lambda inputs, _: prod(_shapes(inputs[:1])[0])),
        ("upsample_bicubic2d _upsample_bicubic2d_aa", _resize),
    )
    for name in names.split()
}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Set eval mode, silence the tracer, and put back every flag on leaving."""
    training = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    logger = logging.getLogger("fvcore")
    disabled = logger.disabled
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, whose cost would be missing
        logger.disabled = True
        model.eval()
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, was_training in training:
            module.training = was_training


def count_costs(rows: "Sequence[Variant]", progress: Progress) -> dict[str, dict[str, Any]]:
    """Count what a record says of the cost of rows that can be run, regardless of images, by key."""
    counted: dict[str, dict[str, Any]] = {}
    with progress.task("multiply-adds", len(rows)) as update:
        for done, row in enumerate(rows, start=1):
            if row.method in RUNTIMES:  # the same products, hidden in kernels
                counted[row.key] = counted[rows[0].key]
                continue
            like, size = next(row.vit.parameters()), row.vit.input_size
            cost = gflops(row.vit, size)
            if lack := lacking(cost.unsupported):
                progress.say(f"{row.key}: {lack}")
            with torch.inference_mode():
                trace = row.vit.trace(torch.zeros(1, 3, *size).to(like))
            counted[row.key] = {
                "gflops": cost.gflops,
                "uncounted_operators": cost.unsupported,
                "params": cost.params,
                "tokens_per_block": tuple(trace.tokens_per_block),
                "final_tokens": trace.final_tokens,
            }
            update(done)
    return counted
