"""Towers as sentence-transformers, and the Auto classes of transformers, open them from a folder that `push` wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from zoo.loading.clip import clip_transform, image_transform, load_text, open_clip_text, tokenizer
from zoo.loading.pictures import EXTENSIONS, upright_rgb
from zoo.loading.sizes import SIZES
from zoo.loading.weights import FOLDER
from zoo.towers.vit import TimmHost

TEXT, CODE = "text.safetensors", "modeling_patchrank.py"  # the former where there is a text tower that doesn't ship
SENTENCE_CODE = '''"""What sentence-transformers and the Auto classes of transformers open this folder with."""

from transformers import PretrainedConfig

try:
    from zoo.deploy.sentence_tower import SentenceTower, TowerProcessor
except ImportError as error:
    raise ImportError("this model needs: pip install clip-patchrank") from error


class TowerConfig(PretrainedConfig):
    model_type = "patchrank"
'''


class SentenceTower(nn.Module):
    """An image tower, and a text tower where one belongs to it, of a folder that ``write_folder`` wrote.

    It makes `embed`'s vectors, and has the interface of a first module of sentence-transformers, whose classes differ
    from release to release, and that of a CLIP of transformers.
    """

    save_in_root = True
    config: Any = None  # transformers'

    def __init__(
        self, visual: TimmHost, size: str = "", tag: str = "", weights: dict[str, Tensor] | None = None
    ) -> None:
        """Take an image tower; its text tower has a size and tag of ours, and ``weights`` unless these ship."""
        super().__init__()
        self.visual, self.size, self.tag = visual, size, tag
        self.text: Any = None
        self.transform: Any = image_transform(visual)
        if size:
            self.transform = clip_transform(visual)
            self.text, self.logit_scale, context = (
                load_text() if weights is None else open_clip_text(size, tag, weights)
            )
            self.words = tokenizer(context)

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load what ``save`` wrote."""
        visual: Any = timm.create_model(f"{FOLDER}{folder}", pretrained=True)
        text = json.loads(Path(folder, "config.json").read_text("utf-8")).get("text", {})
        ships = not text or SIZES[text["size"]].open_clip is None
        return cls(visual, **text, weights=None if ships else load_file(Path(folder, TEXT))).eval()

    @classmethod
    def from_pretrained(cls, name: str, *_: Any, config: Any = None, revision: str | None = None, **__: Any) -> Self:
        """Load a folder or a repository of the hub for transformers."""
        tower = cls.load(name if Path(name).is_dir() else snapshot_download(name, revision=revision))
        tower.config = config
        return tower

    @staticmethod
    def register_for_auto_class(auto_class: Any = None) -> None:
        """Do nothing when transformers asks for it."""

    def save(self, folder: str, provenance: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write the towers' weights and settings; ``provenance`` joins the settings in config.json."""
        text = {"text": {"size": self.size, "tag": self.tag}} if self.size else {}
        parts = {"AutoConfig": "TowerConfig", "AutoModel": "SentenceTower", "AutoProcessor": "TowerProcessor"}
        settings = {
            "architectures": ["SentenceTower"],
            "auto_map": {auto: f"{Path(CODE).stem}.{name}" for auto, name in parts.items()},
            "model_type": "patchrank",
            "vision_config": {"image_size": self.visual.input_size},
        }
        save_for_hf(
            self.visual, folder, model_config={**(provenance or {}), **settings, **text}, safe_serialization=True
        )
        if self.size and SIZES[self.size].open_clip is not None:
            tensors = {"logit_scale": torch.tensor(self.logit_scale), **self.text.model.state_dict()}
            save_file(tensors, Path(folder, TEXT))

    @property
    def modalities(self) -> list[str]:
        """What can be embedded."""
        return ["image"] if self.text is None else ["text", "image"]

    def get_embedding_dimension(self) -> int:
        """Return the number of a vector's components."""
        return self.visual.output_dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its name in older releases

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Turn PIL images, or texts, into a tensor for ``forward``; sentence-transformers mixes no batch of both.

        Raises:
            ValueError: something else, or texts where there is no text tower or whose words it never saw.
        """
        if all(isinstance(item, Image.Image) for item in inputs):
            return {"pixel_values": torch.stack([self.transform(upright_rgb(item.copy())) for item in inputs])}
        for item in inputs:
            if not isinstance(item, str) or Path(item).suffix.lower() in EXTENSIONS:
                raise ValueError(f"{item!r:.80}: expected PIL images, or texts; open pictures with PIL.Image.open")
        if self.text is None:
            raise ValueError(f"{inputs[0]!r:.80}: this model has no text tower; expected PIL images")
        return {"input_ids": self.words([f"{prompt or ''}{item}" for item in inputs])}

    tokenize = preprocess  # its name in older releases

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (n, D) of unit length."""
        embed = self.get_image_features if "pixel_values" in features else self.get_text_features
        return {**features, "sentence_embedding": F.normalize(embed(**features).float(), dim=-1)}

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """Return features of prepared pictures, (n, D)."""
        return self.visual(pixel_values.to(self.dtype))

    def get_text_features(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Return features of tokenized texts, (n, D)."""
        features: Tensor = self.text(input_ids)
        return features

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


class TowerProcessor:
    """Prepare pictures and texts for a `SentenceTower`, as a processor of transformers does."""

    def __init__(self, tower: SentenceTower) -> None:
        self.tower = tower.to("meta")  # its weights aren't needed

    @classmethod
    def from_pretrained(cls, name: str, *_: Any, **more: Any) -> Self:
        """Load what belongs to a folder or a repository."""
        return cls(SentenceTower.from_pretrained(name, **more))

    register_for_auto_class = SentenceTower.register_for_auto_class

    def __call__(self, *, images: Any = None, text: Any = None, **_: Any) -> dict[str, Tensor]:
        """Return ``pixel_values`` (n, C, H, W) of one or several, ``input_ids`` (m, L), or both."""
        single = (str, Image.Image)
        parts = [self.tower.preprocess([part] if isinstance(part, single) else part) for part in (images, text) if part]
        return {name: tensor for part in parts for name, tensor in part.items()}
