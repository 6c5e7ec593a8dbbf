"""Image towers from folders of transformers, with their text towers: nothing is fetched, no code or pickle is run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from PIL.Image import Image
from torch import Tensor, nn

from zoo.core.host import FeatureTower, give_features
from zoo.loading.adopt import reduce
from zoo.loading.clip import Clip, ClipParts
from zoo.loading.weights import without_code

LOCAL = {"local_files_only": True, "trust_remote_code": False}


class TransformersText(nn.Module):
    """The text side of CLIP, SigLIP or SigLIP 2 of transformers, taken over from a model without its image tower."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        del model.vision_model
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, D), not normalised."""
        return self.model.get_text_features(tokens).pooler_output


class Preprocess:
    """A folder's image processor, from one PIL image to (C, H, W).

    SigLIP 2's images are squeezed to a square, as a batch has one count of tokens; its patches are put together again.
    """

    def __init__(self, processor: Any, square: Sequence[int] | None = None) -> None:
        self.processor = processor
        self.square = square  # patches and pixels of a patch along a side; None where the processor does all

    @classmethod
    def load(cls, folder: Path, model: Any) -> Self:
        """Read the processor of a model's folder."""
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL)
        if not isinstance(model, (transformers.Siglip2Model, transformers.Siglip2VisionModel)):
            return cls(processor)
        vision = getattr(model.config, "vision_config", model.config)
        return cls(processor, (math.isqrt(vision.num_patches), vision.patch_size))

    @classmethod
    def of(cls, settings: dict[str, Any], square: Sequence[int] | None) -> Self:
        """Make the processor of transformers that settings name; raise ValueError if there is none."""
        name = settings.get("image_processor_type")
        kind = getattr(transformers, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.ImageProcessingMixin)):
            raise ValueError(f"transformers has no image processor {name!r}")
        processor: Any = kind
        return cls(processor.from_dict(settings), square)

    def __call__(self, image: Image) -> Tensor:
        """Return what the processor makes of an image."""
        image = image.convert("RGB")
        if self.square is None:
            return self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        (rows, size), side = self.square, math.prod(self.square)
        image = image.resize((side, side), int(self.processor.resample))
        made = self.processor(images=image, max_num_patches=rows * rows, return_tensors="pt")
        patches: Tensor = made["pixel_values"][0, : rows * rows].view(rows, rows, size, size, -1)
        return patches.permute(4, 0, 2, 1, 3).reshape(-1, side, side)

    def __repr__(self) -> str:
        return repr(self.processor)


def load_transformers(folder: Path) -> tuple[FeatureTower, Preprocess, ClipParts | None]:
    """Load a model that transformers' ``save_pretrained`` wrote, with its processor.

    Returns:
        The dense image tower in float32 and evaluation mode, its preprocessing, and both with the text tower, None if
        there is none. CLIP's projection belongs to the image tower. SigLIP 2 gets squares, not its images' proportions.
    """
    named = f"transformers model {str(folder)!r}"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{named}: no config.json there; save_pretrained writes one")
    try:
        with without_code(f"transformers:{folder}"):
            model: Any = transformers.AutoModel.from_pretrained(
                folder, **LOCAL, use_safetensors=True, dtype=torch.float32
            ).eval()
            preprocess = Preprocess.load(folder, model)
    except OSError as error:
        raise ValueError(f"{named}: {error}") from error
    tower = model
    if isinstance(model, transformers.CLIPModel):
        with torch.device("meta"):
            tower = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
        tower.vision_model, tower.visual_projection = model.vision_model, model.visual_projection
    elif isinstance(model, (transformers.SiglipModel, transformers.Siglip2Model)):
        tower = model.vision_model
    try:
        visual = give_features(reduce(tower.eval(), method=None)).eval()
        visual.spec()
    except ValueError as error:
        raise ValueError(f"{named}: {error}") from error
    if tower is model:
        return visual, preprocess, None
    with without_code(f"transformers:{folder}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    length = model.config.text_config.max_position_embeddings
    pad = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}

    def tokenize(texts: str | list[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        return tokenizer(texts, **pad)["input_ids"]

    clip = Clip(visual, TransformersText(model), model.logit_scale.item()).eval()
    return visual, preprocess, ClipParts(clip, preprocess, tokenize)
