"""Attention of a stock timm block that also hands out its queries and keys.

Blocks and attention layers are typed Any, since torch types their attributes as Tensor | Module.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Attended(NamedTuple):
    """Result of one attention layer.

    Attributes:
        out: (B, T, D) output of the layer, after projection.
        query: (B, H, T, d) queries after q-norm, not yet scaled.
        key: (B, H, T, d) keys after k-norm.
        value: (B, H, T, d) values.
        scale: factor on the logits.
        bias: additive bias on the logits or None.
    """

    out: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    bias: Tensor | None


def attend(attn: Any, x: Tensor, bias: Tensor | None = None) -> Attended:
    """Run timm's attention ``attn`` on normalised tokens ``x`` (B, T, D), fused.

    The same operations in the same order as timm's own forward, so equal to it bit for bit.
    """
    batch, count, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, count, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    out = attn.norm(out.transpose(1, 2).reshape(batch, count, attn.attn_dim))
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    return Attended(attn.proj_drop(attn.proj(out)), q, k, v, attn.scale, bias)


def cls_query_and_keys(attn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the class token's query (B, H, 1, d) and all keys (B, H, T, d), nothing else."""
    return attn.q_norm(_heads(attn, x[:, :1], 0)), attn.k_norm(_heads(attn, x, 1))


def _heads(attn: Any, x: Tensor, part: int) -> Tensor:
    """Compute the queries (0), keys (1) or values (2) of ``x`` alone, (B, H, T, d), not normed."""
    rows = slice(part * attn.attn_dim, (part + 1) * attn.attn_dim)
    bias = None if attn.qkv.bias is None else attn.qkv.bias[rows]
    out = F.linear(x, attn.qkv.weight[rows], bias)
    batch, count, _ = x.shape
    return out.reshape(batch, count, attn.num_heads, attn.head_dim).transpose(1, 2)


def cls_attention(
    query: Tensor, key: Tensor, scale: float, prefix: int, bias: Tensor | None = None
) -> Tensor:
    """Return how much the class token attends to each patch token, mean over heads.

    Args:
        query: (B, H, 1 or T, d) queries, the class token's first.
        key: (B, H, T, d) keys, prefix tokens first.
        scale: factor on the logits.
        prefix: number of prefix tokens.
        bias: additive bias of the same layer, broadcastable to (B, H, 1, T), or None.

    Returns:
        (B, T - prefix) float32; with the prefix tokens' share a row sums to 1.
    """
    logits = (query[:, :, :1] * scale) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.float().softmax(dim=-1).mean(dim=1).squeeze(1)[:, prefix:]


def attend_cls(block: Any, x: Tensor) -> Tensor:
    """Run a whole block for the class token alone: exact where nothing else is read afterwards.

    Keys and values are never formed where keys aren't normalised: the query goes through the keys'
    weights instead of every token, and the values' weights are applied to the attended mean.

    Args:
        block: timm's Block.
        x: (B, T, D) tokens that enter it, class token first.

    Returns:
        (B, 1, D) the class token that leaves it.
    """
    attn, normed = block.attn, block.norm1(x)
    if isinstance(attn.k_norm, nn.Identity):
        out = _attend_by_query(attn, normed)
    else:
        query, key = cls_query_and_keys(attn, normed)
        out = F.scaled_dot_product_attention(query, key, _heads(attn, normed, 2))
    out = attn.norm(out.transpose(1, 2).reshape(len(x), 1, attn.attn_dim))
    if attn.gate is not None:
        out = out * attn.gate(normed[:, :1]).sigmoid()
    cls = x[:, :1] + block.ls1(attn.proj(out))
    result: Tensor = cls + block.ls2(block.mlp(block.norm2(cls)))
    return result


def _attend_by_query(attn: Any, normed: Tensor) -> Tensor:
    """Return the class token's attended values (B, H, 1, d) from normalised tokens (B, T, D)."""
    query = attn.q_norm(_heads(attn, normed[:, :1], 0)).squeeze(2) * attn.scale
    weight = attn.qkv.weight.view(3, attn.num_heads, attn.head_dim, -1)
    # Heads as the batch of the product: otherwise the weights are copied for every sequence.
    query = (query.transpose(0, 1) @ weight[1]).transpose(0, 1)
    # The keys' bias adds the same to every logit, which the softmax undoes.
    mean = (query @ normed.transpose(1, 2)).softmax(dim=-1) @ normed
    out = (mean.transpose(0, 1) @ weight[2].transpose(1, 2)).transpose(0, 1).unsqueeze(2)
    if attn.qkv.bias is not None:
        out = out + attn.qkv.bias[2 * attn.attn_dim :].view(attn.num_heads, 1, attn.head_dim)
    result: Tensor = out
    return result
