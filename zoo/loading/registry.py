"""Every size of CLIP ViT, dense and with each method and keep rate, as a timm model; methods may come later."""

import pkgutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg

import zoo.methods
from zoo.core.reducer import configure, on_method
from zoo.loading.adopt import add_prompts, add_recovery, filter_weights, reduce
from zoo.loading.learned_files import BudgetFile, PredictorFile, PromptFile, find_budgets, with_predictor
from zoo.loading.sizes import MODELS, PERCENTS, SIZES, ModelName, split_options, weights_cfg
from zoo.loading.weights import SAVED, image_side, loading, own_path, own_weights, read_weights, timm_source
from zoo.towers.vit import ReducedViT, TimmHost

default_cfgs: dict[str, Any] = {}


def build(name: ModelName, pretrained: bool = False, **kwargs: Any) -> TimmHost:
    """Build a model: split its method's options off, find its weights, and let timm assemble it."""
    if isinstance(kwargs.get("prompts"), (str, Path)):
        return _build_tuned(name, **kwargs)
    budgets, cost = kwargs.pop("budgets", None), kwargs.pop("cost", None)
    if budgets is not None:
        return _build_adaptive(name, pretrained, budgets, cost, **kwargs)
    if cost is not None:
        raise ValueError(f"cost={cost!r} without budgets: expected budgets=FILE, too, or a keep rate in the name")
    recovery = kwargs.pop("recovery", None)
    options, arguments = split_options(name, kwargs)
    predictor = arguments.pop("predictor", None)
    before = arguments.get("pretrained_model_args") or {}  # that a saved model was built with, which timm repeats
    if predictor == before.get("predictor"):
        predictor = None  # its weights hold that predictor by now
    if before and predictor is None and name.method is not None:
        _require_block(name, name.method, before, options, arguments)
    _require_tower(pretrained, recovery, predictor, arguments)
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(str(name), arguments.get("pretrained_cfg"), overlay)
    tag = cfg.tag or next(iter(SIZES[name.size].tags))
    saved = cfg.source in ("local-dir", "hf-hub")  # by save_for_hf, with the predictor among the weights
    file: PredictorFile | None = None
    if pretrained and name.method and not (saved and predictor is None):
        options, file = with_predictor(name.dense, tag, name.method, options, name.depth(arguments), predictor)
    if pretrained and not saved and not cfg.state_dict:
        # timm reads no archives of OpenAI's, and judges the user's files by their suffix.
        path = overlay.get("file") or (None if cfg.file else own_weights(name.size, tag))
        if path is not None:
            tensors = read_weights(path)
            tower = image_side(tensors) or tensors  # in timm's names they are the tower's alone
            arguments["pretrained_cfg_overlay"] = {**overlay, "state_dict": tower}
            cfg = replace(cfg, state_dict=tower)  # the hub isn't asked
    with _loading(f"{name}.{tag}", cfg, own_path(f"{name.dense}.{tag}")) if pretrained else nullcontext():
        model = _assemble(name, pretrained, tag, options, file, arguments)
    if file is not None:
        # timm saves the arguments that a model was built with. The network's shape is not among them where it came
        # from the predictor's file. timm's wrapper of features_only has no arguments yet.
        model._model_args = {**getattr(model, "_model_args", {}), **file.options}
    return model if recovery is None else add_recovery(model, recovery)


def _loading(name: str, cfg: PretrainedCfg, place: str) -> AbstractContextManager[None]:
    if cfg.source in ("hf-hub", "local-dir"):
        name = f"{cfg.source}:{cfg.hf_hub_id if cfg.source == 'hf-hub' else cfg.file}"
    otherwise = (
        f"put a file of these weights at {place}, or pass pretrained_cfg_overlay=dict(file=PATH), or pass {SAVED}"
    )
    return loading(name, otherwise, timm_source(cfg), arguments=True)


def _require_tower(pretrained: bool, recovery: Any, predictor: Any, arguments: dict[str, Any]) -> None:
    """Refuse, by ValueError, what was learned for weights that the model won't have."""
    for what, path in (("recovery", recovery), ("predictor", predictor)):
        if path is not None and not pretrained:
            raise ValueError(f"{what}={str(path)!r} without the tower it was made for: add pretrained=True")
    if recovery is not None and arguments.get("features_only"):
        raise ValueError(
            f"recovery={str(recovery)!r} fits whole towers, not features_only=True: save the model with recovery by "
            "timm's save_for_hf, and load local-dir:FOLDER with features_only=True"
        )


def _require_block(
    name: ModelName, method: str, before: dict[str, Any], options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Refuse, by ValueError, a saved model that is to score at another block than it did ``before``."""
    depth, saved = name.depth(arguments), split_options(name, before)[0]
    was, now = (configure(method, each, depth).predictor_block(depth) for each in (saved, options))
    if was != now:
        raise ValueError(
            f"{name}: the predictor in this saved model was fitted at block {was}, these options score at block {now}; "
            "leave reduce_at as it was saved, or give a predictor for it by predictor=PATH"
        )


def _assemble(
    name: ModelName,
    pretrained: bool,
    tag: str,
    options: dict[str, Any],
    predictor: PredictorFile | None,
    arguments: dict[str, Any],
) -> ReducedViT:
    spec = SIZES[name.size]
    quick_gelu = tag in spec.tags and spec.tags[tag].quick_gelu
    args = {"act_layer": "quick_gelu" if quick_gelu else None, **spec.vit_args, **arguments}
    if name.method is not None:
        args |= {"method": name.method, "reduction": options}
    args["feature_cfg"] = {"out_indices": args.pop("out_indices", 3), "feature_cls": "getter"}
    filter_fn = partial(filter_weights, predictor=predictor)
    model: ReducedViT = build_model_with_cfg(ReducedViT, str(name), pretrained, pretrained_filter_fn=filter_fn, **args)
    for part in model.modules():
        # timm keeps the whole state dict in the model's description, and would save it with that.
        getattr(part, "pretrained_cfg", {}).pop("state_dict", None)
    return model


def _build_tuned(name: ModelName, prompts: str | Path, **kwargs: Any) -> TimmHost:
    """Build a pretrained model with the prompts of a file; ``num_classes=0`` gives features."""
    file = PromptFile.read(prompts)
    known = file.shape.classes
    classes = kwargs.pop("num_classes", known)
    if classes not in (0, known):
        raise ValueError(f"num_classes={classes}: {str(prompts)!r} has {known}; leave it out, or 0 for features")
    model = add_prompts(build(name, pretrained=True, **kwargs), file)
    if classes == 0:
        model.reset_classifier(0)
    return model


def _build_adaptive(name: ModelName, pretrained: bool, budgets: Any, cost: float | None, **kwargs: Any) -> TimmHost:
    """Build a pretrained model whose pictures take the budgets of a file, or of the one that is found for ``True``.

    By default they cost what the keep rate in the model's name does.
    """
    if not pretrained or name.method is None or kwargs.get("features_only"):
        raise ValueError(
            f"{name} with budgets={str(budgets)!r}: expected the name of a reduced model, such as "
            f"{name.dense}_rankmerge60, with pretrained=True and without features_only"
        )
    fixed = build(name, True, **kwargs)
    assert fixed.reducer is not None
    options = fixed.reducer.config.plain()
    keep, cfg = options.pop("keep"), fixed.pretrained_cfg
    if budgets is True:
        budgets = find_budgets(name.dense, cfg["tag"] or "", name.method)
    file = budgets if isinstance(budgets, BudgetFile) else BudgetFile.read(budgets)
    if cost is None and keep is not None:
        cost = file.budgets.cost_of(keep)
    model = reduce(fixed, method=name.method, budgets=file, cost=cost, **options)
    for reducer in model.adaptive.each:
        reducer.load_state_dict(fixed.reducer.state_dict())
    return model


def _add(name: ModelName) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> TimmHost:
        return build(name, pretrained, **kwargs)

    method = "dense" if name.method is None else f"{name.method}, keep rate {name.percent} %"
    create.__name__ = create.__qualname__ = str(name)
    create.__doc__ = f"CLIP ViT image tower, size {name.size}, {method}."
    cfgs: dict[str, Any] = {f"{name}.{t}": weights_cfg(name.size, t) for t in SIZES[name.size].tags}
    default_cfgs.update(generate_default_cfgs(cfgs))
    MODELS[str(name)] = name
    register_model(create)


def _add_method(method: str) -> None:
    for size, percent in product(SIZES, PERCENTS):
        name = ModelName(size=size, method=method, percent=percent)
        if str(name) not in MODELS:  # a method's file may be imported again
            _add(name)


for _size in SIZES:
    _add(ModelName(size=_size))
on_method(_add_method)


def load_methods() -> None:
    """Import the modules that register methods: ``zoo.methods``, ``baselines`` and those of other distributions."""
    for module in pkgutil.iter_modules(zoo.methods.__path__, "zoo.methods."):
        import_module(module.name)
    for point in entry_points(group="clip_patchrank.methods"):
        point.load()
