"""open_clip's own image tower, CoCa's included; towers of timm within open_clip are those of ``zoo.towers.vit``."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import AttentionalPooler, PatchDropout, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from zoo.core.attention import Attended, split_heads, torch_attention
from zoo.core.host import CLASS_TOKEN, Host, HostBlock, register_host
from zoo.core.tokens import Tokens


class OpenClipBlock(HostBlock):
    """open_clip's block, whose attention is torch's ``nn.MultiheadAttention``."""

    norm_names = ("ln_1", "ln_2")

    @property
    def scale(self) -> float:
        return float(self.attn.head_dim**-0.5)

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        qkv = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias)
        return split_heads((self.heads, -1), *qkv.chunk(3, dim=2))

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        return self.attn.out_proj(out)

    def residual(self, number: int, out: Tensor) -> Tensor:
        return getattr(self.module, f"ls_{number}")(out)

    def attend(self, tokens: Tokens, bias: Tensor | None = None) -> Attended:
        if bias is not None:
            return super().attend(tokens, bias)
        # Torch's layer, whose way through a kernel depends on the mode.
        normed = self.norm(tokens.x)
        query, key, value = self.queries_keys_values(normed, tokens)
        return Attended(self.module.attention(normed), query, key, value, self.scale)

    def whole(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        return self.module(tokens.x) if bias is None else super().whole(tokens, bias)


@register_host(VisionTransformer)
class ReducedOpenClip(Host, VisionTransformer):
    """open_clip's VisionTransformer, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    Block = OpenClipBlock
    blocks_prefix, projection = "transformer.resblocks.", "proj"
    prefix_count = 1  # the class token
    query = CLASS_TOKEN  # even where the patch tokens are averaged or an attention pool sees all
    # Of open_clip's class, which has no types.
    _embeds: Callable[[Tensor], Tensor]
    _global_pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    _pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    attn_pool: AttentionalPooler | None
    conv1: nn.Conv2d
    grid_size: tuple[int, int]
    image_size: tuple[int, int]
    ln_post: nn.LayerNorm
    proj: nn.Parameter | None
    transformer: Any

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size

    @property
    def input_size(self) -> tuple[int, int]:
        height, width = self.image_size
        return int(height), int(width)

    @property
    def output_dim(self) -> int:
        return self.embed_dim if self.proj is None else self.proj.shape[1]

    @property
    def pools_first(self) -> bool:
        return self.attn_pool is None and self.pool_type == "tok" and not self.output_tokens

    @property
    def embed_dim(self) -> int:  # type: ignore[override]
        return int(self.conv1.out_channels)

    @property
    def grad_checkpointing(self) -> bool:  # type: ignore[override]
        return bool(self.transformer.grad_checkpointing)

    def embed(self, images: Tensor) -> Tokens:
        return Tokens.start(self._embeds(images), 1, self.grid)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise tokens (B, T, D), but for an attention pool of another width, behind which the norm stands."""
        return self.ln_post(x) if self.ln_post.normalized_shape == x.shape[2:] else x

    def finish(self, tokens: Tokens) -> Tensor:
        projected = self._project(tokens)[0]
        return projected.squeeze(1) if projected.ndim == 3 else projected  # CoCa's second pool has one query

    def _project(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return the pooled tokens, projected, and those that open_clip hands out beside them."""
        pooled, seen = self._pool(tokens.x) if tokens.size is None else self._pool_by_size(tokens)
        return pooled if self.proj is None else pooled @ self.proj, seen

    def _pool_by_size(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        x, bias, second = tokens.x, tokens.size_bias(), self._second_pool
        if second is not None:
            x = self.ln_post(x)
            seen = _attend(self.attn_pool, x, bias)
            return _attend(second, x, bias) if self.attn_pool_type == "parallel" else second(seen), seen
        if self.attn_pool is not None:
            return self._global_pool(self.ln_post(_attend(self.attn_pool, x, bias)))
        if self.pool_type == "tok":
            return self._pool(x)
        patches, left = x[:, 1:], tokens._replace(prefix=0)
        if self.final_ln_after_pool:
            return self.ln_post(left.mean(patches)), patches
        patches = self.ln_post(patches)
        return left.mean(patches), patches

    @property
    def _second_pool(self) -> AttentionalPooler | None:
        return None if self.attn_pool is None else self.attn_pool_contrastive

    def forward(self, x: Tensor) -> Any:
        tokens, _ = self.advance(self.embed(x))
        projected, seen = self._project(tokens)
        return (projected, seen) if self.output_tokens else projected

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
        missing: str = "nearest",
    ) -> dict[str, Any]:
        """Return open_clip's intermediates, with features for all patches; see ``Tokens.unmerge`` for ``missing``."""
        norm = normalize_intermediates
        tokens, maps, prefixes = self.feature_maps(
            self.embed(x), indices, stop_early=stop_early, norm=norm, output_fmt=output_fmt, missing=missing
        )
        output: dict[str, Any] = {"image_intermediates": maps}
        if output_extra_tokens:
            output["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            output["image_features"] = self._project(tokens)[0]
        return output

    def require_reducible(self) -> None:
        if isinstance(self.patch_dropout, PatchDropout):
            raise ValueError("patch_dropout > 0 loses patch positions; set it to 0 for reduction")
        if self.pool_type == "none" and self._second_pool is None:
            raise ValueError("pool_type='none' gives tokens, not one feature per image; expected 'tok' or 'avg'")
        block: Any = self.block_modules[0]
        kinds = (type(block), type(getattr(block, "attn", None)))
        if kinds != (ResidualAttentionBlock, nn.MultiheadAttention) or not block.attn.batch_first:
            have = f"{kinds[0].__name__} with {kinds[1].__name__}"
            wanted = "ResidualAttentionBlock with MultiheadAttention of batch_first=True"
            raise ValueError(f"this tower's blocks are {have}; expected open_clip's {wanted}")


def _attend(pool: AttentionalPooler, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the pool makes of tokens ``x`` (B, T, D), with a bias (B, 1, 1, T) on its logits."""
    query = pool.ln_q(pool.query).expand(x.shape[0], -1, -1)
    return torch_attention(pool.attn, query, pool.ln_k(x), bias)
