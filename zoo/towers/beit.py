"""timm's Beit family: BEiT, BEiT v2 and data2vec-like towers with a bias for relative positions."""

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, checkpoint_filter_fn
from timm.models.beit import Block as PlainBlock
from torch import Tensor

from zoo.core.host import register_host
from zoo.core.tokens import Tokens
from zoo.towers.vit import TimmBlock, TimmHost


class BeitBlock(TimmBlock):
    """A block of timm's Beit, whose attention adds a bias for each pair of places.

    A token that others were merged into keeps its own place. Learned tokens and fused ones have none: they get no bias.
    """

    @property
    def pairs_places(self) -> bool:
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


@register_host(Beit)
class ReducedBeit(TimmHost, Beit):
    """A timm Beit tower, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    Block = BeitBlock
    kinds = ((PlainBlock, Attention),)
    filter_fn = staticmethod(checkpoint_filter_fn)
    attn_pool = None
    norm_pre = staticmethod(lambda x: x)

    def positioned(self, images: Tensor) -> tuple[Tensor, None]:
        x = self.patch_embed(images)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return self.pos_drop(x), None

    def require_reducible(self) -> None:
        super().require_reducible()
        if self.rel_pos_bias is not None:
            raise ValueError("use_shared_rel_pos_bias=True: expected a bias for each block, as in all models of timm's")
