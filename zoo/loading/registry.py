"""Every size of CLIP ViT, dense and with each method and keep rate, as a timm model.

Methods may register before this module is imported (patchrank), after it (the entry points that
``load_methods`` imports) or at any later time; ``on_method`` covers all three.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo.methods.patchrank
import zoo.methods.rankmerge  # noqa: F401  # it registers itself
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, configure, on_method
from zoo.loading.adopt import add_prompts
from zoo.loading.learned_files import PromptFile
from zoo.loading.predictor_file import PredictorFile, find_predictor, fitted_blocks, wanted_shape, with_predictors
from zoo.loading.recovery_file import add_recovery
from zoo.loading.sizes import MODELS, PERCENTS, SIZES, ModelName, weights_cfg
from zoo.loading.weights import filter_weights, image_side, loading, own_path, own_weights, read_weights
from zoo.towers.vit import ReducedViT


class UnknownArgumentError(TypeError, ValueError):
    """A TypeError as of any function, and a ValueError as all other refusals here."""


def depth_of(name: ModelName, arguments: Mapping[str, Any]) -> int:
    """Return the number of blocks of a model that is built with these arguments."""
    depth: int = arguments.get("depth", SIZES[name.size].vit_args["depth"])
    return depth


def split_options(name: ModelName, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into the method's options and all others; refuse unknown ones."""
    options: dict[str, Any] = {}
    fields: list[str] = []
    if name.method is not None:
        config = METHODS[name.method].Config
        fields = [f.name for f in dataclasses.fields(config)]
        options = {key: value for key, value in kwargs.items() if key in fields}
        if not any(key in options for key in ("keep", *config.instead_of_keep)):
            options |= name.options
        depth = depth_of(name, kwargs)
        if configure(name.method, options, depth).predictor_blocks(depth):
            fields = [*fields, "predictor"]
        fields = [*fields, "recovery"]
    arguments = {key: value for key, value in kwargs.items() if key not in options}
    known = {
        parameter
        for each in (VisionTransformer, build_model_with_cfg)
        for parameter in inspect.signature(each).parameters
    }
    # What timm takes through its own **kwargs doesn't show in a signature.
    known |= {*fields, "prompts", "features_only", "out_indices", "feature_cls"}
    for key in arguments:
        if key not in known:
            if key == "method" or (key == "keep" and name.method is None):
                raise UnknownArgumentError(_method_in_name(name, kwargs))
            allowed = expected(key, [*fields, *inspect.signature(VisionTransformer).parameters])
            raise UnknownArgumentError(f"{name} has no argument {key!r}: {allowed}")
    return options, arguments


def _method_in_name(name: ModelName, arguments: Mapping[str, Any]) -> str:
    """Say that method and keep rate are parts of a name, and which name it is."""
    method, keep = arguments.get("method"), arguments.get("keep")
    key = "method" if "method" in arguments else "keep"
    start = f"{name} has no argument {key!r}, the method is part of the name: "
    if method is not None and method not in METHODS:
        return f"{start}method {method!r}: {expected(str(method), METHODS)}"
    rate = keep if isinstance(keep, (int, float)) and 0 < keep <= 1 else 0.6
    percent = min(reversed(PERCENTS), key=lambda one: abs(one - 100 * rate))
    full = ModelName(size=name.size, method=method or "patchrank", percent=percent)
    more = f", keep={rate:g}" if percent / 100 != rate else ""
    return f"{start}use timm.create_model({str(full)!r}{more})"


def require_fitted(name: ModelName, tag: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, arguments of ``build`` and a model whose predictor is missing.

    ``tag`` is that of the tower's weights.

    Raises:
        UnknownArgumentError: an argument that neither the method nor timm has.
        FileNotFoundError: no predictor.
        ValueError: options out of range.
    """
    options, arguments = split_options(name, kwargs)
    if name.method is None:
        return
    depth = depth_of(name, arguments)
    config = configure(name.method, options, depth)
    blocks, there = config.predictor_blocks(depth), fitted_blocks(name.dense, tag, config.action)
    for block in blocks:
        if block not in there:
            find_predictor(name.dense, tag, block, shape=wanted_shape(blocks, options), action=config.action)


METHOD_GROUP = "clip_patchrank.methods"
default_cfgs: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Sources of a model's weights, with timm's description of them."""

    cfg: PretrainedCfg
    tag: str
    predictors: tuple[PredictorFile, ...]  # the first block's first
    options: dict[str, Any]  # of the method, with the shape of these predictors
    tower: dict[str, Tensor] | None  # what timm can't read; None where timm loads the weights


def build(name: ModelName, pretrained: bool = False, **kwargs: Any) -> ReducedViT:
    """Build a model in three steps: split its options off, find its weights, assemble it.

    Raises:
        UnknownArgumentError: an argument that neither the method nor timm has.
        ValueError: a value out of range, or a file of weights that don't fit.
        FileNotFoundError: ``pretrained`` and the weights can't be had, no predictor exists for
            them, or no file of prompts or of a recovery.
    """
    if isinstance(kwargs.get("prompts"), (str, Path)):
        return _build_tuned(name, **kwargs)
    recovery, fitted = kwargs.pop("recovery", None), kwargs.pop("predictor_blocks", None)
    if recovery is not None and not pretrained:
        raise ValueError(f"recovery={str(recovery)!r} without the tower it was trained on: add pretrained=True")
    if recovery is not None and kwargs.get("features_only"):
        raise ValueError(
            f"recovery={str(recovery)!r} fits whole towers, not features_only=True: save the model with recovery by "
            "timm's save_for_hf, and load local-dir:FOLDER with features_only=True"
        )
    options, arguments = split_options(name, kwargs)
    if fitted is not None and not arguments.get("predictor"):
        _require_blocks(name, fitted, options, arguments)
    weights = _find_weights(name, pretrained, options, arguments)
    model = _assemble(name, pretrained, weights, arguments)
    if fitted is not None and not weights.predictors:  # it was saved once, and may be again
        shape = {key: value for key, value in options.items() if key in ("arch", "width")}
        model.__dict__["_model_args"] = {**shape, "predictor_blocks": fitted}
    return model if recovery is None else add_recovery(model, recovery)


def _require_blocks(name: ModelName, fitted: list[int], options: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Refuse, by ValueError, a saved model that is to score at blocks that its predictor wasn't fitted at."""
    depth = depth_of(name, arguments)
    blocks = [] if name.method is None else list(configure(name.method, options, depth).predictor_blocks(depth))
    if blocks != fitted:
        have, want = (", ".join(map(str, some)) or "none" for some in (fitted, blocks))
        raise ValueError(
            f"{name}: the predictor in this saved model was fitted at block {have}, these options score at block "
            f"{want}; leave reduce_at and rescore as they were saved, or give a predictor for it by predictor=PATH"
        )


def _find_weights(name: ModelName, pretrained: bool, options: dict[str, Any], arguments: dict[str, Any]) -> _Weights:
    """Find the tower's weights and the method's predictors; read only what timm can't.

    Takes ``predictor`` out of ``arguments``.
    """
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(str(name), arguments.get("pretrained_cfg"), overlay)
    tag = cfg.tag or next(iter(SIZES[name.size].tags))
    predictor = arguments.pop("predictor", None)
    if predictor == (arguments.get("pretrained_model_args") or {}).get("predictor"):
        # timm repeats what a saved model was built with; its weights hold that predictor by now.
        predictor = None
    if predictor is not None and not pretrained:
        raise ValueError(f"predictor={str(predictor)!r} without the tower it was fitted to: add pretrained=True")
    saved = cfg.source in ("local-dir", "hf-hub")
    predictors: tuple[PredictorFile, ...] = ()
    # A model saved by save_for_hf holds its predictor among its weights.
    if pretrained and name.method and not (saved and predictor is None):
        depth = depth_of(name, arguments)
        options, predictors = with_predictors(name.dense, tag, name.method, options, depth, predictor)
    tower = None
    if pretrained and not saved and not cfg.state_dict:
        # timm reads no archives of OpenAI's, and judges the user's files by their suffix.
        file = overlay.get("file") or (None if cfg.file else own_weights(name.size, tag))
        if file is not None:
            tensors = read_weights(file)  # in timm's names they are the tower's alone
            tower = image_side(tensors) or tensors
    return _Weights(cfg=cfg, tag=tag, predictors=predictors, options=options, tower=tower)


def _assemble(name: ModelName, pretrained: bool, weights: _Weights, arguments: dict[str, Any]) -> ReducedViT:
    """Let timm build the model and load its weights."""
    spec, tag = SIZES[name.size], weights.tag
    quick_gelu = tag in spec.tags and spec.tags[tag].quick_gelu
    args = {"act_layer": "quick_gelu" if quick_gelu else None, **spec.vit_args, **arguments}
    if weights.tower is not None:
        overlay = args.get("pretrained_cfg_overlay") or {}
        args["pretrained_cfg_overlay"] = {**overlay, "state_dict": weights.tower}
    if name.method is not None:
        args |= {"method": name.method, "reduction": weights.options}
    args["feature_cfg"] = {"out_indices": args.pop("out_indices", 3), "feature_cls": "getter"}
    own = own_path(f"{name.dense}.{tag}")
    with loading(f"{name}.{tag}", weights.cfg, own) if pretrained else nullcontext():
        model: ReducedViT = build_model_with_cfg(
            ReducedViT,
            str(name),
            pretrained,
            pretrained_filter_fn=partial(filter_weights, predictors=weights.predictors),
            **args,
        )
    for part in model.modules():
        # timm keeps the whole state dict in the model's description, and would save it with that.
        getattr(part, "pretrained_cfg", {}).pop("state_dict", None)
    if weights.predictors:
        # timm saves the arguments that a model was built with. The network's shape is not among
        # them, for it came from the predictor's file.
        blocks = [one.block for one in weights.predictors]
        model.__dict__["_model_args"] = {**weights.predictors[0].options, "predictor_blocks": blocks}
    return model


def _build_tuned(name: ModelName, prompts: str | Path, **kwargs: Any) -> ReducedViT:
    """Build a pretrained model with the prompts of a file; ``num_classes=0`` gives features."""
    file = PromptFile.read(Path(prompts))
    classes = kwargs.pop("num_classes", file.shape.classes)
    if classes not in (0, file.shape.classes):
        raise ValueError(
            f"num_classes={classes}: the prompts {str(prompts)!r} are for {file.shape.classes}; "
            "leave it out, or 0 for features"
        )
    model = add_prompts(build(name, pretrained=True, **kwargs), file)
    if classes == 0:
        model.reset_classifier(0)
    return model


def _add(name: ModelName) -> None:
    """Make a model known to timm, with the weight tags of its size."""

    def create(pretrained: bool = False, **kwargs: Any) -> ReducedViT:
        return build(name, pretrained, **kwargs)

    method = "dense" if name.method is None else f"{name.method}, keep rate {name.percent} %"
    create.__name__ = create.__qualname__ = str(name)
    create.__doc__ = f"CLIP ViT image tower, size {name.size}, {method}."
    cfgs: dict[str, Any] = {f"{name}.{t}": weights_cfg(name.size, t) for t in SIZES[name.size].tags}
    default_cfgs.update(generate_default_cfgs(cfgs))
    MODELS[str(name)] = name
    register_model(create)


def _add_method(method: str) -> None:
    """Make a method's models known, in every size at every keep rate."""
    for size in SIZES:
        for percent in PERCENTS:
            name = ModelName(size=size, method=method, percent=percent)
            if str(name) not in MODELS:  # a method's file may be imported again
                _add(name)


for _size in SIZES:
    _add(ModelName(size=_size))
on_method(_add_method)


def load_methods() -> None:
    """Import the modules that register methods, ``baselines`` and those of other distributions."""
    for point in entry_points(group=METHOD_GROUP):
        point.load()
