"""open_clip's models here, and our models in open_clip.

A name fixes the activation there: our plain names have that of their default weights, ``NAME.TAG`` that of ``TAG``.
Importing this module makes our models known to open_clip; ``zoo`` imports it as soon as open_clip is imported.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip import SimpleTokenizer, factory, pretrained
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, QuickGELU, VisionTransformer
from safetensors.torch import save, save_file
from timm.layers import LayerNorm, to_2tuple
from timm.layers.activations import QuickGELU as TimmQuickGELU
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from zoo.core.digests import digest
from zoo.core.files import EMBEDDED, cache_file, write_whole
from zoo.core.host import Host, give_features
from zoo.core.reducer import on_method
from zoo.core.settings import expected
from zoo.loading.adopt import reduce
from zoo.loading.clip import (
    VOCABULARY,
    Clip,
    ClipParts,
    CompactText,
    OpenClipText,
    UnseenWordsError,
    create_clip,
    read_geometry,
    read_known_ids,
    unseen_words,
)
from zoo.loading.learned_files import with_predictor
from zoo.loading.sizes import MODELS, SIZES, ModelName, weights_cfg
from zoo.loading.weights import FOLDER, HUB, OPEN_CLIP_FILES, find_clip, loading, read_weights, without_code
from zoo.towers.vit import ReducedViT, TimmHost

CONFIG = "open_clip_config.json"
_POOLS = {"tok": "token", "avg": "avg"}
_CROPS = {"shortest": "center", "squash": "squash"}


def from_open_clip(model: nn.Module) -> TimmHost:
    """Convert the image tower of an open_clip model, or its ``.visual``, to a dense tower whose head is the projection.

    The weights of open_clip's own VisionTransformer are copied, as float32; a timm trunk shares them. Preprocessing
    attached to the model becomes ``pretrained_cfg``.

    Raises:
        ValueError: a ResNet, or a tower of open_clip's own without an exact counterpart.
    """
    visual: Any = getattr(model, "visual", model)
    if isinstance(visual, TimmModel):
        tower = _from_trunk(visual)
    elif isinstance(visual, VisionTransformer):
        tower = _from_native(visual)
    else:
        raise ValueError(f"{type(visual).__name__} is not a vision transformer of open_clip")
    preprocess = getattr(visual, "preprocess_cfg", {})
    if preprocess.get("resize_mode") in _CROPS:  # timm pads "longest" with another colour
        _describe(tower, preprocess)
    return tower.train(visual.training)


def _from_trunk(visual: TimmModel) -> TimmHost:
    tower: TimmHost = reduce(visual.trunk, method=None)
    tower.spec()
    if not tower.global_pool:
        raise ValueError("timm_pool='' hands out tokens; expected a pooling such as 'token'")
    if len(visual.head):
        assert isinstance(tower.head, nn.Identity)
        tower.head = visual.head
        last = [m for m in visual.head.modules() if isinstance(m, nn.Linear)][-1]
        tower.num_classes = last.out_features
    return tower


def _from_native(visual: VisionTransformer) -> ReducedViT:
    if visual.attn_pool is not None:
        raise ValueError("attentional_pool: this tower pools by attention; expected 'tok' or 'avg'")
    if visual.pool_type not in _POOLS:
        raise ValueError(f"pool_type={visual.pool_type!r}: expected one of {', '.join(_POOLS)}")
    if isinstance(visual.patch_dropout, PatchDropout):
        raise ValueError("patch_dropout > 0 loses patch positions; set it to 0 for reduction")
    # The weights' names don't show this one.
    epsilons = {module.eps for module in visual.modules() if isinstance(module, nn.LayerNorm)}
    if len(epsilons) != 1:
        raise ValueError(f"norms of several eps: {sorted(epsilons)}")
    block = visual.transformer.resblocks[0]
    width, hidden = visual.conv1.out_channels, block.mlp.c_fc.out_features
    norm_after_pool = visual.pool_type == "avg" and visual.final_ln_after_pool
    tower = ReducedViT(
        img_size=visual.image_size,
        patch_size=visual.patch_size,
        embed_dim=width,
        depth=len(visual.transformer.resblocks),
        num_heads=block.attn.num_heads,
        # timm rounds width * ratio down, which must not lose a channel to the division.
        mlp_ratio=(hidden if hidden % width == 0 else hidden + 0.5) / width,
        init_values=None if isinstance(block.ls_1, nn.Identity) else 1.0,
        pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        fc_norm=norm_after_pool,
        global_pool=_POOLS[visual.pool_type],
        num_classes=0 if visual.proj is None else visual.proj.shape[1],
        norm_layer=partial(LayerNorm, eps=visual.ln_post.eps),
        act_layer=_activation(block.mlp.gelu),
        weight_init="skip",
        device=visual.conv1.weight.device,
    )
    # Layer scales aside, timm knows open_clip's keys, which it tells by this prefix.
    state = {f"visual.{k.replace('.ls_', '.ls')}": v for k, v in visual.state_dict().items()}
    weights = checkpoint_filter_fn(state, tower)
    if tower.patch_embed.proj.bias is not None:
        weights["patch_embed.proj.bias"] = tower.patch_embed.proj.bias.new_zeros(width)
    if norm_after_pool:
        weights |= {f"fc_norm.{k}": weights.pop(f"norm.{k}") for k in ("weight", "bias")}
    if extra := sorted(weights.keys() ^ tower.state_dict().keys()):
        raise ValueError(
            f"this tower differs from timm's VisionTransformer in {extra[0]!r}; expected plain "
            "attention and MLP, without open_clip's qk_norm, scaled_cosine_attn, scale_*"
        )
    tower.load_state_dict(weights)
    return tower


def _activation(module: nn.Module) -> Callable[..., nn.Module]:
    if isinstance(module, QuickGELU):
        return TimmQuickGELU
    if type(module) is nn.GELU:
        return partial(nn.GELU, approximate=module.approximate)
    raise ValueError(f"activation {type(module).__name__}: expected GELU or QuickGELU")


def _describe(tower: TimmHost, preprocess: dict[str, Any]) -> None:
    """Tell timm the preprocessing, for ``timm.data.resolve_data_config``."""
    cfg = {
        **{"first_conv": "patch_embed.proj", "classifier": "head", "crop_pct": 1.0},
        **{"mean": tuple(preprocess["mean"]), "std": tuple(preprocess["std"])},
        "input_size": (3, *to_2tuple(preprocess["size"])),
        "interpolation": preprocess["interpolation"],
        "crop_mode": _CROPS[preprocess["resize_mode"]],
        "num_classes": tower.num_classes,
    }
    tower.__dict__["pretrained_cfg"] = tower.__dict__["default_cfg"] = cfg


def load_open_clip(spec: str) -> tuple[ClipParts, str]:
    """Load an open_clip model and convert its image tower.

    A tag gets the activation that it was trained with; a file the architecture's, so that QuickGELU needs
    ``ViT-B-16-quickgelu/FILE``. ``spec`` is ``ARCH/TAG``, ``ARCH/FILE``, or ``local-dir:FOLDER`` and
    ``hf-hub:OWNER/NAME`` as ``push_to_hf_hub`` writes them; it is also returned, without folders.
    """
    arch, weights, quick = (spec, None, False) if spec.startswith((FOLDER, HUB)) else _parts(spec)
    folder = Path(spec.removeprefix(FOLDER)) if spec.startswith(FOLDER) else None
    if folder is not None and not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"open_clip model {spec!r}: no {CONFIG} there; open_clip's push_to_hf_hub.save_for_hf writes one"
        )
    cfg = get_pretrained_cfg(arch, weights or "")
    place = f"{arch.removeprefix(HUB)}/{CONFIG}" if arch.startswith(HUB) else cfg.get("hf_hub", "")
    otherwise = "give a file: open_clip:ARCH/FILE, or a folder: open_clip:local-dir:FOLDER"
    with loading(spec, otherwise, place), without_code(spec), tempfile.TemporaryDirectory() as room:
        readable = weights
        if weights is not None and not cfg:  # a file, which open_clip would judge by its suffix
            readable = str(Path(room) / "weights.safetensors")
            save_file({key: value.contiguous() for key, value in read_weights(weights).items()}, readable)
        download_pretrained(cfg)  # else open_clip would log a failure as well as raising it
        model, preprocess = open_clip.create_model_from_pretrained(arch, readable, force_quick_gelu=quick)
        # The folder's ``tokenizer_kwargs`` might trust themselves; open_clip's own tokenizer knows no such argument.
        by_transformers = open_clip.get_model_config(arch)["text_cfg"].get("hf_tokenizer_name")
        tokenizer = open_clip.get_tokenizer(arch, **({"trust_remote_code": False} if by_transformers else {}))
    pools = isinstance(model.visual, VisionTransformer) and model.visual.attn_pool is not None
    try:  # timm has no pool such as CoCa's
        visual: Host = give_features(reduce(model.visual, method=None)) if pools else from_open_clip(model)
        visual.spec()
    except ValueError as error:
        raise ValueError(f"open_clip model {spec!r}: {error}") from error
    logit_scale = model.logit_scale.item()  # before the text side drops it
    clip = Clip(visual, OpenClipText(model), logit_scale).eval()
    name = spec if folder is None else FOLDER + folder.resolve().name
    return ClipParts(clip, preprocess, tokenizer), name if weights is None else f"{arch}/{Path(weights).name}"


def _parts(spec: str) -> tuple[str, str, bool]:
    """Return open_clip's ``model_name`` and ``pretrained``, and whether to force QuickGELU."""
    arch, _, pretrained = spec.partition("/")
    if arch not in open_clip.list_models():
        raise ValueError(f"open_clip model {arch!r}: {expected(arch, open_clip.list_models())}")
    tags = list_pretrained_tags_by_model(arch)
    tag = pretrained.lower().replace("-", "_")  # as open_clip itself reads tags
    if tag in tags:
        quick = bool(get_pretrained_cfg(arch, tag).get("quick_gelu"))
        if open_clip.get_model_config(arch).get("quick_gelu") and not quick:
            raise ValueError(
                f"open_clip model {arch!r} computes with QuickGELU, and its weights {tag!r} were "
                f"trained without; use {arch.removesuffix('-quickgelu')}/{tag}"
            )
        return arch, tag, quick
    if Path(pretrained).is_file():
        return arch, pretrained, False
    known = expected(pretrained, tags) if tags else "there are no tags"
    raise ValueError(f"weights {pretrained!r} of open_clip model {arch!r}: {known}; or a file")


class EmbeddedTokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip has no types
    """open_clip's tokenizer, which refuses words that the embedded text tower never saw."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.known = read_known_ids()

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """Map texts to token ids (B, L); raise UnseenWordsError that names the words and the text."""
        tokens: Tensor = super().__call__(texts, context_length)
        for text, ids in zip([texts] if isinstance(texts, str) else texts, tokens, strict=True):
            if words := unseen_words(ids, self.known):
                raise UnseenWordsError(words, f"text {text!r}")
        return tokens


class Checkpoint(dict[str, Any]):
    """An entry of open_clip's list of weights, whose file ``make`` creates on the first access."""

    def __init__(self, make: Callable[[], str], **settings: Any) -> None:
        super().__init__(settings, file=None)
        self._make = make

    def __getitem__(self, key: str) -> Any:
        return self._make() if key == "file" else super().__getitem__(key)


def offer_models() -> None:
    """Make all registered models known to open_clip, and those of methods that come later."""

    def offer_method(method: str | None) -> None:
        for name in MODELS.values():
            if name.method == method:
                offer(name)

    offer_method(None)
    on_method(offer_method)
    theirs = factory.get_tokenizer

    @wraps(theirs)
    def get(model_name: str = "", context_length: int | None = None, *args: Any, **kwargs: Any) -> Any:
        name = MODELS.get(model_name.partition(".")[0])
        if name is None or SIZES[name.size].open_clip is not None:
            return theirs(model_name, context_length, *args, **kwargs)
        return EmbeddedTokenizer(context_length=context_length or read_geometry()["context_length"])

    open_clip.get_tokenizer = factory.get_tokenizer = get


def offer(name: ModelName) -> None:
    """Make a model known to open_clip, with the weight tags of its size."""
    spec = SIZES[name.size]
    default, default_tag = next(iter(spec.tags.items()))
    known: dict[str, Checkpoint] = {}
    for tag, kind in spec.tags.items():
        full, quick = f"{name}.{tag}", kind.quick_gelu
        factory._MODEL_CONFIGS[full], settings = describe_model(name, tag)
        settings["quick_gelu"] = quick
        make = partial(checkpoint, name, tag)
        pretrained._PRETRAINED[full] = {tag: Checkpoint(make, **settings)}
        refuse = partial(_refuse, name, default, tag)
        known[tag] = Checkpoint(make if quick == default_tag.quick_gelu else refuse, **settings)
    pretrained._PRETRAINED[str(name)] = known
    factory._MODEL_CONFIGS[str(name)] = factory._MODEL_CONFIGS[f"{name}.{default}"]


def describe_model(name: ModelName, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's ``model_cfg`` and ``preprocess_cfg`` of a model of ours with weights of a tag."""
    spec, cfg = SIZES[name.size], weights_cfg(name.size, tag)
    if spec.open_clip is None:
        text = {**read_geometry(), "vocab_size": VOCABULARY}
        del text["output_dim"]
    else:
        text = open_clip.get_model_config(spec.open_clip)["text_cfg"]
    # The tower's own head projects.
    vision = {"timm_model_name": f"{name}.{tag}", "timm_pool": "token", "timm_proj": "", "image_size": spec.image}
    quick = spec.tags[tag].quick_gelu
    config = {"embed_dim": spec.features, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}
    return config, {key: cfg[key] for key in ("mean", "std", "interpolation")} | {"resize_mode": "shortest"}


def save_open_clip(folder: Path, visual: TimmHost, name: ModelName, tag: str) -> None:
    """Write an image tower of ours with its text tower so that open_clip loads ``local-dir:FOLDER`` after `import zoo`.

    Raises:
        ValueError: the tower isn't what its name says, which is all that open_clip knows of the tower.
        FileNotFoundError: the weights of its text tower are missing.
    """
    if _describe_build(visual) != _describe_build(timm.create_model(f"{name}.{tag}", pretrained=False)):
        raise ValueError(f"this model has other settings or sizes than {name}, by which open_clip would make it anew")
    clip = create_clip(f"{name.dense}.{tag}").model
    config = dict(zip(("model_cfg", "preprocess_cfg"), describe_model(name, tag), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / OPEN_CLIP_FILES[0], _encode(visual, clip.text, clip.logit_scale))
    write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())


def _describe_build(visual: Any) -> tuple[object, object]:
    """Return a tower's settings of reduction and the shapes of its weights."""
    shapes = {key: value.shape for key, value in visual.state_dict().items()}
    return visual.reducer and visual.reducer.config.plain(), shapes


def _encode(visual: nn.Module, text: nn.Module, logit_scale: Tensor) -> bytes:
    """Return both towers' weights as safetensors in open_clip's layout."""
    tensors = {f"visual.trunk.{k}": v for k, v in visual.state_dict().items()}
    tensors |= _text_side(text) | {"logit_scale": logit_scale.detach()}
    return save({k: v.contiguous() for k, v in tensors.items()})


def _refuse(name: ModelName, default: str, tag: str) -> str:
    raise ValueError(
        f"open_clip's {str(name)!r} computes as its default weights {default!r} were trained, the weights {tag!r} need "
        f"another activation: give the model name '{name}.{tag}'"
    )


def checkpoint(name: ModelName, tag: str) -> str:
    """Return a model's weights, shared with others, as a file in open_clip's layout, made if it isn't in the cache."""
    spec = SIZES[name.size]
    embedded = EMBEDDED / f"{name.dense}.safetensors"
    source = (embedded if spec.open_clip is None else find_clip(name.size, tag)).resolve()
    status, learned = source.stat(), list[Path]()
    if name.method is not None:
        _, predictor = with_predictor(name.dense, tag, name.method, name.options, spec.vit_args["depth"])
        learned = [] if predictor is None else [predictor.path]
    mark = digest([source.name, status.st_size, status.st_mtime_ns], *learned)
    path = cache_file("open_clip", f"{name.dense}.{tag}.{mark}.safetensors")
    if not path.is_file():
        model = create_clip(f"{name}.{tag}").model
        write_whole(path, _encode(model.visual, model.text, model.logit_scale))
    return str(path)


def _text_side(text: Any) -> dict[str, Tensor]:
    """Return a text tower's weights under open_clip's names; rows of word pieces that ours never saw are NaN."""
    if not isinstance(text, CompactText):
        return dict(text.model.state_dict())
    weights = dict(text.tower.state_dict())
    rows = weights["token_embedding.weight"]
    table = rows.new_full((VOCABULARY, rows.shape[1]), torch.nan)
    table[text.token_ids] = rows
    return weights | {"token_embedding.weight": table}


offer_models()
