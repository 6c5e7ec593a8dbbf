"""timm's VisionTransformer with one forward loop that a reducer may shorten."""

from collections.abc import Collection
from typing import Any

import torch
import torch.fx
from timm.layers import Attention, PatchDropout
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.fx import GraphModule

from zoo.attention import attend
from zoo.prompts import CosineHead, Prompts, PromptShape, VisualPrompts, for_head, insert, renew
from zoo.reducer import HostSpec, Reducer, build_reducer
from zoo.tokens import Tokens, Trace

_FILES = ("predictor", "prompts")  # arguments that may name a file whose weights come along


class PromptedViT(VisionTransformer):
    """A timm VisionTransformer that may carry learned visual tokens.

    ``prompts=`` takes the fields of ``PromptShape`` of a tuned model, to be filled; see
    ``zoo.add_prompts``. Asked for another number of classes, the model gets timm's plain head
    instead. The module ``prompts`` gives the tokens (depth, count, D) when called, None without.
    """

    def __init__(self, *, prompts: dict[str, int] | None = None, **vit_args: Any) -> None:
        shape, classify = for_head(prompts, vit_args)
        super().__init__(**vit_args)
        self.prompts: Prompts | None = None
        if shape is not None:
            new = {k: vit_args.get(k) for k in ("device", "dtype")}
            self.expect(shape, classify=classify, **new)

    def expect(self, shape: PromptShape, *, classify: bool, device: Any, dtype: Any) -> None:
        """Make room for learned visual tokens, and with ``classify`` for tuned text features."""
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prompts = None
        if shape.tokens:
            self.prompts = VisualPrompts(shape.depth, shape.tokens, self.embed_dim, **new)
        if classify:
            head: nn.Module = self.head
            projection = head.projection if isinstance(head, CosineHead) else head
            self.head = CosineHead(projection, shape.features, shape.classes, **new)  # type: ignore[assignment]
            self.num_classes = shape.classes

    @property
    def prefix_count(self) -> int:
        """Number of tokens that are never reduced: timm's prefix tokens and learned ones."""
        return int(self.num_prefix_tokens) + (0 if self.prompts is None else self.prompts.count)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool as timm does; learned tokens are never averaged in."""
        start = self.num_prefix_tokens
        first = self.attn_pool is None and (pool_type or self.global_pool) == "token"
        if self.prompts is not None and not first:
            x = torch.cat((x[:, :start], x[:, self.prefix_count :]), dim=1)
        pooled: Tensor = super().pool(x, pool_type)
        return pooled

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves of how this model was made: free of files, whose weights it holds."""
        known: dict[str, Any] = self.__dict__.get("_model_args", {})
        return known

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:
        held = {k: v for k, v in self._model_args.items() if k in _FILES}
        named = {k: v for k, v in value.items() if k not in _FILES or isinstance(v, dict)}
        self.__dict__["_model_args"] = held | named


class _Recorder(torch.fx.Tracer):
    """Record our own code call by call, and timm's and torch's modules as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether ``m`` is one call in the recording."""
        theirs = type(m).__module__.startswith("timm.")
        return theirs or super().is_leaf_module(m, module_qualified_name)


def straight_line(model: nn.Module) -> torch.fx.GraphModule:
    """Record ``model`` as a module that shares its weights and names, for torch.fx and TorchScript.

    Whatever depends on an image's shape alone is known from the tower, so the recording has no
    branches. It holds for one input size and for the mode, training or not, of the recording.
    """
    graph = _Recorder().trace(model)
    recorded = torch.fx.GraphModule(model, graph, type(model).__name__)
    recorded.graph.eliminate_dead_code()  # the history of reductions is no output
    recorded.recompile()
    return recorded


def refuse_mask(x: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return ``x`` as it is, or raise ValueError if there is a mask: reduction moves tokens."""
    if mask is not None or is_causal:
        raise ValueError("attn_mask and is_causal need all tokens in place; use a dense model")
    return x


torch.fx.wrap("refuse_mask")


class ReducedViT(PromptedViT):
    """A timm VisionTransformer, dense or with a token reduction method.

    Only what reduction changes is overridden: embedding, blocks and final norm are driven through
    ``embed``, ``advance`` and ``finish``, and every other method of timm's class is inherited.

    Args:
        method: name of a registered reduction method, None for the dense tower.
        reduction: JSON-able options of the method (``keep``, ``reduce_at``, ...).
        vit_args: arguments of ``PromptedViT`` and timm's VisionTransformer.

    Raises:
        ValueError: unknown method or option, value out of range, or tower that can't be reduced.
    """

    def __init__(self, *, method: str | None = None, reduction: dict[str, Any] | None = None, **vit_args: Any) -> None:
        super().__init__(**vit_args)
        self.reducer: Reducer | None = None
        if method is not None:
            host = host_spec(self, device=vit_args.get("device"), dtype=vit_args.get("dtype"))
            self.reducer = build_reducer(method, reduction or {}, host).train(self.training)

    def embed(self, images: Tensor) -> Tokens:
        """Turn images (B, C, H, W) into the tokens that enter block 0."""
        grid = self.patch_embed.grid_size
        if not self.patch_embed.strict_img_size:
            grid = self.patch_embed.dynamic_feat_size(images.shape[-2:])
        x, prefix = self.patch_drop(self._pos_embed(self.patch_embed(images))), self.prefix_count
        if self.prompts is not None:
            x = insert(x, self.num_prefix_tokens, self.prompts()[0])
        return Tokens.start(self.norm_pre(x), prefix, (int(grid[0]), int(grid[1])))

    def advance(
        self,
        tokens: Tokens,
        start: int = 0,
        stop: int | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        taps: Collection[int] = (),
    ) -> tuple[Tokens, list[Tokens]]:
        """Run blocks ``start`` to ``stop`` - 1, None for all, on the tokens: the one forward loop.

        ``mask`` and ``is_causal`` are timm's, for every block of a dense tower. The result is the
        tokens that leave the last block, and those that left each block in ``taps``, in order.
        """
        tapped = []
        masked = self.reducer is None and (mask is not None or is_causal)
        if self.reducer is not None:
            tokens = tokens._replace(x=refuse_mask(tokens.x, mask, is_causal))
        for index in range(start, len(self.blocks) if stop is None else stop):
            if self.prompts is not None and 0 < index < self.prompts.depth:
                tokens = renew(tokens, self.prompts()[index])
            if masked:
                x = self.blocks[index](tokens.x, attn_mask=mask, is_causal=is_causal)
                tokens = tokens._replace(x=x)
            elif self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self._step, index, tokens)
            else:
                tokens = self._step(index, tokens)
            if index in taps:
                tapped.append(tokens)
        return tokens, tapped

    def _step(self, index: int, tokens: Tokens) -> Tokens:
        block: Any = self.blocks[index]
        reducer = self.reducer
        if reducer is None:
            return tokens._replace(x=block(tokens.x))
        tokens = reducer.before_block(index, tokens, block)
        bias = reducer.attention_bias(tokens)
        if not reducer.needs_attention(index):
            return tokens._replace(x=block(tokens.x, attn_mask=bias))
        attended = attend(block.attn, block.norm1(tokens.x), bias)
        tokens = tokens._replace(x=tokens.x + block.drop_path1(block.ls1(attended.out)))
        tokens = reducer.after_attention(index, tokens, attended)
        x = tokens.x
        return tokens._replace(x=x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))

    @torch.no_grad()
    def mean_patches(self, images: Tensor, depth: int) -> Tensor:
        """Return the mean patch token at the input of the first ``depth`` blocks, (depth, D) float32.

        There are no learned tokens yet; ``images`` (n, C, H, W) are some of those to learn from.
        """
        if depth > len(self.blocks):
            raise ValueError(f"depth={depth}: the image tower has {len(self.blocks)} blocks")
        joined = self._pos_embed(self.patch_embed(images))[:, self.num_prefix_tokens :]
        means = [joined.float().mean(dim=(0, 1))]
        tokens = self.embed(images)
        for index in range(1, depth):
            tokens, _ = self.advance(tokens, index - 1, index)
            means.append(tokens.patches.float().mean(dim=(0, 1)))
        return torch.stack(means)

    def finish(self, tokens: Tokens) -> Tensor:
        """Normalise and pool the tokens that left the last block, and apply the head."""
        output: Tensor = self.forward_head(self.norm(tokens.x))
        return output

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the normalised tokens that are left, (B, prefix + n, D), prefix tokens first."""
        tokens, _ = self.advance(self.embed(x), mask=attn_mask, is_causal=is_causal)
        features: Tensor = self.norm(tokens.x)
        return features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Return timm's intermediates with every kept token at its place in the grid.

        Positions whose token was dropped, or merged into another, hold zeros. The arguments and
        the kinds of result are timm's.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: expected NCHW or NLC")
        take, last = feature_take_indices(len(self.blocks), indices)
        tokens, tapped = self.advance(
            self.embed(x), stop=last + 1 if stop_early else None, mask=attn_mask, is_causal=is_causal, taps=take
        )
        if norm:
            tapped = [t._replace(x=self.norm(t.x)) for t in tapped]
        prefixes = [t.x[:, : t.prefix] for t in tapped]
        maps = [t.scatter_to_grid() if t.history else t.patches for t in tapped]
        if output_fmt == "NCHW":
            maps = [m.transpose(1, 2).unflatten(2, tokens.grid).contiguous() for m in maps]
        with_prefix = return_prefix_tokens and tokens.prefix > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if with_prefix:
                result["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                result["image_features"] = self.norm(tokens.x)
            return result
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefix else maps
        return intermediates if intermediates_only else (self.norm(tokens.x), intermediates)

    def __prepare_scriptable__(self) -> GraphModule:
        """Give ``torch.jit.script`` what this model does in its present mode, free of branches."""
        return straight_line(self)

    def trace(self, images: Tensor) -> Trace:
        """Run the model on images (B, C, H, W) and return what the reducer did, with the output."""
        tokens, each = self.advance(self.embed(images), taps=range(len(self.blocks)))
        return Trace.of(self.finish(tokens), each)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters as timm does; a reducer's own weights go with the last block."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        groups["blocks"] = [*groups["blocks"], (r"^reducer", (99999,))]
        return groups


def host_spec(tower: VisionTransformer, device: Any, dtype: Any) -> HostSpec:
    """Describe ``tower`` to a reducer; raise ValueError if it lacks what reduction needs."""
    block = tower.blocks[0]
    if not tower.has_class_token:
        raise ValueError("this tower has no class token; token reduction needs one")
    kinds = (type(block), type(getattr(block, "attn", None)))
    if kinds != (Block, Attention):
        raise ValueError(
            f"this tower's blocks are {kinds[0].__name__} with {kinds[1].__name__}; "
            "expected timm's Block with Attention"
        )
    if isinstance(tower.patch_drop, PatchDropout):
        raise ValueError("patch_drop_rate > 0 loses patch positions; set it to 0 for reduction")
    rows, columns = tower.patch_embed.grid_size
    return HostSpec(
        embed_dim=tower.embed_dim, depth=len(tower.blocks), grid=(int(rows), int(columns)), device=device, dtype=dtype
    )
