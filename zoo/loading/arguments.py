"""Arguments of a registered model: which are its method's, which are timm's, and what they need."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer

from zoo.core.messages import expected
from zoo.core.reducer import METHODS, configure
from zoo.loading.predictor_file import find_predictor, fitted_blocks, wanted_shape
from zoo.loading.sizes import PERCENTS, SIZES, ModelName


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
