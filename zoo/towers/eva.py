"""timm's Eva family: EVA-02, DINOv3, Perception Encoder and others with rotary position embeddings."""

import torch
from timm.layers import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm, checkpoint_filter_fn
from torch import Tensor

from zoo.core.attention import project, qkv_with_biases
from zoo.core.host import register_host
from zoo.core.tokens import Tokens
from zoo.towers.vit import TimmBlock, TimmHost

KINDS = tuple((block, attn) for block in (EvaBlock, EvaBlockPostNorm) for attn in (EvaAttention, AttentionRope))


class EvaHostBlock(TimmBlock):
    """A block of timm's Eva: norms before or behind, attention with rotary embeddings, LayerScale as a vector.

    A token is rotated by its own place, and a merged one by the mean place of those that it stands for. Prefix tokens
    and learned tokens have no place and aren't rotated.
    """

    @property
    def _norm_behind(self) -> bool:
        return isinstance(self.module, EvaBlockPostNorm)

    def norm(self, x: Tensor) -> Tensor:
        """Normalise tokens for the attention, unless that comes behind it."""
        normed: Tensor = x if self._norm_behind else self.module.norm1(x)
        return normed

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, the first two rotated by each token's place."""
        attn, shape = self.module.attn, (-1, self.module.attn.head_dim)
        if attn.qkv is None:
            parts = [layer(normed).unflatten(2, shape) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
            query, key, value = (part.transpose(1, 2) for part in parts)
        else:
            qkv = qkv_with_biases(attn, normed).unflatten(2, (3, *shape))
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if tokens.positional is not None:
            rope = rotation(tokens, self.index)
            query, key = (self._rotated(part, rope, tokens.prefix).type_as(value) for part in (query, key))
        groups = getattr(attn, "num_kv_groups", 1)
        if groups > 1:
            key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        return query, key, value

    def _rotated(self, x: Tensor, rope: Tensor, prefix: int) -> Tensor:
        patches = apply_rot_embed_cat(x[:, :, prefix:], rope, half=self.module.attn.rotate_half)
        return torch.cat((x[:, :, :prefix], patches), dim=2)

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        """Normalise, gate and project attended values."""
        projected: Tensor = self.module.attn.proj_drop(project(self.module.attn, out, normed))
        return projected

    def layer_scale(self, number: int, out: Tensor) -> Tensor:
        """Scale by a vector, or normalise behind."""
        if not self._norm_behind:
            return super().layer_scale(number, out)
        normed: Tensor = getattr(self.module, f"norm{number}")(out)
        return normed

    def add_mlp(self, x: Tensor) -> Tensor:
        """Add the MLP's result, with LayerScale or norm and stochastic depth."""
        if not self._norm_behind:
            return super().add_mlp(x)
        added: Tensor = x + self.module.drop_path2(self.layer_scale(2, self.module.mlp(x)))
        return added


def rotation(tokens: Tokens, index: int) -> Tensor:
    """Return the rotary embeddings of the patch tokens in block ``index``, (B, 1 or H, n, 2 d): sines, then cosines.

    ``tokens.positional`` is timm's table (N, 2 d), or (depth, H, N, 2 d) where each block and head has its own. Angles
    are linear in row and column, so that a place between those of the table is one of these turned further.
    """
    table = tokens.positional
    assert table is not None
    table = table.unsqueeze(0) if table.ndim == 2 else table[index]
    own = table[:, tokens.patch_idx.clamp(min=0)].transpose(0, 1)
    if tokens.place is None:
        return own
    columns = tokens.grid[1]
    first = tokens._replace(patch_idx=tokens.patch_idx.clamp(min=0), place=None).places()
    rows, across = (tokens.place - first).to(table.dtype)[:, None].unbind(dim=-1)
    down = _angle(table, columns) if tokens.grid[0] > 1 else 0.0
    right = _angle(table, 1) if columns > 1 else 0.0
    turn = rows.unsqueeze(-1) * down + across.unsqueeze(-1) * right  # 0 for a token that stands for itself alone
    (sine, cosine), (further, rest) = own.chunk(2, dim=-1), (turn.sin(), turn.cos())
    return torch.cat((sine * rest + cosine * further, cosine * rest - sine * further), dim=-1)


def _angle(table: Tensor, position: int) -> Tensor:
    """Return the angle from the first position of ``table`` (H, N, 2 d) to another, the shorter way, (H, 1, d)."""
    sine, cosine = table[:, [0, position]].chunk(2, dim=-1)
    along = cosine[:, 0] * cosine[:, 1] + sine[:, 0] * sine[:, 1]
    across = cosine[:, 0] * sine[:, 1] - sine[:, 0] * cosine[:, 1]
    return torch.atan2(across, along).unsqueeze(1)


@register_host(Eva)
class ReducedEva(TimmHost, Eva):  # type: ignore[misc]  # forward_intermediates takes output_dict, too
    """A timm Eva tower, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    Block = EvaHostBlock
    kinds = KINDS
    filter_fn = staticmethod(checkpoint_filter_fn)

    def positioned(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of images, and the rotary embeddings of the grid's positions, see ``rotation``."""
        x, rope = self._pos_embed(self.patch_embed(images))
        return x, rope

    @property
    def pooled_prefix(self) -> int:
        """Number of prefix tokens that are pooled like patch tokens: an attention pool sees all."""
        return 0 if self.attn_pool is None else int(self.num_prefix_tokens)
