"""Text towers: open_clip's, and the embedded one, which has rows for known tokens only."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from open_clip import SimpleTokenizer, get_tokenizer
from open_clip.transformer import TextTransformer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.sizes import EMBEDDED

TOKENIZER = "ViT-B-16"  # open_clip's byte-pair encoding; ships in the package
VOCABULARY = 49408  # its word pieces
_FILE = "clip_vit_s14.text.safetensors"


class CompactText(nn.Module):
    """A CLIP text tower that stores table rows only for known tokens.

    Args:
        token_ids: (V,) ids of open_clip's tokenizer that the table holds, ascending; 0 (padding)
            and the end-of-text id are among them.
        geometry: ``context_length``, ``width``, ``heads``, ``layers``, ``output_dim`` of
            open_clip's TextTransformer.
    """

    token_ids: Tensor

    def __init__(self, token_ids: Sequence[int], **geometry: Any) -> None:
        """Build with random weights."""
        super().__init__()
        if list(token_ids) != sorted(set(token_ids)):
            raise ValueError("token_ids: expected ascending ids, each once")
        self.register_buffer("token_ids", torch.tensor(list(token_ids)), persistent=False)
        # Rows keep the order of ids, so the end-of-text token, which open_clip finds as the highest
        # id of a prompt, is the highest row as well.
        self.tower = TextTransformer(vocab_size=len(token_ids), **geometry)

    def rows(self, tokens: Tensor) -> Tensor:
        """Map ids of open_clip's tokenizer (B, L) to rows of the table, same shape.

        Raises:
            ValueError: a token never occurred in training; quotes the word pieces.
        """
        rows = torch.searchsorted(self.token_ids, tokens.contiguous()).clamp(
            max=len(self.token_ids) - 1
        )
        unseen = tokens[self.token_ids[rows] != tokens]
        if unseen.numel():
            pieces = sorted({SimpleTokenizer().decoder[int(t)] for t in unseen})
            words = ", ".join(repr(p.removesuffix("</w>")) for p in pieces)
            raise ValueError(
                f"the embedded text tower never saw {words}; use other words, or a model with a "
                "full vocabulary"
            )
        return rows

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, output_dim), not normalised.

        Raises:
            ValueError: a token never occurred in training.
        """
        features: Tensor = self.tower(self.rows(tokens))
        return features


class OpenClipText(nn.Module):
    """The text side of an open_clip model, as a module from token ids to features.

    Args:
        model: open_clip's CLIP or CustomTextCLIP; image tower and logit scale are taken out of it.
    """

    def __init__(self, model: Any) -> None:
        """Take over the model."""
        super().__init__()
        del model.visual
        del model.logit_scale
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, D), not normalised."""
        features: Tensor = self.model.encode_text(tokens)
        return features


def embedded_geometry() -> dict[str, int]:
    """Return the embedded text tower's geometry, as arguments of open_clip's TextTransformer."""
    with safe_open(EMBEDDED / _FILE, framework="pt") as file:
        geometry: dict[str, int] = json.loads(file.metadata()["text"])["geometry"]
    return geometry


def load_text() -> tuple[CompactText, float, int]:
    """Load the embedded text tower: the module, the log of the logit scale, the context length."""
    tensors, geometry = load_file(EMBEDDED / _FILE), embedded_geometry()
    text = CompactText(tensors["token_ids"].tolist(), **geometry)
    prefix = "text."
    text.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    )
    return text.eval(), float(tensors["logit_scale"]), geometry["context_length"]


def tokenizer(context_length: int) -> Any:
    """Return open_clip's tokenizer: a callable from texts to (B, context_length) int64 ids."""
    return get_tokenizer(TOKENIZER, context_length=context_length)
