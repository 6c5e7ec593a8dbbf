"""Files of predictors: what they say, what they are called, and which blocks they serve."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from zoo.files import read_facts

Given = str | Path | Sequence[str | Path] | None  # predictor=: a file, or one for each block


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
        facts = read_facts(path, "predictor")
        told = {f: facts[f] for f in ("model", "tag", "block", "options")}
        return cls(path=path, weights=facts.get("weights"), **told)

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``.

        Raises:
            ValueError: they ask for another network.
        """
        for key, value in self.options.items():
            asked = options.setdefault(key, value)
            if asked != value:
                shape = {**self.options, key: asked}
                raise ValueError(
                    f"{key}={asked!r}: the predictor {str(self.path)!r} has {key}={value!r}; fit "
                    f"one with: {fit_command(self.model, self.tag, self.block, shape)} --out PATH, "
                    "and give PATH as predictor"
                )

    def require_name(self, model: str, tag: str) -> None:
        """Refuse a tower of another name than the one that this was fitted to.

        Args:
            model: dense timm name.
            tag: weight tag.

        Raises:
            ValueError: one of them differs.
        """
        if (self.model, self.tag) != (model, tag):
            raise ValueError(
                f"predictor {str(self.path)!r} was fitted to {tower_name(self.model, self.tag)}, "
                f"not to {tower_name(model, tag)}"
            )

    def require_weights(self, weights: str) -> None:
        """Refuse a tower with other weights than the one that this was fitted to.

        Args:
            weights: the tower's ``blocks_fingerprint``.

        Raises:
            ValueError: they differ.
        """
        if self.weights not in (None, weights):
            raise ValueError(
                f"the predictor {str(self.path)!r} was fitted to "
                f"{tower_name(self.model, self.tag)} with weights {self.weights}, these are "
                f"{weights}; fit one to them with: "
                f"{fit_command(self.model, self.tag, self.block, self.options)}"
            )

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Load the weights, named as in ``zoo.predictor.Predictor``, behind ``prefix``."""
        return {prefix + name: tensor for name, tensor in load_file(self.path).items()}


def predictor_name(model: str, tag: str, block: int) -> str:
    """Return the file name of a predictor.

    Args:
        model: dense timm name of the tower.
        tag: its weight tag.
        block: reduction point.
    """
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    return f"{tower}.patchrank.block{block}.safetensors"


def tower_name(model: str, tag: str) -> str:
    """Return the name of a tower, with its weight tag if it has one."""
    return f"{model}.{tag}" if tag else model


def fit_command(model: str, tag: str, block: int, shape: Mapping[str, Any]) -> str:
    """Return the command that fits a predictor; what ``shape`` leaves out is the default."""
    flags = "".join(f" --{key} {shape[key]}" for key in ("arch", "width") if key in shape)
    fit = "python -m harness fit predictor"
    return f"{fit} --model {tower_name(model, tag)} --block {block}{flags} --dataset NAME"


def one_each(files: Sequence[PredictorFile], blocks: Sequence[int]) -> tuple[PredictorFile, ...]:
    """Put predictors in the order of the blocks before which a model scores.

    Raises:
        ValueError: a block has none or two of them, or one was fitted at another block.
    """
    wanted = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(map(str, blocks))}"
    if not files:
        raise ValueError(f"no predictor was given; expected one for {wanted}")
    by_block: dict[int, PredictorFile] = {}
    for one in files:
        if one.block in by_block:
            both = f"{str(by_block[one.block].path)!r} and {str(one.path)!r}"
            raise ValueError(
                f"the predictors {both} were both fitted at block {one.block}; expected one for "
                f"{wanted}"
            )
        by_block[one.block] = one
    missing = [block for block in blocks if block not in by_block]
    mend = "leave it out"
    if missing:
        like = files[0]
        mend = f"fit one with: {fit_command(like.model, like.tag, missing[0], like.options)}"
    for one in files:
        if one.block not in blocks:
            raise ValueError(
                f"the predictor {str(one.path)!r} was fitted at block {one.block}, this model "
                f"scores before {wanted}; {mend}"
            )
    if missing:
        raise ValueError(
            f"this model scores before {wanted}, and none of the given predictors was fitted at "
            f"block {missing[0]}; {mend}"
        )
    return tuple(by_block[block] for block in blocks)


def given_predictors(given: str | Path | Sequence[str | Path]) -> list[PredictorFile]:
    """Read what ``predictor=`` names: one file or several.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a predictor of ours.
    """
    paths = [given] if isinstance(given, (str, Path)) else given
    return [PredictorFile.read(Path(path)) for path in paths]
