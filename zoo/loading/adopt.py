"""Give a model that exists a reduction method, prompts or a recovery, keeping its modules and weights."""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import timm
import torch
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from zoo.core.adaptive import Adaptive, Budgets
from zoo.core.digests import blocks_fingerprint, digest, weights_digest
from zoo.core.files import EMBEDDED
from zoo.core.host import Host, host_of, share_weights
from zoo.core.json_reader import from_json
from zoo.core.learned import for_head
from zoo.core.reducer import HostSpec, build_reducer
from zoo.loading.learned_files import PREFIX, BudgetFile, PredictorFile, PredictorPath, PromptFile, RecoveryFile
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
HEAD = "head.weight"  # of the linear map that gives the features, in files of recoveries
UP, DOWN = ".up", ".down"  # of a low-rank update, behind the weight's name
REBUILT = "reduced_vit"  # the timm name of a saved model that ``reduce`` made
AnyBudgets = str | Path | BudgetFile | Mapping[str, Any] | None
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
    budgets: AnyBudgets = None,
    cost: float | None = None,
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
        budgets: file that `fit budgets` wrote, for an adaptive tower: each picture takes one of its keep rates.
        cost: mean share of the dense tower's multiply-adds that an adaptive one takes; None for that of the file.
        options: the method's options, ``keep`` first of all, which an adaptive tower doesn't take.

    Raises:
        ValueError: unknown method or option, value out of range, tower that can't be reduced or unmerge, or a
            predictor, recovery or budgets of another tower, block or setting.
        FileNotFoundError: no such predictor, recovery or budgets.
    """
    if (place := image_tower(model)) is not None:
        whole, inner = share_weights(model, type(model)), model.get_submodule(place)
        whole._modules[place] = reduce(
            inner,
            method=method,
            predictor=predictor,
            **{"recovery": recovery, "unmerge": unmerge, "budgets": budgets, "cost": cost, **options},
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
    if (cost is not None and budgets is None) or (budgets is not None and method is None):
        have, lack = ("cost", "budgets") if budgets is None else ("budgets", "method")
        raise ValueError(f"{have} without {lack}: an adaptive tower needs method, budgets and, if you like, cost")
    if method is not None:
        like = next(reduced.block_modules.parameters())
        spec = reduced.spec(device=like.device, dtype=like.dtype)
        file = None if predictor is None else PredictorFile.read(predictor)
        if file is not None:
            file.fill(options)
        if budgets is None:
            reduced.reducer = build_reducer(method, options, spec)
        else:
            reduced.reducer = _build_adaptive(reduced, budgets, cost, method, options, spec)
        reduced.reducer.train(model.training)
        if file is not None:
            load_predictor(reduced, file)
    _describe(reduced, method)
    return reduced if recovery is None else add_recovery(reduced, recovery)


def _build_adaptive(
    model: Host, budgets: AnyBudgets, cost: float | None, method: str, options: dict[str, Any], spec: HostSpec
) -> Adaptive:
    """Build the reducer of an adaptive tower; budgets that are no file come with a cost, of a saved model."""
    if "keep" in options:
        raise ValueError(
            f"keep={options['keep']!r} with budgets: each picture takes a keep rate of its own; expected cost=X, a "
            "mean share of the dense tower's multiply-adds"
        )
    if isinstance(budgets, Mapping):
        assert cost is not None
        return Adaptive(from_json(Budgets, budgets, "budgets", complete=True), cost, method, options, spec)
    assert budgets is not None
    file = budgets if isinstance(budgets, BudgetFile) else BudgetFile.read(budgets)
    adaptive = Adaptive(file.budgets, file.cost if cost is None else cost, method, options, spec)
    settings = adaptive.config.fixed.plain()
    del settings["keep"]
    file.require(blocks_fingerprint(model.state_dict(), model.blocks_prefix), method, settings)
    return adaptive


def load_predictor(model: Host, file: PredictorFile) -> None:
    """Fill the predictor of a reduced model; raise ValueError if it has none, or the file is of another one."""
    block = None if model.reducer is None else model.reducer.config.predictor_block(model.depth)
    if block is None:
        raise ValueError("this model has no predictor to fill: it isn't reduced by patchrank")
    file.require(block=block)
    if isinstance(model.reducer, Adaptive):
        for number in range(len(model.reducer.each)):
            load_predictor(model.budget(number), file)
        return
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
    served = {"width": vit.embed_dim, "weights": blocks_fingerprint(vit.state_dict())}
    file.compare({name: getattr(file, name) for name in served}, served)
    tuned, shape = type(vit).adopt(vit), file.shape
    like = next(tuned.block_modules.parameters())
    tuned.expect(shape, classify=classify, device=like.device, dtype=like.dtype)
    tuned.load_state_dict(file.tensors(classify=classify), strict=False)
    tuned.train(vit.training)
    attributes = tuned.__dict__
    attributes["_model_args"] = {**tuned._model_args, "prompts": shape._asdict()}
    if classify and attributes.get("pretrained_cfg"):
        classes = {"num_classes": shape.classes, "label_names": list(file.classes)}
        attributes["pretrained_cfg"] = attributes["default_cfg"] = {**attributes["pretrained_cfg"], **classes}
    return tuned


def require_promptable(model: nn.Module) -> TimmHost:
    """Return a tower that has a place for learned tokens; raise ValueError for another."""
    if not isinstance(model, TimmHost):
        kind = type(model).__name__
        raise ValueError(f"{kind} takes no learned tokens and no tuned classes: expected a tower of timm's")
    return model


def trainable(vit: Host, what: str) -> dict[str, str]:
    """Return the weights that a recovery of this kind changes: of the head, or of the blocks and norms beside them.

    Keys are their names in files, which don't depend on what holds the tower; values are the tower's own names.
    """
    if "+" in what:
        return {name: weight for part in what.split("+") for name, weight in trainable(vit, part).items()}
    if what == "head":
        return {HEAD: f"{vit.projection}.weight" if isinstance(last_map(vit), nn.Linear) else f"{vit.projection}"}
    prefix = vit.blocks_prefix
    # Of what holds the blocks.
    around = {"", *(prefix[: at + 1] for at, letter in enumerate(prefix[:-1]) if letter == ".")}
    norms = [
        f"{name}."
        for name, module in vit.named_modules()
        if "Norm" in type(module).__name__ and name[: name.rfind(".") + 1] in around
    ]
    linear = {id(module.weight) for module in vit.modules() if isinstance(module, nn.Linear)}
    linear |= {id(module.in_proj_weight) for module in vit.modules() if isinstance(module, nn.MultiheadAttention)}
    names = {}
    for name, value in vit.named_parameters():
        norm = next((norm for norm in norms if name.startswith(norm)), None)
        if id(value) not in linear if what == "lora" else value.ndim != 1:
            continue
        if norm is not None:
            names[name[norm[:-1].rfind(".") + 1 :]] = name
        elif name.startswith(prefix):
            names[f"blocks.{name.removeprefix(prefix)}"] = name
    return names


def last_map(vit: Host) -> nn.Linear | nn.Parameter:
    """Return the linear map that gives a tower's features: a layer, or open_clip's weight (in, out), or raise."""
    layer = getattr(vit, vit.projection or "", None)
    if not isinstance(layer, (nn.Linear, nn.Parameter)):
        raise ValueError(
            f"what='head': the features of this {type(vit).__name__} come from no linear map; expected a tower of "
            "timm's, open_clip's with a projection, or transformers' CLIPVisionModelWithProjection; or take what='norm'"
        )
    return layer


def with_head(vit: H, what: str) -> H:
    """Return a tower whose features leave through a linear map, the identity of a new one if it has a place for it."""
    if not what.startswith("head") or not isinstance(getattr(vit, vit.projection or "", None), nn.Identity):
        return vit
    other, like = share_weights(vit, type(vit)), next(vit.block_modules[0].parameters())
    other.head = nn.Linear(vit.embed_dim, vit.embed_dim, device=like.device, dtype=like.dtype)
    nn.init.eye_(other.head.weight)
    nn.init.zeros_(other.head.bias)
    other.__dict__["num_classes"] = vit.embed_dim
    return other


@torch.no_grad()
def add_changes(vit: Host, added: Mapping[str, Tensor]) -> None:
    """Add to each weight named, in place, in the wider type of the two, rounded once."""
    for name, value in added.items():
        weight = vit.get_parameter(name)
        weight.copy_(weight + value.to(weight.device))


def additions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is added to each weight, by its name: ``tensors``, or products of two with ``.up`` and ``.down``."""
    products = {name.removesuffix(UP): value for name, value in tensors.items() if name.endswith(UP)}
    added = {name: value for name, value in tensors.items() if not name.endswith((UP, DOWN))}
    return added | {name: value @ tensors[name + DOWN] for name, value in products.items()}


def copy_tower(model: H, copied: Collection[str] = ()) -> H:
    """Return a copy with modules of its own that shares the weights, all but those named in ``copied``."""
    return copy.deepcopy(model, {id(value): value for name, value in model.named_parameters() if name not in copied})


def reduction_marks(model: Host, what: str, patches: int) -> dict[str, Any]:
    """Return what a recovery of this kind depends on in a reduced tower, as fields of ``RecoveryFile``."""
    weights, reducer = blocks_fingerprint(model.state_dict(), model.blocks_prefix), model.reducer
    if what.startswith("head"):
        weights = digest(weights, weights_digest({HEAD: model.get_parameter(trainable(model, "head")[HEAD])}))
    if reducer is None:
        return {"weights": weights}
    state = reducer.state_dict()
    return {
        "weights": weights,
        "method": reducer.method,
        "options": reducer.config.plain(),
        "counts": {str(index): count for index, count in reducer.counts(patches).items()},  # as JSON has it
        "reducer": weights_digest(state) if state else None,
    }


def add_recovery(model: H, recovery: str | Path | RecoveryFile) -> H:
    """Add the changes of a recovery to the weights of the reduced tower that it was trained on.

    The new model shares the weights that stay the same with ``model``, which stays as it is. Its fingerprint is another
    one: load a predictor or prompts of the tower before.

    Raises:
        ValueError: a recovery of another tower, method, setting or predictor, or a damaged file.
        FileNotFoundError: no such file.
    """
    file = recovery if isinstance(recovery, RecoveryFile) else RecoveryFile.read(recovery)
    what = file.recipe["what"]
    headed = with_head(model, what)
    file.require(reduction_marks(headed, what, file.patches), tokens_learned=headed.prompts is not None)
    names, weights = trainable(headed, what), dict(headed.named_parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in names.items():
        shape = tuple(weights[parameter].shape)
        shapes |= {
            name: shape,
            name + UP: (shape[0], file.recipe["rank"]),
            name + DOWN: (file.recipe["rank"], shape[-1]),
        }
    tensors = file.load()
    for name, value in tensors.items():
        if shapes.get(name) != tuple(value.shape):
            raise file.refusal(f"has {name!r} of shape {tuple(value.shape)}, which doesn't fit this tower")
        for end, other_end in ((UP, DOWN), (DOWN, UP)):
            if name.endswith(end) and (lacking := name.removesuffix(end) + other_end) not in tensors:
                raise file.refusal(f"has {name!r} without {lacking!r}")
    added = {names[name]: value for name, value in additions(tensors).items()}
    recovered = copy_tower(headed if added else model, added)
    add_changes(recovered, added)
    return recovered


def _describe(model: Host, method: str | None) -> None:
    """Tell timm how to build the model again."""
    attributes = model.__dict__
    cfg, args = attributes.get("pretrained_cfg"), attributes.get("_model_args", {})
    if not cfg or not cfg.get("architecture"):
        return
    tag = f".{cfg['tag']}" if cfg.get("tag") else ""
    reduction = {} if model.reducer is None else model.reducer.config.plain()
    # Without options that a name was built with: `reduced_vit` takes each once.
    attributes["_model_args"] = {name: value for name, value in args.items() if name not in reduction} | {
        "base": args.get("base", cfg["architecture"] + tag),
        "method": method,
        "reduction": reduction,
    }
    attributes["pretrained_cfg"] = attributes["default_cfg"] = {**cfg, "architecture": REBUILT}


def filter_weights(
    state_dict: dict[str, Any], model: TimmHost, predictor: PredictorFile | None = None
) -> dict[str, Any]:
    """Bring a checkpoint (timm, OpenAI or OpenCLIP keys) into the form of ``model``, with its predictor."""
    reducer = {k: v for k, v in state_dict.items() if k.startswith("reducer.")}
    weights = type(model).filter_fn({k: v for k, v in state_dict.items() if k not in reducer}, model)
    headless = not any(name.startswith("head.") for name in weights)
    if headless and model.num_classes > 0 and str(model.pretrained_cfg.get("architecture")).startswith("clip_vit_s14"):
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
