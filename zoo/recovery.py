"""Recover without labels what a reduction loses: small changes of a tower, their training, their files.

The teacher is the dense tower, the loss a distance of projected features on the same view of an
image. The changes are added to the tower's weights, so that inference costs nothing more.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from zoo.files import FitState, load_learned, read_learned, write_learned
from zoo.host import FeatureTower, Host
from zoo.predictor import tower_name
from zoo.prompts import CosineHead, PromptShape, near
from zoo.reducer import Reducer, expected
from zoo.suffix import AUTO, precision_on
from zoo.vit import TimmHost
from zoo.weights import blocks_fingerprint, weights_digest

WHATS = ("norm", "lora", "tokens")
DTYPES = (AUTO, "float32", "bfloat16")
FORMAT = 2  # of a file
TOKENS = "prompts.tokens"  # name of learned visual tokens among a tower's weights
CHUNK = 16  # images at a time where nothing is learnt
_KIND = "recovery"
_UP, _DOWN = ".up", ".down"  # of a low-rank update, behind the weight's name
_NOTHING = 1e-9  # mean distance of features that are equal up to rounding
_FLAT = 1e-4  # added to a share under the root, whose slope would be infinite at 0
_WARM = 0.1  # share of the steps in which the learning rate rises


T = TypeVar("T", bound=Host)


class Images(Protocol):
    """Preprocessed images (n, C, H, W): a tensor, or what reads some when asked."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the images ``rows`` (k,) int64, in this order."""


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """What is trained, and how.

    Attributes:
        what: ``norm``: vectors, that is norms, LayerScales and the biases of linear layers; ``lora``: low-rank
            updates of linear layers' weights; ``tokens``: learned visual tokens.
        rank: of the updates of ``lora``.
        count: learned tokens of ``tokens``.
        rounds: validations at most.
        steps: optimiser steps per round.
        patience: rounds without a better validation loss before stopping.
        batch: images per step, of all sets alike.
        learning_rate: of AdamW; it rises for a tenth of the steps, then falls as a cosine to zero.
        crop: least area of a random crop, a share of the image; 1 takes images as they are, mirrored.
        seed: of initial values, order and augmentation.
        dtype: of training's products, ``auto`` for the fastest of the device; all else, validation too, is float32.
    """

    what: str = "norm"
    rank: int = 4
    count: int = 4
    rounds: int = 8
    steps: int = 40
    patience: int = 4
    batch: int = 24
    learning_rate: float = 5e-4
    crop: float = 0.6
    seed: int = 0
    dtype: str = AUTO

    def __post_init__(self) -> None:
        """Validate."""
        for name, known in (("what", WHATS), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: {expected(value, known)}")
        for name in ("rank", "count", "rounds", "steps", "patience", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number from 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r}: expected a number above 0")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop!r}: expected a number in (0, 1]")


class Changes(nn.Module):
    """Learned changes of weights, which begin as none; see `additions` for the names of ``tensors``.

    Attributes:
        values: what the optimiser moves.
        means: their mean over the steps of a round, which is nearer to the goal than where the noise of
            small batches has left them; these are validated and kept.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        self.values = nn.ParameterList(tensor.clone() for tensor in tensors.values())
        self.means = nn.ParameterList(tensor.clone().requires_grad_(False) for tensor in tensors.values())

    @classmethod
    def of(cls, vit: Host, config: RecoveryConfig) -> "Changes":
        """Begin those of a tower; all but learned tokens leave its weights as they are."""
        generator = torch.Generator().manual_seed(config.seed)
        weights, tensors = dict(vit.named_parameters()), {}
        for name, own in trainable(vit, config.what).items():
            like = weights[own]
            if config.what == "lora":
                down = torch.randn(config.rank, like.shape[1], generator=generator) / math.sqrt(like.shape[1])
                tensors[name + _UP] = torch.zeros(like.shape[0], config.rank, device=like.device)
                tensors[name + _DOWN] = down.to(like.device)
            else:
                tensors[name] = torch.zeros_like(like, dtype=torch.float32)
        return cls(tensors)

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


def trainable(vit: Host, what: str) -> dict[str, str]:
    """Return the weights that a recovery of this kind changes: of the blocks, and of norms beside them.

    Keys are their names in files, which don't depend on what holds the tower; values are the tower's own names.
    """
    if what == "tokens":
        return {TOKENS: TOKENS}
    prefix = vit.blocks_prefix
    around = (
        "",
        *(prefix[: at + 1] for at, letter in enumerate(prefix[:-1]) if letter == "."),
    )  # what holds the blocks
    norms = [
        name
        for name, module in vit.named_modules()
        if "Norm" in type(module).__name__ and name[: name.rfind(".") + 1] in around
    ]
    linear = {id(module.weight) for module in vit.modules() if isinstance(module, nn.Linear)}
    linear |= {id(module.in_proj_weight) for module in vit.modules() if isinstance(module, nn.MultiheadAttention)}
    names = {}
    for name, value in vit.named_parameters():
        norm = next((norm for norm in norms if name.startswith(f"{norm}.")), None)
        if (norm is None and not name.startswith(prefix)) or (
            id(value) not in linear if what == "lora" else value.ndim != 1
        ):
            continue
        own = f"blocks.{name.removeprefix(prefix)}" if norm is None else name[norm.rfind(".") + 1 :]
        names[own] = name
    return names


def additions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is added to each weight, by its name.

    ``tensors`` are that by themselves, or under a weight's name with ``.up`` and ``.down`` the two
    factors (out, rank) and (rank, in) of it.
    """
    added = {}
    for name, value in tensors.items():
        if name.endswith(_UP):
            weight = name.removesuffix(_UP)
            added[weight] = value @ tensors[weight + _DOWN]
        elif not name.endswith(_DOWN):
            added[name] = value
    return added


class Recovered(NamedTuple):
    """What training gave; no tensors where no change was better than none on every set."""

    tensors: dict[str, Tensor]
    before: tuple[float, ...]  # 1 - cosine to dense on the held-out images, mean of each set
    after: tuple[float, ...]  # the same with the changes; none is higher


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
    """Learn changes of a reduced tower that bring its features nearer to the dense tower's.

    The model stays as it is. ``train`` and ``val`` are the same sets of images, in the same order;
    a set counts by how much of its own loss is left, so that one that is near dense already isn't
    given up for another. The best round has the least geometric mean of these shares on the
    held-out images; a round in which one of them is above 1 doesn't count. The same data, recipe,
    machine and number of threads give the same tensors, whether or not training was stopped in
    between. ``on_round`` is called with round, training loss and that mean, ``on_step`` with the
    steps done; ``checkpoint`` is that of ``FitState.run``.

    Raises:
        ValueError: no tower, or one without reduction or tuned already, learned tokens for a tower of another library
            than timm, no images, a loss that is NaN, or a checkpoint of another run.
    """
    if not isinstance(model, Host):
        raise ValueError(f"{type(model).__name__} is no reduced tower: expected what zoo.reduce makes of one")
    model = _bare(model)
    if model.reducer is None:
        raise ValueError("this model is dense: there is nothing to recover; reduce it first")
    if config.what == "tokens" and not isinstance(model, TimmHost):
        raise ValueError(f"what='tokens': {type(model).__name__} takes no learned tokens; expected 'norm' or 'lora'")
    if isinstance(getattr(model, "head", None), CosineHead) or model.prompts is not None:
        raise ValueError("this tower has learned tokens already; take the one that it was made of")
    if not train or len(train) != len(val) or not all(map(len, (*train, *val))):
        raise ValueError("nothing to train on: a set has no images to learn from, or none held out")
    config = _settled(config, model)
    teacher, plain, student = (twin(model).eval() for _ in range(3))
    teacher.reducer = None
    if isinstance(student, TimmHost) and config.what == "tokens":
        _expect(student, config.count)
    trainer = _Trainer(teacher, student, train, val, config)
    changes = Changes.of(student, config)
    if config.what == "tokens":
        for tokens in (changes.values[0], changes.means[0]):
            tokens.data.copy_(_first_tokens(teacher, train, config))
    state = FitState(
        mark=_mark(model, config, *train, *val),
        model=changes,
        optimiser=torch.optim.AdamW(changes.values, weight_decay=0.0, betas=(0.9, 0.98)),
        generator=torch.Generator().manual_seed(config.seed),
        best=1.0,  # no change
        best_weights={name: value.clone() for name, value in changes.state_dict().items()},
    )
    before = trainer.held_out(plain, {})
    trainer.start = [max(loss, _NOTHING) for loss in before]
    state.run(
        lambda: trainer.learn(state, on_step),
        lambda: trainer.validate(changes),
        most=0 if max(before) <= _NOTHING else config.rounds,
        patience=config.patience,
        on_epoch=on_round,
        checkpoint=checkpoint,
    )
    if state.best == 1.0:
        return Recovered({}, before, before)
    tensors = {name: value.detach().cpu().clone() for name, value in changes.tensors().items()}
    return Recovered(tensors, before, trainer.held_out(student, additions(changes.tensors())))


class _Trainer:
    """A student with its teacher, on the same sets of images."""

    def __init__(
        self,
        teacher: Host,
        student: Host,
        train: Sequence[Images],
        val: Sequence[Images],
        config: RecoveryConfig,
    ) -> None:
        self.teacher, self.student, self.train, self.val, self.config = teacher, student, train, val, config
        self.weights = {name: value.detach() for name, value in student.named_parameters()}
        self.names = trainable(student, config.what)
        self.start: list[float] = []  # held-out loss of each set without changes
        like = next(teacher.block_modules[0].parameters())
        self.device, self.dtype = like.device, like.dtype
        self.truth = [self._features(teacher, images) for images in val]

    def learn(self, state: FitState, on_step: Callable[[int], None]) -> float:
        """Take the steps of a round; return the mean loss."""
        config, total = self.config, 0.0
        assert isinstance(state.model, Changes)
        for step in range(config.steps):
            done = (state.epoch * config.steps + step) / (config.rounds * config.steps)
            rate = config.learning_rate * min(1, (done + 1 / (config.rounds * config.steps)) / _WARM)
            for group in state.optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            images, scale = self._batch(state.generator)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                with torch.no_grad():
                    truth = self.teacher.features(images)
                features = self._changed(additions(state.model.moving()), images)
            loss = (distance(features, truth) / scale + _FLAT).sqrt().mean()
            state.optimiser.zero_grad()
            loss.backward()
            state.optimiser.step()
            state.model.average(step)
            total += loss.item()
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

    def _changed(self, added: Mapping[str, Tensor], images: Tensor) -> Tensor:
        own = {self.names[name]: value for name, value in added.items()}
        weights = self.weights | {name: self.weights[name] + value for name, value in own.items()}
        named = {f"host.{name}": value for name, value in weights.items()}
        features: Tensor = functional_call(_Features(self.student), named, (images,))
        return features

    @torch.no_grad()
    def _features(self, vit: Host, images: Images, added: Mapping[str, Tensor] | None = None) -> Tensor:
        parts = []
        for rows in torch.arange(len(images)).split(CHUNK):
            some = images[rows].to(self.device, self.dtype)
            parts.append(self._changed(added, some) if added else vit.features(some))
        return torch.cat(parts)

    def held_out(self, vit: Host, added: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return the mean distance to dense on the held-out images of each set."""
        pairs = zip(self.val, self.truth, strict=True)
        return tuple(float(distance(self._features(vit, images, added), truth).mean()) for images, truth in pairs)

    def validate(self, changes: Changes) -> float:
        """Return the geometric mean of the shares of loss that are left; infinite where one is above 1."""
        losses = self.held_out(self.student, additions(changes.tensors()))
        shares = [loss / start for loss, start in zip(losses, self.start, strict=True)]
        return math.inf if max(shares) > 1 else math.exp(sum(math.log(s + _NOTHING) for s in shares) / len(shares))


class _Features(nn.Module):
    """A tower as a map from images to features, whatever its own output is."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    def forward(self, images: Tensor) -> Tensor:
        return self.host.features(images)


def _bare(model: T) -> Host | T:
    """Return the library's own tower, whose weights have the names that files hold."""
    return model.bare() if isinstance(model, FeatureTower) else model


def distance(features: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - cosine of each image's features (n, D) to the teacher's, (n,) float32."""
    unit, true = (F.normalize(each.float(), dim=-1) for each in (features, truth))
    return (unit - true).square().sum(dim=-1) / 2


def view(images: Tensor, crop: float, generator: torch.Generator) -> Tensor:
    """Return a random part of each image (B, C, H, W), as large as before, mirrored at random.

    A part has the image's proportions and at least the share ``crop`` of its area.
    """
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


@torch.no_grad()
def _first_tokens(teacher: Host, train: Sequence[Images], config: RecoveryConfig) -> Tensor:
    """Return tokens (1, count, D) near the mean patch."""
    assert isinstance(teacher, TimmHost)
    like = next(teacher.blocks.parameters())
    some = torch.cat([images[torch.arange(min(CHUNK, len(images)))] for images in train])
    patches = teacher.mean_patches(some.to(like.device, like.dtype), 1)
    return near(patches, config.count, torch.Generator().manual_seed(config.seed))


def _settled(config: RecoveryConfig, model: Host) -> RecoveryConfig:
    device = next(model.block_modules[0].parameters()).device
    return replace(config, dtype=precision_on(device, config.dtype))


def _mark(model: Host, config: RecoveryConfig, *sets: Images) -> str:
    recipe = [FORMAT, asdict(config), weights_digest(model.state_dict()), repr(model.reducer), torch.__version__]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for images in sets:
        for rows in torch.arange(len(images)).split(CHUNK):
            digest.update(images[rows].flatten(1).double().sum(dim=1).cpu().numpy().tobytes())
    return digest.hexdigest()


def twin(model: T, apart: Collection[str] = ()) -> T:
    """Return a copy with modules of its own and the same weights; those named ``apart`` are copied, too."""
    shared = {id(value): value for name, value in model.named_parameters() if name not in apart}
    return copy.deepcopy(model, shared)


def _expect(vit: TimmHost, count: int) -> None:
    """Make room for learned visual tokens in a tower, and tell timm."""
    like = next(vit.blocks.parameters())
    shape = PromptShape(tokens=count, depth=1, classes=0, features=vit.num_classes)
    vit.expect(shape, classify=False, device=like.device, dtype=like.dtype)
    vit.__dict__["_model_args"] = {**vit._model_args, "prompts": shape._asdict()}


@dataclass(frozen=True, kw_only=True)
class RecoveryFile:
    """A saved recovery: float32 tensors in safetensors, provenance in its metadata."""

    path: Path
    model: str  # dense name of the tower
    tag: str  # its weight tag
    weights: str  # its ``blocks_fingerprint``
    method: str
    options: dict[str, Any]  # the method's settings, as JSON values
    reducer: str | None  # digest of the reducer's own weights, such as a predictor's
    datasets: list[dict[str, Any]]  # name, revision, images, and 1 - cosine before and after, of each
    recipe: dict[str, Any]  # fields of ``RecoveryConfig``
    parameters: int  # learned
    format: int = FORMAT
    commit: str | None = None  # of the code

    @classmethod
    def read(cls, path: Path) -> "RecoveryFile":
        """Read the provenance of ``path``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of a recovery, or one of another format.
        """
        return read_learned(path, _KIND, cls, "train one with: patchrank fit recovery", format=FORMAT)

    @property
    def command(self) -> str:
        """The command that trains one for the same tower."""
        names = " ".join(one["name"] for one in self.datasets)
        return f"patchrank fit recovery --model MODEL --dataset {names} --output FILE"

    def require(self, model: Host) -> None:
        """Refuse, by ValueError, a tower with other weights, or one that is reduced otherwise."""
        own, mend = f"recovery {str(self.path)!r} was trained", f"train one for this model with: {self.command}"
        weights = blocks_fingerprint(model.state_dict(), model.blocks_prefix)
        if weights != self.weights or model.prompts is not None:
            on = f"{own} on {tower_name(self.model, self.tag)} with weights {self.weights}"
            other = f"these are {weights}" if weights != self.weights else "this tower has learned tokens already"
            raise ValueError(f"{on}, {other}; {mend}")
        reducer = model.reducer
        if reducer is None or reducer.method != self.method:
            other = "dense" if reducer is None else f"reduced by {reducer.method}"
            raise ValueError(f"{own} for {self.method}, this model is {other}; {mend}")
        options = reducer.config.plain()
        for name in sorted(self.options.keys() | options.keys()):
            ours, theirs = self.options.get(name), options.get(name)
            if ours != theirs:
                raise ValueError(f"{own} for {self.method} with {name}={ours!r}, this model has {theirs!r}; {mend}")
        if self.reducer != reducer_digest(reducer):
            raise ValueError(f"{own} with another predictor of {self.method} than this model's; {mend}")

    def load(self, model: Host) -> dict[str, Tensor]:
        """Load what is added to each weight of a model, by its name there, on its device.

        Raises:
            ValueError: tensors that are damaged or don't fit.
        """
        where, mend = f"recovery {str(self.path)!r}", f"train one anew with: {self.command}"
        tensors = load_learned(self.path, _KIND, mend)
        names, weights = trainable(model, self.recipe["what"]), dict(model.named_parameters())
        shapes = {name: weights[own].shape for name, own in names.items() if own in weights}
        if TOKENS in names:
            shapes[TOKENS] = torch.Size((1, self.recipe["count"], model.embed_dim))
        for name, value in tensors.items():
            weight = name.removesuffix(_UP).removesuffix(_DOWN)
            shape = shapes.get(weight)
            if shape is not None and name != weight:
                rank = self.recipe["rank"]
                shape = torch.Size((shape[0], rank) if name.endswith(_UP) else (rank, shape[1]))
            if value.shape != shape:
                raise ValueError(
                    f"{where} has {name!r} of shape {tuple(value.shape)}, which doesn't fit this tower; {mend}"
                )
        device = next(model.block_modules[0].parameters()).device
        return {names[name]: value.to(device) for name, value in additions(tensors).items()}


def reducer_digest(reducer: Reducer) -> str | None:
    """Return 16 hex digits that tell a reducer's own weights from others; None if it has none."""
    state = reducer.state_dict()
    return weights_digest(state) if state else None


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

    ``model`` is the reduced tower that it was trained on, of dense name ``name``; ``datasets``
    are facts about its sets of images, ``name`` first of all.
    """
    model = _bare(model)
    assert model.reducer is not None
    losses = zip(recovered.before, recovered.after, strict=True)
    sets = [{**one, "before": a, "after": b} for one, (a, b) in zip(datasets, losses, strict=True)]
    tensors = {key: value.contiguous() for key, value in recovered.tensors.items()}
    facts = {
        "format": FORMAT,
        "model": name,
        "tag": tag,
        "weights": blocks_fingerprint(model.state_dict(), model.blocks_prefix),
        "method": model.reducer.method,
        "options": model.reducer.config.plain(),
        "reducer": reducer_digest(model.reducer),
        "datasets": sets,
        "recipe": asdict(_settled(config, model)),
        "parameters": sum(value.numel() for value in tensors.values()),
        "commit": commit,
    }
    write_learned(path, _KIND, tensors, facts)
    return RecoveryFile.read(path)


def add_recovery(model: T, recovery: str | Path | RecoveryFile) -> T:
    """Add the changes of a recovery to the weights of the reduced tower that it was trained on.

    The new model shares the weights that stay the same with ``model``, which stays as it is. Its
    fingerprint is another one: load a predictor or prompts of the tower before.

    Raises:
        ValueError: a recovery of another tower, method, setting or predictor, or a damaged file.
        FileNotFoundError: no such file.
    """
    file = recovery if isinstance(recovery, RecoveryFile) else RecoveryFile.read(Path(recovery))
    if isinstance(model, FeatureTower):
        return model.over(add_recovery(model.bare(), file))
    file.require(model)
    added = file.load(model)
    recovered = twin(model, added)
    if TOKENS in added:
        assert isinstance(recovered, TimmHost)
        _expect(recovered, added[TOKENS].shape[1])
    with torch.no_grad():
        for name, value in added.items():
            weight = recovered.get_parameter(name)
            weight.copy_(weight + value)  # of the wider type of the two, then rounded once
    return recovered
