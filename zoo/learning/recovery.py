"""Recover without labels what a reduction loses: the training of small changes of a tower.

The teacher is the dense tower, the loss a distance of projected features on the same view of an
image. The changes are added to the tower's weights, so that inference costs nothing more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from zoo.core.digests import digest, weights_digest
from zoo.core.host import Host, give_features, share_weights
from zoo.core.learned import CosineHead
from zoo.core.recipes import RecoveryConfig
from zoo.core.settings import precision_on
from zoo.learning.fit import FitState
from zoo.loading.adopt import (
    DOWN,
    HEAD,
    UP,
    add_changes,
    additions,
    copy_tower,
    last_map,
    reduction_marks,
    trainable,
    with_head,
)
from zoo.loading.learned_files import RECOVERY_FORMAT, RecoveryFile, write_learned

CHUNK = 16  # images at a time where nothing is learnt
STRENGTHS = tuple(10 ** (power / 2) for power in range(-6, 7))  # of the ridge, times the mean square of an input
_NOTHING = 1e-9  # mean distance of features that are equal up to rounding
_FLAT = 1e-4  # added to a share under the root, whose slope would be infinite at 0
_WARM = 0.1  # share of the steps in which the learning rate rises


class Images(Protocol):
    """Preprocessed images (n, C, H, W): a tensor, or what reads some, ``rows`` (k,) int64, when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class Recovered(NamedTuple):
    """What training gave; no tensors where no change was better than none on every set."""

    tensors: dict[str, Tensor]
    before: tuple[float, ...]  # 1 - cosine to dense on the held-out images, mean of each set
    after: tuple[float, ...]  # the same with the changes; none is higher


class WeightChanges(nn.Module):
    """Changes of a tower's weights that an optimiser learns, which begin as none, named as `additions` takes them.

    The optimiser moves ``values``. Their mean over the steps of a round, ``means``, is nearer to the goal than where
    the noise of small batches has left them: these are validated and kept.
    """

    def __init__(self, vit: Host, config: RecoveryConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        weights, tensors = dict(vit.named_parameters()), dict[str, Tensor]()
        what = config.what.removeprefix("head+")
        for name, parameter in trainable(vit, what).items():
            like = weights[parameter]
            if what == "lora":
                down = torch.randn(config.rank, like.shape[1], generator=generator) / math.sqrt(like.shape[1])
                tensors[name + UP] = torch.zeros(like.shape[0], config.rank, device=like.device)
                tensors[name + DOWN] = down.to(like.device)
            else:
                tensors[name] = torch.zeros_like(like, dtype=torch.float32)
        self.names = tuple(tensors)
        self.values = nn.ParameterList(tensor.clone() for tensor in tensors.values())
        self.means = nn.ParameterList(tensor.clone().requires_grad_(False) for tensor in tensors.values())

    def moving(self) -> dict[str, Tensor]:
        """Return what the optimiser moves, by name."""
        return dict(zip(self.names, self.values, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Return the means by name."""
        return dict(zip(self.names, self.means, strict=True))

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the values of a round's step, counted from 0, into the means."""
        for mean, value in zip(self.means, self.values, strict=True):
            mean.lerp_(value, 1 / (step + 1))


def recover(
    model: Host,
    train: Sequence[Images],
    val: Sequence[Images],
    config: RecoveryConfig,
    *,
    on_round: Callable[[int, float, float], None] = lambda *_: None,
    on_step: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Recovered:
    """Learn changes of a reduced tower that bring its features nearer to the dense tower's; the model stays as it is.

    ``train`` and ``val`` are the same sets of images, in the same order; a set counts by how much of its own loss is
    left. The best round has the least geometric mean of these shares on the held-out images; a round in which one of
    them is above 1 doesn't count. The same data, recipe, machine and number of threads give the same tensors on a CPU,
    whether or not training was stopped in between. ``on_round`` is called with round, training loss and that mean,
    ``on_step`` with the steps done; ``checkpoint`` is that of ``FitState.run``.

    Raises:
        ValueError: a model that can't be recovered, no images, a loss that is NaN, or a checkpoint of another run.
    """
    if not isinstance(model, Host):
        raise ValueError(f"{type(model).__name__} is no reduced tower: expected what zoo.reduce makes of one")
    if model.reducer is None:
        raise ValueError("this model is dense: there is nothing to recover; reduce it first")
    if isinstance(getattr(model, "head", None), CosineHead) or model.prompts is not None:
        raise ValueError("this tower has learned tokens already; take the one that it was made of")
    if not train or len(train) != len(val) or not all(map(len, (*train, *val))):
        raise ValueError("nothing to train on: a set has no images to learn from, or none held out")
    config = with_precision(config, model)
    teacher, student = copy_tower(model).eval(), with_head(model, config.what)
    student = copy_tower(student, [trainable(student, "head")[HEAD]] if config.what.startswith("head") else []).eval()
    teacher.reducer = None
    trainer = _Trainer(teacher, student, train, val, config)
    before = start = trainer.begin()
    head: dict[str, Tensor] = {}
    if config.what.startswith("head") and max(before) > _NOTHING:
        head = trainer.fit_head()
        add_changes(student, {trainer.names[name]: value for name, value in head.items()})
        start = trainer.begin()
    if config.what == "head":
        return Recovered(head, before, start)
    changes = WeightChanges(student, config)
    state = FitState(
        mark=_mark(model, config, *train, *val),
        model=changes,
        optimiser=torch.optim.AdamW(changes.values, weight_decay=0.0, betas=(0.9, 0.98)),
        generator=torch.Generator().manual_seed(config.seed),
        best=1.0,  # no change
        best_weights={name: value.clone() for name, value in changes.state_dict().items()},
    )
    state.run(
        lambda: trainer.learn(state, changes, on_step),
        lambda: trainer.validate(changes),
        most=0 if max(start) <= _NOTHING else config.rounds,
        patience=config.patience,
        on_epoch=on_round,
        checkpoint=checkpoint,
    )
    if state.best == 1.0:
        return Recovered(head, before, start)
    tensors = {name: value.detach().cpu().clone() for name, value in changes.tensors().items()}
    return Recovered(head | tensors, before, trainer.held_out(additions(changes.tensors())))


def with_precision(config: RecoveryConfig, model: Host) -> RecoveryConfig:
    """Return the recipe with a precision by name for ``auto``."""
    device = next(model.block_modules[0].parameters()).device
    return replace(config, precision=precision_on(device, config.precision))


def save_recovery(
    path: Path,
    model: Host,
    recovered: Recovered,
    config: RecoveryConfig,
    *,
    name: str,
    tag: str,
    datasets: Sequence[Mapping[str, Any]],
    commit: str | None = None,
) -> RecoveryFile:
    """Write a recovery whole or not at all.

    ``model`` is the reduced tower that it was trained on, of dense name ``name``; ``datasets`` are facts about its sets
    of images, ``name`` first of all.
    """
    losses, patches = zip(recovered.before, recovered.after, strict=True), math.prod(model.grid)
    fields: dict[str, Any] = {
        "format": RECOVERY_FORMAT,
        "model": name,
        "tag": tag,
        **reduction_marks(with_head(model, config.what), config.what, patches),
        "patches": patches,
        "datasets": [{**each, "before": a, "after": b} for each, (a, b) in zip(datasets, losses, strict=True)],
        "recipe": asdict(with_precision(config, model)),
        "parameters": sum(value.numel() for value in recovered.tensors.values()),
        "commit": commit,
    }
    write_learned(path, "recovery", recovered.tensors, fields)
    return RecoveryFile(path=path, **fields)


class _Trainer:
    """A student with its teacher, on the same sets of images."""

    def __init__(
        self, teacher: Host, student: Host, train: Sequence[Images], val: Sequence[Images], config: RecoveryConfig
    ) -> None:
        self.teacher, self.student, self.train, self.val, self.config = teacher, student, train, val, config
        self.weights = {name: value.detach() for name, value in student.named_parameters()}
        self.names = trainable(student, config.what)
        self.start: list[float] = []  # held-out loss of each set of the student as it is
        like = next(teacher.block_modules[0].parameters())
        self.device, self.dtype = like.device, like.dtype
        self.truth = [self._features(teacher, images) for images in val]

    def begin(self) -> tuple[float, ...]:
        """Take the student as it is for the start; return its held-out loss of each set."""
        losses = self.held_out({})
        self.start = [max(loss, _NOTHING) for loss in losses]
        return losses

    @torch.no_grad()
    def fit_head(self) -> dict[str, Tensor]:
        """Solve for what to add to the last linear map; nothing where no strength is better for every set.

        It is a ridge regression, on what enters the map, of what dense features have more. Rows are scaled so that
        squared errors are those of unit features, as shares of their set's loss.
        """
        layer = last_map(self.student)
        turned, bias = isinstance(layer, nn.Linear), getattr(layer, "bias", None)
        weight = (layer.weight.T if isinstance(layer, nn.Linear) else layer).double().cpu()  # (in, out)
        shift = 0.0 if bias is None else bias.double().cpu()
        inputs, missing = [], []
        for images, start in zip(self.train, self.start, strict=True):
            pooled, dense = (self._pooled(vit, images) for vit in (self.student, self.teacher))
            scale = (len(images) * start) ** -0.5 / (dense @ weight + shift).norm(dim=1, keepdim=True)
            inputs.append(pooled * scale)
            missing.append((dense - pooled) @ weight * scale)
        x, y = torch.cat(inputs), torch.cat(missing)
        gram, cross, pooled_val = x.T @ x, x.T @ y, [self._pooled(self.student, images) for images in self.val]
        best, change = 1.0, None
        for strength in STRENGTHS:
            ridge = strength * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
            tried = torch.linalg.solve(gram + ridge, cross)
            pairs = zip(pooled_val, self.truth, strict=True)
            losses = [float(distance(each @ (weight + tried) + shift, truth.cpu()).mean()) for each, truth in pairs]
            if (share := self._share(losses)) < best:
                best, change = share, tried
        return {} if change is None else {HEAD: (change.T if turned else change).float().contiguous()}

    def _pooled(self, vit: Host, images: Images) -> Tensor:
        """Return what enters the last linear map, (n, in) float64."""
        name, other = vit.projection or "", share_weights(vit, type(vit))
        setattr(other, name, nn.Identity() if isinstance(getattr(vit, name), nn.Module) else None)
        return self._features(other, images).double().cpu()

    def learn(self, state: FitState, changes: WeightChanges, on_step: Callable[[int], None]) -> float:
        """Take the steps of a round; return the mean loss."""
        config, total = self.config, 0.0
        for step in range(config.steps):
            done = (state.epoch * config.steps + step) / (config.rounds * config.steps)
            rate = config.learning_rate * min(1, (done + 1 / (config.rounds * config.steps)) / _WARM)
            images, scale = self._batch(state.generator)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                with torch.no_grad():
                    truth = self.teacher.features(images)
                features = self._change(additions(changes.moving()), images)
            loss = (distance(features, truth) / scale + _FLAT).sqrt().mean()
            total += state.descend(loss, [rate * 0.5 * (1 + math.cos(math.pi * done))])
            changes.average(step)
            on_step(state.epoch * config.steps + step + 1)
        return total / config.steps

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return views of images of all sets alike, and the loss that each image's set began with."""
        each = max(1, self.config.batch // len(self.train))
        rows = [torch.randint(len(images), (each,), generator=generator) for images in self.train]
        parts = [images[some].float() for images, some in zip(self.train, rows, strict=True)]
        images = torch.cat([view(part, self.config.crop, generator) for part in parts])
        scale = torch.tensor(self.start).repeat_interleave(each)
        return images.to(self.device, self.dtype), scale.to(self.device)

    def _change(self, added: Mapping[str, Tensor], images: Tensor) -> Tensor:
        changes = {self.names[name]: value for name, value in added.items()}
        changed = self.weights | {name: self.weights[name] + value for name, value in changes.items()}
        return functional_call(give_features(self.student), changed, (images,))

    @torch.no_grad()
    def _features(self, vit: Host, images: Images, added: Mapping[str, Tensor] | None = None) -> Tensor:
        every = (images[rows].to(self.device, self.dtype) for rows in _chunks(images))
        return torch.cat([self._change(added, some) if added else vit.features(some) for some in every])

    def held_out(self, added: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return the mean distance to dense on the held-out images of each set."""
        pairs = zip(self.val, self.truth, strict=True)
        return tuple(float(distance(self._features(self.student, some, added), truth).mean()) for some, truth in pairs)

    def validate(self, changes: WeightChanges) -> float:
        """Return the geometric mean of the shares of loss that are left; infinite where one is above 1."""
        return self._share(self.held_out(additions(changes.tensors())))

    def _share(self, losses: Sequence[float]) -> float:
        shares = [loss / start for loss, start in zip(losses, self.start, strict=True)]
        return math.inf if max(shares) > 1 else math.exp(sum(math.log(s + _NOTHING) for s in shares) / len(shares))


def _chunks(images: Images) -> Sequence[Tensor]:
    return torch.arange(len(images)).split(CHUNK)


def distance(features: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - cosine of each image's features (n, D) to the teacher's, (n,) float32."""
    unit, true = (F.normalize(each.float(), dim=-1) for each in (features, truth))
    return (unit - true).square().sum(dim=-1) / 2


def view(images: Tensor, crop: float, generator: torch.Generator) -> Tensor:
    """Return a part of each image (B, C, H, W), at least the share ``crop`` of its area, resized, some mirrored."""
    height, width = images.shape[-2:]
    parts = []
    for image in images:
        share, top, left, mirror = torch.rand(4, generator=generator).tolist()
        side = math.sqrt(1 - (1 - crop) * share)
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        part = image[None, :, y : y + rows, x : x + columns]
        if part.shape[-2:] != image.shape[-2:]:
            part = F.interpolate(part, (height, width), mode="bicubic", align_corners=False)
        parts.append(part.flip(-1) if mirror < 0.5 else part)
    return torch.cat(parts)


def _mark(model: Host, config: RecoveryConfig, *sets: Images) -> str:
    recipe = [
        RECOVERY_FORMAT,
        asdict(config),
        weights_digest(model.state_dict()),
        repr(model.reducer),
        torch.__version__,
    ]
    every = (images[rows] for images in sets for rows in _chunks(images))
    sums = (each.flatten(1).double().sum(dim=1).cpu().numpy().tobytes() for each in every)
    return digest(recipe, *sums, length=64)
