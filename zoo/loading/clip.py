"""A CLIP model: an image tower and a text tower in one joint space, used like an open_clip model.

open_clip is imported where it is used: with ``zoo`` it imports ``zoo.loading.open_clip``, which needs this module.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from zoo.core.files import EMBEDDED
from zoo.core.host import Host
from zoo.core.settings import expected
from zoo.loading.learned_files import with_predictor
from zoo.loading.sizes import MODELS, SIZES, ModelName, split_options, unknown_model
from zoo.loading.weights import UnusableWeightsError, find_clip, first_mismatch, image_side, read_weights
from zoo.towers.vit import ReducedViT, TimmHost

Preprocess = Callable[[Image], Tensor]  # to (C, H, W)
Tokenize = Callable[[list[str]], Tensor]  # to token ids (B, L)
TextSide = tuple[nn.Module, float, int]  # the tower, the log of the logit scale, the context in tokens
TOKENIZER = "ViT-B-16"  # open_clip's byte-pair encoding; ships in the package
VOCABULARY = 49408  # its word pieces
_FILE = "clip_vit_s14.text.safetensors"


class UnseenWordsError(ValueError):
    """Words that the embedded text tower never saw; the message begins with ``where`` they are."""

    def __init__(self, words: Sequence[str], where: str = "") -> None:
        self.words = tuple(words)
        never = f"the embedded text tower never saw {', '.join(map(repr, words))}"
        super().__init__(f"{where}{': ' * bool(where)}{never}; use other words, or a model with a full vocabulary")


def unseen_words(tokens: Tensor, known: Tensor) -> list[str]:
    """Return the word pieces, sorted, of tokens (any shape) that aren't among the ``known`` ids."""
    unseen = tokens[~torch.isin(tokens, known)].unique()
    from open_clip import decode

    return sorted({decode(token).strip() for token in unseen.unsqueeze(1)})


class CompactText(nn.Module):
    """A CLIP text tower, open_clip's TextTransformer of some ``geometry``, with table rows for known tokens only."""

    token_ids: Tensor  # (V,) ascending, with 0 (padding) and the end-of-text id

    def __init__(self, token_ids: Sequence[int], **geometry: Any) -> None:
        super().__init__()
        assert list(token_ids) == sorted(set(token_ids))
        from open_clip.transformer import TextTransformer

        self.register_buffer("token_ids", torch.tensor(list(token_ids)), persistent=False)
        # Rows keep the order of ids: open_clip finds the end-of-text token as a prompt's highest id.
        self.tower = TextTransformer(vocab_size=len(token_ids), **geometry)

    def rows(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to rows of the table; raise UnseenWordsError for what has no row."""
        if words := unseen_words(tokens, self.token_ids):
            raise UnseenWordsError(words)
        return torch.searchsorted(self.token_ids, tokens.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, output_dim), not normalised."""
        return self.tower(self.rows(tokens))


class OpenClipText(nn.Module):
    """The text side of open_clip's CLIP or CustomTextCLIP, which loses image tower and logit scale."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        del model.visual
        del model.logit_scale
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, D), not normalised."""
        return self.model.encode_text(tokens, normalize=False)


def open_clip_text(size: str, tag: str, weights: Mapping[str, Tensor] | None = None) -> TextSide:
    """Build a text tower of open_clip, from weights of both towers in its names or OpenAI's, None for random ones."""
    import open_clip
    from open_clip.model import CLIP

    spec = SIZES[size]
    config = open_clip.get_model_config(spec.open_clip)
    text, least = config["text_cfg"], {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
    model = CLIP(config["embed_dim"], least, text, quick_gelu=spec.tags[tag].quick_gelu)
    scale = model.logit_scale.detach()
    module = OpenClipText(model)
    if weights is not None:
        named = {k.removeprefix("text."): v for k, v in weights.items() if not k.startswith("visual.")}
        if "logit_scale" not in named:
            raise ValueError("'logit_scale' is missing")
        scale = named.pop("logit_scale")
        try:
            module.model.load_state_dict(named)
        except RuntimeError as error:
            raise ValueError(f"no text tower of {spec.open_clip}: {first_mismatch(error)}") from error
    return module.eval(), scale.item(), text["context_length"]


def read_known_ids() -> Tensor:
    """Return the ids, ascending, of the word pieces that the embedded text tower knows."""
    with safe_open(EMBEDDED / _FILE, framework="pt") as file:
        known: Tensor = file.get_tensor("token_ids")
    return known


def read_geometry() -> dict[str, int]:
    """Return the embedded tower's arguments of open_clip's TextTransformer."""
    with safe_open(EMBEDDED / _FILE, framework="pt") as file:
        geometry: dict[str, int] = json.loads(file.metadata()["text"])["geometry"]
    return geometry


def load_text() -> tuple[CompactText, float, int]:
    """Load the embedded text tower."""
    tensors, geometry = load_file(EMBEDDED / _FILE), read_geometry()
    text = CompactText(tensors["token_ids"].tolist(), **geometry)
    text.load_state_dict({k.removeprefix("text."): v.float() for k, v in tensors.items() if k.startswith("text.")})
    return text.eval(), float(tensors["logit_scale"]), geometry["context_length"]


def tokenizer(context_length: int) -> Tokenize:
    """Return open_clip's tokenizer: a callable from texts to (B, context_length) int64 ids."""
    from open_clip import get_tokenizer

    return get_tokenizer(TOKENIZER, context_length=context_length)


class Clip(nn.Module):
    """Image tower, whose head projects to the joint space, text tower, and the log of the factor on their cosines."""

    def __init__(self, visual: Host, text: nn.Module, logit_scale: float) -> None:
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
        features: Tensor = self.text(text.to(next(self.text.parameters()).device))
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit image features, unit text features and the factor on their products."""
        return self.encode_image(image, True), self.encode_text(text, True), self.logit_scale.exp()


class ClipParts(NamedTuple):
    """What ``create_clip`` returns: model, image preprocessing, tokenizer."""

    model: Clip
    preprocess: Preprocess
    tokenizer: Tokenize


def create_clip(name: str, pretrained: bool | str | Path = True, **kwargs: Any) -> ClipParts:
    """Create a CLIP model around a registered image tower, its preprocessing and its tokenizer.

    Both towers come from one file: the embedded one, open_clip's on the hub, or ``weights/NAME.TAG.pt`` (or
    ``.safetensors``) in the user's cache.

    Args:
        name: a model's name, with weight tag or without, such as ``clip_vit_b16_patchrank60.openai``.
        pretrained: load the weights; False for random ones (the embedded text tower stays); or a file with both
            towers, trained with the activation that the tag stands for.
        kwargs: further arguments of ``timm.create_model``.

    Returns:
        The model in evaluation mode, open_clip's preprocessing, and a callable from texts to token ids.

    Raises:
        ValueError: unknown name or tag, prompts, or a file of another architecture.
        FileNotFoundError: no weights; says how to supply them.
    """
    arch, _, tag = name.partition(".")
    if arch not in MODELS:
        raise unknown_model(name)
    model = MODELS[arch]
    spec = SIZES[model.size]
    tag = tag or next(iter(spec.tags))
    if tag not in spec.tags:
        raise ValueError(f"weight tag {tag!r} of {arch}: {expected(tag, spec.tags)}")
    if "prompts" in kwargs:
        raise ValueError(
            f"prompts={str(kwargs['prompts'])!r}: a tuned model classifies, it needs no text; use timm.create_model"
        )
    text: TextSide
    if spec.open_clip is None:
        if not isinstance(pretrained, bool):
            raise ValueError(f"pretrained={str(pretrained)!r}: {arch} has no weights but the embedded ones")
        visual, text = timm.create_model(f"{arch}.{tag}", pretrained, **kwargs), load_text()
    elif pretrained is False:
        visual, text = timm.create_model(f"{arch}.{tag}", **kwargs), open_clip_text(model.size, tag)
    else:
        visual, text = _create_pretrained(model, tag, pretrained, kwargs)
    assert isinstance(visual, ReducedViT)
    module, logit_scale, context = text
    return ClipParts(Clip(visual, module, logit_scale).eval(), clip_transform(visual), tokenizer(context))


def _create_pretrained(
    name: ModelName, tag: str, pretrained: bool | str | Path, kwargs: dict[str, Any]
) -> tuple[nn.Module, TextSide]:
    if kwargs.get("predictor") is None:  # refuse what is unknown or missing before a download
        options, arguments = split_options(name, kwargs)
        if name.method is not None:
            with_predictor(name.dense, tag, name.method, options, name.depth(arguments))
    file = find_clip(name.size, tag) if isinstance(pretrained, bool) else Path(pretrained)
    weights, spec = read_weights(file), SIZES[name.size]
    positions = 1 + (spec.image // spec.vit_args["patch_size"]) ** 2
    try:
        table = weights.get("visual.positional_embedding")
        if table is None:
            raise ValueError("no image tower: 'visual.positional_embedding' is missing")
        if len(table) != positions:  # timm would resample without a word
            raise ValueError(f"trained with {len(table)} tokens, this size has {positions}")
        text = open_clip_text(name.size, tag, weights)
        overlay = {**kwargs.pop("pretrained_cfg_overlay", {}), "state_dict": image_side(weights)}
    except ValueError as error:
        raise ValueError(f"weights {str(file)!r} for {name}.{tag}: {error}") from error
    try:
        visual = timm.create_model(f"{name}.{tag}", True, pretrained_cfg_overlay=overlay, **kwargs)
    except UnusableWeightsError as error:
        reason = first_mismatch(error.__cause__ or error)
        raise ValueError(f"weights {str(file)!r} for {name}.{tag}: {reason}") from error
    return visual, text


def clip_transform(visual: TimmHost) -> Preprocess:
    """Return open_clip's preprocessing of an image tower of ours: from PIL image to (C, H, W)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = visual.pretrained_cfg
    settings = {name: cfg[name] for name in ("mean", "std", "interpolation")}
    settings["size"] = visual.patch_embed.img_size or cfg["input_size"][1:]
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)


def image_transform(visual: nn.Module) -> Preprocess:
    """Return timm's preprocessing of any image tower: from PIL image to (C, H, W)."""
    return create_transform(**resolve_data_config({}, model=visual))


@torch.inference_mode()
def class_features(model: Clip, tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Encode class names by the unit mean over templates with one ``{}``, (classes, D), or raise UnseenWordsError."""
    rows = []
    for name in classes:
        prompts = tokenize([template.format(name) for template in templates])
        try:
            rows.append(model.encode_text(prompts, normalize=True).mean(dim=0))
        except UnseenWordsError as error:
            raise UnseenWordsError(error.words, f"class {name!r}") from error
    return F.normalize(torch.stack(rows), dim=-1)
