"""Files of recoveries: small changes of a reduced tower that were learned without labels, and adding them."""

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from zoo.core.files import blocks_fingerprint, load_learned, read_learned, weights_digest, write_learned
from zoo.core.host import FeatureTower, Host
from zoo.core.messages import expected, tower_name, wanting
from zoo.core.precision import AUTO, precision_on
from zoo.core.prompts import PromptShape
from zoo.core.reducer import Reducer
from zoo.towers.vit import TimmHost

WHATS = ("norm", "lora", "tokens")
DTYPES = (AUTO, "float32", "bfloat16")
FORMAT = 2  # of a file
TOKENS = "prompts.tokens"  # name of learned visual tokens among a tower's weights
_KIND = "recovery"
UP, DOWN = ".up", ".down"  # of a low-rank update, behind the weight's name
T = TypeVar("T", bound=Host)


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
        if name.endswith(UP):
            weight = name.removesuffix(UP)
            added[weight] = value @ tensors[weight + DOWN]
        elif not name.endswith(DOWN):
            added[name] = value
    return added


class Recovered(NamedTuple):
    """What training gave; no tensors where no change was better than none on every set."""

    tensors: dict[str, Tensor]
    before: tuple[float, ...]  # 1 - cosine to dense on the held-out images, mean of each set
    after: tuple[float, ...]  # the same with the changes; none is higher


def bare_tower(model: T) -> Host | T:
    """Return the library's own tower, whose weights have the names that files hold."""
    return model.bare() if isinstance(model, FeatureTower) else model


def with_precision(config: RecoveryConfig, model: Host) -> RecoveryConfig:
    """Return the recipe with a precision by name, the fastest of the model's device for ``auto``."""
    device = next(model.block_modules[0].parameters()).device
    return replace(config, dtype=precision_on(device, config.dtype))


def twin(model: T, apart: Collection[str] = ()) -> T:
    """Return a copy with modules of its own and the same weights; those named ``apart`` are copied, too."""
    shared = {id(value): value for name, value in model.named_parameters() if name not in apart}
    return copy.deepcopy(model, shared)


def make_room(vit: TimmHost, count: int) -> None:
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
        return read_learned(path, _KIND, cls, format=FORMAT)

    def require(self, model: Host) -> None:
        """Refuse, by ValueError, a tower with other weights, or one that is reduced otherwise."""
        own = f"recovery {str(self.path)!r} was trained"
        weights = blocks_fingerprint(model.state_dict(), model.blocks_prefix)
        if weights != self.weights or model.prompts is not None:
            on = f"{own} on {tower_name(self.model, self.tag)} with weights {self.weights}"
            other = f"these are {weights}" if weights != self.weights else "this tower has learned tokens already"
            raise self._refusal(f"{on}, {other}")
        reducer = model.reducer
        if reducer is None or reducer.method != self.method:
            other = "dense" if reducer is None else f"reduced by {reducer.method}"
            raise self._refusal(f"{own} for {self.method}, this model is {other}")
        options = reducer.config.plain()
        for name in sorted(self.options.keys() | options.keys()):
            ours, theirs = self.options.get(name), options.get(name)
            if ours != theirs:
                raise self._refusal(f"{own} for {self.method} with {name}={ours!r}, this model has {theirs!r}")
        if self.reducer != reducer_digest(reducer):
            raise self._refusal(f"{own} with another predictor of {self.method} than this model's")

    def _refusal(self, message: str) -> ValueError:
        return wanting(ValueError(message), _KIND, datasets=self.datasets)

    def load(self, model: Host) -> dict[str, Tensor]:
        """Load what is added to each weight of a model, by its name there, on its device.

        Raises:
            ValueError: tensors that are damaged or don't fit.
        """
        tensors = load_learned(self.path, _KIND)
        names, weights = trainable(model, self.recipe["what"]), dict(model.named_parameters())
        shapes = {name: weights[own].shape for name, own in names.items() if own in weights}
        if TOKENS in names:
            shapes[TOKENS] = torch.Size((1, self.recipe["count"], model.embed_dim))
        for name, value in tensors.items():
            weight = name.removesuffix(UP).removesuffix(DOWN)
            shape = shapes.get(weight)
            if shape is not None and name != weight:
                rank = self.recipe["rank"]
                shape = torch.Size((shape[0], rank) if name.endswith(UP) else (rank, shape[1]))
            if value.shape != shape:
                what = f"recovery {str(self.path)!r} has {name!r} of shape {tuple(value.shape)}"
                raise self._refusal(f"{what}, which doesn't fit this tower")
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
    model = bare_tower(model)
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
        "recipe": asdict(with_precision(config, model)),
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
        make_room(recovered, added[TOKENS].shape[1])
    with torch.no_grad():
        for name, value in added.items():
            weight = recovered.get_parameter(name)
            weight.copy_(weight + value)  # of the wider type of the two, then rounded once
    return recovered
