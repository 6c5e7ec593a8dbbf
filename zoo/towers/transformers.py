"""Image towers of transformers: CLIP, SigLIP, SigLIP 2, DINOv2 and DINOv3.

``zoo.reduce`` imports this module when one of them comes along. A reduced tower returns transformers' own outputs with
a field ``kept``, (B, n) int64: the grid positions of the patch tokens that are left, -1 for a fused one. These are the
last n of ``last_hidden_state``; with ``unmerge`` it and all hidden states have the tokens of all patches.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Backbone,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPVisionModelOutput
from transformers.utils.generic import can_return_tuple

from zoo.core.attention import PoolingQuery, as_mask, split_heads, torch_attention, torch_projections
from zoo.core.host import CLASS_TOKEN, PROBE, Host, HostBlock, register_host
from zoo.core.tokens import Tokens
from zoo.towers.eva import rotate, rotation

IMPLEMENTATIONS = ("sdpa", "eager")  # that take a bias on the logits


@dataclass
class ReducedOutput(BaseModelOutputWithPooling):
    """transformers' output with ``kept``."""

    kept: Tensor | None = None


@dataclass
class ReducedProjectionOutput(CLIPVisionModelOutput):
    """The output of CLIP's tower with its projection, with ``kept``."""

    kept: Tensor | None = None


class EncoderBlock(HostBlock):
    """A layer of the encoders of CLIP, SigLIP and SigLIP 2."""

    attn_name, norm_names = "self_attn", ("layer_norm1", "layer_norm2")

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        layers = (self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)
        return split_heads((self.heads, -1), *(layer(normed) for layer in layers))

    def attend_fused(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attend as ``attn_implementation`` says, to (B, H, T, d)."""
        attn = self.attn
        eager = sys.modules[type(attn).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attn.config._attn_implementation, eager)
        options = {"scaling": self.scale, "dropout": self.dropout, "is_causal": False}
        mask = None if bias is None else as_mask(bias, query)
        return attend(attn, query, key, value, mask, **options)[0].transpose(1, 2)

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        return self.attn.out_proj(out)


class DinoBlock(EncoderBlock):
    """A layer of DINOv2 or DINOv3: LayerScale, stochastic depth, and in DINOv3 rotary embeddings."""

    attn_name, norm_names = "attention", ("norm1", "norm2")

    @property
    def heads(self) -> int:
        return int(self.attn.config.num_attention_heads)

    @property
    def scale(self) -> float:
        return float(self.attn.scaling)

    @property
    def dropout(self) -> float:
        attn = self.attn
        rate = attn.dropout if hasattr(attn, "dropout") else attn.attention_dropout
        return float(rate) if attn.training else 0.0

    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().queries_keys_values(normed, tokens)
        if tokens.positional is not None:
            rope = rotation(tokens, self.index)
            query, key = (rotate(part, rope, tokens.prefix, half=True) for part in (query, key))
        return query, key, value

    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        return self.attn.o_proj(out)

    def residual(self, number: int, out: Tensor) -> Tensor:
        return self.module.drop_path(getattr(self.module, f"layer_scale{number}")(out))


class TransformersHost(Host):
    """What transformers' towers share; a family says how it embeds and what leaves it."""

    Block = EncoderBlock
    blocks_prefix = "encoder.layers."
    query: Any = CLASS_TOKEN
    pools_first = True
    unmerge = False  # whether outputs have all patches where ``forward`` isn't told
    # Of transformers' classes, which have no types here.
    config: Any
    embeddings: Any

    @property
    def grid(self) -> tuple[int, int]:
        return self.cells(*self.input_size)

    @property
    def input_size(self) -> tuple[int, int]:
        height, width = to_2tuple(self.config.image_size)
        return height, width

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches of an image of this size."""
        rows, columns = to_2tuple(self.config.patch_size)
        return int(height) // rows, int(width) // columns  # sizes are tensors while torch traces

    @property
    def prefix_count(self) -> int:
        return 1 + int(getattr(self.config, "num_register_tokens", 0))

    @property
    def output_dim(self) -> int:
        return self.embed_dim

    @property
    def embed_dim(self) -> int:  # type: ignore[override]
        return int(self.config.hidden_size)

    @property
    def grad_checkpointing(self) -> bool:  # type: ignore[override]
        return bool(self.block_modules[0].gradient_checkpointing and self.training)

    def leave(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return ``last_hidden_state``, without ``unmerge``, and ``pooler_output`` of what left the last block."""
        raise NotImplementedError

    def finish(self, tokens: Tokens) -> Tensor:
        pooled = self.leave(tokens)[1]
        if pooled is None:
            raise ValueError("vision_use_head=False: this tower gives tokens, not one feature per image")
        return pooled

    def output(self, tokens: Tokens, last: Tensor, pooled: Any, hidden_states: tuple[Tensor, ...] | None) -> Any:
        """Put what left the last block into transformers' object."""
        return ReducedOutput(
            last_hidden_state=last, pooler_output=pooled, hidden_states=hidden_states, kept=tokens.patch_idx
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        unmerge: bool | None = None,
        missing: str = "nearest",
        **inputs: Any,
    ) -> Any:
        """Return transformers' output, with ``kept``; ``inputs`` are the arguments of ``embed`` beside images.

        With ``unmerge``, None for what ``zoo.reduce`` was told, all patches have tokens, see ``Tokens.unmerge``.

        Raises:
            ValueError: ``output_attentions``, or an unknown ``missing``.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions=True: a reduced tower has no attention maps; use the dense tower")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        tapping = output_hidden_states is not None and output_hidden_states is not False  # a layer's number may be 0
        embedded = self.embed(pixel_values, **inputs)
        tokens, tapped = self.advance(embedded, taps=range(self.depth) if tapping else ())
        last, pooled = self.leave(tokens)
        states = [each.x for each in tapped]
        if self.unmerge if unmerge is None else unmerge:
            last, states = tokens._replace(x=last).unmerge(missing), [each.unmerge(missing) for each in tapped]
        return self.output(tokens, last, pooled, (embedded.x, *states) if tapping else None)

    def require_reducible(self) -> None:
        implementation = self.config._attn_implementation
        if implementation not in IMPLEMENTATIONS:
            allowed = f"expected one of {', '.join(IMPLEMENTATIONS)}; call model.set_attn_implementation('sdpa') first"
            raise ValueError(f"attn_implementation={implementation!r}: {allowed}")


class ClipHost(TransformersHost):
    """CLIP's tower, which may be a submodule of what has its projection."""

    norm_name = "post_layernorm"

    @property
    def vision(self) -> Any:
        """The module of embeddings, encoder and norms."""
        return self

    def embed(self, images: Tensor, interpolate_pos_encoding: bool | None = False) -> Tokens:
        x = self.vision.embeddings(images, interpolate_pos_encoding=interpolate_pos_encoding)
        return Tokens.start(self.vision.pre_layrnorm(x), 1, self.cells(*images.shape[-2:]))

    def leave(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return tokens.x, self.normalise(tokens.x[:, 0, :])


@register_host(CLIPVisionModel)
class ReducedClipVision(ClipHost, CLIPVisionModel):
    """transformers' CLIPVisionModel, dense or with a token reduction method; ``zoo.reduce`` makes it."""


@register_host(CLIPVisionModelWithProjection)
class ReducedClipProjection(ClipHost, CLIPVisionModelWithProjection):
    """transformers' CLIPVisionModelWithProjection, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    visual_projection: nn.Linear

    blocks_prefix, norm_name = "vision_model.encoder.layers.", "vision_model.post_layernorm"
    projection = "visual_projection"

    @property
    def output_dim(self) -> int:
        return self.visual_projection.out_features

    @property
    def vision(self) -> Any:
        return self.vision_model

    def finish(self, tokens: Tokens) -> Tensor:
        return self.visual_projection(super().finish(tokens))

    def output(self, tokens: Tokens, last: Tensor, pooled: Any, hidden_states: tuple[Tensor, ...] | None) -> Any:
        embeds = self.visual_projection(pooled)
        return ReducedProjectionOutput(
            image_embeds=embeds, last_hidden_state=last, hidden_states=hidden_states, kept=tokens.patch_idx
        )


class SiglipHost(TransformersHost):
    """What SigLIP and SigLIP 2 share: an attention pool, no class token."""

    prefix_count, pools_first, norm_name = 0, False, "post_layernorm"
    head: Any
    use_head: bool

    @property
    def query(self) -> str | None:
        return PROBE if self.use_head else None

    def leave(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        x = self.normalise(tokens.x)
        if not self.use_head:
            return x, None
        head = self.head
        if tokens.size is None:
            return x, head(x)
        pooled = torch_attention(head.attention, head.probe.expand(x.shape[0], -1, -1), x, tokens.size_bias())
        return x, (pooled + head.mlp(head.layernorm(pooled)))[:, 0]

    def probe(self, tokens: Tokens) -> PoolingQuery:
        layer, x = self.head.attention, self.normalise(tokens.x)
        query, key, _ = torch_projections(layer, self.head.probe.expand(x.shape[0], -1, -1), x)
        return PoolingQuery(query, key, layer.head_dim**-0.5, 0)


@register_host(SiglipVisionModel)
class ReducedSiglip(SiglipHost, SiglipVisionModel):
    """transformers' SiglipVisionModel, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    def embed(self, images: Tensor, interpolate_pos_encoding: bool | None = False) -> Tokens:
        x = self.embeddings(images, interpolate_pos_encoding=interpolate_pos_encoding)
        return Tokens.start(x, 0, self.cells(*images.shape[-2:]))


@register_host(Siglip2VisionModel)
class ReducedSiglip2(SiglipHost, Siglip2VisionModel):
    """transformers' Siglip2VisionModel, dense or with a token reduction method; ``zoo.reduce`` makes it.

    Images of one batch must have the same grid, since one count of tokens is kept of all; padding is cut off.
    """

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that have the learned positions."""
        side = int(self.config.num_patches**0.5) * int(self.config.patch_size)
        return side, side

    def embed(
        self, images: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> Tokens:
        """Turn images (B, C, H, W), or what the processor makes of them, into the tokens that enter block 0.

        Raises:
            ValueError: images of several grids, or patches missing in one.
        """
        if spatial_shapes is None:
            rows, columns = self.cells(*images.shape[-2:])
            size = self.config.patch_size
            tiles = images.unflatten(3, (columns, size)).unflatten(2, (rows, size))
            patches = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            shapes = torch.tensor((rows, columns), device=images.device).expand(images.shape[0], -1)
            return Tokens.start(self.embeddings(patches, shapes), 0, (rows, columns))
        if (spatial_shapes != spatial_shapes[:1]).any():
            grids = spatial_shapes.tolist()
            raise ValueError(f"spatial_shapes={grids}: expected one grid in a batch; give images of equal shape")
        rows, columns = spatial_shapes[0].tolist()
        count = rows * columns
        if pixel_attention_mask is not None and not pixel_attention_mask[:, :count].all():
            raise ValueError(f"pixel_attention_mask leaves out some of the {rows} x {columns} patches")
        return Tokens.start(self.embeddings(images[:, :count], spatial_shapes), 0, (rows, columns))


class DinoHost(TransformersHost):
    """What DINOv2 and DINOv3 share."""

    Block = DinoBlock
    blocks_prefix, norm_name = "encoder.layer.", "layernorm"  # DINOv2's

    def embed(
        self, images: Tensor, bool_masked_pos: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tokens:
        if attention_mask is not None:
            raise ValueError("attention_mask needs all tokens in place; use the dense tower")
        x, positional = self.embed_patches(images, bool_masked_pos)
        return Tokens.start(x, self.prefix_count, self.cells(*images.shape[-2:]), positional)

    def embed_patches(self, images: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.embeddings(images, bool_masked_pos=masked), None

    def leave(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        x = self.normalise(tokens.x)
        return x, x[:, 0, :]


@register_host(Dinov2Model)
class ReducedDinov2(DinoHost, Dinov2Model):
    """transformers' Dinov2Model, dense or with a token reduction method; ``zoo.reduce`` makes it."""


@register_host(Dinov2Backbone)
class ReducedDinov2Backbone(DinoHost, Dinov2Backbone):
    """transformers' Dinov2Backbone, whose feature maps have all patches, for heads such as DPT's; see `Dinov2Model`."""

    unmerge = True
    layernorm: nn.LayerNorm
    out_features: list[str]
    stage_names: list[str]
    forward = can_return_tuple(filter_output_hidden_states(DinoHost.forward.__wrapped__))

    def output(self, tokens: Tokens, last: Tensor, pooled: Any, hidden_states: tuple[Tensor, ...] | None) -> Any:
        assert hidden_states is not None
        maps = [x for name, x in zip(self.stage_names, hidden_states, strict=True) if name in self.out_features]
        if self.config.apply_layernorm:  # zeros that stand for a dropped patch stay
            maps = [self.layernorm(x).where(x.any(dim=2, keepdim=True), 0.0) for x in maps]
        if self.config.reshape_hidden_states:
            maps = [x[:, tokens.prefix :].transpose(1, 2).unflatten(2, tokens.grid).contiguous() for x in maps]
        return BackboneOutput(feature_maps=tuple(maps), hidden_states=hidden_states)


@register_host(Dinov2WithRegistersModel)
class ReducedDinov2Registers(DinoHost, Dinov2WithRegistersModel):
    """transformers' Dinov2WithRegistersModel, dense or with a token reduction method; ``zoo.reduce`` makes it."""


@register_host(DINOv3ViTModel)
class ReducedDinov3(DinoHost, DINOv3ViTModel):
    """transformers' DINOv3ViTModel, dense or with a token reduction method; ``zoo.reduce`` makes it."""

    blocks_prefix, norm_name = "model.layer.", "norm"
    rope_embeddings: nn.Module

    def embed_patches(self, images: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor]:
        images = images.to(self.embeddings.patch_embeddings.weight.dtype)
        cosine, sine = self.rope_embeddings(images)
        return self.embeddings(images, bool_masked_pos=masked), torch.cat((sine, cosine), dim=-1)
