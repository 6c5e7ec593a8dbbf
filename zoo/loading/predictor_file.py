"""Files of predictors: reading, finding the one of a tower, and filling a model with it."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from zoo.core.files import blocks_fingerprint, cache_folder, load_learned, read_learned
from zoo.core.host import Host
from zoo.core.messages import tower_name, wanting
from zoo.core.predictor import REMOVE, require_any_subset
from zoo.core.reducer import configure
from zoo.loading.sizes import EMBEDDED

# predictor=: a file, or one for each block
PredictorPaths = str | Path | Sequence[str | Path] | None

_KIND = "predictor"
_RESCORERS = "reducer.rescorers."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictorFile:
    """A saved predictor: weights in safetensors, provenance in its metadata.

    It was fitted at reduction point ``block`` to the tower of dense timm name ``model``, weight ``tag`` and
    ``blocks_fingerprint`` ``weights``, None in files that serve any of this name. ``options`` are those that shape
    the network (``arch``, ``width``), ``action`` is what it ranks patches for.
    """

    path: Path
    model: str
    tag: str
    block: int
    options: dict[str, Any]
    weights: str | None = None
    action: str = REMOVE
    recipe: dict[str, Any] | None = None  # fields of ``FitConfig``
    provenance: dict[str, Any] | None = None  # facts about the rankings

    @classmethod
    def read(cls, path: Path) -> "PredictorFile":
        """Read the facts of ``path``; raise as ``read_learned`` does."""
        file = read_learned(path, _KIND, cls)
        with safe_open(path, framework="pt") as opened:
            count = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        width = file.options.get("width", 1)
        if type(width) is not int or not 0 < width <= count:
            message = f"{str(path)!r} holds no {_KIND}: its {count} weights aren't those of width {width!r}"
            raise wanting(ValueError(message), _KIND)
        return file

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``; raise ValueError if they ask for another network."""
        for key, value in self.options.items():
            option = options.setdefault(key, value)
            if option != value:
                message = f"{key}={option!r}: the predictor {str(self.path)!r} has {key}={value!r}"
                raise self._refusal(message, options={**self.options, key: option})

    def require_action(self, action: str) -> None:
        """Raise ValueError unless this ranks patches for the same action."""
        if self.action != action:
            fitted = f"predictor {str(self.path)!r} was fitted to rankings of action={self.action!r}"
            raise self._refusal(f"{fitted}, this model asks for {action!r}", action=action)

    def require_name(self, model: str, tag: str) -> None:
        """Raise ValueError unless this was fitted to the tower of this timm name and weight tag."""
        if (self.model, self.tag) != (model, tag):
            fitted = f"predictor {str(self.path)!r} was fitted to {tower_name(self.model, self.tag)}"
            raise self._refusal(f"{fitted}, not to {tower_name(model, tag)}", model=model, tag=tag)

    def require_weights(self, weights: str) -> None:
        """Raise ValueError if this was fitted to a tower of another ``blocks_fingerprint``."""
        if self.weights not in (None, weights):
            fitted = f"the predictor {str(self.path)!r} was fitted to {tower_name(self.model, self.tag)}"
            raise self._refusal(f"{fitted} with weights {self.weights}, these are {weights}")

    def _refusal(self, message: str, **other: Any) -> ValueError:
        """Make an error that one like this, but for ``other`` facts, would mend."""
        facts = {name: getattr(self, name) for name in ("model", "tag", "block", "options", "action")}
        return wanting(ValueError(message), _KIND, **facts | other)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Load the weights, named as in ``Predictor``, behind ``prefix``."""
        return {prefix + name: tensor for name, tensor in load_learned(self.path, _KIND).items()}


def predictor_name(model: str, tag: str, block: int, action: str = REMOVE) -> str:
    """Return the file name of a predictor for a tower (dense timm name, weight tag), block and action."""
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    role = "patchrank" if action == REMOVE else "rankmerge"
    return f"{tower}.{role}.block{block}.safetensors"


def one_each(files: Sequence[PredictorFile], blocks: Sequence[int]) -> tuple[PredictorFile, ...]:
    """Put predictors in the order of the blocks before which a model scores.

    Raises:
        ValueError: a block has none or two of them, or one was fitted at another block.
    """
    where = f"block{'s'[: len(blocks) - 1]} {', '.join(map(str, blocks))}"
    if not files:
        raise ValueError(f"no predictor was given; expected one for {where}")
    by_block: dict[int, PredictorFile] = {}
    for one in files:
        if one.block in by_block:
            both = f"{str(by_block[one.block].path)!r} and {str(one.path)!r}"
            raise ValueError(f"the predictors {both} were both fitted at block {one.block}; expected one for {where}")
        by_block[one.block] = one
    missing = [block for block in blocks if block not in by_block]
    for one in files:
        if one.block not in blocks:
            fitted = f"the predictor {str(one.path)!r} was fitted at block {one.block}"
            message = f"{fitted}, this model scores before {where}"
            raise one._refusal(message, block=missing[0]) if missing else ValueError(f"{message}; leave it out")
    if missing:
        message = f"this model scores before {where}, and none of the given predictors was fitted at block {missing[0]}"
        raise files[0]._refusal(message, block=missing[0])
    return tuple(by_block[block] for block in blocks)


def read_predictors(paths: str | Path | Sequence[str | Path]) -> list[PredictorFile]:
    """Read what ``predictor=`` names, one file or several, each as ``PredictorFile.read`` does."""
    several = [paths] if isinstance(paths, (str, Path)) else paths
    return [PredictorFile.read(Path(path)) for path in several]


def fitted_blocks(model: str, tag: str, action: str = REMOVE) -> tuple[int, ...]:
    """Return the blocks for which ``find_predictor`` finds one by itself, ascending."""
    start, end = predictor_name(model, tag, 0, action).rsplit("0", 1)
    folders = (EMBEDDED, cache_folder() / "predictors")
    paths = [path for folder in folders for path in folder.glob(f"{start}*{end}")]
    blocks = {path.name.removeprefix(start).removesuffix(end) for path in paths}
    return tuple(sorted(int(block) for block in blocks if block.isdecimal()))


def find_predictor(
    model: str,
    tag: str,
    block: int,
    path: str | Path | None = None,
    *,
    shape: Mapping[str, Any] | None = None,
    action: str = REMOVE,
) -> PredictorFile:
    """Find the predictor for a tower: ``path``, else the user's own, else the packaged one.

    A log warns of an own one that is taken instead of a packaged one. ``shape`` holds ``arch`` and ``width`` of the
    one that is wanted where there is none; ``action`` is what patches are ranked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was fitted to another tower, at another block or for another action.
    """
    name = predictor_name(model, tag, block, action)
    if path is None:
        own, packaged = cache_folder() / "predictors" / name, EMBEDDED / name
        path = next((file for file in (own, packaged) if file.is_file()), None)
        if path == own and packaged.is_file():
            _log.warning("predictor %s of your own is used, not the packaged one; remove it to use that", own)
    if path is None:
        others = ", ".join(map(str, fitted_blocks(model, tag, action)))
        there = f" (fitted so far: block {others})" if others else ""
        message = (
            f"no predictor for {tower_name(model, tag)} at block {block}: neither packaged nor in the user's "
            f"cache{there}; pass predictor=PATH, or use pretrained=False"
        )
        facts = {"model": model, "tag": tag, "block": block, "options": dict(shape or {}), "action": action}
        raise wanting(FileNotFoundError(message), _KIND, **facts)
    file = PredictorFile.read(Path(path))
    file.require_name(model, tag)
    file.require_action(action)
    one_each([file], [block])
    return file


def with_predictors(
    model: str, tag: str, method: str, options: dict[str, Any], depth: int, paths: PredictorPaths = None
) -> tuple[dict[str, Any], tuple[PredictorFile, ...]]:
    """Find the predictors of a model, in the order of blocks; add their network's shape to options.

    ``paths`` are files, one for each block at which the model scores, in any order.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: options out of range or of another network, or predictors fitted to another tower, at other
            blocks or unable to score there.
    """
    config = configure(method, options, depth)
    blocks, action = config.predictor_blocks(depth), config.action
    completed = dict(options)
    if not blocks:
        return completed, ()
    if blocks[1:] and "arch" in options:
        require_any_subset(options["arch"], blocks[1])
    files: Iterable[PredictorFile]
    if paths is None:
        files = (find_predictor(model, tag, b, shape=wanted_shape(blocks, completed), action=action) for b in blocks)
    else:
        files = read_predictors(paths)
    predictors = []
    for one in files:
        one.require_name(model, tag)
        one.require_action(action)
        one.fill(completed)
        predictors.append(one)
        if blocks[1:]:
            require_any_subset(completed["arch"], blocks[1])
    return completed, one_each(predictors, blocks)


def wanted_shape(blocks: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of the network of a missing predictor: one of several can't be of conv, the default."""
    return ({"arch": "mlp"} if blocks[1:] else {}) | dict(options)


def load_predictor(model: Host, predictors: PredictorFile | Sequence[PredictorFile]) -> None:
    """Fill the predictors of a reduced model, one for each block at which it scores.

    Raises:
        ValueError: the model has no predictor of this architecture, reduces at another block, or
            its tower has other weights.
    """
    files = [predictors] if isinstance(predictors, PredictorFile) else predictors
    reducer = model.reducer
    blocks = () if reducer is None else reducer.config.predictor_blocks(model.depth)
    if not blocks:
        raise ValueError(
            "this model has no predictor to fill: it isn't reduced by patchrank or rankmerge of rank='predictor'"
        )
    assert reducer is not None
    state = model.state_dict()
    files = one_each(files, blocks)
    for one in files:
        one.require_action(reducer.config.action)
    loaded = predictor_tensors(files)
    for prefix, one in _prefixes(files):
        shapes = {k: v.shape for k, v in state.items() if k.startswith(prefix)}
        if shapes != {k: v.shape for k, v in loaded.items() if k.startswith(prefix)}:
            raise ValueError(f"the predictor {str(one.path)!r} has another architecture")
    require_weights(files, state, model.blocks_prefix)
    model.load_state_dict(loaded, strict=False)


def predictor_tensors(predictors: Sequence[PredictorFile]) -> dict[str, Tensor]:
    """Load predictors, the first block's first, named as in a model's state dict."""
    return {name: value for prefix, one in _prefixes(predictors) for name, value in one.tensors(prefix).items()}


def is_rescorer(name: str) -> bool:
    """Tell whether a weight of a model's state dict is a later block's predictor's."""
    return name.startswith(_RESCORERS)


def _prefixes(predictors: Sequence[PredictorFile]) -> Iterable[tuple[str, PredictorFile]]:
    """Say where in a model's state dict each predictor goes, the first block's first."""
    for one in predictors:
        later = one.block != predictors[0].block
        yield f"{_RESCORERS}{one.block}." if later else "reducer.predictor.", one


def require_weights(predictors: Sequence[PredictorFile], tower: Mapping[str, Tensor], prefix: str = "blocks.") -> None:
    """Raise ValueError if one was fitted to other weights than those of ``tower``, a state dict."""
    if any(one.weights for one in predictors):
        weights = blocks_fingerprint(tower, prefix)
        for one in predictors:
            one.require_weights(weights)
