"""An image tower and a text tower in one joint space, used like an open_clip model."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from zoo.reducer import expected
from zoo.registry import MODELS
from zoo.sizes import SIZES
from zoo.text import CompactText, tokenizer
from zoo.vit import ReducedViT
from zoo.weights import EMBEDDED


class Clip(nn.Module):
    """Image tower, text tower and logit scale.

    Attributes:
        visual: image tower; its head is the projection to the joint space.
        text: text tower.
        logit_scale: log of the factor on cosine similarities.
    """

    def __init__(self, visual: ReducedViT, text: nn.Module, logit_scale: float) -> None:
        """Join two towers of equal output width."""
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


def create_clip(name: str, pretrained: bool = True, **kwargs: Any) -> ClipParts:
    """Create a CLIP model around a registered image tower, its preprocessing and its tokenizer.

    Args:
        name: a model name of the embedded size, such as ``clip_vit_s14_patchrank60``.
        pretrained: load the embedded weights (False: random image tower, same text tower).
        kwargs: further arguments of ``timm.create_model``.

    Raises:
        ValueError: unknown name, a size whose text tower isn't embedded, or prompts.
    """
    arch = name.split(".", maxsplit=1)[0]
    if arch not in MODELS:
        raise ValueError(f"model {name!r}: {expected(arch, MODELS)}")
    size = MODELS[arch].size
    if SIZES[size].weights is not None:
        raise ValueError(
            f"model {name!r}: only clip_vit_s14 comes with a text tower; for others take "
            "open_clip's text tower with timm.create_model's image tower"
        )
    if "prompts" in kwargs:
        raise ValueError(
            f"prompts={str(kwargs['prompts'])!r}: a tuned model classifies, it needs no text; "
            "use timm.create_model"
        )
    visual = timm.create_model(name, pretrained=pretrained, **kwargs)
    text, logit_scale, context_length = load_text()
    assert isinstance(visual, ReducedViT)
    model = Clip(visual, text, logit_scale).eval()
    return ClipParts(model, image_transform(visual), tokenizer(context_length))


def image_transform(visual: nn.Module) -> Any:
    """Return the preprocessing of an image tower: from PIL image to (C, H, W)."""
    return create_transform(**resolve_data_config({}, model=visual))


def load_text() -> tuple[CompactText, float, int]:
    """Load the embedded text tower: the module, the log of the logit scale, the context length."""
    tensors: dict[str, Tensor] = {}
    with safe_open(EMBEDDED / "clip_vit_s14.text.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["text"])
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            tensors[key] = file.get_tensor(key)
    text = CompactText(tensors["token_ids"].tolist(), **facts["geometry"])
    prefix = "text."
    text.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    )
    return text.eval(), float(tensors["logit_scale"]), facts["geometry"]["context_length"]


@torch.inference_mode()
def class_features(
    model: Clip, tokenize: Any, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Encode class names by the mean over prompt templates.

    Args:
        model: the model.
        tokenize: its tokenizer.
        classes: names, e.g. ``("ankle boot", ...)``.
        templates: prompts with one ``{}``.

    Returns:
        (classes, D) float, unit length.
    """
    rows = []
    for name in classes:
        prompts = tokenize([template.format(name) for template in templates])
        rows.append(model.encode_text(prompts, normalize=True).mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)
