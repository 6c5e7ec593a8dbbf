"""Files of recoveries: small changes of a reduced tower that were learned without labels, and adding them."""

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from zoo.core.digests import blocks_fingerprint, digest, weights_digest
from zoo.core.host import Host, share_weights
from zoo.core.json_reader import from_json
from zoo.core.recipes import RecoveryConfig
from zoo.core.reducer import Reducer
from zoo.core.settings import precision_on
from zoo.loading.learned_files import LearnedFile, check_settings, dataset_names, write_learned

FORMAT = 3  # of a file
HEAD = "head.weight"  # of the linear map that gives the features
UP, DOWN = ".up", ".down"  # of a low-rank update, behind the weight's name
T = TypeVar("T", bound=Host)


def trainable(vit: Host, what: str) -> dict[str, str]:
    """Return the weights that a recovery of this kind changes: of the head, or of the blocks and norms beside them.

    Keys are their names in files, which don't depend on what holds the tower; values are the tower's own names.
    """
    if "+" in what:
        return {name: own for part in what.split("+") for name, own in trainable(vit, part).items()}
    if what == "head":
        return {HEAD: f"{vit.projection}.weight" if isinstance(last_map(vit), nn.Linear) else f"{vit.projection}"}
    prefix = vit.blocks_prefix
    # Of what holds the blocks.
    around = {"", *(prefix[: at + 1] for at, letter in enumerate(prefix[:-1]) if letter == ".")}
    norms = [
        f"{name}."
        for name, module in vit.named_modules()
        if "Norm" in type(module).__name__ and name[: name.rfind(".") + 1] in around
    ]
    linear = {id(module.weight) for module in vit.modules() if isinstance(module, nn.Linear)}
    linear |= {id(module.in_proj_weight) for module in vit.modules() if isinstance(module, nn.MultiheadAttention)}
    names = {}
    for name, value in vit.named_parameters():
        norm = next((norm for norm in norms if name.startswith(norm)), None)
        if id(value) not in linear if what == "lora" else value.ndim != 1:
            continue
        if norm is not None:
            names[name[norm[:-1].rfind(".") + 1 :]] = name
        elif name.startswith(prefix):
            names[f"blocks.{name.removeprefix(prefix)}"] = name
    return names


def last_map(vit: Host) -> Any:
    """Return the linear map that gives a tower's features: a layer, or open_clip's weight (in, out), or raise."""
    layer = getattr(vit, vit.projection or "", None)
    if not isinstance(layer, (nn.Linear, nn.Parameter)):
        raise ValueError(
            f"what='head': the features of this {type(vit).__name__} come from no linear map; expected a tower of "
            "timm's, open_clip's with a projection, or transformers' CLIPVisionModelWithProjection; or take what='norm'"
        )
    return layer


def with_head(vit: T, what: str) -> T:
    """Return a tower whose features leave through a linear map, the identity of a new one if it has a place for it."""
    if not what.startswith("head") or not isinstance(getattr(vit, vit.projection or "", None), nn.Identity):
        return vit
    other, like = share_weights(vit, type(vit)), next(vit.block_modules[0].parameters())
    other.head = nn.Linear(vit.embed_dim, vit.embed_dim, device=like.device, dtype=like.dtype)
    nn.init.eye_(other.head.weight)
    nn.init.zeros_(other.head.bias)
    other.__dict__["num_classes"] = vit.embed_dim
    return other


@torch.no_grad()
def add_changes(vit: Host, added: Mapping[str, Tensor]) -> None:
    """Add to each weight named, in place, in the wider type of the two, rounded once."""
    for name, value in added.items():
        weight = vit.get_parameter(name)
        weight.copy_(weight + value.to(weight.device))


def additions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is added to each weight, by its name: ``tensors``, or products of two with ``.up`` and ``.down``."""
    products = {name.removesuffix(UP): value for name, value in tensors.items() if name.endswith(UP)}
    added = {name: value for name, value in tensors.items() if not name.endswith((UP, DOWN))}
    return added | {name: value @ tensors[name + DOWN] for name, value in products.items()}


class Recovered(NamedTuple):
    """What training gave; no tensors where no change was better than none on every set."""

    tensors: dict[str, Tensor]
    before: tuple[float, ...]  # 1 - cosine to dense on the held-out images, mean of each set
    after: tuple[float, ...]  # the same with the changes; none is higher


def with_precision(config: RecoveryConfig, model: Host) -> RecoveryConfig:
    """Return the recipe with a precision by name for ``auto``."""
    device = next(model.block_modules[0].parameters()).device
    return replace(config, precision=precision_on(device, config.precision))


def copy_tower(model: T, copied: Collection[str] = ()) -> T:
    """Return a copy with modules of its own that shares the weights, all but those named in ``copied``."""
    return copy.deepcopy(model, {id(value): value for name, value in model.named_parameters() if name not in copied})


@dataclass(frozen=True, kw_only=True)
class RecoveryFile(LearnedFile):
    """A saved recovery, with float32 tensors."""

    weights: str  # the tower's ``blocks_fingerprint``, for a head with that of the map's weight
    method: str
    options: dict[str, Any]  # the method's settings, as JSON values
    patches: int  # patch tokens of an image in training
    counts: dict[str, int]  # of these, how many were left after each reduction point: settings may leave it to a rule
    reducer: str | None  # digest of the reducer's own weights, such as a predictor's
    datasets: list[dict[str, Any]]  # name, revision, images, and 1 - cosine before and after, of each
    recipe: dict[str, Any]  # fields of ``RecoveryConfig``
    parameters: int  # learned
    format: int = FORMAT
    commit: str | None = None  # of the code

    kind, verb = "recovery", "trained on"
    mends = ("datasets",)

    def __post_init__(self) -> None:
        check_settings(self.method, self.options)
        dataset_names(self.datasets)
        from_json(RecoveryConfig, self.recipe, "recipe", complete=True)

    def require(self, model: Host) -> None:
        """Refuse, by ValueError, a tower with other weights, or one that is reduced otherwise."""
        own = {"weights": self.weights, "tokens learned": False, "method": self.method, **self.options}
        other = {"weights": _weights_mark(model, self.recipe["what"]), "tokens learned": model.prompts is not None}
        if (reducer := model.reducer) is not None:
            other |= {"method": reducer.method, **reducer.config.plain()}
            other |= {"counts": _stage_counts(reducer, self.patches), "predictor": _reducer_mark(reducer)}
        self.compare({**own, "counts": self.counts, "predictor": self.reducer}, other)

    def load_for(self, model: Host) -> dict[str, Tensor]:
        """Load what is added to each weight of a model, by its name there; raise ValueError if it doesn't fit."""
        tensors, rank = self.load(), self.recipe["rank"]
        names, weights = trainable(model, self.recipe["what"]), dict(model.named_parameters())
        shapes: dict[str, tuple[int, ...]] = {}
        for name, own in names.items():
            shape = tuple(weights[own].shape)
            shapes |= {name: shape, name + UP: (shape[0], rank), name + DOWN: (rank, shape[-1])}
        for name, value in tensors.items():
            if shapes.get(name) != tuple(value.shape):
                raise self.refusal(f"has {name!r} of shape {tuple(value.shape)}, which doesn't fit this tower")
            for end, other in ((UP, DOWN), (DOWN, UP)):
                if name.endswith(end) and (lacking := name.removesuffix(end) + other) not in tensors:
                    raise self.refusal(f"has {name!r} without {lacking!r}")
        return {names[name]: value for name, value in additions(tensors).items()}


def _reducer_mark(reducer: Reducer) -> str | None:
    state = reducer.state_dict()
    return weights_digest(state) if state else None


def _stage_counts(reducer: Reducer, patches: int) -> dict[str, int]:
    return {str(index): count for index, count in reducer.counts(patches).items()}  # as JSON has it


def _weights_mark(model: Host, what: str) -> str:
    blocks = blocks_fingerprint(model.state_dict(), model.blocks_prefix)
    if not what.startswith("head"):
        return blocks
    return digest(blocks, weights_digest({HEAD: model.get_parameter(trainable(model, "head")[HEAD])}))


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
    assert model.reducer is not None
    losses, patches = zip(recovered.before, recovered.after, strict=True), math.prod(model.grid)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "model": name,
        "tag": tag,
        "weights": _weights_mark(with_head(model, config.what), config.what),
        "method": model.reducer.method,
        "options": model.reducer.config.plain(),
        "patches": patches,
        "counts": _stage_counts(model.reducer, patches),
        "reducer": _reducer_mark(model.reducer),
        "datasets": [{**one, "before": a, "after": b} for one, (a, b) in zip(datasets, losses, strict=True)],
        "recipe": asdict(with_precision(config, model)),
        "parameters": sum(value.numel() for value in recovered.tensors.values()),
        "commit": commit,
    }
    write_learned(path, "recovery", recovered.tensors, facts)
    return RecoveryFile(path=path, **facts)


def add_recovery(model: T, recovery: str | Path | RecoveryFile) -> T:
    """Add the changes of a recovery to the weights of the reduced tower that it was trained on.

    The new model shares the weights that stay the same with ``model``, which stays as it is. Its
    fingerprint is another one: load a predictor or prompts of the tower before.

    Raises:
        ValueError: a recovery of another tower, method, setting or predictor, or a damaged file.
        FileNotFoundError: no such file.
    """
    file = recovery if isinstance(recovery, RecoveryFile) else RecoveryFile.read(recovery)
    headed = with_head(model, file.recipe["what"])
    file.require(headed)
    added = file.load_for(headed)
    recovered = copy_tower(headed if added else model, added)
    add_changes(recovered, added)
    return recovered
