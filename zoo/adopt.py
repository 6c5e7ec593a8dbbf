"""Give a model that exists a reduction method or prompts, keeping its modules and weights."""

import dataclasses
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from zoo.predictor import PredictorPaths, read_predictors
from zoo.prompts import PromptFile, for_head
from zoo.recovery import add_recovery
from zoo.reducer import build_reducer
from zoo.vit import ReducedViT, host_spec
from zoo.weights import blocks_fingerprint, filter_weights, load_predictor

REBUILT = "reduced_vit"  # the timm name of a saved model that ``reduce`` made


def reduce(
    model: VisionTransformer,
    *,
    method: str | None,
    predictor: PredictorPaths = None,
    recovery: str | Path | None = None,
    **options: Any,
) -> ReducedViT:
    """Give any timm VisionTransformer with a class token a token reduction method.

    The new model shares modules and weights with ``model``, which stays as it is: nothing is
    copied, and training one trains the other. Use ``copy.deepcopy`` first to separate them.

    Args:
        model: a timm VisionTransformer (DINOv2, DeiT, AugReg, CLIP towers, ...) of standard blocks.
        method: name of a registered method, None for the dense tower in our class.
        predictor: for patchrank, the file of its predictor, or one for each block at which it
            scores; None for random weights. The file determines the network's shape.
        recovery: file of ``zoo.recover``'s result, whose changes only the new model has.
        options: the method's options, ``keep`` first of all.

    Raises:
        ValueError: unknown method or option, value out of range, tower that can't be reduced, or a
            predictor or recovery of another tower, block or setting.
        FileNotFoundError: no such predictor or recovery.
    """
    kind = type(model)
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{kind.__name__} is not a timm VisionTransformer")
    if kind not in (VisionTransformer, ReducedViT):
        raise ValueError(f"{kind.__name__} overrides parts of timm's VisionTransformer: unsupported")
    reduced = sharing(model)
    reduced.reducer = None
    if method is not None:
        like = next(model.blocks.parameters())
        spec = host_spec(reduced, device=like.device, dtype=like.dtype)
        files = None if predictor is None else read_predictors(predictor)
        for one in files or ():
            one.fill(options)
        reduced.reducer = build_reducer(method, options, spec).train(model.training)
        if files is not None:
            load_predictor(reduced, files)
    _describe(reduced, method)
    return reduced if recovery is None else add_recovery(reduced, recovery)


def add_prompts(model: VisionTransformer, prompts: str | Path | PromptFile, *, classify: bool = True) -> ReducedViT:
    """Give a tower, dense or reduced, the prompts that were tuned on it.

    The new model shares modules and weights with ``model``, which stays as it is.

    Args:
        model: the image tower, with its projection to the joint space as head.
        prompts: file of ``zoo.tune``'s result.
        classify: map images to logits of the tuned classes, else to the joint space.

    Raises:
        ValueError: prompts of another tower, or not a file of prompts.
        FileNotFoundError: no such file.
    """
    file = prompts if isinstance(prompts, PromptFile) else PromptFile.read(Path(prompts))
    if not isinstance(model, ReducedViT):
        model = reduce(model, method=None)
    file.require_tower(model.embed_dim, blocks_fingerprint(model.state_dict()))
    tuned = sharing(model)
    like = next(model.blocks.parameters())
    shape = file.shape
    tuned.expect(shape, classify=classify, device=like.device, dtype=like.dtype)
    tuned.load_state_dict(file.tensors(classify=classify), strict=False)
    tuned.train(model.training)
    facts = tuned.__dict__
    facts["_model_args"] = {**tuned._model_args, "prompts": shape._asdict()}
    if classify and facts.get("pretrained_cfg"):
        classes = {"num_classes": shape.classes, "label_names": list(file.classes)}
        facts["pretrained_cfg"] = facts["default_cfg"] = {**facts["pretrained_cfg"], **classes}
    return tuned


def sharing(model: VisionTransformer) -> ReducedViT:
    """Return another model of the same modules and weights."""
    other = ReducedViT.__new__(ReducedViT)
    nn.Module.__init__(other)
    for name, value in model.__dict__.items():
        # Registries are copied one level deep: replacing a submodule of one leaves the other alone.
        other.__dict__[name] = value.copy() if isinstance(value, dict) else value
    if not isinstance(model, ReducedViT):
        other.prompts = None
    return other


def _describe(model: ReducedViT, method: str | None) -> None:
    """Tell timm how to build the model again, for ``save_for_hf`` and ``local-dir:``."""
    facts = model.__dict__
    cfg, args = facts.get("pretrained_cfg"), facts.get("_model_args", {})
    if not cfg or not cfg.get("architecture"):
        return
    tag = f".{cfg['tag']}" if cfg.get("tag") else ""
    reducer = model.reducer
    facts["_model_args"] = args | {
        "base": args.get("base", cfg["architecture"] + tag),
        "method": method,
        "reduction": {} if reducer is None else dataclasses.asdict(reducer.config),
    }
    facts["pretrained_cfg"] = facts["default_cfg"] = {**cfg, "architecture": REBUILT}


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

    def build(prompts: dict[str, int] | None = None, **vit_args: Any) -> ReducedViT:
        shape, classify = for_head(prompts, vit_args)
        tower = timm.create_model(base, **vit_args)
        assert isinstance(tower, VisionTransformer)
        model = reduce(tower, method=method, **(reduction or {}))
        if shape is not None:
            device, dtype = vit_args.get("device"), vit_args.get("dtype")
            model.expect(shape, classify=classify, device=device, dtype=dtype)
        return model

    kwargs["feature_cfg"] = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    model: ReducedViT = build_model_with_cfg(build, REBUILT, pretrained, pretrained_filter_fn=filter_weights, **kwargs)
    return model
