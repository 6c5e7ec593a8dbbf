"""An image tower and a text tower in one joint space, used like an open_clip model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from zoo.core.messages import expected
from zoo.loading.arguments import require_fitted
from zoo.loading.sizes import MODELS, SIZES, unknown_model
from zoo.loading.text import UnseenWordsError, load_text, tokenizer
from zoo.loading.weight_file import read_weights
from zoo.loading.weights import UnusableWeightsError, find_clip, first_mismatch, image_side, open_clip_text
from zoo.towers.vit import ReducedViT


class Clip(nn.Module):
    """Image tower, text tower and the log of the factor on their cosine similarities."""

    def __init__(self, visual: ReducedViT, text: nn.Module, logit_scale: float) -> None:
        """Join two towers of equal output width; the image tower's head is the projection."""
        super().__init__()
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Map images (B, C, H, W) to features (B, D), of unit length if ``normalize``."""
        features: Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Map token ids (B, L) to features (B, D), of unit length if ``normalize``."""
        features: Tensor = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit image features, unit text features and the factor on their products."""
        return self.encode_image(image, True), self.encode_text(text, True), self.logit_scale.exp()


class ClipParts(NamedTuple):
    """What ``create_clip`` returns: model, image preprocessing, tokenizer."""

    model: Clip
    preprocess: Any
    tokenizer: Any


def create_clip(name: str, pretrained: bool | str | Path = True, **kwargs: Any) -> ClipParts:
    """Create a CLIP model around a registered image tower, its preprocessing and its tokenizer.

    Both towers come from one file: the embedded one; open_clip's on the Hugging Face hub; or one in
    the user's cache, ``weights/NAME.TAG.pt`` (or ``.safetensors``).

    Args:
        name: a model's name, with weight tag or without, such as ``clip_vit_b16_patchrank60.openai``.
        pretrained: load the weights; False for random ones (the embedded text tower stays); or a file with both
            towers: safetensors or a state dict saved by torch. It must have been trained with the activation that the
            tag stands for.
        kwargs: further arguments of ``timm.create_model``.

    Returns:
        The model, in evaluation mode, with the interface of open_clip's; open_clip's own preprocessing; and a callable
        from texts to token ids.

    Raises:
        ValueError: unknown name or tag, prompts, or a file of another architecture.
        FileNotFoundError: no weights; says how to supply them.
    """
    arch, _, tag = name.partition(".")
    if arch not in MODELS:
        raise unknown_model(name)
    size = MODELS[arch].size
    tags = SIZES[size].tags
    tag = tag or next(iter(tags))
    if tag not in tags:
        raise ValueError(f"weight tag {tag!r} of {arch}: {expected(tag, tags)}")
    if "prompts" in kwargs:
        raise ValueError(
            f"prompts={str(kwargs['prompts'])!r}: a tuned model classifies, it needs no text; use timm.create_model"
        )
    name = f"{arch}.{tag}"
    text: tuple[nn.Module, float, int]
    if SIZES[size].open_clip is None:
        if not isinstance(pretrained, bool):
            raise ValueError(f"pretrained={str(pretrained)!r}: {arch} has no weights but the embedded ones")
        visual, text = timm.create_model(name, pretrained, **kwargs), load_text()
    elif pretrained is False:
        visual, text = timm.create_model(name, **kwargs), open_clip_text(size, tag)
    else:
        if kwargs.get("predictor") is None:
            require_fitted(MODELS[arch], tag, kwargs)  # before much is downloaded
        file = find_clip(size, tag) if pretrained is True else Path(pretrained)
        visual, text = _from_file(name, file, kwargs)
    assert isinstance(visual, ReducedViT)
    module, logit_scale, context = text
    facts: Any = visual.pretrained_cfg
    patches: Any = visual.patch_embed
    settings = {name: facts[name] for name in ("mean", "std", "interpolation")}
    settings["size"] = patches.img_size or facts["input_size"][1:]
    preprocess = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    return ClipParts(Clip(visual, module, logit_scale).eval(), preprocess, tokenizer(context))


def _from_file(name: str, file: Path, kwargs: dict[str, Any]) -> tuple[nn.Module, tuple[nn.Module, float, int]]:
    """Build the image tower ``name``, which has a tag, and its text side from one file."""
    weights = read_weights(file)
    arch, tag = name.split(".")
    size, what = MODELS[arch].size, f"weights {str(file)!r} for {name}"
    try:
        table = weights.get("visual.positional_embedding")
        if table is None:
            raise ValueError("no image tower: 'visual.positional_embedding' is missing")
        spec = SIZES[size]
        positions = 1 + (spec.image // spec.vit_args["patch_size"]) ** 2
        if len(table) != positions:  # timm would resample without a word
            raise ValueError(f"trained with {len(table)} tokens, this size has {positions}")
        text = open_clip_text(size, tag, weights)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    overlay = {**kwargs.pop("pretrained_cfg_overlay", {}), "state_dict": image_side(weights)}
    try:
        visual = timm.create_model(name, True, pretrained_cfg_overlay=overlay, **kwargs)
    except UnusableWeightsError as error:
        raise ValueError(f"{what}: {first_mismatch(error.__cause__ or error)}") from error
    return visual, text


def image_transform(visual: nn.Module) -> Any:
    """Return timm's preprocessing of any image tower: from PIL image to (C, H, W)."""
    return create_transform(**resolve_data_config({}, model=visual))


@torch.inference_mode()
def class_features(model: Clip, tokenize: Any, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Encode class names by the unit mean over templates with one ``{}``, (classes, D) float.

    Raises UnseenWordsError for the first class whose words the text tower doesn't know.
    """
    rows = []
    for name in classes:
        prompts = tokenize([template.format(name) for template in templates])
        try:
            rows.append(model.encode_text(prompts, normalize=True).mean(dim=0))
        except UnseenWordsError as error:
            raise UnseenWordsError(error.words, f"class {name!r}") from error
    return F.normalize(torch.stack(rows), dim=-1)
