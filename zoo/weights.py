"""Where weights come from: the tower's file, the predictor's, and how they meet the model."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from zoo.vit import ReducedViT

EMBEDDED = Path(__file__).parent / "embedded"
_PREDICTOR = "reducer.predictor."


def cache_folder() -> Path:
    """Return this user's cache folder for predictors and rankings (XDG rules)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "clip-patchrank"


@dataclass(frozen=True, kw_only=True)
class PredictorFile:
    """A saved predictor: weights in safetensors, provenance in its metadata.

    Attributes:
        path: the file.
        model: dense timm name of the tower it was fitted to.
        tag: weight tag of that tower.
        block: reduction point it was fitted at.
        options: method options that shape the network (``arch``, ``width``).
        weights: ``blocks_fingerprint`` of that tower; None in files that don't tell.
    """

    path: Path
    model: str
    tag: str
    block: int
    options: dict[str, Any]
    weights: str | None = None

    @classmethod
    def read(cls, path: Path) -> "PredictorFile":
        """Read the provenance of ``path``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a predictor of ours.
        """
        if not path.is_file():
            raise FileNotFoundError(f"predictor {str(path)!r} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is not a predictor: {error}") from error
        if "predictor" not in metadata:
            raise ValueError(f"{str(path)!r} is not a predictor: it lacks the 'predictor' metadata")
        facts = json.loads(metadata["predictor"])
        told = {f: facts[f] for f in ("model", "tag", "block", "options")}
        return cls(path=path, weights=facts.get("weights"), **told)

    def fill(self, options: dict[str, Any], config: type[Any]) -> None:
        """Add the network's shape to ``options`` and check that the rest fits it.

        Raises:
            ValueError: the model reduces at another block, or asks for another network.
        """
        for key, value in self.options.items():
            if options.setdefault(key, value) != value:
                raise ValueError(
                    f"{key}={options[key]!r}: the predictor {str(self.path)!r} has {key}={value!r}"
                )
        defaults = {f.name: f.default for f in dataclasses.fields(config)}
        points = options.get("reduce_at", defaults["reduce_at"])
        first = points if isinstance(points, int) else next(iter(points))
        if first != self.block:
            raise ValueError(
                f"reduce_at={points!r}: the predictor {str(self.path)!r} was fitted at block "
                f"{self.block}; fit one with: {fit_command(self.model, self.tag, first)}"
            )

    def require(self, tower: Mapping[str, Tensor]) -> None:
        """Refuse a tower with other weights than the one that this was fitted to.

        Args:
            tower: its state dict; only the blocks count.

        Raises:
            ValueError: the weights differ.
        """
        if self.weights is None:
            return
        found = blocks_fingerprint(tower)
        if found != self.weights:
            raise ValueError(
                f"the predictor {str(self.path)!r} was fitted to {self.model}.{self.tag} with "
                f"weights {self.weights}, these are {found}; fit one to them with: "
                f"{fit_command(self.model, self.tag, self.block)}"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Load the weights, named as in the model's state dict."""
        return {_PREDICTOR + name: tensor for name, tensor in load_file(self.path).items()}


def predictor_name(model: str, tag: str) -> str:
    """Return the file name of the predictor for the dense tower ``model`` with weights ``tag``."""
    return f"{model}.{tag}.patchrank.safetensors"


def fit_command(model: str, tag: str, block: int = 3) -> str:
    """Return the command that fits a predictor."""
    return f"python -m harness fit predictor --model {model}.{tag} --block {block} --dataset NAME"


def find_predictor(model: str, tag: str, given: str | Path | None = None) -> PredictorFile:
    """Find the predictor for a tower: ``given``, else the packaged one, else the user's own.

    Raises:
        FileNotFoundError: there is none; says which command makes one.
        ValueError: ``given`` was fitted to another tower.
    """
    if given is not None:
        found = PredictorFile.read(Path(given))
        if (found.model, found.tag) != (model, tag):
            raise ValueError(
                f"predictor {str(given)!r} was fitted to {found.model}.{found.tag}, "
                f"not to {model}.{tag}"
            )
        return found
    name = predictor_name(model, tag)
    for folder in (EMBEDDED, cache_folder() / "predictors"):
        if (folder / name).is_file():
            return PredictorFile.read(folder / name)
    raise FileNotFoundError(
        f"no predictor for {model}.{tag}: neither packaged nor in the user's cache; make one with: "
        f"{fit_command(model, tag)}; or pass predictor=PATH; or use pretrained=False"
    )


def filter_weights(
    state_dict: dict[str, Any], model: ReducedViT, predictor: PredictorFile | None = None
) -> dict[str, Any]:
    """Bring a checkpoint (timm, OpenAI or OpenCLIP keys) into the form of ``model``.

    Args:
        state_dict: as loaded.
        model: the model to be filled.
        predictor: where a patchrank model's predictor comes from; None if in ``state_dict``.

    Raises:
        ValueError: the model has a predictor, and no weights for it came along, or ``predictor``
            was fitted to other weights of the tower.
    """
    reducer = {k: v for k, v in state_dict.items() if k.startswith("reducer.")}
    tower = {k: v for k, v in state_dict.items() if not k.startswith("reducer.")}
    weights: dict[str, Any] = checkpoint_filter_fn(tower, model)
    facts: Any = model.pretrained_cfg
    embedded = str(facts.get("architecture")).startswith("clip_vit_s14")
    if embedded and model.num_classes > 0 and "head.weight" not in weights:
        weights |= load_projection()
    if model.reducer is None:
        return weights | reducer
    if predictor is not None:
        predictor.require(weights)
        reducer = predictor.tensors()
    wanted = {k for k in model.state_dict() if k.startswith("reducer.")}
    if missing := sorted(wanted - reducer.keys()):
        raise ValueError(f"these weights hold no predictor: {missing[0]!r} is missing")
    return weights | reducer


def load_projection() -> dict[str, Tensor]:
    """Load the embedded tower's projection to the joint space, named as timm's head."""
    text = load_file(EMBEDDED / "clip_vit_s14.text.safetensors")
    return {"head.weight": text["visual_projection"], "head.bias": text["visual_bias"]}


def fingerprint(model: ReducedViT) -> str:
    """Return 16 hex digits of the sha256 over the tower's weights, a reducer's not included.

    The weights are taken as float32, so that a model has one fingerprint in every precision that
    it can be stored in without loss.
    """
    return _digest({k: v for k, v in model.state_dict().items() if not k.startswith("reducer.")})


def blocks_fingerprint(tower: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the sha256 over the weights of a state dict's blocks, as float32.

    Unlike ``fingerprint`` it is the same for every image size and head that a tower is built with.
    """
    return _digest({k: v for k, v in tower.items() if k.startswith("blocks.")})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_predictor(model: ReducedViT, found: PredictorFile) -> None:
    """Fill the predictor of a patchrank model made by ``zoo.reduce``.

    Raises:
        ValueError: the model has no predictor of this architecture, reduces at another block, or
            its tower has other weights.
    """
    state, tensors = model.state_dict(), found.tensors()
    shapes = {k: v.shape for k, v in state.items() if k.startswith(_PREDICTOR)}
    if shapes != {k: v.shape for k, v in tensors.items()}:
        raise ValueError(f"the predictor {str(found.path)!r} has another architecture")
    assert model.reducer is not None
    if model.reducer.first_block != found.block:
        raise ValueError(
            f"this model reduces before block {model.reducer.first_block}, the predictor "
            f"{str(found.path)!r} was fitted at block {found.block}"
        )
    found.require(state)
    model.load_state_dict(tensors, strict=False)
