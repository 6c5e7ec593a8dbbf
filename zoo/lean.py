"""timm's plain block for inference: constants folded into the weights, everything done in place.

Equal to timm's block up to rounding. What a block does apart from matrix products takes half of its time in bfloat16
on a CPU, most of that in fresh memory and in tensors too large for the caches; hence the care.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.attention import Attended, PoolingQuery, is_plain
from zoo.tokens import Tokens
from zoo.vit import ViTBlock

QUICK = 1.702  # QuickGELU's constant
ROWS = 3200  # tokens at a time on a CPU, so that a layer's output is still in the caches when it is read
# The layers whose weights a lean block reads instead of calling them.
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def is_lean(block: Any) -> bool:
    """Tell whether a block is timm's plain one, with its plain attention and MLP, which ``LeanBlock`` stands for."""
    kinds = (type(block), type(getattr(block, "attn", None)), type(getattr(block, "mlp", None)))
    return kinds == (Block, Attention, Mlp)


def special_layer(block: Any) -> str | None:
    """Return the class of a layer whose weights don't say what it computes, see ``is_plain``; None if all do."""
    for name, layer in block.named_modules():
        if name.endswith(LINEAR) and not is_plain(layer):
            return type(layer).__name__
    return None


class ClassRows(NamedTuple):
    """The class tokens of S sequences on their way through a block in float32."""

    x: Tensor  # (S, D), the residual stream
    normed: Tensor  # (S, D)
    query: Tensor  # (S, H, 1, d), as are the others
    key: Tensor
    value: Tensor


class LeanBlock(ViTBlock):
    """timm's plain block, without what only training needs; it writes into the residual stream that it is given.

    In bfloat16 the residual stream stays float32, and so does the class token's row: its rounding would reach the
    output undiminished, while that of the patch tokens averages out in its attention. It is one token of many, so
    exactness is cheap.

    Args:
        module: the tower's own block.
        dtype: of the matrix products: float32, bfloat16 or float16.
        index: of the block, 0-based.
        probe: as in ``HostBlock``.
        cls: whether the first token is a class token, whose row stays float32.
    """

    def __init__(
        self,
        module: Any,
        dtype: torch.dtype,
        index: int = 0,
        probe: Callable[[Tokens], PoolingQuery] | None = None,
        *,
        cls: bool = True,
    ) -> None:
        super().__init__(module, index, probe)
        self.cls = cls
        self.fp32 = Weights(module, torch.float32)
        self.low = None if dtype == torch.float32 else Weights(module, dtype)

    @property
    def scale(self) -> float:
        """Factor on the logits of the queries and keys that ``attend`` gives."""
        return self.weights.scale

    @property
    def weights(self) -> "Weights":
        """The weights that all tokens' products are made with."""
        return self.low or self.fp32

    def whole(self, tokens: Tokens, bias: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
        """Run the whole block in place, to (B, T, D)."""
        assert not is_causal
        x = tokens.x.contiguous()
        self.run(x, bias)
        return x

    def run(self, x: Tensor, bias: Tensor | None = None) -> None:
        """Run the block on tokens (S, T, D) float32, contiguous, in place."""
        cls = self._class_rows(x)
        attended = []
        for part in parts(x):
            own = None if cls is None else ClassRows(*(each[part] for each in cls))
            attended.append(self._attention(x[part], sliced(bias, len(x), part), own)[3])
            self._mlp(self.weights, x[part].view(-1, x.shape[-1]))
        if cls is not None:
            self._project(self.fp32, cls.x, torch.cat(attended), cls.normed)
            self._mlp(self.fp32, cls.x)
            x[:, 0] = cls.x

    def attend(self, tokens: Tokens, bias: Tensor | None = None, *, is_causal: bool = False) -> Attended:
        """Normalise, attend and add to the residual stream, in place: ``out`` is what ``add_attention`` returns."""
        assert not is_causal
        x = tokens.x.contiguous()
        cls = self._class_rows(x)
        query, key, value, attended = self._attention(x, bias, cls)
        if cls is not None:
            self._project(self.fp32, cls.x, attended, cls.normed)
            x[:, 0] = cls.x
        return Attended(x, query, key, value, self.scale)

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the residual stream with what ``attend`` added already."""
        return out

    def add_mlp(self, x: Tensor) -> Tensor:
        """Run the MLP on the residual stream and add its result, in place."""
        x = x.contiguous()
        cls = x[:, 0].clone() if self.low is not None and self.cls else None
        for part in parts(x):
            self._mlp(self.weights, x[part].view(-1, x.shape[-1]))
        if cls is not None:
            self._mlp(self.fp32, cls)
            x[:, 0] = cls
        return x

    def first(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """Run the block for the class token alone, in float32 and not in place."""
        return ViTBlock(self.module, self.index, self.probe).first(tokens, bias)

    def pooling_query(self, tokens: Tokens, attended: Attended) -> PoolingQuery:
        """Return the query that pools, and the keys that it meets, in float32: what is ranked by them is near-tied."""
        pooling = super().pooling_query(tokens, attended)
        return pooling._replace(query=pooling.query.float(), key=pooling.key.float())

    def _class_rows(self, x: Tensor) -> ClassRows | None:
        """Take the class tokens apart that enter the block, None where nothing is in low precision."""
        if self.low is None or not self.cls:
            return None
        rows = x[:, 0].clone()  # saved before the products of all tokens overwrite it
        normed = self.module.norm1(rows)
        return ClassRows(rows, normed, *self._heads(self.fp32, normed, (len(rows), 1)))

    def _attention(
        self, x: Tensor, bias: Tensor | None, cls: ClassRows | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Add the attention's result to tokens (S, T, D) in place.

        Returns:
            Queries, keys and values (S, H, T, d), and what the class tokens ``cls`` attended to, (S, H * d) float32.
        """
        rows = x.view(-1, x.shape[-1])
        cast = self.module.norm1(rows).to(self.weights.dtype)
        query, key, value = self._heads(self.weights, cast, x.shape[:2])
        attended = None if cls is None else self._class_values(cls, key, value, bias)
        mask = None if bias is None else bias.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        self._project(self.weights, rows, out.transpose(1, 2).reshape(len(rows), -1), cast)
        return query, key, value, attended

    def _heads(self, weights: "Weights", normed: Tensor, shape: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys, values (S, H, T, d) of tokens (S * T, D)."""
        attn = self.module.attn
        qkv = F.linear(normed, *weights.qkv)
        q, k, v = qkv.view(*shape, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        if not isinstance(attn.q_norm, nn.Identity):
            q, k = attn.q_norm(q.float()).to(q.dtype), attn.k_norm(k.float()).to(k.dtype)
        return q, k, v

    def _project(self, weights: "Weights", rows: Tensor, out: Tensor, normed: Tensor) -> None:
        """Add the attended values (S * T, width), projected, to the residual stream."""
        attn = self.module.attn
        if not isinstance(attn.norm, nn.Identity):
            out = attn.norm(out.float()).to(out.dtype)
        if attn.gate is not None:
            out = out * attn.gate(normed.float()).sigmoid().to(out.dtype)
        _add_linear(rows, out, *weights.proj)

    def _mlp(self, weights: "Weights", rows: Tensor) -> None:
        """Add the MLP's output to the residual stream (R, D)."""
        mlp = self.module.mlp
        normed = self.module.norm2(rows).to(weights.dtype)
        hidden = weights.act(F.linear(normed, *weights.hidden))
        if not isinstance(mlp.norm, nn.Identity):
            hidden = mlp.norm(hidden.float()).to(hidden.dtype)
        _add_linear(rows, hidden, *weights.out)

    def _class_values(self, cls: ClassRows, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return what class tokens attend to, (S, H * d) float32.

        Only the patch tokens' ``key`` and ``value`` (S, H, T, d) are in low precision in it. The class token's own are
        computed anew, and their share is taken out of the product in low precision.
        """
        logits = (cls.query.to(key.dtype) @ key.transpose(-2, -1)).float()
        logits[..., :1] = cls.query @ cls.key.transpose(-2, -1)
        logits = logits * self.module.attn.scale
        if bias is not None:
            logits = logits + bias[..., :1, :]
        share = logits.softmax(dim=-1)
        patch_share = share.to(value.dtype)
        patch_share[..., 0] = 0
        out = (patch_share @ value).float() + share[..., :1] * cls.value
        return out.reshape(len(out), -1)


def parts(x: Tensor) -> Iterator[slice]:
    """Cut sequences (S, T, D) into parts that are run one after another: on a CPU of ``ROWS`` tokens, else all."""
    size = len(x)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        size = max(1, ROWS // x.shape[1])
    for first in range(0, len(x), size):
        yield slice(first, first + size)


def sliced(bias: Tensor | None, count: int, part: slice) -> Tensor | None:
    """Return the bias of a part of ``count`` sequences; it is broadcastable to (count, H, T, T)."""
    if bias is None or bias.ndim < 4 or len(bias) < count:
        return bias
    return bias[part]


class Weights:
    """The weights and biases of a block in one dtype, LayerScale and other constants folded in.

    Biases that are added to float32 stay float32. ``scale`` is the factor on the logits that is
    left to apply; ``act`` is the MLP's activation, in place where it can be.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attn, mlp = block.attn, block.mlp
        self.dtype = dtype
        first, second = (getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2))
        self.scale, rows = attn.scale, None
        if dtype != torch.float32 and isinstance(attn.q_norm, nn.Identity):
            # The queries' scale goes into their weights, which saves a pass over the logits. In
            # float32 it would cost a copy of the weights instead.
            self.scale, rows = 1.0, torch.ones_like(attn.qkv.weight[:, 0])
            rows[: attn.attn_dim] = attn.scale
        self.qkv = _scaled(attn.qkv, rows, dtype)
        self.proj = _scaled(attn.proj, first, dtype, bias_dtype=torch.float32)
        # QuickGELU(x) = silu(1.702 x) / 1.702, and silu has a kernel: the first layer's weights
        # take the factor, the second's its inverse.
        quick = type(mlp.act).__name__ == "QuickGELU" and isinstance(mlp.norm, nn.Identity)
        rows = torch.full_like(mlp.fc1.weight[:, 0], QUICK) if quick else None
        self.act = partial(F.silu, inplace=True) if quick else _in_place(mlp.act)
        self.hidden = _scaled(mlp.fc1, rows, dtype)
        weight, bias = _scaled(mlp.fc2, second, torch.float32)
        self.out = ((weight * (1 / QUICK) if quick else weight).to(dtype), bias)


def _scaled(
    linear: Any, rows: Tensor | None, dtype: torch.dtype, bias_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer, each output times its ``rows``; else no copy."""
    weight, bias = linear.weight, linear.bias
    if rows is not None:
        weight = weight * rows.unsqueeze(1)
        bias = None if bias is None else bias * rows
    bias = None if bias is None else bias.detach().to(bias_dtype or dtype)
    return weight.detach().to(dtype), bias


def _in_place(act: Any) -> Any:
    """Return an activation that may use its argument's memory for the result."""
    exact = type(act).__name__ == "GELU" and getattr(act, "approximate", "none") == "none"
    return torch.ops.aten.gelu_ if exact else act


def _add_linear(rows: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add a linear layer's output to float32 rows (R, out), in place."""
    if x.dtype == rows.dtype:
        rows.addmm_(x, weight.t())
    else:
        rows.add_(torch.mm(x, weight.t()))
    if bias is not None:
        rows.add_(bias)


