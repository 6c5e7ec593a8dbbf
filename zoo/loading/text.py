"""Text towers: open_clip's, and the embedded one with its training.

The embedded tower has rows for known tokens only. It was trained by locked-image tuning: projection
and text tower for a frozen image tower (arXiv 2111.07991).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
        token_ids: (V,) ids of open_clip's tokenizer that the table holds, ascending, with 0
            (padding) and the end-of-text id.
        geometry: ``context_length``, ``width``, ``heads``, ``layers``, ``output_dim`` of
            open_clip's TextTransformer.
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


@dataclass(frozen=True, kw_only=True)
class LitConfig:
    """Recipe of locked-image tuning."""

    steps: int = 2000
    batch: int = 512  # images per step
    learning_rate: float = 1e-3  # AdamW's peak, cosine to zero after the warm-up
    weight_decay: float = 0.05
    warmup: int = 100  # steps of linear growth
    noise: float = 0.1  # standard deviation of feature noise, as a share of the features' own
    seed: int = 0  # of batches, captions and noise
    checkpoint_every: int = 200  # steps


class LitModel(nn.Module):
    """What is trained: projection of the class token, text tower, logit scale."""

    def __init__(self, dim: int, text: CompactText, features: int) -> None:
        """Build for class tokens of width ``dim`` and a joint space of width ``features``."""
        super().__init__()
        self.project = nn.Linear(dim, features)
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def train_lit(
    model: LitModel,
    images: Tensor,
    captions: Sequence[Sequence[int]],
    tokens: Tensor,
    config: LitConfig,
    *,
    weights: Tensor,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Fit projection and text tower with a contrastive loss over sets of captions.

    In a batch, an image and a caption are a positive pair whenever the caption is one of the
    image's, not only where they were drawn together; targets are spread evenly over positives.
    ``images`` are (n, D) float32 class tokens after the final norm, ``captions`` for each image the
    rows of ``tokens`` (m, L) that describe it, ``weights`` (n,) how often it is drawn, relative.
    ``checkpoint`` is written as training goes and resumed from if it exists.

    Raises:
        ValueError: the checkpoint was made with another recipe.
    """
    torch.manual_seed(config.seed)
    optimiser = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.learning_rate)
    start = _resume(model, optimiser, config, checkpoint)
    spread = images.std(dim=0) * config.noise
    member = [torch.tensor(list(c)) for c in captions]
    for step in range(start, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 500_000)
        rows = torch.multinomial(weights, config.batch, replacement=True, generator=generator)
        generator.manual_seed(config.seed * 1_000_003 + step)
        noise = torch.randn(len(rows), images.shape[1], generator=generator) * spread
        own = [member[int(row)] for row in rows]
        texts = torch.stack([c[torch.randint(len(c), (), generator=generator)] for c in own])
        texts = texts.unique()
        positive = torch.stack([torch.isin(texts, choices) for choices in own]).float()
        image = F.normalize(model.project(images[rows] + noise), dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            text_features = model.text(tokens[texts])
        text_features = F.normalize(text_features.float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100.0) * image @ text_features.T
        loss = 0.5 * (_spread_loss(logits, positive) + _spread_loss(logits.T, positive.T))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_step(step, loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            facts = {"config": asdict(config), "step": step + 1}
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            partial = checkpoint.with_suffix(".partial")
            torch.save(facts | state, partial)
            partial.replace(checkpoint)


def _spread_loss(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive / positive.sum(dim=1, keepdim=True)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _schedule(step: int, config: LitConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Decay matrices only: no biases, norms, tables or the scale."""
    groups: dict[float, list[nn.Parameter]] = {decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        groups[decay if parameter.ndim >= 2 and "embedding" not in name else 0.0].append(parameter)
    return [{"params": params, "weight_decay": rate} for rate, params in groups.items()]


def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, config: LitConfig, path: Path) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state.get("config") != asdict(config):
        raise ValueError(
            f"checkpoint {str(path)!r} was made with another recipe, {state.get('config')}; remove it to start anew"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
