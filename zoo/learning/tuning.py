"""Tune learned tokens on a few labelled images (arXiv 2409.14607, section 3.4)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from zoo.core.digests import blocks_fingerprint, digest
from zoo.core.host import Host
from zoo.core.learned import CosineHead, LearnedTokens, VisualPrompts
from zoo.core.recipes import TuneConfig
from zoo.core.settings import precision_on
from zoo.learning.fit import FitState
from zoo.loading.adopt import require_promptable
from zoo.loading.clip import ClipParts, CompactText, OpenClipText, Tokenize, class_features
from zoo.loading.learned_files import PromptFile, save_prompts

CHUNK = 32  # images at a time where nothing is learnt
NOISE = 0.05  # of the first visual tokens, as a share of the mean patch's size
Logits = Callable[[Tensor, Tensor], Tensor]  # from a classifier (classes, D) and images


class TextParts(NamedTuple):
    """The parts of a causal text tower that embeddings go through."""

    embed: Callable[[Tensor], Tensor]  # from token ids (B, L) to embeddings (B, L, D)
    tower: Any  # position table, blocks, final norm and projection, named as in open_clip


def text_parts(text: nn.Module) -> TextParts:
    """Take a text tower apart; refuse all but open_clip's causal transformer."""
    if isinstance(text, CompactText):
        table = text.tower.token_embedding
        return TextParts(lambda ids: table(text.rows(ids)), text.tower)
    inner: Any = text.model if isinstance(text, OpenClipText) else text
    inner = inner if isinstance(inner, CLIP) else getattr(inner, "text", inner)
    pool = getattr(inner, "text_pool_type", getattr(inner, "pool_type", None))
    plain = isinstance(inner, (CLIP, TextTransformer)) and inner.attn_mask is not None
    if not plain or pool != "argmax" or getattr(inner, "cls_emb", None) is not None:
        raise ValueError(
            f"text tower {type(inner).__name__}: learned context needs open_clip's causal "
            "TextTransformer whose feature is the end token's; tune visual tokens only (v)"
        )
    return TextParts(inner.token_embedding, inner)


class PromptedText(nn.Module):
    """Map class names behind learned tokens, as in "[context] ankle boot.", to features.

    The context (1 or classes, count, D) takes positions 1 to its length, the name those behind it. Where a sequence
    would be longer than the tower's position table, the last context tokens share the last position that the longest
    name leaves: the blocks take any length, and a learned token can learn what its own position would add.

    Raises:
        ValueError: a tower or tokenizer that can't be prompted, or a name with unknown words or too long.
    """

    words: Tensor
    positions: Tensor
    ends: Tensor

    def __init__(
        self,
        text: nn.Module,
        tokenize: Tokenize,
        classes: Sequence[str],
        config: TuneConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.parts = text_parts(text)
        if not isinstance(tokenize, SimpleTokenizer):
            raise ValueError(f"tokenizer {type(tokenize).__name__}: expected open_clip's SimpleTokenizer")
        tower, count = self.parts.tower, config.count
        table = tower.positional_embedding
        rows, device = len(classes) if config.class_specific else 1, table.device
        context = 0.02 * torch.randn(rows, count, table.shape[1], generator=generator)
        with torch.no_grad():
            words, ends = self._embed(tokenize, [f"{name}." for name in classes], device)
        self.context = nn.Parameter(context.to(device))
        length = words.shape[1]
        room = len(table) - length
        last = min(count, max(room, 1))
        places = [0, *(min(i, last) for i in range(1, count + 1))]
        places += [min(last, room) + i for i in range(1, length)]
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("ends", ends + count, persistent=False)
        self.register_buffer("positions", torch.tensor(places, device=device), persistent=False)

    def _embed(self, tokenize: SimpleTokenizer, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, L, D) up to the longest text's end, and the place of each end."""
        length = len(self.parts.tower.positional_embedding)
        if long := [text for text in texts if len(tokenize.encode(text)) + 2 > length]:
            raise ValueError(f"{long[0]!r} is longer than the text tower's {length} tokens")
        ids = tokenize(texts).to(device)
        ends = ids.argmax(dim=1)
        return self.parts.embed(ids[:, : int(ends.max()) + 1]).float(), ends

    def forward(self) -> Tensor:
        """Return the classes' features, (classes, D) of unit length."""
        tower, context = self.parts.tower, self.context
        size = len(self.words)
        x = torch.cat((self.words[:, :1], context.expand(size, -1, -1), self.words[:, 1:]), dim=1)
        x = x + tower.positional_embedding[self.positions]
        mask = x.new_full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        stacked = tower.transformer.batch_first
        for block in tower.transformer.resblocks:
            y = x if stacked else x.transpose(0, 1)
            y = block(y, attn_mask=mask)
            x = y if stacked else y.transpose(0, 1)
        x = tower.ln_final(x[torch.arange(size, device=x.device), self.ends])
        if (projection := tower.text_projection) is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return F.normalize(x.float(), dim=-1)


class CoupledPrompts(LearnedTokens):
    """Visual tokens as a linear map of the text's learned tokens, P_v = M P_t + p.

    The paper has no fixed p, here ``begin`` (D), and doesn't say how M begins: as zero, or drawn from ``start``.
    """

    begin: Tensor

    def __init__(self, context: nn.Parameter, begin: Tensor, start: torch.Generator | None = None) -> None:
        super().__init__()
        self.context, self.count = context, context.shape[1]
        self.register_buffer("begin", begin, persistent=False)
        self.projection = nn.Linear(context.shape[2], len(begin), bias=False)
        if start is None:
            nn.init.zeros_(self.projection.weight)
        else:
            bound = context.shape[2] ** -0.5
            nn.init.uniform_(self.projection.weight, -bound, bound, generator=start)

    def forward(self) -> Tensor:
        """Return the tokens, (count, D)."""
        return self.projection(self.context[0]) + self.begin


class PromptLearner(nn.Module):
    """All learned parameters; everything else is frozen and not part of its state.

    Visual tokens begin as the mean ``patch`` of ``TimmHost.mean_patch``: small random ones, which
    normalisation makes large, would change a pretrained tower's features beyond repair by a few images.
    """

    fixed: Tensor  # (classes, D) unit text features of the templates

    def __init__(
        self,
        vit: Host,
        parts: ClipParts,
        classes: Sequence[str],
        templates: Sequence[str],
        config: TuneConfig,
        patch: Tensor | None,
    ) -> None:
        super().__init__()
        self.classes, self.config = tuple(classes), config
        generator = torch.Generator().manual_seed(config.seed)
        device = next(vit.parameters()).device
        self.text: PromptedText | None = None  # where the text is tuned
        self.visual: LearnedTokens | None = None
        if "t" in config.tokens:
            self.text = PromptedText(parts.model.text, parts.tokenizer, classes, config, generator)
        fixed = class_features(parts.model, parts.tokenizer, classes, templates)
        self.register_buffer("fixed", fixed.clone().to(device), persistent=False)
        if patch is not None and self.text is not None and config.coupling != "none":
            printed = config.coupling == "printed"
            begin, start = (torch.zeros_like(patch), generator) if printed else (patch, None)
            self.visual = CoupledPrompts(self.text.context, begin, start).to(device)
        elif patch is not None:
            noise = torch.randn(config.count, len(patch), generator=generator).to(device)
            first = patch + NOISE * patch.square().mean().sqrt() * noise
            self.visual = tokens = VisualPrompts(*first.shape, device=device, dtype=torch.float32)
            tokens.tokens.data.copy_(first)

    def classifier(self) -> Tensor:
        """Return the classes' text features, (classes, D) of unit length."""
        return self.fixed if self.text is None else self.text()

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameters for an optimiser, visual ones with a rate of their own."""
        text = [] if self.text is None else list(self.text.parameters())
        visual = [parameter for name, parameter in self.named_parameters() if not name.startswith("text.")]
        pairs = ((text, self.config.learning_rate), (visual, self.config.visual_rate))
        return [{"params": group, "lr": rate, "most": rate} for group, rate in pairs if group]

    @torch.no_grad()
    def tensors(self, logit_scale: float) -> dict[str, Tensor]:
        """Return what ``save_prompts`` writes; ``logit_scale`` is the log of the factor."""
        tensors = {"classifier": self.classifier(), "logit_scale": torch.tensor(logit_scale)}
        if self.text is not None:
            tensors["context"] = self.text.context
        if self.visual is not None:
            tensors["visual"] = self.visual()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def save(
        self,
        path: Path,
        vit: Host,
        scale: float,
        provenance: dict[str, Any],
        *,
        model: str,
        tag: str,
        dataset: str,
    ) -> PromptFile:
        """Write what was learned for a tower, with fields of ``PromptFile``; ``scale`` is the log of the factor."""
        return save_prompts(
            path,
            self.tensors(scale),
            weights=blocks_fingerprint(vit.state_dict()),
            width=vit.embed_dim,
            classes=self.classes,
            recipe=asdict(self.config),
            provenance={"parameters": sum(each.numel() for each in self.parameters()), **provenance},
            model=model,
            tag=tag,
            dataset=dataset,
        )


class Labelled(NamedTuple):
    """Preprocessed images of any floating dtype, or for ``t`` alone their unit features (n, D), and labels."""

    images: Tensor  # (n, C, H, W)
    labels: Tensor  # (n,) int64


def tune(
    vit: Host,
    parts: ClipParts,
    classes: Sequence[str],
    templates: Sequence[str],
    train: Labelled,
    val: Labelled,
    config: TuneConfig,
    *,
    on_round: Callable[[int, float, float], None] = lambda *_: None,
    on_step: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> PromptLearner:
    """Learn tokens by cross-entropy; keep those of the round with the best validation loss.

    Both towers and a reducer's own weights stay the same, bit for bit. The same data, recipe, machine and number of
    threads give the same tokens on a CPU, whether or not the run was stopped in between. ``vit`` is dense or reduced,
    its head the projection to the joint space; the image tower of ``parts`` isn't used. ``templates`` make the untuned
    text features, ``val`` serves early stopping only. ``on_round`` is called with round, training loss and validation
    loss, ``on_step`` with the number of steps done; ``checkpoint`` is that of ``FitState.run``.

    Raises:
        ValueError: no images, a tower or text tower that can't be tuned, a loss that is NaN, or a checkpoint of
            another run.
    """
    if not len(train.labels) or not len(val.labels):
        raise ValueError("nothing to tune: no images to learn from, or none for early stopping")
    tower = require_promptable(vit)
    if isinstance(tower.head, CosineHead) or tower.prompts is not None:
        raise ValueError("this tower is tuned already; take the one that it was made of")
    like = next(vit.block_modules.parameters())
    config = replace(config, precision=precision_on(like.device, config.precision))
    tower = type(tower).adopt(tower).eval()
    first = train.images[:CHUNK].to(like.device, like.dtype)
    patch = tower.mean_patch(first) if "v" in config.tokens else None
    learner = PromptLearner(vit, parts, classes, templates, config, patch)
    tower.prompts = learner.visual
    scale = parts.model.logit_scale.detach().exp().to(like.device)

    def logits(classifier: Tensor, images: Tensor) -> Tensor:
        return scale * _features(tower, images, config) @ classifier.T

    with frozen(vit, parts.model.text):
        if config.tokens == "t":
            train, val = (Labelled(encode(tower, data.images, config), data.labels) for data in (train, val))
        state = FitState(
            mark=_mark(vit, classes, config, train, val),
            model=learner,
            optimiser=torch.optim.AdamW(learner.groups(), weight_decay=0.0),
            generator=torch.Generator().manual_seed(config.seed),
        )
        state.run(
            lambda: _learn(state, learner, logits, train, on_step),
            lambda: _validate(learner, logits, val),
            most=config.rounds,
            patience=config.patience,
            on_epoch=on_round,
            checkpoint=checkpoint,
        )
    return learner


@torch.no_grad()
def encode(tower: Host, images: Tensor, config: TuneConfig) -> Tensor:
    """Return unit features (n, D) float32 of images (n, C, H, W); features pass through."""
    return torch.cat([_features(tower, part, config) for part in images.split(CHUNK)])


def _features(tower: Host, images: Tensor, config: TuneConfig) -> Tensor:
    if images.ndim == 2:
        return images
    like = next(tower.block_modules.parameters())
    with torch.autocast(like.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        features = tower(images.to(like.device, like.dtype))
    return F.normalize(features.float(), dim=-1)


def _mark(vit: Host, classes: Sequence[str], config: TuneConfig, *images: Labelled) -> str:
    recipe = [asdict(config), list(classes), blocks_fingerprint(vit.state_dict()), repr(vit.reducer)]
    parts = (part for data in images for part in (data.images.flatten(1).double().sum(dim=1), data.labels))
    return digest(recipe, *(part.cpu().numpy().tobytes() for part in parts), length=64)


def _learn(
    state: FitState, learner: PromptLearner, logits: Logits, train: Labelled, on_step: Callable[[int], None]
) -> float:
    config, total = learner.config, 0.0
    for step, rows in enumerate(_batches(state.generator, len(train.labels), config)):
        images = train.images[rows]
        if config.augment and images.ndim == 4:
            images = augment(images, state.generator)
        classifier = learner.classifier()
        scores = logits(classifier, images)
        loss = F.cross_entropy(scores, train.labels[rows].to(scores.device))
        if config.anchor:
            loss = loss + config.anchor * (1 - (classifier * learner.fixed).sum(dim=1)).mean()
        done = state.epoch * config.steps + step
        total += state.descend(loss, [config.rate(group["most"], done) for group in state.optimiser.param_groups])
        on_step(done + 1)
    return total / config.steps


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror images (B, C, H, W) at random, and shift each by up to a sixteenth of its sides."""
    height, width = images.shape[-2:]
    edge = (height // 16, width // 16)
    padded = F.pad(images.float(), (edge[1], edge[1], edge[0], edge[0]), mode="replicate")
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    parts = []
    for image, mirror in zip(padded, mirrored, strict=True):
        top, left = (int(torch.randint(2 * e + 1, (), generator=generator)) for e in edge)
        part = image[:, top : top + height, left : left + width]
        parts.append(part.flip(-1) if mirror else part)
    return torch.stack(parts).to(images.dtype)


def _batches(generator: torch.Generator, size: int, config: TuneConfig) -> Iterator[Tensor]:
    """Yield the rows of each step of a round, going through the images again and again."""
    order = torch.empty(0, dtype=torch.int64)
    batch = min(config.batch, size)
    for _ in range(config.steps):
        if len(order) < batch:
            order = torch.cat((order, torch.randperm(size, generator=generator)))
        yield order[:batch]
        order = order[batch:]


@torch.no_grad()
def _validate(learner: PromptLearner, logits: Logits, val: Labelled) -> float:
    total, classifier = 0.0, learner.classifier()
    for rows in torch.arange(len(val.labels)).split(CHUNK):
        scores = logits(classifier, val.images[rows])
        total += float(F.cross_entropy(scores, val.labels[rows].to(scores.device), reduction="sum"))
    return total / len(val.labels)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Let no gradient reach the parameters of modules for a while."""
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
