"""Give a model that exists a reduction method or prompts, keeping its modules and weights."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, overload

import timm
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_model
from torch import nn

from zoo.core.digests import blocks_fingerprint
from zoo.core.files import EMBEDDED
from zoo.core.host import Host, host_of, share_weights
from zoo.core.learned import for_head
from zoo.core.reducer import build_reducer
from zoo.loading.learned_files import PREFIX, PredictorFile, PredictorPath, PromptFile
from zoo.loading.recovery_file import add_recovery
from zoo.towers.vit import TimmHost

# Models that hold an image tower, by the names of their classes, and its place in them: nothing is imported.
CONTAINERS = {
    "open_clip.model.CLIP": "visual",
    "open_clip.model.CustomTextCLIP": "visual",
    "open_clip.coca_model.CoCa": "visual",
    "open_clip.timm_model.TimmModel": "trunk",
    "transformers.models.clip.modeling_clip.CLIPModel": "vision_model",
    "transformers.models.siglip.modeling_siglip.SiglipModel": "vision_model",
    "transformers.models.siglip2.modeling_siglip2.Siglip2Model": "vision_model",
    "transformers.models.depth_anything.modeling_depth_anything.DepthAnythingForDepthEstimation": "backbone",
    "transformers.models.dpt.modeling_dpt.DPTForDepthEstimation": "backbone",
    "transformers.models.llava.modeling_llava.LlavaForConditionalGeneration": "model",
    "transformers.models.llava.modeling_llava.LlavaModel": "vision_tower",
    "sentence_transformers.base.modules.transformer.Transformer": "model",
    "sentence_transformers.sentence_transformer.model.SentenceTransformer": "0",
}
REBUILT = "reduced_vit"  # the timm name of a saved model that ``reduce`` made
H = TypeVar("H", bound=Host)


@overload
def reduce(model: H, *, method: str | None, predictor: PredictorPath = None, **options: Any) -> H: ...


@overload
def reduce(model: nn.Module, *, method: str | None, predictor: PredictorPath = None, **options: Any) -> Any: ...


def reduce(
    model: nn.Module,
    *,
    method: str | None,
    predictor: PredictorPath = None,
    recovery: str | Path | None = None,
    unmerge: bool = False,
    **options: Any,
) -> Any:
    """Give any tower of a known family a token reduction method.

    The new model, a ``Host``, shares modules and weights with ``model``, which stays as it is; ``copy.deepcopy``
    separates them. Of a model that holds an image tower the result is another one of its class with the reduced tower.

    Args:
        model: a tower of timm, open_clip or transformers, or a model that holds one, see docs/towers.md.
        method: name of a registered method, None for the dense tower in our class.
        predictor: the file of its predictor, which determines the network's shape; None for random weights.
        recovery: file of ``zoo.recover``'s result, whose changes only the new model has.
        unmerge: have a tower of transformers return hidden states of all patches.
        options: the method's options, ``keep`` first of all.

    Raises:
        ValueError: unknown method or option, value out of range, tower that can't be reduced or unmerge, or a
            predictor or recovery of another tower, block or setting.
        FileNotFoundError: no such predictor or recovery.
    """
    if (place := image_tower(model)) is not None:
        whole, inner = share_weights(model, type(model)), model.get_submodule(place)
        whole._modules[place] = reduce(
            inner, method=method, predictor=predictor, recovery=recovery, unmerge=unmerge, **options
        )
        return whole
    reduced = host_of(model).adopt(model)
    reduced.reducer = None
    reduced.__dict__.pop("unmerge", None)  # what the model was told before
    if unmerge:
        if not hasattr(reduced, "unmerge"):
            name = type(model).__name__
            raise ValueError(f"unmerge=True: {name} has forward_intermediates for it; expected a tower of transformers")
        reduced.__dict__["unmerge"] = True
    if method is not None:
        like = next(reduced.block_modules.parameters())
        spec = reduced.spec(device=like.device, dtype=like.dtype)
        file = None if predictor is None else PredictorFile.read(predictor)
        if file is not None:
            file.fill(options)
        reduced.reducer = build_reducer(method, options, spec).train(model.training)
        if file is not None:
            load_predictor(reduced, file)
    _describe(reduced, method)
    return reduced if recovery is None else add_recovery(reduced, recovery)


def load_predictor(model: Host, file: PredictorFile) -> None:
    """Fill the predictor of a reduced model; raise ValueError if it has none, or the file is of another one."""
    block = None if model.reducer is None else model.reducer.config.predictor_block(model.depth)
    if block is None:
        raise ValueError("this model has no predictor to fill: it isn't reduced by patchrank")
    file.require(block=block)
    state, loaded = model.state_dict(), file.tensors()
    ours, theirs = ({k: v.shape for k, v in some.items() if k.startswith(PREFIX)} for some in (state, loaded))
    if ours != theirs:
        raise file.refusal("has another architecture")
    file.require(weights=blocks_fingerprint(state, model.blocks_prefix))
    model.load_state_dict(loaded, strict=False)


def image_tower(model: nn.Module) -> str | None:
    """Return the name of the submodule that is or holds the image tower, None if ``model`` is one itself."""
    places = [CONTAINERS.get(f"{base.__module__}.{base.__qualname__}") for base in type(model).__mro__]
    return next((place for place in places if place is not None and model._modules.get(place) is not None), None)


def add_prompts(model: nn.Module, prompts: str | Path | PromptFile, *, classify: bool = True) -> TimmHost:
    """Give a tower, dense or reduced, whose head projects to the joint space, the prompts that were tuned on it.

    The new model, of ``model``'s class, shares modules and weights with it; ``model`` stays as it is. It maps images to
    logits of the tuned classes, or without ``classify`` to the joint space.

    Raises:
        ValueError: prompts of another tower, or not a file of prompts.
        FileNotFoundError: no such file.
    """
    file = prompts if isinstance(prompts, PromptFile) else PromptFile.read(prompts)
    vit = require_promptable(model if isinstance(model, Host) else reduce(model, method=None))
    own = {"width": file.width, "weights": file.weights}
    file.compare(own, {"width": vit.embed_dim, "weights": blocks_fingerprint(vit.state_dict())})
    tuned, shape = type(vit).adopt(vit), file.shape
    like = next(tuned.block_modules.parameters())
    tuned.expect(shape, classify=classify, device=like.device, dtype=like.dtype)
    tuned.load_state_dict(file.tensors(classify=classify), strict=False)
    tuned.train(vit.training)
    facts = tuned.__dict__
    facts["_model_args"] = {**tuned._model_args, "prompts": shape._asdict()}
    if classify and facts.get("pretrained_cfg"):
        classes = {"num_classes": shape.classes, "label_names": list(file.classes)}
        facts["pretrained_cfg"] = facts["default_cfg"] = {**facts["pretrained_cfg"], **classes}
    return tuned


def require_promptable(model: nn.Module) -> TimmHost:
    """Return a tower that has a place for learned tokens; raise ValueError for another."""
    if not isinstance(model, TimmHost):
        kind = type(model).__name__
        raise ValueError(f"{kind} takes no learned tokens and no tuned classes: expected a tower of timm's")
    return model


def _describe(model: Host, method: str | None) -> None:
    """Tell timm how to build the model again."""
    facts = model.__dict__
    cfg, args = facts.get("pretrained_cfg"), facts.get("_model_args", {})
    if not cfg or not cfg.get("architecture"):
        return
    tag = f".{cfg['tag']}" if cfg.get("tag") else ""
    reduction = {} if model.reducer is None else dataclasses.asdict(model.reducer.config)
    # Without options that a name was built with: `reduced_vit` takes each once.
    facts["_model_args"] = {name: value for name, value in args.items() if name not in reduction} | {
        "base": args.get("base", cfg["architecture"] + tag),
        "method": method,
        "reduction": reduction,
    }
    facts["pretrained_cfg"] = facts["default_cfg"] = {**cfg, "architecture": REBUILT}


def filter_weights(
    state_dict: dict[str, Any], model: TimmHost, predictor: PredictorFile | None = None
) -> dict[str, Any]:
    """Bring a checkpoint (timm, OpenAI or OpenCLIP keys) into the form of ``model``, with its predictor."""
    reducer = {k: v for k, v in state_dict.items() if k.startswith("reducer.")}
    weights = type(model).filter_fn({k: v for k, v in state_dict.items() if k not in reducer}, model)
    facts: Any = model.pretrained_cfg
    headless = not any(name.startswith("head.") for name in weights)
    if headless and model.num_classes > 0 and str(facts.get("architecture")).startswith("clip_vit_s14"):
        text = load_file(EMBEDDED / "clip_vit_s14.text.safetensors")
        weights |= {"head.weight": text["visual_projection"], "head.bias": text["visual_bias"]}
    if model.reducer is None:
        return weights | reducer
    if predictor is not None:
        predictor.require(weights=blocks_fingerprint(weights))
        reducer = predictor.tensors()
    if missing := sorted(k for k in model.state_dict() if k.startswith("reducer.") and k not in reducer):
        raise ValueError(f"these weights hold no predictor: {missing[0]!r} is missing")
    return weights | reducer


@register_model
def reduced_vit(
    pretrained: bool = False,
    *,
    base: str = "",
    method: str | None = None,
    reduction: dict[str, Any] | None = None,
    **kwargs: Any,
) -> TimmHost:
    """Reduce timm's model ``base`` by ``method``; made for models that ``zoo.reduce`` saved, raises as it does."""
    if not base:
        raise ValueError(f"{REBUILT} needs base=NAME, a tower of timm's")
    for name in (reduction or {}).keys() & kwargs.keys():
        raise ValueError(
            f"{name}={kwargs[name]!r}: a saved model has its method's settings; to change them reduce it anew by "
            f"zoo.reduce(model, method={method!r}, {name}={kwargs[name]!r})"
        )

    def build(prompts: dict[str, int] | None = None, **vit_args: Any) -> TimmHost:
        shape, classify = for_head(prompts, vit_args)
        tower = timm.create_model(base, **vit_args)
        model = reduce(tower, method=method, **(reduction or {}))
        assert isinstance(model, TimmHost)
        if shape is not None:
            device, dtype = vit_args.get("device"), vit_args.get("dtype")
            model.expect(shape, classify=classify, device=device, dtype=dtype)
        return model

    kwargs["feature_cfg"] = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(build, REBUILT, pretrained, pretrained_filter_fn=filter_weights, **kwargs)
