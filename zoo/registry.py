"""The names: every size of CLIP ViT, dense and with each method and keep rate, as timm models."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
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
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer

import zoo.patchrank  # noqa: F401  (registers the method)
from zoo.predictor_file import PredictorFile
from zoo.reducer import METHODS, expected, on_method
from zoo.vit import ReducedViT
from zoo.weights import EMBEDDED, filter_weights, with_predictors

PERCENTS = (90, 80, 70, 60, 50, 40, 30)
METHOD_GROUP = "clip_patchrank.methods"


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


def _cfg(size: str, tag: str) -> dict[str, Any]:
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


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What a model's name says: ``clip_vit_{size}`` or ``clip_vit_{size}_{method}{percent}``."""

    size: str
    method: str | None = None
    percent: int = 100

    def __str__(self) -> str:
        """The timm name."""
        dense = f"clip_vit_{self.size}"
        return dense if self.method is None else f"{dense}_{self.method}{self.percent}"


MODELS: dict[str, ModelName] = {}
default_cfgs: dict[str, Any] = {}


def build(name: ModelName, pretrained: bool = False, **kwargs: Any) -> ReducedViT:
    """Build a model by its parts; the keyword arguments are those of ``timm.create_model``.

    Raises:
        ValueError: unknown argument, or a value out of range.
        FileNotFoundError: ``pretrained`` and no predictor exists for these weights.
    """
    spec = SIZES[name.size]
    options = _split_options(name, kwargs)
    cfg = resolve_pretrained_cfg(
        str(name), kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    )
    tag = cfg.tag or next(iter(spec.tags))
    given = kwargs.pop("predictor", None)
    if given == (kwargs.get("pretrained_model_args") or {}).get("predictor"):
        given = None  # a saved model's: it says where those weights came from that it carries now
    found: tuple[PredictorFile, ...] = ()
    if given is not None and not pretrained:
        raise ValueError(
            f"predictor={str(given)!r} without the tower it was fitted to: add pretrained=True"
        )
    # Weights saved by save_for_hf carry their predictor with them.
    carried = cfg.source in ("local-dir", "hf-hub") and given is None
    if pretrained and not carried and name.method:
        dense, depth = f"clip_vit_{name.size}", kwargs.get("depth", spec.vit_args["depth"])
        options, found = with_predictors(dense, tag, name.method, options, depth, given)
    quick_gelu = spec.tags.get(tag, (False, ""))[0]
    args = {"act_layer": "quick_gelu" if quick_gelu else None, **spec.vit_args, **kwargs}
    if name.method is not None:
        args |= {"method": name.method, "reduction": options}
    model: ReducedViT = build_model_with_cfg(
        ReducedViT,
        str(name),
        pretrained,
        pretrained_filter_fn=partial(filter_weights, predictors=found),
        feature_cfg={"out_indices": args.pop("out_indices", 3), "feature_cls": "getter"},
        **args,
    )
    if found:  # timm saves what it was asked for; this came from the files
        model.__dict__["_model_args"] = dict(found[0].options)
    return model


def _split_options(name: ModelName, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the method's options out of ``kwargs``; refuse what nobody knows."""
    options: dict[str, Any] = {}
    fields: list[str] = []
    if name.method is not None:
        config = METHODS[name.method].Config
        fields = [f.name for f in dataclasses.fields(config)]
        options = {f: kwargs.pop(f) for f in fields if f in kwargs}
        if not any(f in options for f in ("keep", *config.instead_of_keep)):
            options["keep"] = name.percent / 100
        if METHODS[name.method].needs_predictor:
            fields = [*fields, "predictor"]
    known = [
        p
        for c in (VisionTransformer, build_model_with_cfg)
        for p in inspect.signature(c).parameters
    ]
    extra = ("features_only", "out_indices", "feature_cls")
    for key in kwargs:
        if key not in known and key not in fields and key not in extra:
            allowed = expected(key, [*fields, *inspect.signature(VisionTransformer).parameters])
            raise ValueError(f"{name} has no argument {key!r}: {allowed}")
    return options


def _entrypoint(name: ModelName) -> Callable[..., ReducedViT]:
    def create(pretrained: bool = False, **kwargs: Any) -> ReducedViT:
        return build(name, pretrained, **kwargs)

    method = "dense" if name.method is None else f"{name.method}, keep rate {name.percent} %"
    create.__name__ = create.__qualname__ = str(name)
    create.__doc__ = f"CLIP ViT image tower, size {name.size}, {method}."
    return create


def _add(name: ModelName) -> None:
    """Make a model known to timm, with the weight tags of its size."""
    cfgs: dict[str, Any] = {f"{name}.{t}": _cfg(name.size, t) for t in SIZES[name.size].tags}
    default_cfgs.update(generate_default_cfgs(cfgs))
    MODELS[str(name)] = name
    register_model(_entrypoint(name))


def _add_method(method: str) -> None:
    """Make a method's models known, in every size at every keep rate."""
    for size in SIZES:
        for percent in PERCENTS:
            name = ModelName(size=size, method=method, percent=percent)
            if str(name) not in MODELS:
                _add(name)


for _size in SIZES:
    _add(ModelName(size=_size))
on_method(_add_method)
for _point in entry_points(group=METHOD_GROUP):
    _point.load()
