"""The rest of a tower, from one block on, run on many shortened sequences in equal batches.

Its blocks are lean: constants are folded into the weights and everything is done in place. They
equal timm's up to rounding and are for inference only. What a block does apart from matrix products
takes half of its time in bfloat16 on a CPU, most of that in fresh memory; hence the care.
"""

import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.host import Host
from zoo.tokens import Tokens, every_position

QUICK = 1.702  # QuickGELU's constant


class Scratch:
    """Memory that is reused, since fresh memory is slow; each use overwrites the one before."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, use: str, like: Tensor, *shape: int) -> Tensor:
        """Return memory of ``shape`` with any values, the same for the same ``use`` and dtype."""
        count = torch.Size(shape).numel()
        memory = self._memory.get((use, like.dtype))
        if memory is None or memory.numel() < count:
            memory = self._memory[use, like.dtype] = like.new_empty(count)
        return memory[:count].view(shape)


class LeanBlock:
    """A timm Block of standard attention and MLP, without what only training needs.

    Args:
        dtype: of the matrix products: float32, bfloat16 or float16. The class token's row stays
            float32 in all of them.
        scratch: memory to use again, None for fresh memory (what a compiler wants).
    """

    def __init__(self, block: Any, dtype: torch.dtype, scratch: Scratch | None) -> None:
        self.block = block
        self.scratch = scratch
        self.fp32 = _Weights(block, torch.float32)
        self.bf16 = None if dtype == torch.float32 else _Weights(block, dtype)  # or float16

    def run(self, x: Tensor) -> None:
        """Run the block on tokens (S, T, D) float32, contiguous, in place.

        In bfloat16 the residual stream stays float32, and so does the class token's row: its
        rounding would reach the output undiminished, while that of the patch tokens averages out
        in its attention. It is one token of many, so exactness is cheap.
        """
        weights = self.bf16 or self.fp32
        rows = x.view(-1, x.shape[-1])
        normed = self.block.norm1(rows)
        # The class token's row is saved before the patch tokens' products overwrite it.
        cls_row = None if self.bf16 is None else x[:, 0].clone()
        cast = normed.to(weights.dtype)
        wide = self._wide(cast, weights.qkv[0])
        query, key, value = self._heads(weights, cast, x.shape[:2], wide)
        if cls_row is not None:
            # ``bmm`` copies what isn't contiguous, and would do so in each of its products.
            query, key, value = (t.contiguous() for t in (query, key, value))
            self._run_cls_row(cls_row, normed.view_as(x)[:, 0], key, value)
        out = self._attend(query, key, value).transpose(1, 2).reshape(len(rows), -1)
        self._project(weights, rows, out, cast)
        self._mlp(weights, rows, self._wide(cast, weights.hidden[0]))
        if cls_row is not None:
            x[:, 0] = cls_row

    def _wide(self, rows: Tensor, weight: Tensor) -> Tensor | None:
        """Return memory for the output of a layer with this weight.

        qkv and the MLP's hidden layer share it: the queries, keys and values are used up by then.
        """
        scratch = self.scratch
        return None if scratch is None else scratch("wide", rows, len(rows), len(weight))

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
        scale = (self.bf16 or self.fp32).scale
        if self.bf16 is None or query.device.type != "cpu" or self.scratch is None:
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        # On a CPU in bfloat16, plain products of contiguous heads are faster than fused attention.
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

    def _run_cls_row(self, cls_row: Tensor, normed: Tensor, key: Tensor, value: Tensor) -> None:
        """Run the class tokens (S, D), also given normalised, in float32 and in place.

        Only the patch tokens' ``key`` and ``value`` (S, H, T, d) are bfloat16 in it. The class
        token's own are computed anew, and their share is taken out of the bfloat16 product.
        """
        attn = self.block.attn
        q, k, v = self._heads(self.fp32, normed, (len(cls_row), 1), None)
        logits = (q.to(key.dtype) @ key.transpose(-2, -1)).float()
        logits[..., :1] = q @ k.transpose(-2, -1)
        share = (logits * attn.scale).softmax(dim=-1)
        patch_share = share.to(value.dtype)
        patch_share[..., 0] = 0
        out = (patch_share @ value).float() + share[..., :1] * v
        self._project(self.fp32, cls_row, out.reshape(len(cls_row), -1), normed)
        # Fresh memory: the scratch holds the patch tokens' keys and values, which are still needed.
        self._mlp(self.fp32, cls_row, None)


class _Weights:
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


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST_BATCH = {"cpu": 32, "cuda": 1024}  # beyond it nothing gets faster, on a CPU slower
SHARE_OF_FREE = 0.25


def best_precision(device: str | torch.device) -> str:
    """Return the precision that is fastest on a device: bfloat16 where its hardware has it."""
    kind = torch.device(device).type
    fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


class Suffix:
    """A tower from a block on, for sequences that lost patch tokens.

    In ``bfloat16`` or ``float16`` the patch tokens go through the blocks in that precision. The
    residual stream, the class token's own path, and the last block where only the class token
    leaves it stay float32: rounding there would not average out, and costs little to avoid.

    ``model`` is dense and in float32, ``index`` the first block to run, ``stop`` the one behind the
    last, None for all; ``batch`` the sequences per forward pass, None for what the free memory
    allows. ``compiled`` uses torch.compile.
    """

    def __init__(
        self,
        model: Host,
        index: int,
        batch: int | None = None,
        *,
        stop: int | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        """Prepare the blocks; later changes of the model's weights may go unnoticed."""
        self.model = model
        self.blocks = [model.block(number) for number in range(index, stop or model.depth)]
        # Where more than the class token leaves the tower, the last block is run for all.
        self.whole = self.blocks[:-1] if model.pools_first else self.blocks
        scratch = None if compiled else Scratch()
        lean = [LeanBlock(b.module, PRECISIONS[precision], scratch) for b in self.whole if is_lean(b.module)]
        self._lean = lean if len(lean) == len(self.whole) else None
        if self._lean is None and precision != "float32":
            kind = type(self.whole[0].module).__name__
            raise ValueError(f"precision={precision!r}: expected 'float32' for this tower, whose blocks are {kind}")
        like = next(model.parameters())
        self.device = like.device
        rows, columns = model.grid
        self.batch = batch or fitting_batch(model.embed_dim, model.prefix_count + rows * columns, self.device)
        self._compiled = torch.compile(self._through, dynamic=False) if compiled else None

    @torch.inference_mode()
    def features(self, start: Tokens, images: Tensor, keep_idx: Tensor) -> Tensor:
        """Compute unit features (S, D) of sequences of which only some patch tokens are left.

        Of the images in ``start``, which enter the first block, sequence s is number ``images[s]``,
        with its patch tokens at ``keep_idx[s]`` (k,) left; k may be 0, of which a tower that pools patch tokens makes
        zeros.
        """
        if keep_idx.shape[1] == 0 and not self.model.pools_first:
            one = self.features(start, images[:1], every_position(start.x[:1], start.patch_count))
            return torch.zeros_like(one).expand(len(images), -1)
        parts = []
        # Whole sequences are few, and another length would be compiled for them alone.
        fixed = self._compiled if keep_idx.shape[1] < start.patch_count else None
        for part in torch.arange(len(images), device=images.device).split(self.batch):
            # A last batch that is too short for what was compiled repeats its last sequence.
            missing = self.batch - len(part) if fixed else 0
            full = torch.cat((part, part[-1:].expand(missing)))
            features = (fixed or self._through)(sequences(start, images[full], keep_idx[full]))
            parts.append(F.normalize(features[: len(part)].float(), dim=-1))
        return torch.cat(parts)

    def _through(self, tokens: Tokens) -> Tensor:
        """Run token sequences, whose ``x`` is used up, through blocks, norm and head."""
        if self._lean is None:
            for block in self.whole:
                tokens = tokens._replace(x=block.whole(tokens))
        else:
            for lean in self._lean:
                lean.run(tokens.x)
        return self.output(tokens)

    def output(self, tokens: Tokens) -> Tensor:
        """Return what the tower makes of tokens that entered the last block, or left it where all of them are read."""
        if self.model.pools_first:
            tokens = tokens._replace(x=self.blocks[-1].first(tokens))
        return self.model.finish(tokens)


def sequences(start: Tokens, images: Tensor, keep_idx: Tensor) -> Tokens:
    """Return sequences of the prefix tokens of ``images`` (S,) and their patch tokens at ``keep_idx`` (S, k).

    Sizes are gone: each token stands for itself.
    """
    prefix = torch.arange(start.prefix, device=images.device).expand(len(images), -1)
    idx = torch.cat((prefix, keep_idx + start.prefix), dim=1)
    return start._replace(
        x=start.x[images.unsqueeze(1), idx],
        patch_idx=start.patch_idx[images.unsqueeze(1), keep_idx],
        patch_count=keep_idx.shape[1],
        place=None if start.place is None else start.place[images.unsqueeze(1), keep_idx],
        size=None,
        mass=None,
        importance=None,
        history=(),
    )


# The layers whose weights a lean block reads instead of calling them.
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def is_lean(block: Any) -> bool:
    """Tell whether a block is timm's plain one, with its plain attention and MLP, which ``LeanBlock`` stands for."""
    kinds = (type(block), type(getattr(block, "attn", None)), type(getattr(block, "mlp", None)))
    return kinds == (Block, Attention, Mlp)


def fitting_batch(dim: int, tokens: int, device: torch.device) -> int:
    """Return how many sequences of ``tokens`` x ``dim`` fit into a share of the free memory."""
    # Residual stream twice, queries, keys, values, and the MLP's hidden layer before and after
    # its activation: about 14 D numbers per token, counted as float32.
    each = 14 * 4 * dim * tokens
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    most = LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return max(1, min(most, int(SHARE_OF_FREE * free) // each))
