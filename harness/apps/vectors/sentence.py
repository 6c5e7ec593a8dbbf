"""A tower of ours as the module of a SentenceTransformer, which makes `embed`'s vectors of PIL images and texts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from harness.datasets.images import EXTENSIONS, upright_rgb
from zoo.loading.clip import clip_transform, image_transform, load_text, open_clip_text, tokenizer
from zoo.loading.open_clip import FOLDER
from zoo.loading.sizes import SIZES
from zoo.towers.vit import TimmHost

TEXT = "text.safetensors"
CODE = '''"""What sentence-transformers opens this folder with."""

try:
    from harness.apps.vectors.sentence import SentenceTower
except ImportError as error:
    raise ImportError("this model needs: pip install clip-patchrank") from error
'''


class SentenceTower(nn.Module):
    """An image tower, and a text tower where one belongs to it, of a folder that ``push`` wrote.

    It has the interface of a first module of sentence-transformers, whose classes differ from release to release.
    """

    save_in_root = True

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
    def load(cls, folder: str) -> "SentenceTower":
        """Load what ``save`` wrote."""
        visual: Any = timm.create_model(f"{FOLDER}{folder}", pretrained=True)
        facts = json.loads(Path(folder, "config.json").read_text("utf-8")).get("text", {})
        ships = not facts or SIZES[facts["size"]].open_clip is None
        return cls(visual, **facts, weights=None if ships else load_file(Path(folder, TEXT))).eval()

    def save(self, folder: str, facts: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write the towers' weights and settings; ``facts`` join them in config.json."""
        text = {"text": {"size": self.size, "tag": self.tag}} if self.size else {}
        save_for_hf(self.visual, folder, model_config={**(facts or {}), **text}, safe_serialization=True)
        if self.size and SIZES[self.size].open_clip is not None:
            tensors = {"logit_scale": torch.tensor(self.logit_scale), **self.text.model.state_dict()}
            save_file(tensors, Path(folder, TEXT))

    @property
    def modalities(self) -> list[str]:
        """What can be embedded."""
        return ["image"] if self.text is None else ["text", "image"]

    def get_embedding_dimension(self) -> int:
        """Return the number of a vector's components."""
        return self.visual.num_classes or self.visual.num_features

    get_sentence_embedding_dimension = get_embedding_dimension  # its name in older releases

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Turn PIL images, or texts, into a tensor for ``forward``; sentence-transformers mixes no batch of both.

        Raises:
            ValueError: something else, or texts where there is no text tower or whose words it never saw.
        """
        if all(isinstance(one, Image.Image) for one in inputs):
            return {"pixel_values": torch.stack([self.transform(upright_rgb(one.copy())) for one in inputs])}
        for one in inputs:
            if not isinstance(one, str) or Path(one).suffix.lower() in EXTENSIONS:
                raise ValueError(f"{one!r:.80}: expected PIL images, or texts; open pictures with PIL.Image.open")
        if self.text is None:
            raise ValueError(f"{inputs[0]!r:.80}: this model has no text tower; expected PIL images")
        return {"input_ids": self.words([f"{prompt or ''}{one}" for one in inputs])}

    tokenize = preprocess  # its name in older releases

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (n, D) of unit length."""
        if "pixel_values" in features:
            vectors = self.visual(features["pixel_values"])
        else:
            vectors = self.text(features["input_ids"])
        return {**features, "sentence_embedding": F.normalize(vectors.float(), dim=-1)}
