"""Blocks made ready for running many sequences: constants folded, everything done in place.

Equal to timm's blocks up to rounding, and for inference only. What a block does apart from matrix
products takes half of its time in bfloat16 on a CPU, most of that in fresh memory; hence the care.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUICK = 1.702  # QuickGELU is x * sigmoid(1.702 x), so silu between two constants


class Scratch:
    """Memory that is used again and again, since fresh memory is slow; one use at a time each."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, use: str, like: Tensor, *shape: int) -> Tensor:
        """Return memory for ``use``, of the dtype and on the device of ``like``, with any values.

        Args:
            use: what for; the same word gives the same memory.
            like: says dtype and device.
            shape: wanted.
        """
        count = torch.Size(shape).numel()
        held = self._held.get((use, like.dtype))
        if held is None or held.numel() < count:
            held = self._held[use, like.dtype] = like.new_empty(count)
        return held[:count].view(shape)


class LeanBlock:
    """A timm Block of standard attention and MLP, without what only training needs.

    Args:
        block: the block, in float32.
        dtype: of the matrix products; with float32 the class token is nothing special.
        scratch: memory to use again, None for fresh memory (what a compiler wants).
    """

    def __init__(self, block: Any, dtype: torch.dtype, scratch: Scratch | None) -> None:
        """Copy the weights in ``dtype``, constants folded in."""
        self.block = block
        self.scratch = scratch
        self.exact = _Weights(block, torch.float32)
        self.low = None if dtype == torch.float32 else _Weights(block, dtype)

    def run(self, x: Tensor) -> None:
        """Run the block on tokens (S, T, D) float32, contiguous, in place.

        In low precision the residual stream stays float32, and so does the class token's own path:
        its rounding would reach the output undiminished, while that of the patch tokens averages
        out in its attention. It is one token of many, so exactness is cheap.
        """
        weights = self.low or self.exact
        rows = x.view(-1, x.shape[-1])
        normed = self.block.norm1(rows)
        own = x[:, 0].clone() if self.low is not None else None
        low = normed.to(weights.dtype)
        query, key, value = self._heads(weights, low, x.shape[:2], self._wide(low, weights.qkv[0]))
        if own is not None:
            # Products with these would copy them each time.
            query, key, value = (t.contiguous() for t in (query, key, value))
            self._class_token(own, normed.view_as(x)[:, 0], key, value)
        out = self._attend(query, key, value).transpose(1, 2).reshape(len(rows), -1)
        self._project(weights, rows, out, low)
        self._mlp(weights, rows, self._wide(low, weights.hidden[0]))
        if own is not None:
            x[:, 0] = own

    def _wide(self, rows: Tensor, weight: Tensor) -> Tensor | None:
        """Return memory for what a layer of this weight makes of rows."""
        if self.scratch is None:
            return None
        return self.scratch("wide", rows, len(rows), len(weight))

    def _heads(
        self, weights: "_Weights", normed: Tensor, shape: Any, out: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys, values (S, H, T, d) of tokens (S * T, D)."""
        attn = self.block.attn
        qkv = _linear(*weights.qkv, normed, out)
        q, k, v = qkv.view(*shape, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        if not isinstance(attn.q_norm, nn.Identity):
            q, k = attn.q_norm(q.float()).to(q.dtype), attn.k_norm(k.float()).to(k.dtype)
        return q, k, v

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return attended values (S, H, T, d)."""
        scale = (self.low or self.exact).scale
        if self.low is None or query.device.type != "cpu" or self.scratch is None:
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        # On a CPU in low precision, plain products of contiguous heads are faster.
        size, heads, count, _ = query.shape
        logits = self.scratch("logits", query, size * heads, count, count)
        q, k, v = (t.view(size * heads, count, -1) for t in (query, key, value))
        torch.bmm(q if scale == 1.0 else q * scale, k.transpose(1, 2), out=logits)
        torch.softmax(logits, -1, out=logits)
        return torch.bmm(logits, v).view_as(query)

    def _project(self, weights: "_Weights", rows: Tensor, out: Tensor, normed: Tensor) -> None:
        """Add the attended values (S * T, width), projected, to the residual stream."""
        attn = self.block.attn
        if not isinstance(attn.norm, nn.Identity):
            out = attn.norm(out.float()).to(out.dtype)
        if attn.gate is not None:
            out = out * attn.gate(normed.float()).sigmoid().to(out.dtype)
        _add_linear(rows, out, *weights.proj)

    def _mlp(self, weights: "_Weights", rows: Tensor, memory: Tensor | None) -> None:
        """Add the MLP's output to the residual stream (R, D)."""
        mlp = self.block.mlp
        normed = self.block.norm2(rows).to(weights.dtype)
        hidden = weights.act(_linear(*weights.hidden, normed, memory))
        if not isinstance(mlp.norm, nn.Identity):
            hidden = mlp.norm(hidden.float()).to(hidden.dtype)
        _add_linear(rows, hidden, *weights.out)

    def _class_token(self, own: Tensor, normed: Tensor, key: Tensor, value: Tensor) -> None:
        """Run the class tokens (S, D) in float32 and in place, given all keys and values.

        Args:
            own: the class tokens.
            normed: the same, normalised.
            key: (S, H, T, d) keys in low precision; the class token's own are replaced.
            value: values likewise.
        """
        attn = self.block.attn
        q, k, v = self._heads(self.exact, normed, (len(own), 1), None)
        logits = (q.to(key.dtype) @ key.transpose(-2, -1)).float()
        logits[..., :1] = q @ k.transpose(-2, -1)
        share = (logits * attn.scale).softmax(dim=-1)
        seen = share.to(value.dtype)
        seen[..., 0] = 0
        out = (seen @ value).float() + share[..., :1] * v
        self._project(self.exact, own, out.reshape(len(own), -1), normed)
        self._mlp(self.exact, own, None)  # the patch tokens' keys and values are in the scratch


class _Weights:
    """The weights of a block in one dtype; the biases that are added to float32 stay float32."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attn, mlp = block.attn, block.mlp
        self.dtype = dtype
        quick = type(mlp.act).__name__ == "QuickGELU" and isinstance(mlp.norm, nn.Identity)
        into, out = (QUICK, 1 / QUICK) if quick else (1.0, 1.0)
        self.act = _silu if quick else _in_place(mlp.act)
        first, second = _gamma(block.ls1), _gamma(block.ls2)
        self.qkv, self.scale = _scaled(attn.qkv, None, 1.0, dtype), attn.scale
        if dtype != torch.float32 and isinstance(attn.q_norm, nn.Identity):
            # The queries' scale goes into their weights.
            rows = torch.ones_like(attn.qkv.weight[:, 0]).detach()
            rows[: attn.attn_dim] = attn.scale
            self.qkv, self.scale = _scaled(attn.qkv, rows, 1.0, dtype), 1.0
        self.proj = _scaled(attn.proj, first, 1.0, dtype, bias=torch.float32)
        self.hidden = _scaled(mlp.fc1, None, into, dtype)
        weight, bias = _scaled(mlp.fc2, second, 1.0, torch.float32, bias=torch.float32)
        self.out = ((weight * out).to(dtype), bias)


def _scaled(
    linear: Any,
    rows: Tensor | None,
    factor: float,
    dtype: torch.dtype,
    bias: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer whose outputs are scaled; unscaled, no copy."""
    weight, added = linear.weight.detach(), linear.bias
    added = None if added is None else added.detach()
    if rows is not None:
        weight = weight * rows.unsqueeze(1)
        added = None if added is None else added * rows
    if factor != 1.0:
        weight = weight * factor
        added = None if added is None else added * factor
    return weight.to(dtype), None if added is None else added.to(bias or dtype)


def _gamma(scale: Any) -> Tensor | None:
    """Return the factors of a LayerScale, None where there is none."""
    return None if isinstance(scale, nn.Identity) else scale.gamma.detach()


def _in_place(act: Any) -> Any:
    """Return an activation that may use its argument's memory for the result."""
    exact = type(act).__name__ == "GELU" and getattr(act, "approximate", "none") == "none"
    return torch.ops.aten.gelu_ if exact else act


def _silu(hidden: Tensor) -> Tensor:
    return F.silu(hidden, inplace=True)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor | None) -> Tensor:
    """Apply a linear layer to rows (R, in), into ``out`` if given."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _add_linear(rows: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add a linear layer's output to float32 rows (R, out), in place."""
    if x.dtype == rows.dtype:
        rows.addmm_(x, weight.t())
    else:
        rows.add_(torch.mm(x, weight.t()))
    if bias is not None:
        rows.add_(bias)
