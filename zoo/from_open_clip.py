"""Convert open_clip's image towers to our class."""

from functools import partial
from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, QuickGELU, VisionTransformer
from timm.layers import LayerNorm
from timm.layers.activations import QuickGELU as TimmQuickGELU
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from zoo.adopt import reduce
from zoo.vit import ReducedViT, host_spec

_POOLS = {"tok": "token", "avg": "avg"}
_CROPS = {"shortest": "center", "squash": "squash"}


def from_open_clip(model: nn.Module) -> ReducedViT:
    """Convert the image tower of an open_clip model to a dense tower whose head is the projection.

    What it returns equals ``encode_image``. The weights of open_clip's own VisionTransformer are
    copied, as float32; a timm trunk shares modules and weights with the result. The preprocessing
    goes along as timm's ``pretrained_cfg``, if open_clip made the model.

    Args:
        model: open_clip's CLIP or CustomTextCLIP, or its ``.visual``.

    Raises:
        ValueError: an image tower that has no exact counterpart, such as a ResNet, one without a
            class token, or one with attentional pooling.
    """
    visual: Any = getattr(model, "visual", model)
    if isinstance(visual, TimmModel):
        tower = _from_trunk(visual)
    elif isinstance(visual, VisionTransformer):
        tower = _from_native(visual)
    else:
        raise ValueError(f"{type(visual).__name__} is not a vision transformer of open_clip")
    preprocess = getattr(visual, "preprocess_cfg", {})
    if preprocess.get("resize_mode") in _CROPS:  # timm pads "longest" with another colour
        _describe(tower, preprocess)
    return tower.train(visual.training)


def _from_trunk(visual: TimmModel) -> ReducedViT:
    """Convert a timm trunk; what open_clip puts behind it becomes its head."""
    tower = reduce(visual.trunk, method=None)
    host_spec(tower, device=None, dtype=None)
    if not tower.global_pool:
        raise ValueError("timm_pool='' hands out tokens; expected a pooling such as 'token'")
    if len(visual.head):
        assert isinstance(tower.head, nn.Identity)
        tower.head = visual.head
        last = [m for m in visual.head.modules() if isinstance(m, nn.Linear)][-1]
        tower.num_classes = last.out_features
    return tower


def _from_native(visual: VisionTransformer) -> ReducedViT:
    """Build the same geometry in timm's terms and fill it through timm's own key conversion."""
    _check_native(visual)
    block = visual.transformer.resblocks[0]
    width, hidden = visual.conv1.out_channels, block.mlp.c_fc.out_features
    scaled = not isinstance(block.ls_1, nn.Identity)
    norm_after_pool = visual.pool_type == "avg" and visual.final_ln_after_pool
    tower = ReducedViT(
        img_size=visual.image_size,
        patch_size=visual.patch_size,
        embed_dim=width,
        depth=len(visual.transformer.resblocks),
        num_heads=block.attn.num_heads,
        # timm rounds width * ratio down, which must not lose a channel to the division.
        mlp_ratio=hidden / width if hidden % width == 0 else (hidden + 0.5) / width,
        init_values=1.0 if scaled else None,
        pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        fc_norm=norm_after_pool,
        global_pool=_POOLS[visual.pool_type],
        num_classes=0 if visual.proj is None else visual.proj.shape[1],
        norm_layer=partial(LayerNorm, eps=visual.ln_post.eps),
        act_layer=_activation(block.mlp.gelu),
        weight_init="skip",
        device=visual.conv1.weight.device,
    )
    # Layer scales aside, timm knows open_clip's keys, which it tells by this prefix.
    state = {f"visual.{k.replace('.ls_', '.ls')}": v for k, v in visual.state_dict().items()}
    weights = checkpoint_filter_fn(state, tower)
    if tower.patch_embed.proj.bias is not None:
        weights["patch_embed.proj.bias"] = tower.patch_embed.proj.bias.new_zeros(width)
    if norm_after_pool:
        weights |= {f"fc_norm.{k}": weights.pop(f"norm.{k}") for k in ("weight", "bias")}
    if extra := sorted(weights.keys() ^ tower.state_dict().keys()):
        raise ValueError(
            f"this tower differs from timm's VisionTransformer in {extra[0]!r}; expected plain "
            "attention and MLP, without open_clip's qk_norm, scaled_cosine_attn, scale_*"
        )
    tower.load_state_dict(weights)
    return tower


def _check_native(visual: VisionTransformer) -> None:
    """Refuse what has no counterpart and wouldn't show in the weights' names."""
    if visual.attn_pool is not None:
        raise ValueError("attentional_pool: this tower pools by attention; expected 'tok' or 'avg'")
    if visual.pool_type not in _POOLS:
        raise ValueError(f"pool_type={visual.pool_type!r}: expected one of {', '.join(_POOLS)}")
    if isinstance(visual.patch_dropout, PatchDropout):
        raise ValueError("patch_dropout > 0 loses patch positions; set it to 0 for reduction")
    norms = [m for m in visual.modules() if isinstance(m, nn.LayerNorm)]
    if len({norm.eps for norm in norms}) != 1:
        raise ValueError(f"norms of several eps: {sorted({norm.eps for norm in norms})}")


def _activation(module: nn.Module) -> Any:
    """Return timm's constructor of open_clip's activation."""
    if isinstance(module, QuickGELU):
        return TimmQuickGELU
    if type(module) is nn.GELU:
        return partial(nn.GELU, approximate=module.approximate)
    raise ValueError(f"activation {type(module).__name__}: expected GELU or QuickGELU")


def _describe(tower: ReducedViT, preprocess: dict[str, Any]) -> None:
    """Tell timm the preprocessing, for ``timm.data.resolve_data_config``."""
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    facts = {
        "input_size": (3, height, width),
        "mean": tuple(preprocess["mean"]),
        "std": tuple(preprocess["std"]),
        "interpolation": preprocess["interpolation"],
        "crop_pct": 1.0,
        "crop_mode": _CROPS[preprocess["resize_mode"]],
        "num_classes": tower.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    tower.__dict__["pretrained_cfg"] = tower.__dict__["default_cfg"] = facts
