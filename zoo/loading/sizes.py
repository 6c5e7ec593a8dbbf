"""The sizes of CLIP ViT, their weights, and the names and arguments of all models made of them."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

from timm.data import constants
from timm.layers import LayerNorm
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer

from zoo.core.errors import add_remedy
from zoo.core.files import EMBEDDED
from zoo.core.reducer import METHODS, configure
from zoo.core.settings import expected


class Tag(NamedTuple):
    """Weights of a size."""

    quick_gelu: bool
    license: str  # SPDX-like
    open_clip: str | None  # open_clip's tag of the same weights


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of tower: its geometry as arguments of timm's class, and its weights."""

    vit_args: dict[str, Any]
    features: int  # width of the joint image-text space, what ``forward`` returns
    weights: str | None  # timm's model with these weights on the hub, None for embedded ones
    open_clip: str | None  # open_clip's architecture of both towers, None if it has none
    tags: dict[str, Tag]  # the default first
    image: int = 224  # input height and width in pixels


_APPLE, _NC = "apple-ascl", "cc-by-nc-4.0"
_CLIP_ARGS = {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12, **_CLIP_ARGS}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16, **_CLIP_ARGS}
_LAION400M = Tag(False, "mit", "laion400m_e32")
_DFN2B = Tag(True, _APPLE, "dfn2b")


def _open_clip_size(
    kind: str, patch: int, features: int, args: dict[str, Any], laion2b: str, **more: Tag
) -> Size:  # with open_clip's tag of LAION-2B
    return Size(
        vit_args={"patch_size": patch, **args},
        features=features,
        weights=f"vit_{kind}_patch{patch}_clip_224",
        open_clip=f"ViT-{kind[0].upper()}-{patch}",
        tags={
            "openai": Tag(True, "mit", "openai"),
            "laion2b": Tag(False, "mit", laion2b),
            "laion400m_e32": _LAION400M,
            "datacompxl": Tag(False, "mit", "datacomp_xl_s13b_b90k"),
            "metaclip_400m": Tag(True, _NC, "metaclip_400m"),
            "metaclip_2pt5b": Tag(True, _NC, "metaclip_fullcc"),
            **more,
        },
    )


SIZES = {
    "b32": _open_clip_size(
        "base", 32, 512, _BASE, "laion2b_s34b_b79k", laion400m_e32=_LAION400M._replace(quick_gelu=True)
    ),
    "b16": _open_clip_size("base", 16, 512, _BASE, "laion2b_s34b_b88k", dfn2b=_DFN2B),
    "l14": _open_clip_size(
        "large", 14, 768, _LARGE, "laion2b_s32b_b82k", dfn2b=_DFN2B, dfn2b_s39b=Tag(False, _APPLE, "dfn2b_s39b")
    ),
    "s14": Size(
        vit_args={"patch_size": 14, "embed_dim": 384, "depth": 9, "num_heads": 6, "init_values": 1e-5},
        features=256,
        weights=None,
        open_clip=None,
        tags={"imgfocus_lit": Tag(False, "mit", None)},
        image=196,
    ),
}


def weights_cfg(size: str, tag: str) -> dict[str, Any]:
    """Describe the weights ``tag`` of ``size`` to timm."""
    spec = SIZES[size]
    mean, std = constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD
    if spec.weights is None:
        mean, std = constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD
    elif (size, tag) == ("l14", "laion2b"):
        mean, std = constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD
    source = {"hf_hub_id": f"timm/{spec.weights}.{tag}"}
    if spec.weights is None:
        source = {"file": str(EMBEDDED / f"clip_vit_{size}.safetensors")}
    return {
        **source,
        **{"fixed_input_size": True, "crop_pct": 1.0, "interpolation": "bicubic"},
        **{"first_conv": "patch_embed.proj", "classifier": "head", "mean": mean, "std": std},
        "num_classes": spec.features,
        "input_size": (3, spec.image, spec.image),
        "license": spec.tags[tag].license,
    }


PERCENTS = (90, 80, 70, 60, 50, 40, 30)  # keep rates in names
MODELS: dict[str, "ModelName"] = {}  # filled by zoo.loading.registry, also when a method comes later


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """The parts of a model's name: ``clip_vit_{size}`` or ``clip_vit_{size}_{method}{percent}``.

    ``percent`` is the keep rate, ``method`` is None for the dense tower.
    """

    size: str
    method: str | None = None
    percent: int = 100

    def __str__(self) -> str:
        """Return the timm name."""
        return self.dense if self.method is None else f"{self.dense}_{self.method}{self.percent}"

    @property
    def dense(self) -> str:
        """The dense tower's timm name."""
        return f"clip_vit_{self.size}"

    @property
    def options(self) -> dict[str, float]:
        """The method's options that the name states; none for the dense tower."""
        return {} if self.method is None else {"keep": self.percent / 100}

    def depth(self, arguments: Mapping[str, Any]) -> int:
        """Return the number of blocks of a model that is built with these arguments."""
        return arguments.get("depth", SIZES[self.size].vit_args["depth"])


class UnknownArgumentError(TypeError, ValueError):
    """A TypeError as of any function, and a ValueError as all other refusals here."""


def split_options(name: ModelName, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a model's keyword arguments into its method's options and all others; refuse unknown ones."""
    options: dict[str, Any] = {}
    ours: list[str] = []
    if name.method is not None:
        config = METHODS[name.method].Config
        ours = [field.name for field in fields(config)]
        options = {key: value for key, value in kwargs.items() if key in ours}
        if not options.keys() & {"keep", *config.instead_of_keep}:
            options |= name.options
        ours += ["recovery", "budgets", "cost"]
        depth = name.depth(kwargs)
        if configure(name.method, options, depth).predictor_block(depth) is not None:
            ours.append("predictor")
    arguments = {key: value for key, value in kwargs.items() if key not in options}
    shown = [*ours, *inspect.signature(VisionTransformer).parameters]
    # What timm takes through its own **kwargs doesn't show in a signature.
    known = {*shown, *inspect.signature(build_model_with_cfg).parameters}
    known |= {"prompts", "features_only", "out_indices", "feature_cls"}
    if unknown := [key for key in arguments if key not in known]:
        hint = f"the method and its keep rate are part of the name, such as {name.dense}_patchrank60; "
        start = f"{name} has no argument {unknown[0]!r}: {hint if unknown[0] in ('method', 'keep') else ''}"
        raise UnknownArgumentError(start + expected(unknown[0], shown))
    return options, arguments


def unknown_model(name: str, more: str = "") -> ValueError:
    """Make the error of a name that `MODELS` doesn't have; ``more`` says what else was expected."""
    arch, dot, tag = name.partition(".")
    form = re.fullmatch(r"(clip_vit_[^_]+)_(.*?)(\d+)", arch)
    dense, method, percent = ("", "", 0) if form is None else (form[1], form[2], int(form[3]))
    known = {parts.percent: model for model, parts in MODELS.items() if (parts.dense, parts.method) == (dense, method)}
    if not known or not 0 < percent <= 100:
        return add_remedy(ValueError(f"model {name!r}: {expected(arch, MODELS)}{more}"), "model")
    nearest, keep = known[min(sorted(known), key=lambda number: abs(number - percent))], percent / 100
    message = (
        f"model {name!r}: names have the keep rates {', '.join(map(str, sorted(known)))} %; for another one use "
        f"timm.create_model({nearest + dot + tag!r}, keep={keep:g}) in Python{more}"
    )
    return add_remedy(ValueError(message), "keep rate", model=f"{dense}{dot}{tag}", method=method, keep=keep)
