"""Files of predictors: reading, finding the one of a tower, and filling a model with it."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.core.files import blocks_fingerprint, cache_folder, load_learned, read_learned, wanting
from zoo.core.host import Host
from zoo.core.messages import tower_name
from zoo.core.reducer import configure
from zoo.loading.learned_files import difference
from zoo.loading.sizes import EMBEDDED

PredictorPath = str | Path | None
PREFIX = "reducer.predictor."  # of its weights in a model's state dict
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictorFile:
    """A saved predictor: weights in safetensors, provenance in its metadata.

    It was fitted at reduction point ``block`` to the tower of dense timm name ``model``, weight ``tag`` and
    ``blocks_fingerprint`` ``weights``, None in files that serve any of this name. ``options`` are those that shape
    the network (``arch``, ``width``).
    """

    path: Path
    model: str
    tag: str
    block: int
    options: dict[str, str | int]
    weights: str | None = None
    recipe: dict[str, Any] | None = None  # fields of ``FitConfig``
    provenance: dict[str, Any] | None = None  # facts about the rankings

    @classmethod
    def read(cls, path: str | Path) -> "PredictorFile":
        """Read the facts of ``path``; raise as ``read_learned`` does."""
        return read_learned(Path(path), "predictor", cls)

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``; raise ValueError if they ask for another network."""
        for key, value in self.options.items():
            option = options.setdefault(key, value)
            if option != value:
                raise self.refusal(f"has {key}={value!r}, not {key}={option!r}", options={**self.options, key: option})

    def require(self, **other: Any) -> None:
        """Raise ValueError unless it was fitted to these: ``model``, ``tag``, ``block`` or ``weights``."""
        own = {name: getattr(self, name) for name in other}
        if self.weights is None and "weights" in own:
            own["weights"] = other["weights"]
        if differs := difference(own, other):
            others = {name: value for name, value in other.items() if name != "weights"}
            raise self.refusal(f"was fitted to {tower_name(self.model, self.tag)} {differs}", **others)

    def refusal(self, reason: str, **other: Any) -> ValueError:
        """Make an error that one like this, but for ``other`` facts, would mend."""
        facts = {name: getattr(self, name) for name in ("model", "tag", "block", "options")}
        return wanting(ValueError(f"the predictor {str(self.path)!r} {reason}"), "predictor", **facts | other)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Load the weights, named as in ``Predictor``, behind ``prefix``."""
        return {prefix + name: tensor for name, tensor in load_learned(self.path, "predictor").items()}


def predictor_name(model: str, tag: str, block: int) -> str:
    """Return the file name of a predictor for a tower (dense timm name, weight tag) and block."""
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    return f"{tower}.patchrank.block{block}.safetensors"


def find_fitted(model: str, tag: str) -> tuple[int, ...]:
    """Return the blocks for which ``find_predictor`` finds one by itself, ascending."""
    start, end = predictor_name(model, tag, 0).rsplit("0", 1)
    names = [path.name for folder in _folders() for path in folder.glob(f"{start}*{end}")]
    blocks = {name.removeprefix(start).removesuffix(end) for name in names}
    return tuple(sorted(int(block) for block in blocks if block.isdecimal()))


def _folders() -> tuple[Path, Path]:  # the user's own predictors, and those of the package
    return cache_folder() / "predictors", EMBEDDED


def find_predictor(model: str, tag: str, block: int, *, shape: Mapping[str, Any] | None = None) -> PredictorFile:
    """Find the predictor for a tower: the user's own, else the packaged one.

    ``shape`` holds ``arch`` and ``width`` of the one that is wanted where there is none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no predictor.
    """
    name = predictor_name(model, tag, block)
    found = [folder / name for folder in _folders() if os.access(folder / name, os.R_OK)]
    if not found:
        others = ", ".join(map(str, find_fitted(model, tag)))
        there = f" (fitted so far: block {others})" if others else ""
        message = (
            f"no predictor for {tower_name(model, tag)} at block {block}: neither packaged nor in the user's "
            f"cache{there}; pass predictor=PATH, or use pretrained=False"
        )
        facts = {"model": model, "tag": tag, "block": block, "options": dict(shape or {})}
        raise wanting(FileNotFoundError(message), "predictor", **facts)
    if len(found) > 1:
        _log.warning("predictor %s of your own is used, not the packaged one; remove it to use that", found[0])
    return PredictorFile.read(found[0])


def with_predictor(
    model: str, tag: str, method: str, options: dict[str, Any], depth: int, path: PredictorPath = None
) -> tuple[dict[str, Any], PredictorFile | None]:
    """Read or find a model's predictor, None of a method without; add its network's shape to options.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: options or a predictor that don't fit the model.
    """
    block, completed = configure(method, options, depth).predictor_block(depth), dict(options)
    if block is None:
        return completed, None
    file = find_predictor(model, tag, block, shape=options) if path is None else PredictorFile.read(path)
    file.require(model=model, tag=tag, block=block)
    file.fill(completed)
    return completed, file


def load_predictor(model: Host, file: PredictorFile) -> None:
    """Fill the predictor of a reduced model.

    Raises:
        ValueError: the model has no predictor of this architecture, reduces at another block, or
            its tower has other weights.
    """
    reducer = model.reducer
    block = None if reducer is None else reducer.config.predictor_block(model.depth)
    if reducer is None or block is None:
        raise ValueError("this model has no predictor to fill: it isn't reduced by patchrank")
    file.require(block=block)
    state, loaded = model.state_dict(), file.tensors(PREFIX)
    ours, theirs = ({k: v.shape for k, v in some.items() if k.startswith(PREFIX)} for some in (state, loaded))
    if ours != theirs:
        raise file.refusal("has another architecture")
    require_weights(file, state, model.blocks_prefix)
    model.load_state_dict(loaded, strict=False)


def require_weights(file: PredictorFile, tower: Mapping[str, Tensor], prefix: str = "blocks.") -> None:
    """Raise ValueError if it was fitted to other weights than those of ``tower``, a state dict."""
    if file.weights:
        file.require(weights=blocks_fingerprint(tower, prefix))
