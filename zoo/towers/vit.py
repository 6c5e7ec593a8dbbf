"""timm's towers with one forward loop that a reducer may shorten; its VisionTransformer first of all."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.fx
from timm.layers import Attention, AttentionPoolLatent, PatchDropout, PatchDropoutWithIndices
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block as PlainBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.fx import GraphModule

from zoo.core.attention import (
    PoolingQuery,
    attend_by_query,
    cls_attention_of,
    needs_no_keys,
    project,
    queries_keys_values,
)
from zoo.core.host import CLASS_TOKEN, PROBE, Host, HostBlock, register_host
from zoo.core.prompts import CosineHead, Prompts, PromptShape, VisualPrompts, for_head, insert
from zoo.core.reducer import Reducer, build_reducer
from zoo.core.tokens import Tokens

_FILES = ("predictor", "prompts")  # arguments that may name a file whose weights come along


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


class TimmHost(Host):
    """What timm's families of towers share: embedding, pooling, and the methods of timm's interface.

    A family is a subclass of this and of timm's class, with ``Block``, ``positioned`` and what it can reduce.
    ``prompts`` gives the learned tokens (depth, count, D) when called, None without.

    Attributes:
        kinds: classes of a block and of its attention that ``Block`` takes apart.
        filter_fn: timm's function that converts checkpoints for this class.
    """

    kinds: ClassVar[tuple[tuple[type[nn.Module], type[nn.Module]], ...]]
    filter_fn: ClassVar[Callable[..., dict[str, Any]]]

    # Typed loosely, as timm's classes differ in it.
    attn_pool: Any
    blocks: Any
    cls_token: Any
    fc_norm: Any
    global_pool: Any
    head: Any
    head_drop: Any
    norm: Any
    norm_pre: Any
    num_classes: int
    num_prefix_tokens: int
    patch_embed: Any
    forward_head: Any

    @abstractmethod
    def positioned(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of images with what is added for places, (B, T, D), and ``Tokens.positional``."""

    def converted(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Bring a checkpoint of any library that timm knows into the form of this tower."""
        named: dict[str, Any] = type(self).filter_fn(weights, self)
        return named

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the tower's own image size."""
        rows, columns = self.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tower's own image size."""
        height, width = self.patch_embed.img_size
        return int(height), int(width)

    @property
    def prefix_count(self) -> int:
        """Number of tokens that are never reduced: timm's prefix tokens and learned ones."""
        return int(self.num_prefix_tokens) + (0 if self.prompts is None else self.prompts.count)

    @property
    def query(self) -> str | None:
        """The class token, else the attention pool's probe."""
        if self.cls_token is not None:
            return CLASS_TOKEN
        return PROBE if isinstance(self.attn_pool, AttentionPoolLatent) else None

    @property
    def pools_first(self) -> bool:
        """Whether the class token is all that leaves the tower."""
        return self.attn_pool is None and self.global_pool == "token"

    @property
    def pooled_prefix(self) -> int:
        """Number of prefix tokens that are pooled like patch tokens, never learned ones."""
        return int(self.num_prefix_tokens) if getattr(self, "pool_include_prefix", False) else 0

    def pooled(self, x: Tensor) -> Tensor:
        """Return the tokens of ``x`` (B, T, D) that the pool sees."""
        return torch.cat((x[:, : self.pooled_prefix], x[:, self.prefix_count :]), dim=1)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool as timm does; learned tokens are never averaged in."""
        timms: Any = super()
        pooled: Tensor = timms.pool(self.unprompted(x, pool_type), pool_type)
        return pooled

    def unprompted(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Return the tokens of ``x`` (B, T, D) without learned ones, unless the class token is all that is read."""
        first = self.attn_pool is None and (pool_type or self.global_pool) == "token"
        if self.prompts is None or first:
            return x
        return torch.cat((x[:, : self.num_prefix_tokens], x[:, self.prefix_count :]), dim=1)

    def probe(self, tokens: Tokens) -> PoolingQuery:
        """Return the attention pool's query and its keys of the tokens, normalised as those that leave the tower."""
        pool: Any = self.attn_pool
        x = self.pooled(self.norm(tokens.x))
        latent = pool.latent.expand(x.shape[0], -1, -1)
        query = pool.q(latent).unflatten(2, (pool.num_heads, pool.head_dim)).transpose(1, 2)
        key = pool.kv(x).unflatten(2, (2, pool.num_heads, pool.head_dim))[:, :, 0].transpose(1, 2)
        return PoolingQuery(pool.q_norm(query), pool.k_norm(key), pool.scale, self.pooled_prefix)

    def require_reducible(self) -> None:
        """Raise ValueError, with the reason, if this tower lacks what reduction needs."""
        block = self.blocks[0]
        kind = (type(block), type(getattr(block, "attn", None)))
        if kind not in self.kinds:
            known = " or ".join(f"{one.__name__} with {attn.__name__}" for one, attn in self.kinds)
            raise ValueError(
                f"this tower's blocks are {kind[0].__name__} with {kind[1].__name__}; expected timm's {known}"
            )
        if isinstance(getattr(self, "patch_drop", None), (PatchDropout, PatchDropoutWithIndices)):
            raise ValueError("patch_drop_rate > 0 loses patch positions; set it to 0 for reduction")
        pool = self.attn_pool
        if pool is not None and (not isinstance(pool, AttentionPoolLatent) or pool.pos_embed is not None):
            raise ValueError(
                f"this tower pools by {type(pool).__name__} of global_pool={self.global_pool!r}, in which tokens have "
                "places or attend to one another; expected timm's AttentionPoolLatent without positions"
            )

    def expect(self, shape: PromptShape, *, classify: bool, device: Any, dtype: Any) -> None:
        """Make room for learned visual tokens, and with ``classify`` for tuned text features."""
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prompts = None
        if shape.tokens:
            self.prompts = VisualPrompts(shape.depth, shape.tokens, self.embed_dim, **new)
        if classify:
            head: nn.Module = self.head
            projection = head.projection if isinstance(head, CosineHead) else head
            self.head = CosineHead(projection, shape.features, shape.classes, **new)
            self.num_classes = shape.classes

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of images (B, C, H, W)."""
        if self.patch_embed.strict_img_size:
            return self.grid
        rows, columns = self.patch_embed.dynamic_feat_size(images.shape[-2:])
        return int(rows), int(columns)

    def embed(self, images: Tensor) -> Tokens:
        """Turn images (B, C, H, W) into the tokens that enter block 0."""
        (x, positional), prefix = self.positioned(images), self.prefix_count
        if self.prompts is not None:
            x = insert(x, self.num_prefix_tokens, self.prompts()[0])
        return Tokens.start(self.norm_pre(x), prefix, self.grid_of(images), positional)

    @torch.no_grad()
    def mean_patches(self, images: Tensor, depth: int) -> Tensor:
        """Return the mean patch token at the input of the first ``depth`` blocks, (depth, D) float32.

        There are no learned tokens yet; ``images`` (n, C, H, W) are some of those to learn from.
        """
        if depth > self.depth:
            raise ValueError(f"depth={depth}: the image tower has {self.depth} blocks")
        joined = self.positioned(images)[0][:, self.num_prefix_tokens :]
        means = [joined.float().mean(dim=(0, 1))]
        tokens = self.embed(images)
        for index in range(1, depth):
            tokens, _ = self.advance(tokens, index - 1, index)
            means.append(tokens.patches.float().mean(dim=(0, 1)))
        return torch.stack(means)

    def finish(self, tokens: Tokens) -> Tensor:
        """Normalise and pool the tokens that left the last block, and apply the head.

        An average weighs merged tokens by what they stand for, an attention pool adds the log of that, and a maximum
        needs nothing.
        """
        x = self.norm(tokens.x)
        if tokens.size is None or (self.attn_pool is None and self.global_pool in ("", "token", "max")):
            output: Tensor = self.forward_head(x)
            return output
        seen, left = self.pooled(x), tokens._replace(prefix=self.pooled_prefix)
        if self.attn_pool is not None:
            pooled: Tensor = self.attn_pool(seen, attn_mask=left.size_bias())
        else:
            pooled = left.mean(seen)
            if self.global_pool == "avgmax":
                pooled = 0.5 * (seen.amax(dim=1) + pooled)
        features: Tensor = self.head(self.head_drop(self.fc_norm(pooled)))
        return features

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the head's output.

        Where merged tokens are averaged, or an attention pool sees them, that isn't ``forward_head`` of
        ``forward_features``, which know nothing of sizes.
        """
        tokens, _ = self.advance(self.embed(x), mask=attn_mask, is_causal=is_causal)
        return self.finish(tokens)

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
        take, last = feature_take_indices(self.depth, indices)
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

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters as timm does; a reducer's own weights go with the last block."""
        timms: Any = super()
        groups: dict[str, Any] = timms.group_matcher(coarse)
        groups["blocks"] = [*groups["blocks"], (r"^reducer", (99999,))]
        return groups

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


class TimmBlock(HostBlock):
    """What blocks of timm's families share."""

    @property
    def dropout(self) -> float:
        """Share of attention weights that are dropped now."""
        return float(self.attn.attn_drop.p) if self.attn.training else 0.0

    def layer_scale(self, number: int, out: Tensor) -> Tensor:
        """Scale what the attention layer (1) or the MLP (2) gives, by a layer or a vector where there is one."""
        if (layer := getattr(self.module, f"ls{number}", None)) is not None:
            scaled: Tensor = layer(out)
            return scaled
        gamma = getattr(self.module, f"gamma_{number}", None)
        return out if gamma is None else gamma * out

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the attention layer's result, with LayerScale and stochastic depth."""
        added: Tensor = x + self.module.drop_path1(self.layer_scale(1, out))
        return added

    def add_mlp(self, x: Tensor) -> Tensor:
        """Add the MLP's result, with LayerScale and stochastic depth."""
        block = self.module
        added: Tensor = x + block.drop_path2(self.layer_scale(2, block.mlp(block.norm2(x))))
        return added


class ViTBlock(TimmBlock):
    """timm's plain block, with its plain attention."""

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; places are in the tokens already."""
        return queries_keys_values(self.module.attn, normed)

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        """Normalise, gate and project attended values."""
        projected: Tensor = self.module.attn.proj_drop(project(self.module.attn, out, normed))
        return projected

    def whole(self, tokens: Tokens, bias: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
        """Call timm's block."""
        x: Tensor = self.module(tokens.x, attn_mask=bias, is_causal=is_causal)
        return x

    def first(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """Run the block for the class token alone, without keys and values of the others where that is possible."""
        attn = self.module.attn
        if not needs_no_keys(attn):
            return super().first(tokens, bias)
        normed = self.norm(tokens.x)
        out = attend_by_query(attn, normed, bias).transpose(1, 2).flatten(2)
        return self.add_mlp(self.add_attention(tokens.x[:, :1], self.project(out, normed[:, :1])))

    def cls_attention(self, tokens: Tokens) -> Tensor:
        """Return how much the class token would attend to each patch token in this block, (B, n) float32."""
        return cls_attention_of(self.module.attn, self.norm(tokens.x), tokens.prefix)


@register_host(VisionTransformer)
class ReducedViT(TimmHost, VisionTransformer):
    """A timm VisionTransformer, dense or with a token reduction method.

    Only what reduction changes is overridden: embedding, blocks and final norm are driven through
    ``embed``, ``advance`` and ``finish``, and every other method of timm's class is inherited.

    Args:
        method: name of a registered reduction method, None for the dense tower.
        reduction: JSON-able options of the method (``keep``, ``reduce_at``, ...).
        prompts: the fields of ``PromptShape`` of a tuned model, whose learned visual tokens are to be filled; see
            ``zoo.add_prompts``. Asked for another number of classes, the model gets timm's plain head instead.
        vit_args: arguments of timm's VisionTransformer.

    Raises:
        ValueError: unknown method or option, value out of range, or tower that can't be reduced.
    """

    Block = ViTBlock
    kinds = ((PlainBlock, Attention),)
    filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        *,
        method: str | None = None,
        reduction: dict[str, Any] | None = None,
        prompts: dict[str, int] | None = None,
        **vit_args: Any,
    ) -> None:
        shape, classify = for_head(prompts, vit_args)
        super().__init__(**vit_args)
        new = {k: vit_args.get(k) for k in ("device", "dtype")}
        self.prompts: Prompts | None = None
        if shape is not None:
            self.expect(shape, classify=classify, **new)
        self.reducer: Reducer | None = None
        if method is not None:
            self.reducer = build_reducer(method, reduction or {}, self.spec(**new)).train(self.training)

    def positioned(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the tokens of images with their position embeddings, (B, T, D)."""
        x: Tensor = self.patch_drop(self._pos_embed(self.patch_embed(images)))
        return x, None
