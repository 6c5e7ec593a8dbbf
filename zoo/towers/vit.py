"""timm's towers with one forward loop that a reducer may shorten; its VisionTransformer first of all.

Methods without a docstring do what ``Host``, ``HostBlock`` or timm's class says of them.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionPoolLatent, PatchDropout, PatchDropoutWithIndices, PatchEmbed
from timm.models.vision_transformer import Block as PlainBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from zoo.core.attention import PoolingQuery, is_plain, mean_share, split_heads
from zoo.core.host import CLASS_TOKEN, PROBE, Host, HostBlock, register_host
from zoo.core.learned import CosineHead, PromptShape, VisualPrompts, for_head
from zoo.core.reducer import build_reducer
from zoo.core.tokens import Tokens

_FILES = ("predictor", "prompts")  # arguments that may name a file whose weights come along


def refuse_mask(images: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return the images as they are, or raise ValueError if there is a mask: reduction moves tokens."""
    if mask is not None or is_causal:
        raise ValueError("attn_mask and is_causal need all tokens in place; use timm's own tower")
    return images


class TimmHost(Host):
    """What timm's families of towers share: embedding, pooling, and the methods of timm's interface.

    A family is a subclass of this and of timm's class, with ``Block``, ``embed_patches`` and what it can reduce.
    """

    kinds: ClassVar[tuple[tuple[type[nn.Module], type[nn.Module]], ...]]  # of blocks and attention that are known
    filter_fn: ClassVar[Callable[..., dict[str, Any]]]  # timm's, which converts checkpoints for this class
    projection = "head"

    # Of timm's classes; Any where they type one layer in several ways.
    attn_pool: Any
    blocks: Any
    cls_token: Any
    forward_head: Callable[..., Tensor]
    global_pool: Any
    head: Any
    head_drop: Any
    fc_norm: nn.Module
    norm: nn.Module
    norm_pre: Callable[[Tensor], Tensor]
    num_classes: int
    num_features: int
    num_prefix_tokens: int
    patch_embed: PatchEmbed
    pretrained_cfg: dict[str, Any]
    reset_classifier: Callable[..., None]

    @abstractmethod
    def embed_patches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of images with what is added for places, (B, T, D), and ``Tokens.positional``."""

    @property
    def grid(self) -> tuple[int, int]:
        return self.patch_embed.grid_size

    @property
    def input_size(self) -> tuple[int, int]:
        return self.patch_embed.img_size

    @property
    def prefix_count(self) -> int:
        return int(self.num_prefix_tokens) + (0 if self.prompts is None else self.prompts.count)

    @property
    def output_dim(self) -> int:
        return self.num_classes or self.num_features

    @property
    def query(self) -> str | None:
        if self.cls_token is not None:
            return CLASS_TOKEN
        return PROBE if isinstance(self.attn_pool, AttentionPoolLatent) else None

    @property
    def pools_first(self) -> bool:
        return self.attn_pool is None and self.global_pool == "token"

    @property
    def pooled_prefix(self) -> int:
        """Number of prefix tokens that are pooled like patch tokens, never learned ones."""
        return int(self.num_prefix_tokens) if getattr(self, "pool_include_prefix", False) else 0

    def select_pooled(self, x: Tensor) -> Tensor:
        """Return the tokens of ``x`` (B, T, D) that the pool sees."""
        return torch.cat((x[:, : self.pooled_prefix], x[:, self.prefix_count :]), dim=1)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        # Dynamo can't follow super() kept in a variable.
        return super().pool(self.drop_prompts(x, pool_type), pool_type)  # type: ignore[misc]

    def drop_prompts(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Return the tokens of ``x`` (B, T, D) without learned ones, unless the class token is all that is read."""
        first = self.attn_pool is None and (pool_type or self.global_pool) == "token"
        if self.prompts is None or first:
            return x
        return torch.cat((x[:, : self.num_prefix_tokens], x[:, self.prefix_count :]), dim=1)

    def probe(self, tokens: Tokens) -> PoolingQuery:
        pool, x = self.attn_pool, self.select_pooled(self.norm(tokens.x))
        latent = pool.latent.expand(x.shape[0], -1, -1)
        query, key, _ = split_heads((pool.num_heads, -1), pool.q(latent), *pool.kv(x).chunk(2, dim=2))
        return PoolingQuery(pool.q_norm(query), pool.k_norm(key), pool.scale, self.pooled_prefix)

    def require_reducible(self) -> None:
        block = self.blocks[0]
        kind = (type(block), type(getattr(block, "attn", None)))
        if kind not in self.kinds:
            known = " or ".join(f"{block_kind.__name__} with {attn.__name__}" for block_kind, attn in self.kinds)
            have = f"{kind[0].__name__} with {kind[1].__name__}"
            raise ValueError(f"this tower's blocks are {have}; expected timm's {known}")
        if isinstance(getattr(self, "patch_drop", None), (PatchDropout, PatchDropoutWithIndices)):
            raise ValueError("patch_drop_rate > 0 loses patch positions; set it to 0 for reduction")
        pool = self.attn_pool
        if pool is not None and (not isinstance(pool, AttentionPoolLatent) or pool.pos_embed is not None):
            have = f"{type(pool).__name__} of global_pool={self.global_pool!r}"
            raise ValueError(f"this tower pools by {have}; expected timm's AttentionPoolLatent without positions")

    def expect(
        self, shape: PromptShape, *, classify: bool, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        """Make room for learned visual tokens, and with ``classify`` for tuned text features."""
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prompts = VisualPrompts(shape.tokens, self.embed_dim, **new) if shape.tokens else None
        if classify:
            projection = self.head.projection if isinstance(self.head, CosineHead) else self.head
            self.head = CosineHead(projection, nn.Linear(shape.features, shape.classes, bias=False, **new))
            self.num_classes = shape.classes

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of images (B, C, H, W)."""
        if self.patch_embed.strict_img_size:
            return self.grid
        height, width = images.shape[-2:]
        rows, columns = self.patch_embed.dynamic_feat_size((height, width))
        return int(rows), int(columns)

    def embed(self, images: Tensor) -> Tokens:
        (x, positional), prefix, timms = self.embed_patches(images), self.prefix_count, self.num_prefix_tokens
        if self.prompts is not None:
            prompts = self.prompts().to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat((x[:, :timms], prompts, x[:, timms:]), dim=1)
        return Tokens.start(self.norm_pre(x), prefix, self.grid_of(images), positional)

    @torch.no_grad()
    def mean_patch(self, images: Tensor) -> Tensor:
        """Return the mean patch token of images (n, C, H, W) before learned tokens would join it, (D) float32."""
        return self.embed_patches(images)[0][:, self.num_prefix_tokens :].float().mean(dim=(0, 1))

    def finish(self, tokens: Tokens) -> Tensor:
        """Normalise, pool and apply the head: averages and attention pools weigh merged tokens by size."""
        x = self.norm(tokens.x)
        if tokens.size is None or (self.attn_pool is None and self.global_pool in ("", "token", "max")):
            return self.forward_head(x)
        seen, left = self.select_pooled(x), tokens._replace(prefix=self.pooled_prefix)
        if self.attn_pool is not None:
            pooled = self.attn_pool(seen, attn_mask=left.size_bias())
        else:
            pooled = left.mean(seen)
            if self.global_pool == "avgmax":
                pooled = 0.5 * (seen.amax(dim=1) + pooled)
        return self.head(self.head_drop(self.fc_norm(pooled)))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the head's output; ``forward_head`` of ``forward_features`` knows nothing of merged tokens' sizes."""
        return self.features(refuse_mask(x, attn_mask, is_causal))

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the normalised tokens that are left, (B, prefix + n, D), prefix tokens first."""
        tokens, _ = self.advance(self.embed(refuse_mask(x, attn_mask, is_causal)))
        return self.norm(tokens.x)

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
        missing: str = "nearest",
    ) -> Any:
        """Return timm's intermediates, with features for all patches; see ``Tokens.unmerge`` for ``missing``."""
        embedded = self.embed(refuse_mask(x, attn_mask, is_causal))
        tokens, maps, prefixes = self.feature_maps(
            embedded, indices, stop_early=stop_early, norm=norm, output_fmt=output_fmt, missing=missing
        )
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

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters as timm does; a reducer's own weights go with the last block."""
        timms: Any = super()
        groups = timms.group_matcher(coarse)
        return {**groups, "blocks": [*groups["blocks"], (r"^reducer", (99999,))]}

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves of how this model was made: free of files, whose content it holds."""
        return self.__dict__.get("_model_args", {})

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:
        held = {k: v for k, v in self._model_args.items() if k in _FILES}
        other = {k: v for k, v in value.items() if k not in value.get("reduction", ())}  # of which each is there once
        named = {k: v for k, v in other.items() if k not in _FILES or isinstance(v, dict)}
        self.__dict__["_model_args"] = held | named


class TimmBlock(HostBlock):
    """What blocks of timm's families share: fused or separate projections, LayerScale, stochastic depth."""

    @property
    def dropout(self) -> float:
        return float(self.attn.attn_drop.p) if self.attn.training else 0.0

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if getattr(attn, "q_bias", None) is None:
            qkv = attn.qkv(normed)
        else:
            bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
            qkv = attn.qkv(normed) + bias if attn.qkv_bias_separate else F.linear(normed, attn.qkv.weight, bias)
        query, key, value = qkv.chunk(3, dim=2)
        return split_heads((self.heads, -1), query, key, value)

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        """Normalise, gate and project attended values."""
        attn, out = self.attn, self.attn.norm(out)
        if attn.gate is not None:
            out = out * attn.gate(normed).sigmoid()
        return attn.proj_drop(attn.proj(out))

    def layer_scale(self, number: int, out: Tensor) -> Tensor:
        """Scale what the attention layer (1) or the MLP (2) gives, by a layer or a vector if there is one."""
        if (layer := getattr(self.module, f"ls{number}", None)) is not None:
            return layer(out)
        gamma = getattr(self.module, f"gamma_{number}", None)
        return out if gamma is None else gamma * out

    def residual(self, number: int, out: Tensor) -> Tensor:
        return getattr(self.module, f"drop_path{number}")(self.layer_scale(number, out))


class ViTBlock(TimmBlock):
    """timm's plain block, with its plain attention.

    The class token's row needs no key or value of others, as q (W x) is (q W) x: the query goes through the keys'
    weights once instead of every token, and the attended mean of the tokens through the values'.
    """

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().queries_keys_values(normed, tokens)
        return self.attn.q_norm(query), self.attn.k_norm(key), value

    def whole(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        return self.module(tokens.x) if bias is None else super().whole(tokens, bias)

    def first(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        if not self._needs_no_keys:
            return super().first(tokens, bias)
        attn, normed = self.attn, self.norm(tokens.x)
        logits = self._cls_logits(normed)
        if bias is not None:
            logits = logits + bias[..., 0, :]
        mean = logits.softmax(dim=-1) @ normed
        out = (mean.transpose(0, 1) @ self._weights(2).transpose(1, 2)).transpose(0, 1).unsqueeze(2)
        if attn.qkv.bias is not None:
            out = out + attn.qkv.bias[2 * attn.attn_dim :].view(attn.num_heads, 1, attn.head_dim)
        projected = self.project(out.transpose(1, 2).flatten(2), normed[:, :1])
        return self.add_mlp(self.add_attention(tokens.x[:, :1], projected))

    def cls_attention(self, tokens: Tokens) -> Tensor:
        if not self._needs_no_keys:
            return super().cls_attention(tokens)
        return mean_share(self._cls_logits(self.norm(tokens.x)), tokens.prefix)

    @property
    def _needs_no_keys(self) -> bool:
        return is_plain(self.attn.qkv) and isinstance(self.attn.k_norm, nn.Identity)

    def _cls_logits(self, x: Tensor) -> Tensor:
        """Return the class token's logits (B, H, T) up to a constant per head, the keys' bias, which softmax undoes."""
        attn = self.attn
        rows = slice(0, attn.attn_dim)
        query = F.linear(x[:, 0], attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows])
        query = attn.q_norm(query.view(x.shape[0], attn.num_heads, attn.head_dim)) * attn.scale
        # Heads as the batch of the product: otherwise the weights are copied for every sequence.
        query = (query.transpose(0, 1) @ self._weights(1)).transpose(0, 1)
        return query @ x.transpose(1, 2)

    def _weights(self, which: int) -> Tensor:
        """Return the weights of keys (1) or values (2) by head, (H, d, D)."""
        return self.attn.qkv.weight.view(3, self.attn.num_heads, self.attn.head_dim, -1)[which]


@register_host(VisionTransformer)
class ReducedViT(TimmHost, VisionTransformer):
    """A timm VisionTransformer, dense or with a token reduction method.

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
        self.prompts = self.reducer = None
        if shape is not None:
            self.expect(shape, classify=classify, **new)
        if method is not None:
            self.reducer = build_reducer(method, reduction or {}, self.spec(**new)).train(self.training)

    def embed_patches(self, images: Tensor) -> tuple[Tensor, None]:
        return self.patch_drop(self._pos_embed(self.patch_embed(images))), None
