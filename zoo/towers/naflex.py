"""timm's NaFlexVit, SigLIP 2's flexible tower among others, on batches of images of one size."""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.naflexvit import NaFlexVit, checkpoint_filter_fn
from torch import Tensor

from zoo.core.host import PROBE, HostBlock, register_host
from zoo.towers.eva import KINDS, EvaHostBlock
from zoo.towers.vit import ReducedViT, TimmHost, ViTBlock


@register_host(NaFlexVit)
class ReducedNaFlexVit(TimmHost, NaFlexVit):  # type: ignore[misc]  # forward takes images alone
    """A timm NaFlexVit, dense or with a token reduction method; ``zoo.reduce`` makes it.

    It takes images. Patches with a mask, of which each image has a number of its own, are refused: a method keeps the
    same number for all images of a batch, and a keep rate of those that count would differ between them.
    """

    kinds = (*ReducedViT.kinds, *KINDS)
    filter_fn = staticmethod(checkpoint_filter_fn)
    embeds: Any
    rope: Any

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the table of positions, which other grids resize."""
        rows, columns = self.embeds.pos_embed_grid_size
        return int(rows), int(columns)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that have the table's positions."""
        (rows, columns), (height, width) = self.grid, self.embeds.patch_size
        return rows * height, columns * width

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of images (B, C, H, W)."""
        rows, columns = self.embeds.dynamic_feat_size(images.shape[-2:])
        return int(rows), int(columns)

    def block(self, index: int) -> HostBlock:
        """Take block ``index`` apart: one of Eva's where there are rotary embeddings, else timm's plain one."""
        module = self.blocks[index]
        kind: type[HostBlock] = EvaHostBlock if isinstance(module, EvaBlock) else ViTBlock
        return kind(module, index, self.probe if self.query == PROBE else None)

    @property
    def cls_token(self) -> Any:
        """The class token, which is the embedding's, None without."""
        return self.embeds.cls_token

    def positioned(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of images, and the rotary embeddings of the grid's positions."""
        x, grid = self.embeds(images)
        return x, None if self.rope is None else self.rope.get_embed(shape=grid)

    def forward(self, x: Any, *masks: Any, **more: Any) -> Tensor:
        """Return the head's output for images (B, C, H, W)."""
        if masks or more or not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(
                "this tower takes images (B, C, H, W) alone: with masks images have different numbers of patches, of "
                "which a method can't keep the same"
            )
        return super().forward(x)

    def _pool(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """Pool as timm does; learned tokens are never averaged in."""
        pooled: Tensor = super()._pool(self.unprompted(x, pool_type), pool_type, patch_valid)
        return pooled

    def require_reducible(self) -> None:
        """Raise ValueError, with the reason, if this tower lacks what reduction needs."""
        super().require_reducible()
        if self.embeds.pos_embed_grid_size is None:
            raise ValueError("pos_embed='none' without an image size: expected a table of positions")
