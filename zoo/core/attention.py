"""What attention hands out, the query that pools, and the attention layer of timm's plain block.

Attention layers are typed Any, since torch types their attributes as Tensor | Module.
Shapes: B images, T tokens of width D, H heads of d channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
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


def queries_keys_values(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Call the layer's own ``qkv`` on tokens ``x`` (B, T, D); each result is (B, H, T, d)."""
    batch, count, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, count, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def qkv_with_biases(attn: Any, x: Tensor) -> Tensor:
    """Call the layer's ``qkv`` with biases of queries, keys and values apart, where it has them, (B, T, 3 H d)."""
    if getattr(attn, "q_bias", None) is None:
        qkv: Tensor = attn.qkv(x)
        return qkv
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    return attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)


def project(attn: Any, out: Tensor, x: Tensor) -> Tensor:
    """Normalise, gate and project attended values ``out`` (B, T, H * d) of tokens ``x``."""
    out = attn.norm(out)
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    projected: Tensor = attn.proj(out)
    return projected


def cls_attention(query: Tensor, key: Tensor, scale: float, prefix: int) -> Tensor:
    """Return how much the first query attends to each patch token, mean over heads.

    From queries and keys (B, H, T, d), prefix tokens first, to (B, T - prefix) float32; with the
    prefix tokens' share a row sums to 1. The arguments are those of ``PoolingQuery``, or all of a layer's.
    """
    logits = (query[:, :, :1] * scale) @ key.transpose(-2, -1)
    return _mean_share(logits.squeeze(2), prefix)


def cls_attention_of(attn: Any, x: Tensor, prefix: int) -> Tensor:
    """Return what ``cls_attention`` does from the normalised tokens ``x`` that enter a layer."""
    if needs_no_keys(attn):
        return _mean_share(_cls_logits(attn, x), prefix)
    query, key, _ = queries_keys_values(attn, x)
    return cls_attention(query, key, attn.scale, prefix)


def _mean_share(logits: Tensor, prefix: int) -> Tensor:
    return logits.float().softmax(dim=-1).mean(dim=1)[:, prefix:]


def is_plain(layer: Any) -> bool:
    """Tell whether a layer computes what its ``weight`` and ``bias`` say and nothing else.

    Wrappers such as LoRA's, quantized layers and parametrized weights don't: what reads their
    weights instead of calling them gets other numbers, or none.
    """
    return type(layer) is nn.Linear and "weight" in layer._parameters


def needs_no_keys(attn: Any) -> bool:
    """Tell whether the class token's logits are a product of its query, weights and tokens."""
    return is_plain(attn.qkv) and isinstance(attn.k_norm, nn.Identity)


def _cls_logits(attn: Any, x: Tensor) -> Tensor:
    """Return the class token's logits (B, H, T) up to a constant per head.

    No key is formed: q (W x) = (q W) x, so the query goes through the keys' weights once instead of
    every token. The keys' bias adds the same to every logit of a head, which a softmax undoes.
    """
    rows = slice(0, attn.attn_dim)
    bias = None if attn.qkv.bias is None else attn.qkv.bias[rows]
    query = F.linear(x[:, 0], attn.qkv.weight[rows], bias)
    query = attn.q_norm(query.view(x.shape[0], attn.num_heads, attn.head_dim)) * attn.scale
    # Heads as the batch of the product: otherwise the weights are copied for every sequence.
    query = (query.transpose(0, 1) @ _weights(attn)[1]).transpose(0, 1)
    logits: Tensor = query @ x.transpose(1, 2)
    return logits


def attend_by_query(attn: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the class token's attended values (B, H, 1, d), with a bias on the logits, broadcastable to (B, H, T, T).

    No value is formed either: their weights are applied to the attended mean of the tokens.
    """
    logits = _cls_logits(attn, x)
    if bias is not None:
        logits = logits + bias[..., 0, :]
    mean = logits.softmax(dim=-1) @ x
    out = (mean.transpose(0, 1) @ _weights(attn)[2].transpose(1, 2)).transpose(0, 1).unsqueeze(2)
    if attn.qkv.bias is not None:
        out = out + attn.qkv.bias[2 * attn.attn_dim :].view(attn.num_heads, 1, attn.head_dim)
    return out


def _weights(attn: Any) -> Tensor:
    """Return the weights of queries, keys and values by head, (3, H, d, D)."""
    weights: Tensor = attn.qkv.weight.view(3, attn.num_heads, attn.head_dim, -1)
    return weights


def torch_projections(layer: Any, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values of ``nn.MultiheadAttention`` from a query to tokens ``x`` (B, T, D).

    ``query`` is (B, Q, D); the results are (B, H, Q or T, d).
    """
    weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(each, weight, bias).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
        for each, weight, bias in zip((query, x, x), weights, biases, strict=True)
    )
    return q, k, v


def torch_attention(layer: Any, query: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by ``nn.MultiheadAttention``, with a bias (B, 1, 1, T) on the logits, to (B, Q, D).

    Its own forward takes no mask that is the same for all heads of an image.
    """
    q, k, v = torch_projections(layer, query, x)
    dropout = layer.dropout if layer.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    projected: Tensor = layer.out_proj(out.transpose(1, 2).flatten(2))
    return projected
