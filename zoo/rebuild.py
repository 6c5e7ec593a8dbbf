"""A timm name for what ``zoo.reduce`` makes, so that it can be saved and loaded like any model."""

from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer

from zoo.adopt import REBUILT, reduce
from zoo.prompts import for_head
from zoo.vit import ReducedViT
from zoo.weights import filter_weights


def _rebuild(
    *,
    base: str,
    method: str | None,
    reduction: dict[str, Any],
    prompts: dict[str, int] | None = None,
    **vit_args: Any,
) -> ReducedViT:
    shape, classify = for_head(prompts, vit_args)
    tower = timm.create_model(base, **vit_args)
    assert isinstance(tower, VisionTransformer)
    model = reduce(tower, method=method, **reduction)
    if shape is not None:
        new = {k: vit_args.get(k) for k in ("device", "dtype")}
        model.expect(shape, classify=classify, **new)
    return model


@register_model
def reduced_vit(
    pretrained: bool = False,
    *,
    base: str = "",
    method: str | None = None,
    reduction: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ReducedViT:
    """Reduce timm's model ``base`` by ``method``; made for models that ``zoo.reduce`` saved.

    Raises:
        ValueError: no ``base``, or what ``zoo.reduce`` refuses.
    """
    if not base:
        raise ValueError(f"{REBUILT} needs base=NAME, a timm VisionTransformer")
    model: ReducedViT = build_model_with_cfg(
        partial(_rebuild, base=base, method=method, reduction=reduction or {}),
        REBUILT,
        pretrained,
        pretrained_filter_fn=filter_weights,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model
