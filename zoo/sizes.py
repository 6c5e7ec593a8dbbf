"""The sizes of CLIP ViT: geometry, weights that there are, and how timm is told of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from timm.layers import LayerNorm

from zoo.weights import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of tower: its geometry as arguments of timm's class, and its weights.

    Attributes:
        vit_args: arguments of timm's VisionTransformer.
        features: width of the joint image-text space, what ``forward`` returns.
        weights: timm's model whose weights on the hub are meant, None for embedded ones.
        tags: weight tag -> (QuickGELU?, licence), the default first.
        image: input height and width in pixels.
    """

    vit_args: dict[str, Any]
    features: int
    weights: str | None
    tags: dict[str, tuple[bool, str]]
    image: int = 224


_APPLE, _NC = "apple-ascl", "cc-by-nc-4.0"
_CLIP_TAGS = {
    "openai": (True, "mit"),
    "laion2b": (False, "mit"),
    "laion400m_e32": (False, "mit"),
    "datacompxl": (False, "mit"),
    "metaclip_400m": (True, _NC),
    "metaclip_2pt5b": (True, _NC),
}
_CLIP_ARGS = {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12, **_CLIP_ARGS}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16, **_CLIP_ARGS}
_SMALL = {"embed_dim": 384, "depth": 9, "num_heads": 6, "init_values": 1e-5}

SIZES = {
    "b32": Size(
        vit_args={"patch_size": 32, **_BASE},
        features=512,
        weights="vit_base_patch32_clip_224",
        tags={**_CLIP_TAGS, "laion400m_e32": (True, "mit")},
    ),
    "b16": Size(
        vit_args={"patch_size": 16, **_BASE},
        features=512,
        weights="vit_base_patch16_clip_224",
        tags={**_CLIP_TAGS, "dfn2b": (True, _APPLE)},
    ),
    "l14": Size(
        vit_args={"patch_size": 14, **_LARGE},
        features=768,
        weights="vit_large_patch14_clip_224",
        tags={**_CLIP_TAGS, "dfn2b": (True, _APPLE), "dfn2b_s39b": (False, _APPLE)},
    ),
    "s14": Size(
        vit_args={"patch_size": 14, **_SMALL},
        features=256,
        weights=None,
        tags={"imgfocus_lit": (False, "mit")},
        image=196,
    ),
}


def weights_cfg(size: str, tag: str) -> dict[str, Any]:
    """Describe the weights ``tag`` of ``size`` to timm."""
    spec = SIZES[size]
    mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    if spec.weights is None:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    elif (size, tag) == ("l14", "laion2b"):
        mean, std = IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
    source = {"hf_hub_id": f"timm/{spec.weights}.{tag}"}
    if spec.weights is None:
        source = {"file": str(Path(EMBEDDED) / f"clip_vit_{size}.safetensors")}
    return {
        **source,
        "num_classes": spec.features,
        "input_size": (3, spec.image, spec.image),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": spec.tags[tag][1],
    }
