"""Text towers: open_clip's, and the embedded one, which has rows for known tokens only (`tools.train_text`)."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from open_clip import SimpleTokenizer, decode, get_tokenizer
from open_clip.transformer import TextTransformer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.loading.sizes import EMBEDDED

TOKENIZER = "ViT-B-16"  # open_clip's byte-pair encoding; ships in the package
VOCABULARY = 49408  # its word pieces
_FILE = "clip_vit_s14.text.safetensors"


class UnseenWordsError(ValueError):
    """Words that the embedded text tower never saw."""

    def __init__(self, words: Sequence[str], where: str = "") -> None:
        """Make the message, which begins with ``where`` the words are."""
        self.words = tuple(words)
        super().__init__(
            f"{where}{': ' if where else ''}the embedded text tower never saw {', '.join(map(repr, words))}; "
            "use other words, or a model with a full vocabulary"
        )


def unseen_words(tokens: Tensor, known: Tensor) -> list[str]:
    """Return the word pieces, sorted, of tokens (any shape) that aren't among the ``known`` ids."""
    unseen = tokens[~torch.isin(tokens, known)].unique()
    return sorted({decode(token).strip() for token in unseen.unsqueeze(1)})


class CompactText(nn.Module):
    """A CLIP text tower that stores table rows only for known tokens.

    Args:
        token_ids: (V,) ids of open_clip's tokenizer that the table holds, ascending, with 0 (padding) and the
            end-of-text id.
        geometry: ``context_length``, ``width``, ``heads``, ``layers``, ``output_dim`` of open_clip's TextTransformer.
    """

    token_ids: Tensor

    def __init__(self, token_ids: Sequence[int], **geometry: Any) -> None:
        super().__init__()
        if list(token_ids) != sorted(set(token_ids)):
            raise ValueError("token_ids: expected ascending ids, each once")
        self.register_buffer("token_ids", torch.tensor(list(token_ids)), persistent=False)
        # Rows keep the order of ids, so the end-of-text token, which open_clip finds as the highest
        # id of a prompt, is the highest row as well.
        self.tower = TextTransformer(vocab_size=len(token_ids), **geometry)

    def rows(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to rows of the table; raise UnseenWordsError for what has no row."""
        if words := unseen_words(tokens, self.token_ids):
            raise UnseenWordsError(words)
        return torch.searchsorted(self.token_ids, tokens.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, output_dim), not normalised."""
        features: Tensor = self.tower(self.rows(tokens))
        return features


class OpenClipText(nn.Module):
    """The text side of an open_clip model, as a module from token ids to features."""

    def __init__(self, model: Any) -> None:
        """Take over open_clip's CLIP or CustomTextCLIP, which loses image tower and logit scale."""
        super().__init__()
        del model.visual
        del model.logit_scale
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, L) to text features (B, D), not normalised."""
        features: Tensor = self.model.encode_text(tokens, normalize=False)
        return features


class EmbeddedTokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip has no types
    """open_clip's tokenizer, which refuses words that the embedded text tower never saw."""

    def __init__(self, **kwargs: Any) -> None:
        """Take what open_clip's takes."""
        super().__init__(**kwargs)
        with safe_open(EMBEDDED / _FILE, framework="pt") as file:
            self.known = file.get_tensor("token_ids")

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """Map texts to token ids (B, L); raise UnseenWordsError that names the words and the text."""
        tokens: Tensor = super().__call__(texts, context_length)
        for text, own in zip([texts] if isinstance(texts, str) else texts, tokens, strict=True):
            if words := unseen_words(own, self.known):
                raise UnseenWordsError(words, f"text {text!r}")
        return tokens


def embedded_geometry() -> dict[str, int]:
    """Return the embedded tower's arguments of open_clip's TextTransformer."""
    with safe_open(EMBEDDED / _FILE, framework="pt") as file:
        geometry: dict[str, int] = json.loads(file.metadata()["text"])["geometry"]
    return geometry


def load_text() -> tuple[CompactText, float, int]:
    """Load the embedded text tower: the module, the log of the logit scale, the context length."""
    tensors, geometry = load_file(EMBEDDED / _FILE), embedded_geometry()
    text = CompactText(tensors["token_ids"].tolist(), **geometry)
    named = {k: v.float() for k, v in tensors.items() if k.startswith("text.")}
    text.load_state_dict({k.removeprefix("text."): v for k, v in named.items()})
    return text.eval(), float(tensors["logit_scale"]), geometry["context_length"]


def tokenizer(context_length: int) -> Any:
    """Return open_clip's tokenizer: a callable from texts to (B, context_length) int64 ids."""
    return get_tokenizer(TOKENIZER, context_length=context_length)
