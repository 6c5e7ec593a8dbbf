"""Tune learned tokens on a few labelled images (arXiv 2409.14607, section 3.4)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.digests import blocks_fingerprint
from zoo.core.files import digest
from zoo.core.precision import precision_on
from zoo.core.prompts import CosineHead
from zoo.learning.fit_state import FitState
from zoo.learning.prompt_learner import PromptLearner, TuneConfig
from zoo.loading.clip import ClipParts
from zoo.towers.vit import ReducedViT

CHUNK = 32  # images at a time where nothing is learnt
Logits = Callable[[Tensor, Tensor], Tensor]  # from a classifier (classes, D) and images


class Labelled(NamedTuple):
    """Preprocessed images (n, C, H, W), or for ``t`` alone their unit features (n, D), and labels.

    Images may have any floating dtype; labels are (n,) int64.
    """

    images: Tensor
    labels: Tensor


def tune(
    vit: ReducedViT,
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
    """Learn tokens by cross-entropy; keep those of the round with the best validation loss, or of the last.

    Both towers and a reducer's own weights stay the same, bit for bit, and so does their
    ``requires_grad``. The same data, recipe, machine and number of threads give the same tokens,
    whether or not the run was stopped in between.

    ``vit`` is dense or reduced, its head the projection to the joint space; the image tower of
    ``parts`` isn't used. ``templates`` make the untuned text features, ``val`` serves early
    stopping only. ``on_round`` is called with round, training loss and validation loss (without validation, minus
    the round), ``on_step`` with the number of steps done, those of a run that it goes on from included;
    ``checkpoint`` is that of ``FitState.run``.

    Raises:
        ValueError: no images, a tower that is tuned already, a loss that is NaN, a checkpoint of
            another run, or what ``PromptLearner`` refuses.
    """
    if not len(train.labels) or not len(val.labels):
        raise ValueError("nothing to tune: no images to learn from, or none for early stopping")
    if isinstance(vit.head, CosineHead) or vit.prompts is not None:
        raise ValueError("this tower is tuned already; take the one that it was made of")
    like = next(vit.blocks.parameters())
    config = replace(config, dtype=precision_on(like.device, config.dtype))
    tower = type(vit).adopt(vit)
    tower.eval()
    patches = None
    if "v" in config.tokens:
        some = train.images[:CHUNK].to(like.device, like.dtype)
        patches = tower.mean_patches(some, config.depth)
    learner = PromptLearner(vit, parts, classes, templates, config, patches)
    tower.prompts = learner.visual
    tower.grad_checkpointing |= config.checkpointing
    scale = parts.model.logit_scale.detach().exp()

    def logits(classifier: Tensor, images: Tensor) -> Tensor:
        features = _features(tower, images, config)
        return scale.to(features.device) * features @ classifier.T

    with frozen(vit, parts.model.text):
        if config.tokens == "t":
            train, val = (Labelled(encode(tower, data.images, config), data.labels) for data in (train, val))
        state = FitState(
            mark=_mark(vit, classes, config, train, val),
            model=learner,
            optimiser=_optimiser(learner, config),
            generator=torch.Generator().manual_seed(config.seed),
        )
        state.run(
            lambda: _learn(state, logits, train, config, on_step),
            lambda: _validate(learner, logits, val) if config.patience else _latest(state),
            most=config.most_rounds,
            patience=config.patience or config.most_rounds,
            on_epoch=on_round,
            checkpoint=checkpoint,
        )
    return learner


@torch.no_grad()
def encode(tower: ReducedViT, images: Tensor, config: TuneConfig) -> Tensor:
    """Return unit features (n, D) float32 of images (n, C, H, W); features pass through."""
    if images.ndim == 2:
        return images
    return torch.cat([_features(tower, part, config) for part in images.split(CHUNK)])


def _features(tower: ReducedViT, images: Tensor, config: TuneConfig) -> Tensor:
    if images.ndim == 2:
        return images
    like = next(tower.blocks.parameters())
    bfloat16 = config.dtype == "bfloat16"
    with torch.autocast(like.device.type, torch.bfloat16, enabled=bfloat16):
        features = tower(images.to(like.device, like.dtype))
    return F.normalize(features.float(), dim=-1)


def _mark(vit: ReducedViT, classes: Sequence[str], config: TuneConfig, *images: Labelled) -> str:
    weights = blocks_fingerprint(vit.state_dict())
    recipe = [asdict(config), list(classes), weights, repr(vit.reducer)]
    parts = (part for data in images for part in (data.images.flatten(1).double().sum(dim=1), data.labels))
    return digest(recipe, *(part.cpu().numpy().tobytes() for part in parts), length=64)


def _optimiser(learner: PromptLearner, config: TuneConfig) -> torch.optim.Optimizer:
    if config.optimiser == "sgd":
        return torch.optim.SGD(learner.groups(), momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(learner.groups(), weight_decay=config.weight_decay)


def _latest(state: FitState) -> float:
    """Return what is less after each round, so that the last one counts as the best."""
    if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
        raise ValueError(f"a learned token is not finite after epoch {state.epoch}; lower learning_rate")
    return -float(state.epoch)


def _learn(
    state: FitState, logits: Logits, train: Labelled, config: TuneConfig, on_step: Callable[[int], None]
) -> float:
    """Take the steps of a round; return the mean loss."""
    learner, total = state.model, 0.0
    assert isinstance(learner, PromptLearner)
    steps = config.round_steps(len(train.labels))
    for step, rows in enumerate(_batches(state.generator, len(train.labels), config)):
        for group in state.optimiser.param_groups:
            group["lr"] = config.rate(group["most"], state.epoch, step, steps)
        images = train.images[rows]
        if config.augment and images.ndim == 4:
            images = augmented(images, state.generator)
        classifier = learner.classifier()
        scores = logits(classifier, images)
        loss = F.cross_entropy(scores, train.labels[rows].to(scores.device))
        if config.anchor:
            loss = loss + config.anchor * (1 - (classifier * learner.fixed).sum(dim=1)).mean()
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step()
        total += loss.item()
        on_step(state.epoch * steps + step + 1)
    return total / steps


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
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
    for _ in range(config.round_steps(size)):
        if len(order) < batch:
            order = torch.cat((order, torch.randperm(size, generator=generator)))
        yield order[:batch]
        order = order[batch:]


@torch.no_grad()
def _validate(learner: PromptLearner, logits: Logits, val: Labelled) -> float:
    total, classifier = 0.0, learner.classifier()
    for rows in torch.arange(len(val.labels)).split(CHUNK):
        scores = logits(classifier, val.images[rows])
        labels = val.labels[rows].to(scores.device)
        total += float(F.cross_entropy(scores, labels, reduction="sum"))
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
