"""What attention hands out, the query that pools, and what attention layers of several libraries share.

Shapes: B images, T tokens of width D, H heads of d channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG = 1024  # keys from which on a mask may cost more than the seven launches of more channels; not measured


class PoolingQuery(NamedTuple):
    """The query that makes a tower's output of its tokens, and the keys that it meets."""

    query: Tensor  # (B, H, 1, d), not yet scaled
    key: Tensor  # (B, H, K, d)
    scale: float  # factor on the logits
    prefix: int  # the first keys, which aren't patch tokens'


class Attended(NamedTuple):
    """Result of one attention layer; queries, keys and values are (B, H, T, d)."""

    out: Tensor  # (B, T, D), after projection
    query: Tensor  # after q-norm, not yet scaled
    key: Tensor  # after k-norm
    value: Tensor
    scale: float  # factor on the logits
    pooling: Callable[[], PoolingQuery] | None = None  # computed when called; None where no query pools


def cls_attention(query: Tensor, key: Tensor, scale: float, prefix: int, size: Tensor | None = None) -> Tensor:
    """Return how much the first query attends to each patch token, mean over heads, (B, T - prefix) float32.

    Queries and keys are (B, H, T, d), prefix tokens first; with ``size`` (B, T - prefix) attention is in proportion.
    """
    logits = ((query[:, :, :1] * scale) @ key.transpose(-2, -1)).squeeze(2)
    if size is not None:
        logits = logits + F.pad(size.log(), (prefix, 0)).unsqueeze(1)
    return mean_share(logits, prefix)


def mean_share(logits: Tensor, prefix: int) -> Tensor:
    """Return each patch token's share in the softmax of logits (B, H, T), mean over heads, (B, T - prefix) float32."""
    return logits.float().softmax(dim=-1).mean(dim=1)[:, prefix:]


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend by a fused kernel, to (B, H, T, d), with a bias on the scaled logits, broadcastable to (B, H, T, T)."""
    if bias is not None:
        if _prefers_channels(query, key, bias):
            return attend_by_channels(query, key, value, bias, scale, dropout)
        bias = as_mask(bias, query)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)


def as_mask(bias: Tensor, query: Tensor) -> Tensor:
    """Return a bias on the logits as fused kernels take it.

    With another dtype than the queries' cuDNN gives wrong numbers. On a GPU the memory-efficient kernel of a compiled
    model needs rows that begin at multiples of 8 numbers.
    """
    bias, count = bias.to(query.dtype), bias.shape[-1]
    if not query.is_cuda or bias.stride(-2) % 8 == 0:
        return bias
    return F.pad(bias, [0, -count % 8])[..., :count]


def attend_by_channels(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend as ``attend`` does with a bias (B, 1, 1, T), but without a mask, which flash kernels refuse.

    Queries get channels of ones and keys the bias over the scale (FlashBias, arXiv 2505.12044), in two parts: the
    second is what rounding leaves of the first. In bfloat16 a float32 bias loses 2^-17 of itself, in a mask 2^-9.
    Zeros fill up to a multiple of 8 channels, in the values, too.
    """
    width = query.shape[-1]
    more = 8 + -width % 8
    scale = width**-0.5 if scale is None else scale
    wanted = bias.transpose(2, 3) / scale
    high = wanted.to(key.dtype)
    channels = F.pad(torch.cat((high, (wanted - high).to(key.dtype)), dim=-1), (0, more - 2))
    key = torch.cat((key, channels.expand(-1, key.shape[1], -1, -1)), dim=-1)
    query, value = F.pad(query, (0, more), value=1.0), F.pad(value, (0, more))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)[..., :width]


def _prefers_channels(query: Tensor, key: Tensor, bias: Tensor) -> bool:
    """Tell whether to attend by channels: on GPUs in low precision from ``LONG`` keys on.

    Flash kernels take no mask. A rule and no timing, which would give the same images other features now and then.
    """
    if query.dtype not in (torch.bfloat16, torch.float16) or not query.is_cuda or torch.compiler.is_compiling():
        return False  # first, as a graph that compares the shapes below would have one batch size
    return key.shape[2] >= LONG and bias.shape == (key.shape[0], 1, 1, key.shape[2])


def split_heads(shape: tuple[int, int], *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (B, T, H * d) as (B, H, T, d); ``shape`` is (H, -1) or (-1, d)."""
    query, key, value = (part.unflatten(2, shape).transpose(1, 2) for part in parts)
    return query, key, value


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer computes what its weights say, unlike LoRA's, quantized and parametrized ones."""
    return type(layer) is nn.Linear and "weight" in layer._parameters


def torch_projections(layer: nn.MultiheadAttention, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (B, H, Q, d), keys and values (B, H, T, d) of ``nn.MultiheadAttention``, see `torch_attention`."""
    weights: Sequence[Tensor] = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    parts = (F.linear(*each) for each in zip((query, x, x), weights, biases, strict=True))
    return split_heads((layer.num_heads, -1), *parts)


def torch_attention(layer: nn.MultiheadAttention, query: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by ``nn.MultiheadAttention`` from ``query`` (B, Q, D) to ``x`` (B, T, D), with a bias (B, 1, 1, T).

    Its own forward takes no mask that is the same for all heads of an image.
    """
    out = attend(*torch_projections(layer, query, x), bias, dropout=layer.dropout if layer.training else 0.0)
    return layer.out_proj(out.transpose(1, 2).flatten(2))
