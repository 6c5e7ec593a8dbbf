"""Image towers from folders of transformers, as maps from images to features, with their text towers if they have one.

Only files are read: nothing is fetched, and no code or pickle of a folder is run.
"""

from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipModel,
)

from zoo.adopt import reduce
from zoo.attention import PoolingQuery
from zoo.clip import Clip, ClipParts
from zoo.host import Host, HostBlock, register_host
from zoo.tokens import Tokens


class FeatureTower(Host):
    """Any host as a tower whose output is a tensor of features, whatever the library's is."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.reducer = self.prompts = None
        self.grad_checkpointing = False
        self.embed_dim, self.blocks_prefix = host.embed_dim, f"host.{host.blocks_prefix}"
        self.train(host.training)

    @property
    def block_modules(self) -> Any:
        """The tower's own blocks."""
        return self.host.block_modules

    def block(self, index: int) -> HostBlock:
        """Take block ``index`` apart."""
        return self.host.block(index)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the tower's own image size."""
        return self.host.grid

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tower's own image size."""
        return self.host.input_size

    @property
    def prefix_count(self) -> int:
        """Number of tokens that are never reduced."""
        return self.host.prefix_count

    @property
    def query(self) -> str | None:
        """Which query pools."""
        return self.host.query

    @property
    def pools_first(self) -> bool:
        """Whether ``finish`` reads nothing but the first token."""
        return self.host.pools_first

    def embed(self, images: Tensor) -> Tokens:
        """Turn images (B, C, H, W) into the tokens that enter block 0."""
        return self.host.embed(images)

    def finish(self, tokens: Tokens) -> Tensor:
        """Normalise and pool the tokens that left the last block, and apply the head."""
        return self.host.finish(tokens)

    def probe(self, tokens: Tokens) -> PoolingQuery:
        """Return the attention pool's query and its keys."""
        return self.host.probe(tokens)

    def require_reducible(self) -> None:
        """Raise ValueError, with the reason, if the tower lacks what reduction needs."""
        self.host.require_reducible()

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D)."""
        tokens, _ = self.advance(self.embed(images))
        return self.finish(tokens)


register_host(FeatureTower)(FeatureTower)


class TransformersText(nn.Module):
    """The text side of CLIP or SigLIP of transformers, as a module from token ids to features."""

    def __init__(self, model: Any) -> None:
        """Take over a model, which loses its image tower."""
        super().__init__()
        del model.vision_model
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, D), not normalised."""
        features: Tensor = self.model.get_text_features(tokens).pooler_output
        return features


class Preprocess:
    """A folder's image processor, from one PIL image to (C, H, W)."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def __call__(self, image: Image) -> Tensor:
        """Return what the processor makes of an image."""
        pixels: Tensor = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    def __repr__(self) -> str:
        """Say what the processor does."""
        return repr(self.processor)


class Tokenize:
    """A folder's tokenizer, from texts to token ids (B, L) of the text tower's whole length."""

    def __init__(self, folder: Path, length: int) -> None:
        self.tokenizer, self.length = AutoTokenizer.from_pretrained(folder, local_files_only=True), length

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Return token ids, padded and cut to the length."""
        texts = [texts] if isinstance(texts, str) else texts
        how = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(texts, **how)["input_ids"]
        return ids


def load_transformers(folder: Path) -> tuple[FeatureTower, Preprocess, ClipParts | None]:
    """Load a model that transformers' ``save_pretrained`` wrote, with its processor.

    Returns:
        The dense image tower in float32 and evaluation mode, its preprocessing, and both with the text tower, None if
        there is none. CLIP's projection belongs to the image tower.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: weights that aren't safetensors, or a model whose image tower can't be reduced.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"transformers model {str(folder)!r}: no config.json there; save_pretrained writes one")
    try:
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        preprocess = Preprocess(folder)
    except OSError as error:
        raise ValueError(f"transformers model {str(folder)!r}: {error}") from error
    if isinstance(model, (Siglip2Model, Siglip2VisionModel)):
        raise ValueError(f"transformers model {str(folder)!r}: its processor gives patches; expected (C, H, W)")
    tower = model
    if isinstance(model, CLIPModel):
        with torch.device("meta"):
            tower = CLIPVisionModelWithProjection(model.config.vision_config)
        tower.vision_model, tower.visual_projection = model.vision_model, model.visual_projection
    elif isinstance(model, SiglipModel):
        tower = model.vision_model
    try:
        visual: Any = FeatureTower(reduce(tower.eval(), method=None)).eval()
        visual.spec()
    except ValueError as error:
        raise ValueError(f"transformers model {str(folder)!r}: {error}") from error
    if tower is model:
        return visual, preprocess, None
    tokenize = Tokenize(folder, model.config.text_config.max_position_embeddings)
    scale = model.logit_scale.item()
    return visual, preprocess, ClipParts(Clip(visual, TransformersText(model), scale).eval(), preprocess, tokenize)
