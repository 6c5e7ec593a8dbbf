"""Files of predictors: reading, finding the one of a tower, and filling a model with it."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.core.files import blocks_fingerprint, cache_folder, load_learned, read_learned, wanting
from zoo.core.host import Host
from zoo.core.messages import tower_name
from zoo.core.predictor import REMOVE, require_any_subset
from zoo.core.reducer import configure
from zoo.loading.learned_files import difference
from zoo.loading.sizes import EMBEDDED

# predictor=: a file, or one for each block
PredictorPaths = str | Path | Sequence[str | Path] | None

RESCORERS = "reducer.rescorers."  # where a model's state dict has the predictors of later blocks
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
    options: dict[str, str | int]
    weights: str | None = None
    action: str = REMOVE
    recipe: dict[str, Any] | None = None  # fields of ``FitConfig``
    provenance: dict[str, Any] | None = None  # facts about the rankings

    @classmethod
    def read(cls, path: Path) -> "PredictorFile":
        """Read the facts of ``path``; raise as ``read_learned`` does."""
        file = read_learned(path, "predictor", cls)
        width = file.options.get("width", 1)
        if type(width) is not int or not 0 < width <= path.stat().st_size:  # a network of it would be built
            raise wanting(ValueError(f"{str(path)!r} holds no predictor: its width is {width!r}"), "predictor")
        return file

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``; raise ValueError if they ask for another network."""
        for key, value in self.options.items():
            option = options.setdefault(key, value)
            if option != value:
                raise self.refusal(f"has {key}={value!r}, not {key}={option!r}", options={**self.options, key: option})

    def require(self, **other: Any) -> None:
        """Raise ValueError unless it was fitted to these: ``model``, ``tag``, ``block``, ``action`` or ``weights``."""
        own = {name: getattr(self, name) for name in other}
        if self.weights is None and "weights" in own:
            own["weights"] = other["weights"]
        if differs := difference(own, other):
            others = {name: value for name, value in other.items() if name != "weights"}
            raise self.refusal(f"was fitted to {tower_name(self.model, self.tag)} {differs}", **others)

    def refusal(self, reason: str, **other: Any) -> ValueError:
        """Make an error that one like this, but for ``other`` facts, would mend."""
        facts = {name: getattr(self, name) for name in ("model", "tag", "block", "options", "action")}
        return wanting(ValueError(f"the predictor {str(self.path)!r} {reason}"), "predictor", **facts | other)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Load the weights, named as in ``Predictor``, behind ``prefix``."""
        return {prefix + name: tensor for name, tensor in load_learned(self.path, "predictor").items()}


def predictor_name(model: str, tag: str, block: int, action: str = REMOVE) -> str:
    """Return the file name of a predictor for a tower (dense timm name, weight tag), block and action."""
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    role = "patchrank" if action == REMOVE else "rankmerge"
    return f"{tower}.{role}.block{block}.safetensors"


def read_predictors(paths: str | Path | Sequence[str | Path]) -> list[PredictorFile]:
    """Read what ``predictor=`` names, one file or several, each as ``PredictorFile.read`` does."""
    return [PredictorFile.read(Path(path)) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def find_fitted(model: str, tag: str, action: str = REMOVE) -> tuple[int, ...]:
    """Return the blocks for which ``find_predictor`` finds one by itself, ascending."""
    start, end = predictor_name(model, tag, 0, action).rsplit("0", 1)
    names = [path.name for folder in _folders() for path in folder.glob(f"{start}*{end}")]
    blocks = {name.removeprefix(start).removesuffix(end) for name in names}
    return tuple(sorted(int(block) for block in blocks if block.isdecimal()))


def _folders() -> tuple[Path, Path]:  # the user's own predictors, and those of the package
    return cache_folder() / "predictors", EMBEDDED


def find_predictor(
    model: str, tag: str, block: int, *, shape: Mapping[str, Any] | None = None, action: str = REMOVE
) -> PredictorFile:
    """Find the predictor for a tower: the user's own, else the packaged one.

    ``shape`` holds ``arch`` and ``width`` of the one that is wanted where there is none; ``action`` is what patches are
    ranked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it isn't what its name says.
    """
    name = predictor_name(model, tag, block, action)
    found = [folder / name for folder in _folders() if (folder / name).is_file()]
    if not found:
        others = ", ".join(map(str, find_fitted(model, tag, action)))
        there = f" (fitted so far: block {others})" if others else ""
        message = (
            f"no predictor for {tower_name(model, tag)} at block {block}: neither packaged nor in the user's "
            f"cache{there}; pass predictor=PATH, or use pretrained=False"
        )
        facts = {"model": model, "tag": tag, "block": block, "options": dict(shape or {}), "action": action}
        raise wanting(FileNotFoundError(message), "predictor", **facts)
    if len(found) > 1:
        _log.warning("predictor %s of your own is used, not the packaged one; remove it to use that", found[0])
    file = PredictorFile.read(found[0])
    file.require(model=model, tag=tag, block=block, action=action)
    return file


def one_each(files: Sequence[PredictorFile], blocks: Sequence[int]) -> tuple[PredictorFile, ...]:
    """Put predictors in the order of the blocks before which a model scores.

    Raises:
        ValueError: a block has none or two of them, or one was fitted at another block.
    """
    where = f"before block {', '.join(map(str, blocks))}"
    by_block = {one.block: one for one in files}
    missing = [block for block in blocks if block not in by_block]
    for one in files:
        if by_block[one.block] is not one:
            raise ValueError(f"{str(one.path)!r} and {str(by_block[one.block].path)!r} are both of block {one.block}")
        if one.block not in blocks:
            reason = f"was fitted at block {one.block}, this model scores {where}"
            if missing:
                raise one.refusal(reason, block=missing[0])
            raise ValueError(f"the predictor {str(one.path)!r} {reason}; leave it out")
    if missing:
        message = f"this model scores {where}, and no predictor was given of block {missing[0]}"
        facts = {name: getattr(one, name) for one in files[:1] for name in ("model", "tag", "options", "action")}
        raise wanting(ValueError(message), "predictor", block=missing[0], **facts)
    return tuple(by_block[block] for block in blocks)


def with_predictors(
    model: str, tag: str, method: str, options: dict[str, Any], depth: int, paths: PredictorPaths = None
) -> tuple[dict[str, Any], tuple[PredictorFile, ...]]:
    """Find the predictors of a model, in the order of blocks; add their network's shape to options.

    ``paths`` are files, one for each block at which the model scores, in any order.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: options or predictors that don't fit the model.
    """
    config = configure(method, options, depth)
    blocks, action = config.predictor_blocks(depth), config.action
    completed, files = dict(options), []
    if blocks[1:] and "arch" in options:  # before a predictor is asked for that would be refused
        require_any_subset(options["arch"], blocks[1])
    for one in _candidates(model, tag, blocks, completed, action, paths) if blocks else ():
        one.require(model=model, tag=tag, action=action)
        one.fill(completed)
        if blocks[1:]:
            require_any_subset(completed["arch"], blocks[1])
        files.append(one)
    return completed, one_each(files, blocks)


def _candidates(
    model: str, tag: str, blocks: Sequence[int], options: Mapping[str, Any], action: str, paths: PredictorPaths
) -> Iterator[PredictorFile]:
    """Yield the predictors that a user names, else those that are found; ``options`` may be completed meanwhile."""
    if paths is not None:
        yield from read_predictors(paths)
        return
    for block in blocks:
        # One of several can't be of conv, the default.
        shape = ({"arch": "mlp"} if blocks[1:] else {}) | dict(options)
        yield find_predictor(model, tag, block, shape=shape, action=action)


def load_predictor(model: Host, predictors: PredictorFile | Sequence[PredictorFile]) -> None:
    """Fill the predictors of a reduced model, one for each block at which it scores.

    Raises:
        ValueError: the model has no predictor of this architecture, reduces at another block, or
            its tower has other weights.
    """
    reducer = model.reducer
    blocks = () if reducer is None else reducer.config.predictor_blocks(model.depth)
    if reducer is None or not blocks:
        raise ValueError(
            "this model has no predictor to fill: it isn't reduced by patchrank or rankmerge of rank='predictor'"
        )
    state = model.state_dict()
    files = one_each([predictors] if isinstance(predictors, PredictorFile) else predictors, blocks)
    loaded = predictor_tensors(files)
    for one, prefix in zip(files, _prefixes(files), strict=True):
        one.require(action=reducer.config.action)
        ours, theirs = ({k: v.shape for k, v in some.items() if k.startswith(prefix)} for some in (state, loaded))
        if ours != theirs:
            raise one.refusal("has another architecture")
    require_weights(files, state, model.blocks_prefix)
    model.load_state_dict(loaded, strict=False)


def predictor_tensors(files: Sequence[PredictorFile]) -> dict[str, Tensor]:
    """Load predictors, the first block's first, named as in a model's state dict."""
    pairs = zip(files, _prefixes(files), strict=True)
    return {name: value for one, prefix in pairs for name, value in one.tensors(prefix).items()}


def _prefixes(files: Sequence[PredictorFile]) -> list[str]:
    return ["reducer.predictor.", *(f"{RESCORERS}{one.block}." for one in files[1:])][: len(files)]


def require_weights(files: Sequence[PredictorFile], tower: Mapping[str, Tensor], prefix: str = "blocks.") -> None:
    """Raise ValueError if one was fitted to other weights than those of ``tower``, a state dict."""
    if any(one.weights for one in files):
        weights = blocks_fingerprint(tower, prefix)
        for one in files:
            one.require(weights=weights)
