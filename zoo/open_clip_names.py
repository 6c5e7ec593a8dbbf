"""Our models under their names in open_clip: configurations, and checkpoints in its layout.

Once ``zoo`` is imported, every registered name works as in
``open_clip.create_model_and_transforms("clip_vit_b16_evit60", pretrained="openai")``. open_clip
fixes the activation by a model's name, so the plain name has that of its default weights, and
``NAME.TAG`` that of the weights ``TAG``.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory, pretrained
from safetensors.torch import save
from torch import Tensor

from zoo.clip_weights import find_clip
from zoo.files import digest_of, write_whole
from zoo.predictor_file import PredictorFile
from zoo.sizes import SIZES, weights_cfg
from zoo.text import VOCABULARY, CompactText, embedded_geometry
from zoo.weights import EMBEDDED, cache_folder, with_predictors


class Checkpoint(dict[str, Any]):
    """What open_clip is told of weights; the file is made when it is asked for.

    Args:
        make: returns the file's path.
        facts: preprocessing and activation, as open_clip words them.
    """

    def __init__(self, make: Callable[[], str], **facts: Any) -> None:
        super().__init__(facts, file=None)
        self._make = make

    def __getitem__(self, key: str) -> Any:
        """Return a fact; the file's path is made now."""
        return self._make() if key == "file" else super().__getitem__(key)


def offer(name: str, size: str, method: str | None, options: dict[str, Any]) -> None:
    """Make a model known to open_clip, with the weight tags of its size.

    Args:
        name: registered timm name.
        size: its size.
        method: its reduction method.
        options: the method's, as far as they decide which predictor it takes.
    """
    tags = SIZES[size].tags
    default = next(iter(tags))
    configs, known = factory._MODEL_CONFIGS, pretrained._PRETRAINED
    known[name] = {}
    for tag, facts in tags.items():
        full = f"{name}.{tag}"
        configs[full] = _config(name, size, tag)
        told = _preprocessing(size, tag)

        def make(tag: str = tag, full: str = full) -> str:
            return str(checkpoint(full, size, tag, method, options))

        def refuse(tag: str = tag, full: str = full) -> str:
            raise ValueError(
                f"open_clip's {name!r} computes as its default weights {default!r} were trained, "
                f"the weights {tag!r} need another activation: give the model name {full!r}"
            )

        fitting = facts.quick_gelu == tags[default].quick_gelu
        known[full] = {tag: Checkpoint(make, **told)}
        known[name][tag] = Checkpoint(make if fitting else refuse, **told)
    configs[name] = configs[f"{name}.{default}"]


def _config(name: str, size: str, tag: str) -> dict[str, Any]:
    """Return a model's configuration in open_clip's terms."""
    spec = SIZES[size]
    if spec.open_clip is not None:
        text = open_clip.get_model_config(spec.open_clip)["text_cfg"]
    else:
        text = {**embedded_geometry(), "vocab_size": VOCABULARY}
        del text["output_dim"]
    return {
        "embed_dim": spec.features,
        "quick_gelu": spec.tags[tag].quick_gelu,
        "vision_cfg": {
            "timm_model_name": f"{name}.{tag}",
            "timm_pool": "token",
            "timm_proj": "",  # the tower's own head projects
            "image_size": spec.image,
        },
        "text_cfg": text,
    }


def _preprocessing(size: str, tag: str) -> dict[str, Any]:
    facts = weights_cfg(size, tag)
    told = {name: facts[name] for name in ("mean", "std", "interpolation")}
    return {**told, "resize_mode": "shortest", "quick_gelu": SIZES[size].tags[tag].quick_gelu}


def checkpoint(name: str, size: str, tag: str, method: str | None, options: dict[str, Any]) -> Path:
    """Return a model's weights as a file in open_clip's layout, made if it isn't in the cache.

    Models that differ in nothing learned share a file. Word pieces that the embedded text tower
    never saw are NaN in it, so that they can't pass for known ones.

    Args:
        name: registered timm name with tag.
        size: its size.
        tag: its weight tag.
        method: its reduction method.
        options: the method's.

    Raises:
        FileNotFoundError: the weights or the predictor are missing; says how to supply them.
    """
    from zoo.clip import create_clip  # the registry, which calls ``offer``, is below it

    spec = SIZES[size]
    source = find_clip(size, tag) if spec.open_clip else EMBEDDED / f"clip_vit_{size}.safetensors"
    predictors: tuple[PredictorFile, ...] = ()
    if method is not None:
        depth = spec.vit_args["depth"]
        _, predictors = with_predictors(f"clip_vit_{size}", tag, method, dict(options), depth)
    facts = source.resolve().stat()
    told = [
        source.resolve().name,
        facts.st_size,
        facts.st_mtime_ns,
        digest_of(*(p.path for p in predictors)),
    ]
    mark = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    path = cache_folder() / "open_clip" / f"clip_vit_{size}.{tag}.{mark}.safetensors"
    if not path.is_file():
        model = create_clip(name).model
        tensors = {f"visual.trunk.{k}": v for k, v in model.visual.state_dict().items()}
        tensors |= _text_side(model.text) | {"logit_scale": model.logit_scale.detach()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({k: v.contiguous() for k, v in tensors.items()}))
    return path


def _text_side(text: Any) -> dict[str, Tensor]:
    """Return a text tower's weights under open_clip's names, with its whole vocabulary."""
    if not isinstance(text, CompactText):
        return dict(text.model.state_dict())
    weights = dict(text.tower.state_dict())
    rows = weights["token_embedding.weight"]
    table = rows.new_full((VOCABULARY, rows.shape[1]), torch.nan)
    table[text.token_ids] = rows
    return {**weights, "token_embedding.weight": table}
