"""timm's plain block for inference, equal up to rounding: constants folded into weights, everything done in place.

What a block does apart from matrix products takes half of its time in bfloat16 on a CPU, most of that in fresh memory
and in tensors too large for the caches; hence the care.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.core.attention import Attended, PoolingQuery, attend, is_plain
from zoo.core.tokens import Tokens
from zoo.towers.vit import ViTBlock

QUICK = 1.702  # QuickGELU's constant
ROWS = 3200  # tokens at a time on a CPU at most, so that a layer's output is still in the caches when it is read
# Of tokens between these two numbers oneDNN's products in bfloat16 whose output is as narrow as the tower take up to
# twice as long for each; so they are run in parts of no more than the lower one.
FEW, MANY = 480, 1300
TAIL = 16
# The layers whose weights a fused block reads instead of calling them.
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def is_fusible(block: nn.Module) -> bool:
    """Tell whether a block is timm's plain one, with its plain attention and MLP, which ``FusedBlock`` stands for."""
    kinds = (type(block), type(getattr(block, "attn", None)), type(getattr(block, "mlp", None)))
    return kinds == (Block, Attention, Mlp)


def special_layer(block: nn.Module) -> str | None:
    """Return the class of a layer whose weights don't say what it computes, see ``is_plain``; None if all do."""
    for name, layer in block.named_modules():
        if name.endswith(LINEAR) and not is_plain(layer):
            return type(layer).__name__
    return None


class FusedBlock(ViTBlock):
    """timm's plain block, without what only training needs; it writes into the residual stream that it is given.

    ``dtype`` is that of the matrix products; the residual stream stays float32. Rounding of patch tokens averages out
    in the class token's attention, that of the class token's own row doesn't: with ``cls`` whole blocks spare it half
    of that by projection and MLP in float32, which costs little in large batches.
    """

    def __init__(
        self,
        module: Any,
        dtype: torch.dtype,
        index: int = 0,
        probe: Callable[[Tokens], PoolingQuery] | None = None,
        *,
        cls: bool = False,
    ) -> None:
        super().__init__(module, index, probe)
        self.cls = cls
        self.fp32 = Weights(module, torch.float32)
        self.low = None if dtype == torch.float32 else Weights(module, dtype)

    @property
    def scale(self) -> float:
        return float(self.weights.scale)

    @property
    def weights(self) -> "Weights":
        """The weights that all tokens' products are made with."""
        return self.low or self.fp32

    def whole(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        x = tokens.x.contiguous()
        self.run(x, bias)
        return x

    def run(self, x: Tensor, bias: Tensor | None = None) -> None:
        """Run the block on tokens (S, T, D) float32, contiguous, in place."""
        cls = x[:, 0].clone() if self.low is not None and self.cls else None
        attended = []
        for part in parts(x, self.weights.dtype):
            part_bias = bias[part] if bias is not None and bias.ndim == 4 and len(bias) == len(x) else bias
            attended.append(self._attention(x[part], part_bias)[3])
            self._mlp(self.weights, x[part].view(-1, x.shape[-1]))
        if cls is not None:
            self.fp32.proj.add_to(cls, torch.cat(attended).float())
            self._mlp(self.fp32, cls)
            x[:, 0] = cls

    def attend(self, tokens: Tokens, bias: Tensor | None = None) -> Attended:
        x = tokens.x.contiguous()
        query, key, value, _ = self._attention(x, bias)
        return Attended(x, query, key, value, self.scale)

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        return out  # ``attend`` added to the residual stream, in place

    def add_mlp(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        for part in parts(x, self.weights.dtype):
            self._mlp(self.weights, x[part].view(-1, x.shape[-1]))
        return x

    def first(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        # In float32, and not in place.
        return ViTBlock(self.module, self.index, self.probe).first(tokens, bias)

    def pooling_query(self, tokens: Tokens, attended: Attended) -> PoolingQuery:
        pooling = super().pooling_query(tokens, attended)
        return pooling._replace(query=pooling.query.float(), key=pooling.key.float())

    def _attention(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add the attention's result to tokens (S, T, D) in place.

        Return queries, keys and values (S, H, T, d), and what the first token attended to, (S, H * d).
        """
        attn, rows = self.attn, x.view(-1, x.shape[-1])
        normed = self.module.norm1(rows).to(self.weights.dtype)
        qkv = self.weights.qkv(normed)
        query, key, value = qkv.view(*x.shape[:2], 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        if not isinstance(attn.q_norm, nn.Identity):
            query, key = attn.q_norm(query.float()).to(query.dtype), attn.k_norm(key.float()).to(key.dtype)
        out = attend(query, *pad_keys(key, value, bias), self.scale).transpose(1, 2).flatten(2)
        if not isinstance(attn.norm, nn.Identity):
            out = attn.norm(out.float()).to(out.dtype)
        if attn.gate is not None:
            out = out * attn.gate(normed.view_as(x).float()).sigmoid().to(out.dtype)
        self.weights.proj.add_to(rows, out.flatten(0, 1))
        return query, key, value, out[:, 0]

    def _mlp(self, weights: "Weights", rows: Tensor) -> None:
        """Add the MLP's output to the residual stream (R, D)."""
        mlp = self.module.mlp
        normed = self.module.norm2(rows).to(weights.dtype)
        hidden = weights.act(weights.hidden(normed))
        if not isinstance(mlp.norm, nn.Identity):
            hidden = mlp.norm(hidden.float()).to(hidden.dtype)
        weights.out.add_to(rows, hidden)


def pad_keys(key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Fill keys and values (S, H, T, d) up to a multiple of ``TAIL`` tokens, which a bias of -inf hides.

    Fused attention in low precision on a CPU takes up to twice as long for what is left over.
    """
    missing = -key.shape[2] % TAIL
    low = key.dtype != torch.float32 and key.device.type == "cpu"
    if not missing or not low or torch.compiler.is_compiling():
        return key, value, bias
    size, heads, count, dim = key.shape
    both = key.new_empty(2, size, count + missing, heads, dim)  # the layout that they are made in
    both[:, :, count:] = 0
    for each, wide in zip((key, value), both, strict=True):
        wide[:, :count] = each.transpose(1, 2)
    if bias is None:
        bias = key.new_zeros(1, 1, 1, count)
    keys, values = both.transpose(2, 3)
    return keys, values, F.pad(bias, (0, missing), value=-torch.inf)


def parts(x: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Cut sequences (S, T, D) into equal parts for products in ``dtype``: on a CPU of at most ``ROWS`` tokens."""
    count, tokens = x.shape[:2]
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not count:
        yield slice(0, count)
        return
    most = FEW if dtype == torch.bfloat16 and FEW < count * tokens < MANY else ROWS
    size = math.ceil(count / math.ceil(count / max(1, most // tokens)))
    for first in range(0, count, size):
        yield slice(first, first + size)


class Weights:
    """The weights of a block in one dtype, its biases in float32, LayerScale and other constants folded in.

    ``scale`` is the factor on the logits that is left to apply; ``act`` is the MLP's activation, in place if it can be.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attn, mlp = block.attn, block.mlp
        self.dtype = dtype
        first, second = (getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2))
        self.scale, rows = attn.scale, None
        if dtype != torch.float32 and isinstance(attn.q_norm, nn.Identity):
            # The queries' scale goes into their weights; in float32 that would cost a copy of them.
            self.scale, rows = 1.0, torch.ones_like(attn.qkv.weight[:, 0])
            rows[: attn.attn_dim] = attn.scale
        self.qkv = Product(*_scale_layer(attn.qkv, rows, dtype))
        self.proj = Product(*_scale_layer(attn.proj, first, dtype))
        # QuickGELU(x) = silu(1.702 x) / 1.702: the first layer's weights take the factor, the second's its inverse.
        quick = type(mlp.act).__name__ == "QuickGELU" and isinstance(mlp.norm, nn.Identity)
        rows = torch.full_like(mlp.fc1.weight[:, 0], QUICK) if quick else None
        self.act: Any = mlp.act
        if quick:
            self.act = partial(F.silu, inplace=True)
        elif type(mlp.act).__name__ == "GELU" and getattr(mlp.act, "approximate", "none") == "none":
            self.act = torch.ops.aten.gelu_
        self.hidden = Product(*_scale_layer(mlp.fc1, rows, dtype))
        weight, bias = _scale_layer(mlp.fc2, second, torch.float32)
        self.out = Product((weight * (1 / QUICK) if quick else weight).to(dtype), bias)


def _scale_layer(layer: nn.Linear, rows: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer, each output times its ``rows``; without these no copy."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if rows is not None:
        weight = weight * rows.unsqueeze(1)
        bias = None if bias is None else bias * rows
    return weight.to(dtype), bias


class Product:
    """A linear layer of one dtype with a float32 bias.

    In bfloat16 on a CPU the first call brings the weight into oneDNN's layout, which ``F.linear`` does at every call.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer to (R, in)."""
        if torch.compiler.is_compiling() or x.dtype != torch.bfloat16 or x.device.type != "cpu" or not _packs():
            return F.linear(x, self.weight, None if self.bias is None else self.bias.to(x.dtype))
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, FEW)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def add_to(self, rows: Tensor, x: Tensor) -> None:
        """Add the layer's output for (R, in) to float32 rows (R, out), in place."""
        if x.dtype != rows.dtype:
            rows.add_(self(x))
            return
        rows.addmm_(x, self.weight.t())
        if self.bias is not None:
            rows.add_(self.bias)


@cache
def _packs() -> bool:
    ops = torch.ops.mkldnn
    here: bool = all(hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return here and bool(ops._is_mkldnn_bf16_supported())
