"""timm's towers whose blocks know places: Eva's and NaFlexVit's by rotation, Beit's by a bias of each pair."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import beit, naflexvit
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm, checkpoint_filter_fn
from torch import Tensor

from zoo.core.attention import split_heads
from zoo.core.host import PROBE, HostBlock, register_host
from zoo.core.tokens import Tokens
from zoo.towers.vit import ReducedViT, TimmBlock, TimmHost, ViTBlock

KINDS = tuple((block, attn) for block in (EvaBlock, EvaBlockPostNorm) for attn in (EvaAttention, AttentionRope))


class EvaHostBlock(TimmBlock):
    """A block of timm's Eva: norms before or behind, attention with rotary embeddings, LayerScale as a vector.

    A merged token is rotated by the mean place of those that it stands for; prefix and learned tokens aren't rotated.
    """

    @property
    def _norm_behind(self) -> bool:
        return isinstance(self.module, EvaBlockPostNorm)

    def norm(self, x: Tensor, number: int = 1) -> Tensor:
        return x if self._norm_behind else super().norm(x, number)

    def layer_scale(self, number: int, out: Tensor) -> Tensor:
        return super().norm(out, number) if self._norm_behind else super().layer_scale(number, out)

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is None:
            parts = (layer(normed) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
            query, key, value = split_heads((-1, attn.head_dim), *parts)
        else:
            query, key, value = super().queries_keys_values(normed, tokens)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if tokens.positional is not None:
            rope = rotation(tokens, self.index)
            parts = (rotate(part, rope, tokens.prefix, half=attn.rotate_half) for part in (query, key))
            query, key = (part.type_as(value) for part in parts)
        groups = getattr(attn, "num_kv_groups", 1)
        if groups > 1:
            key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        return query, key, value


def rotate(x: Tensor, rope: Tensor, prefix: int, *, half: bool) -> Tensor:
    """Rotate the patch tokens' queries or keys ``x`` (B, H, T, d) by ``rotation``'s result, as pairs or by halves."""
    return torch.cat((x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)), dim=2)


def rotation(tokens: Tokens, index: int) -> Tensor:
    """Return the rotary embeddings of the patch tokens in block ``index``, (B, 1 or H, n, 2 d): sines, then cosines.

    ``tokens.positional`` is timm's table (N, 2 d), or (depth, H, N, 2 d) where each block and head has its own. Angles
    are linear in row and column, so that a place between those of the table is one of these turned further.
    """
    table = tokens.positional
    assert table is not None
    table = table.unsqueeze(0) if table.ndim == 2 else table[index]
    rope = table[:, tokens.patch_idx.clamp(min=0)].transpose(0, 1)
    if tokens.place is None:
        return rope
    columns = tokens.grid[1]
    first = tokens._replace(patch_idx=tokens.patch_idx.clamp(min=0), place=None).places()
    rows, across = (tokens.place - first).to(table.dtype)[:, None].unbind(dim=-1)
    down = _angle(table, columns) if tokens.grid[0] > 1 else 0.0
    right = _angle(table, 1) if columns > 1 else 0.0
    turn = rows.unsqueeze(-1) * down + across.unsqueeze(-1) * right  # 0 for a token that stands for itself alone
    (sine, cosine), (further, rest) = rope.chunk(2, dim=-1), (turn.sin(), turn.cos())
    return torch.cat((sine * rest + cosine * further, cosine * rest - sine * further), dim=-1)


def _angle(table: Tensor, position: int) -> Tensor:
    """Return the angle from the first position of ``table`` (H, N, 2 d) to another, the shorter way, (H, 1, d)."""
    (sine, cosine), (other_sine, other_cosine) = (table[:, at : at + 1].chunk(2, dim=-1) for at in (0, position))
    along = cosine * other_cosine + sine * other_sine
    return torch.atan2(cosine * other_sine - sine * other_cosine, along)


@register_host(Eva)
class ReducedEva(TimmHost, Eva):  # type: ignore[misc]  # forward_intermediates takes output_dict, too
    """A timm Eva tower, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    Block = EvaHostBlock
    kinds = KINDS
    filter_fn = staticmethod(checkpoint_filter_fn)

    def embed_patches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._pos_embed(self.patch_embed(images))  # the second are rotary embeddings, see ``rotation``

    @property
    def pooled_prefix(self) -> int:
        return 0 if self.attn_pool is None else int(self.num_prefix_tokens)


@register_host(naflexvit.NaFlexVit)
class ReducedNaFlexVit(TimmHost, naflexvit.NaFlexVit):  # type: ignore[misc]  # forward takes images alone
    """A timm NaFlexVit, SigLIP 2's among others, dense or with a token reduction method; ``zoo.reduce`` makes it.

    It takes images, not patches with a mask: a method keeps the same number of patches of each image in a batch.
    """

    kinds = (*ReducedViT.kinds, *KINDS)
    filter_fn = staticmethod(naflexvit.checkpoint_filter_fn)
    embeds: Any
    rope: Any

    @property
    def grid(self) -> tuple[int, int]:
        return self.embeds.pos_embed_grid_size

    @property
    def input_size(self) -> tuple[int, int]:
        (rows, columns), (height, width) = self.grid, self.embeds.patch_size
        return rows * height, columns * width

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        rows, columns = self.embeds.dynamic_feat_size(images.shape[-2:])
        return int(rows), int(columns)

    def block(self, index: int) -> HostBlock:
        module = self.blocks[index]
        kind: type[TimmBlock] = EvaHostBlock if isinstance(module, EvaBlock) else ViTBlock
        return kind(module, index, self.probe if self.query == PROBE else None)

    @property
    def cls_token(self) -> Any:
        return self.embeds.cls_token

    def embed_patches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x, grid = self.embeds(images)
        return x, None if self.rope is None else self.rope.get_embed(shape=grid)

    def forward(self, x: Any, *masks: Any, **more: Any) -> Tensor:
        if masks or more or not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(
                "this tower takes images (B, C, H, W) alone: a method keeps the same number of patches of each image, "
                "which masks don't allow"
            )
        return super().forward(x)

    def _pool(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        return super()._pool(self.drop_prompts(x, pool_type), pool_type, patch_valid)

    def require_reducible(self) -> None:
        super().require_reducible()
        if self.embeds.pos_embed_grid_size is None:
            raise ValueError("pos_embed='none' without an image size: expected a table of positions")


class BeitBlock(TimmBlock):
    """A block of timm's Beit, whose attention adds a bias for each pair of places, 0 for learned and fused tokens."""

    @property
    def pairs_places(self) -> bool:  # type: ignore[override]
        return self.attn.relative_position_bias_table is not None

    def bias(self, tokens: Tokens) -> Tensor | None:
        if not self.pairs_places:
            return None
        # (H, N + 2, N + 2), the class token first and no place last
        places = F.pad(self.attn._get_rel_pos_bias()[0], (0, 1, 0, 1))
        nowhere = places.shape[1] - 1
        patches = (tokens.patch_idx + 1).where(tokens.patch_idx >= 0, nowhere)
        cls = torch.zeros_like(patches[:, :1])
        idx = torch.cat((cls, (cls + nowhere).expand(-1, tokens.prefix - 1), patches), dim=1)
        return places[:, idx.unsqueeze(2), idx.unsqueeze(1)].transpose(0, 1)

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        return self.attn.proj_drop(self.attn.proj(out))


@register_host(beit.Beit)
class ReducedBeit(TimmHost, beit.Beit):
    """A timm Beit tower, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    Block = BeitBlock
    kinds = ((beit.Block, beit.Attention),)
    filter_fn = staticmethod(beit.checkpoint_filter_fn)
    attn_pool = None
    norm_pre = staticmethod(lambda x: x)

    def embed_patches(self, images: Tensor) -> tuple[Tensor, None]:
        x = self.patch_embed(images)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return self.pos_drop(x), None

    def require_reducible(self) -> None:
        super().require_reducible()
        if self.rel_pos_bias is not None:
            raise ValueError("use_shared_rel_pos_bias=True: expected a bias for each block, as in all models of timm's")
