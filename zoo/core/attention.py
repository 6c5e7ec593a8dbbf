"""What attention hands out, the query that pools, and what attention layers of several libraries share.

Layers are typed Any: torch types their attributes as Tensor | Module.
Shapes: B images, T tokens of width D, H heads of d channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


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
    """Return how much the first query attends to each patch token, mean over heads.

    From queries and keys (B, H, T, d), prefix tokens first, to (B, T - prefix) float32; with the
    prefix tokens' share a row sums to 1. The arguments are those of ``PoolingQuery``, or all of a layer's; with the
    ``size`` (B, T - prefix) of each patch token attention is in proportion to it.
    """
    logits = ((query[:, :, :1] * scale) @ key.transpose(-2, -1)).squeeze(2)
    if size is not None:
        logits = logits + F.pad(size.log(), (prefix, 0)).unsqueeze(1)
    return mean_share(logits, prefix)


def mean_share(logits: Tensor, prefix: int) -> Tensor:
    """Return each patch token's share in the softmax of logits (B, H, T), mean over heads, (B, T - prefix) float32."""
    return logits.float().softmax(dim=-1).mean(dim=1)[:, prefix:]


def split_heads(shape: tuple[int, int], *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (B, T, H * d) as (B, H, T, d); ``shape`` is (H, -1) or (-1, d)."""
    query, key, value = (part.unflatten(2, shape).transpose(1, 2) for part in parts)
    return query, key, value


def is_plain(layer: Any) -> bool:
    """Tell whether a layer computes what its ``weight`` and ``bias`` say and nothing else.

    Wrappers such as LoRA's, quantized layers and parametrized weights don't: what reads their
    weights instead of calling them gets other numbers, or none.
    """
    return type(layer) is nn.Linear and "weight" in layer._parameters


def torch_projections(layer: Any, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values of ``nn.MultiheadAttention`` from a query to tokens ``x`` (B, T, D).

    ``query`` is (B, Q, D); the results are (B, H, Q or T, d).
    """
    weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    parts = (F.linear(*each) for each in zip((query, x, x), weights, biases, strict=True))
    return split_heads((layer.num_heads, -1), *parts)


def torch_attention(layer: Any, query: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by ``nn.MultiheadAttention``, with a bias (B, 1, 1, T) on the logits, to (B, Q, D).

    Its own forward takes no mask that is the same for all heads of an image.
    """
    q, k, v = torch_projections(layer, query, x)
    dropout = layer.dropout if layer.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return layer.out_proj(out.transpose(1, 2).flatten(2))
