"""Golden scores of all windows from a gradient: to first order, windows add up from their patches.

A gate on the attention to each patch token, 1 in the whole image and 0 where it is gone, makes the
features a smooth function; their derivative by all gates, along a direction of features, takes one
backward pass. Features vary along few directions when windows go, so few passes tell most.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.effort import Effort
from zoo.follow import follow, follow_effort, unit_features
from zoo.suffix import Suffix
from zoo.tokens import Tokens

WIDER = 8  # dimensions added to the heads; fused attention likes multiples of 8


def jacobian(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window to first order, along ``count`` directions.

    The directions are, image by image, the principal ones of how the features move when only the
    class token feels the removal (``follow`` with no other token).

    Args:
        suffix: the tower from a block on, in float32 here whatever its precision.
        start: the tokens of B images that enter the block.
        cells: (W, r * r) windows.
        count: directions, 1 to the smaller of W and D - 1.

    Returns:
        (B, D) unit features of the whole images, and (B, W, D) of those without each window.
    """
    targets, features = [], []
    for x in start.x.split(max(1, suffix.batch // 16)):
        part = start._replace(x=x)
        target, moved = follow(suffix, part, cells, 0)
        shift = moved - target.unsqueeze(1)
        shift = shift - (shift @ target.unsqueeze(2)) * target.unsqueeze(1)
        basis = torch.linalg.svd(shift, full_matrices=False).Vh[:, :count]
        slopes = gate_slopes(suffix, part, basis)
        # Removal takes the gates from 1 to 0, hence the sign.
        change = -slopes[:, :, cells].sum(dim=-1).transpose(1, 2) @ basis
        targets.append(target)
        features.append(F.normalize(target.unsqueeze(1) + change, dim=-1))
    return torch.cat(targets), torch.cat(features)


def gate_slopes(suffix: Suffix, start: Tokens, directions: Tensor) -> Tensor:
    """Differentiate unit features along directions by the gates of all patch tokens, at 1.

    Args:
        suffix: the tower from a block on.
        start: the tokens of B images that enter the block.
        directions: (B, K, D).

    Returns:
        (B, K, N) float32.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode take no part in gradients; copies do.
        x, directions = start.x.clone(), directions.clone()
        # The logarithm of the gates: added to the logits, and of the same derivative at 1.
        gates = x.new_zeros(len(x), start.patch_count, requires_grad=True)
        features = gated(suffix, x, F.pad(gates, (start.prefix, 0)))
        slopes = [
            torch.autograd.grad((features * direction).sum(), gates, retain_graph=True)[0]
            for direction in directions.unbind(1)
        ]
    return torch.stack(slopes, dim=1)


def gated(suffix: Suffix, x: Tensor, gates: Tensor) -> Tensor:
    """Compute unit features (B, D) with ``gates`` (B, T) added to the logits of all attention.

    The gates travel as one more dimension of the keys, as attention with a mask that wants a
    gradient is not fused.
    """
    blocks: Any = suffix.model.blocks[suffix.block :]
    for index, block in enumerate(blocks):
        attn, normed = block.attn, block.norm1(x)
        qkv = attn.qkv(normed).unflatten(2, (3, attn.num_heads, attn.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if index == len(blocks) - 1:
            query, x, normed = query[:, :, :1], x[:, :1], normed[:, :1]
        one = torch.full_like(query[..., :1], 1 / attn.scale)
        gate = gates[:, None, :, None].expand(-1, attn.num_heads, -1, 1)
        out = F.scaled_dot_product_attention(
            F.pad(torch.cat((query, one), dim=-1), (0, WIDER - 1)),
            F.pad(torch.cat((key, gate), dim=-1), (0, WIDER - 1)),
            F.pad(value, (0, WIDER)),
            scale=attn.scale,
        )[..., : attn.head_dim]
        out = attn.norm(out.transpose(1, 2).flatten(2))
        if attn.gate is not None:
            out = out * attn.gate(normed).sigmoid()
        x = x + block.ls1(attn.proj(out))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return unit_features(suffix, x)


def jacobian_effort(effort: Effort, count: int, windows: int) -> int:
    """Count multiply-adds per image, the pass of the whole image left out."""
    forward, backward = (
        effort.inner(effort.tokens, effort.tokens, products)
        + effort.last(effort.tokens, effort.tokens, products)
        for products in (2, 5)
    )
    return follow_effort(effort, 0, windows) + forward + count * backward
