"""The names: every size of CLIP ViT, dense and with each method and keep rate, as timm models."""

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer

import zoo.patchrank  # noqa: F401  (registers the method)
from zoo.adopt import add_prompts
from zoo.clip_weights import image_side, own_path, own_weights
from zoo.missing import loading
from zoo.open_clip_names import offer
from zoo.predictor_file import PredictorFile
from zoo.prompt_file import PromptFile
from zoo.prompted_vit import PromptedViT
from zoo.reducer import METHODS, expected, on_method
from zoo.sizes import SIZES, weights_cfg
from zoo.vit import ReducedViT
from zoo.weight_file import read_weights
from zoo.weights import filter_weights, with_predictors

PERCENTS = (90, 80, 70, 60, 50, 40, 30)
METHOD_GROUP = "clip_patchrank.methods"


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What a model's name says: ``clip_vit_{size}`` or ``clip_vit_{size}_{method}{percent}``."""

    size: str
    method: str | None = None
    percent: int = 100

    def __str__(self) -> str:
        """The timm name."""
        return self.dense if self.method is None else f"{self.dense}_{self.method}{self.percent}"

    @property
    def dense(self) -> str:
        """The dense tower's timm name."""
        return f"clip_vit_{self.size}"


MODELS: dict[str, ModelName] = {}
default_cfgs: dict[str, Any] = {}


class UnknownArgumentError(TypeError, ValueError):
    """A TypeError to timm, as of any function; a ValueError as all else that is refused here."""


def build(name: ModelName, pretrained: bool = False, **kwargs: Any) -> ReducedViT:
    """Build a model by its parts; the keyword arguments are those of ``timm.create_model``.

    Raises:
        UnknownArgumentError: nobody knows the argument.
        ValueError: a value out of range, or a file of weights that don't fit.
        FileNotFoundError: ``pretrained`` and the weights can't be had, no predictor exists for
            them, or no file of prompts.
    """
    if isinstance(kwargs.get("prompts"), (str, Path)):
        return _build_tuned(name, **kwargs)
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
        dense, depth = name.dense, kwargs.get("depth", spec.vit_args["depth"])
        options, found = with_predictors(dense, tag, name.method, options, depth, given)
    if pretrained and cfg.source not in ("local-dir", "hf-hub") and not cfg.state_dict:
        _take_file(name.size, tag, cfg.file, kwargs)
    quick_gelu = tag in spec.tags and spec.tags[tag].quick_gelu
    args = {"act_layer": "quick_gelu" if quick_gelu else None, **spec.vit_args, **kwargs}
    if name.method is not None:
        args |= {"method": name.method, "reduction": options}
    own = own_path(f"{name.dense}.{tag}")
    with loading(f"{name}.{tag}", cfg, own) if pretrained else nullcontext():
        model: ReducedViT = build_model_with_cfg(
            ReducedViT,
            str(name),
            pretrained,
            pretrained_filter_fn=partial(filter_weights, predictors=found),
            feature_cfg={"out_indices": args.pop("out_indices", 3), "feature_cls": "getter"},
            **args,
        )
    for part in model.modules():  # timm leaves the tensors in the description of the model
        getattr(part, "pretrained_cfg", {}).pop("state_dict", None)
    if found:  # timm saves what it was asked for; this came from the files
        model.__dict__["_model_args"] = dict(found[0].options)
    return model


def _take_file(size: str, tag: str, file: str | None, kwargs: dict[str, Any]) -> None:
    """Hand timm the weights of a file that was given or that lies in the user's cache, if any.

    timm itself reads no archives of OpenAI's, and judges files by their suffix.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file"):
        weights = read_weights(overlay["file"])
    elif file is None and (own := own_weights(size, tag)) is not None:
        weights = read_weights(own)
    else:
        return
    tower = image_side(weights) or weights  # in timm's names there is no other side
    kwargs["pretrained_cfg_overlay"] = {**overlay, "state_dict": tower}


def _build_tuned(name: ModelName, prompts: str | Path, **kwargs: Any) -> ReducedViT:
    """Build a model with the prompts of a file; they belong to a tower, whose weights come along.

    Raises:
        ValueError: another number of classes than the prompts have, other than none.
    """
    found = PromptFile.read(Path(prompts))
    classes = kwargs.pop("num_classes", found.shape.classes)
    if classes not in (0, found.shape.classes):
        raise ValueError(
            f"num_classes={classes}: the prompts {str(prompts)!r} are for {found.shape.classes}; "
            "leave it out, or 0 for features"
        )
    model = add_prompts(build(name, pretrained=True, **kwargs), found)
    if classes == 0:
        model.reset_classifier(0)
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
        for c in (PromptedViT, VisionTransformer, build_model_with_cfg)
        for p in inspect.signature(c).parameters
    ]
    extra = ("features_only", "out_indices", "feature_cls")
    for key in kwargs:
        if key not in known and key not in fields and key not in extra:
            allowed = expected(key, [*fields, *inspect.signature(VisionTransformer).parameters])
            raise UnknownArgumentError(f"{name} has no argument {key!r}: {allowed}")
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
    cfgs: dict[str, Any] = {f"{name}.{t}": weights_cfg(name.size, t) for t in SIZES[name.size].tags}
    default_cfgs.update(generate_default_cfgs(cfgs))
    MODELS[str(name)] = name
    register_model(_entrypoint(name))
    options = {} if name.method is None else {"keep": name.percent / 100}
    offer(str(name), name.size, name.method, options)


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
