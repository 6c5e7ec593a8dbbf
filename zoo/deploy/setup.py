"""A tower with its reduction as it is to be run: what `choose` finds, and `export` and `embed` take."""

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from zoo.core.files import from_json, strict_json, write_whole
from zoo.core.reducer import METHODS
from zoo.core.settings import PRECISIONS, check_fields, torch_dtype
from zoo.deploy.optimized import optimize
from zoo.loading.learned_files import check_settings
from zoo.loading.recovery_file import add_recovery
from zoo.loading.sizes import MODELS
from zoo.loading.towers import Tower, find_tower, reduce_tower, require_predictor, split_method
from zoo.towers.vit import ReducedViT

FORMAT = 1  # of a file
_MEND = "make one with: patchrank choose --output FILE"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A tower, its reduction, and the precision in which it runs."""

    model: str  # dense name, as ``load_tower`` takes it
    method: str | None = None  # None for the dense tower, which has no options and no recovery
    options: dict[str, Any] = field(default_factory=dict)  # of the method, as JSON values, ``keep`` among them
    recovery: str | None = None  # file of ``zoo.recover``'s result
    dtype: str = "float32"
    certificate: dict[str, Any] = field(default_factory=dict)  # what was measured when it was chosen, as JSON values
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_fields(self, dtype=PRECISIONS)
        if self.method is None:
            if self.options or self.recovery:
                raise ValueError(f"{self.model} without a method takes no options and no recovery: name a method")
        else:
            check_fields(self, method=METHODS)
            check_settings(self.method, self.options)
            if self.options.get("keep") is None:
                raise ValueError(f"{self.model} by {self.method} without a keep rate: a setup needs one")
        if self.format != FORMAT:
            raise ValueError(f"format {self.format!r} of a setup: expected {FORMAT}")

    @classmethod
    def of(cls, name: str, *, method: str | None = None, keep: float | None = None, **more: Any) -> "Setup":
        """Return the setup of a model's name, dense or reduced, or of a dense name with a method and keep rate."""
        dense, own, percent = split_method(name)
        if own is not None:
            if method is not None:
                raise ValueError(f"model {name!r} with method {method!r}: the name says its method, give one of them")
            method, keep = own, percent if keep is None else keep
        method = None if method == "dense" else method
        if (method is None) != (keep is None):
            have, lack = ("--method", "--keep") if keep is None else ("--keep", "--method")
            raise ValueError(
                f"model {name!r} with {have} and without {lack}: give both, or a name such as clip_vit_b16_rankmerge60"
            )
        return cls(model=dense, method=method, options={} if keep is None else {"keep": keep}, **more)

    @classmethod
    def read(cls, path: str | Path) -> "Setup":
        """Read and check a file; raise FileNotFoundError or ValueError if it isn't one of a setup."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no setup at {str(path)!r}; {_MEND}")
        try:
            return from_json(cls, strict_json(Path(path).read_bytes()), "setup")
        except ValueError as error:
            raise ValueError(f"{str(path)!r} holds no setup ({error}); {_MEND}") from error

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n").encode())

    def absolute(self) -> "Setup":
        """Return the setup with paths that are found from every folder."""
        kind, colon, place = self.model.partition(":")
        arch, slash, file = place.partition("/")
        model = self.model
        if kind in ("local-dir", "transformers") and colon:
            model = f"{kind}:{Path(place).absolute()}"
        elif kind == "open_clip" and slash and Path(file).is_file():
            model = f"{kind}:{arch}/{Path(file).absolute()}"
        recovery = None if self.recovery is None else str(Path(self.recovery).absolute())
        return dataclasses.replace(self, model=model, recovery=recovery)

    @property
    def name(self) -> str:
        """What the model is called: its tower with method and keep rate in percent."""
        if self.method is None:
            return self.model
        arch, dot, tag = self.model.partition(".")
        short = f"{self.method}{round(100 * self.options['keep'])}"
        return f"{arch}_{short}{dot}{tag}" if arch in MODELS else f"{self.model} {short}"

    def load(self, *, random_weights: bool = False) -> Tower:
        """Load the tower with its reduction, in evaluation mode and float32; all else is the dense tower's.

        Raise what the tower or the method refuses; FileNotFoundError for weights, predictor or recovery.
        """
        if self.method is not None and not random_weights:
            require_predictor(self.model, self.method, self.options["keep"])
        tower = find_tower(self.model, random_weights=random_weights)
        return tower._replace(vit=self.reduce(tower))

    def reduce(self, tower: Tower) -> ReducedViT:
        """Return its dense tower with the reduction, which shares the tower's weights; raise what ``load`` does."""
        if self.method is None:
            return tower.vit
        vit, _ = reduce_tower(tower, self.method, self.options)
        return vit if self.recovery is None else add_recovery(vit, self.recovery).eval()

    def build(self) -> nn.Module:
        """Load the model as `embed` runs it: optimised, in its precision, on the CPU; raise what ``load`` does."""
        return make_runtime(self.load().vit, self.dtype)[0]


def make_runtime(vit: ReducedViT, dtype: str) -> tuple[Any, str]:
    """Return a model as it is run, by ``zoo.optimize``, or where that refuses it rounded to its precision, and why."""
    try:
        return optimize(vit, dtype=dtype), ""
    except ValueError as error:
        return (vit if dtype == "float32" else copy.deepcopy(vit).to(torch_dtype(dtype)).eval()), str(error)
