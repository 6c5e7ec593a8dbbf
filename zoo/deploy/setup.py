"""A model as it is to be run: what `choose` finds, and `export`, `embed` and `serve` take."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.adaptive import Adaptive
from zoo.core.digests import fingerprint, weights_digest
from zoo.core.errors import add_remedy
from zoo.core.files import write_whole
from zoo.core.host import Host
from zoo.core.json_reader import from_json, strict_json
from zoo.core.reducer import METHODS
from zoo.core.settings import check_fields, expected
from zoo.deploy.export import ExportedModel, copy_exported, load_exported, read_description, read_digest
from zoo.deploy.runtime import EAGER, OPTIMIZED, RUNTIMES, Prepared, find_runtime
from zoo.loading.adopt import add_recovery
from zoo.loading.learned_files import ANY_KEEP, BudgetFile, check_settings
from zoo.loading.preprocessing import describe_preprocessing
from zoo.loading.sizes import MODELS
from zoo.loading.towers import (
    OPEN_CLIP,
    TIMM,
    TRANSFORMERS,
    Tower,
    find_tower,
    reduce_tower,
    require_predictor,
    split_method,
)
from zoo.loading.weights import FOLDER, HUB

FORMAT = 1  # of a file
_MEND = "make one with: patchrank choose --output FILE"
_PREFIXES = (TIMM, OPEN_CLIP, TRANSFORMERS, FOLDER, HUB)


def exported_file(model: str) -> Path | None:
    """Return the path if a model is an exported file, by its ending, and None if it is a name."""
    suffixes = {runtime.suffix for runtime in RUNTIMES.values() if runtime.suffix}
    return None if model.startswith(_PREFIXES) or Path(model).suffix not in suffixes else Path(model)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A tower with its reduction, or an exported file, and by which runtime in which precision the model is run."""

    model: str  # dense name, as ``load_tower`` takes it, or path of an exported file
    method: str | None = None  # None for the dense tower and a file, which have no options and no recovery
    options: dict[str, Any] = field(default_factory=dict)  # of the method, as JSON values, ``keep`` or budgets with it
    recovery: str | None = None  # file of ``zoo.recover``'s result
    budgets: str | None = None  # file that `fit budgets` wrote; each picture takes one of its keep rates
    cost: float | None = None  # mean multiply-adds of these by the dense tower's
    runtime: str = OPTIMIZED
    precision: str = "float32"
    recipe: str | None = None  # by which the tower was made int8
    exported: str | None = None  # file in which the runtime has the tower; in a file of JSON a name beside it
    exported_sha256: str | None = None  # over that file and the files that belong to it
    certificate: dict[str, Any] = field(default_factory=dict)  # what was measured when it was chosen, as JSON values
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.precision not in (allowed := find_runtime(self.runtime).precisions):
            raise ValueError(f"precision {self.precision!r} of {self.runtime}: {expected(self.precision, allowed)}")
        if self.method is None:
            if self.options or self.recovery or self.budgets:
                lack = "takes no options, no recovery and no budgets"
                raise ValueError(f"{self.model} without a method {lack}: name a method")
        else:
            check_fields(self, method=METHODS)
            if (self.options.get("keep") is None) == (self.budgets is None):
                have = "without a keep rate" if self.budgets is None else "with a keep rate and budgets"
                raise ValueError(f"{self.model} by {self.method} {have}: a setup needs a keep rate, or budgets")
            check_settings(self.method, {"keep": ANY_KEEP} | self.options)
        if (self.budgets is None) != (self.cost is None):
            raise ValueError(f"budgets={self.budgets!r} with cost={self.cost!r}: expected both or none")
        if self.budgets is not None and self.recovery is not None:
            raise ValueError(
                f"recovery {self.recovery!r} with budgets: it was trained at one keep rate; give one of the two"
            )
        if self.exported is not None and find_runtime(self.runtime).runs_code:
            raise ValueError(
                f"exported={self.exported!r}: a file of {self.runtime} may run any code; name it as --model"
            )
        if self.format != FORMAT:
            raise ValueError(f"format {self.format!r} of a setup: expected {FORMAT}")

    @classmethod
    def of(
        cls,
        name: str,
        *,
        method: str | None = None,
        keep: float | None = None,
        budgets: str | None = None,
        cost: float | None = None,
        **more: Any,
    ) -> "Setup":
        """Return the setup of a model's name, dense or reduced, or of a dense name with a method and keep rate.

        With ``budgets``, a file, which knows its method, pictures take keep rates of their own at a mean ``cost``: by
        default that of the keep rate, if there is one, or the file's. Or of the path of an exported file, which fixes
        all other fields; ``more`` are such.
        """
        if (file := exported_file(name)) is not None:
            flags = {"method": method, "keep": keep, "budgets": budgets, "cost": cost} | more
            if flag := next((flag for flag, value in flags.items() if value is not None), None):
                raise ValueError(f"model {name!r} with --{flag}: an exported file is fixed; leave the flag out")
            description = read_description(file)
            return cls(model=name, runtime=description.runtime, precision=description.precision)
        dense, named_method, percent = split_method(name)
        if named_method is not None:
            if method is not None:
                raise ValueError(f"model {name!r} with method {method!r}: the name says its method, give one of them")
            method, keep = named_method, percent if keep is None else keep
        if budgets is not None:
            return cls(model=dense, budgets=budgets, **_read_budgets(budgets, method, keep, cost), **more)
        if cost is not None:
            raise ValueError(
                f"model {name!r} with --cost and without --budgets: give the file that `fit budgets` wrote"
            )
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
            setup: Setup = from_json(cls, strict_json(Path(path).read_bytes()), "setup")
        except ValueError as error:
            raise ValueError(f"{str(path)!r} holds no setup ({error}); {_MEND}") from error
        if setup.file is not None:  # which may be machine code
            raise ValueError(f"{str(path)!r} names an exported file: give {setup.model!r} itself as --model")
        if setup.exported is None:
            return setup
        if Path(setup.exported).name != setup.exported:
            raise ValueError(f"{str(path)!r} with exported={setup.exported!r}: expected the name of a file beside it")
        return dataclasses.replace(setup, exported=str(Path(path).with_name(setup.exported)))

    def write(self, path: Path) -> None:
        """Write the file whole or not at all, and beside it a copy of the exported one."""
        setup = self
        if self.exported is not None:
            place = path.with_suffix(Path(self.exported).suffix)
            adaptive = None if self.cost is None else (self.name, self.cost)
            beside = copy_exported(Path(self.exported), place, adaptive=adaptive)
            setup = dataclasses.replace(self, exported=beside.name, exported_sha256=read_digest(beside))
        write_whole(path, (json.dumps(dataclasses.asdict(setup), indent=2, allow_nan=False) + "\n").encode())

    def absolute(self) -> "Setup":
        """Return the setup with paths that are found from every folder."""
        kind, colon, place = self.model.partition(":")
        arch, slash, file = place.partition("/")
        model = self.model
        if self.file is not None:
            model = str(self.file.absolute())
        elif kind in ("local-dir", "transformers") and colon:
            model = f"{kind}:{Path(place).absolute()}"
        elif kind == "open_clip" and slash and Path(file).is_file():
            model = f"{kind}:{arch}/{Path(file).absolute()}"
        files = {"recovery": self.recovery, "budgets": self.budgets, "exported": self.exported}
        paths: dict[str, Any] = {name: file and str(Path(file).absolute()) for name, file in files.items()}
        return dataclasses.replace(self, model=model, **paths)

    @property
    def file(self) -> Path | None:
        """The exported file that the model is, None for a tower."""
        return exported_file(self.model)

    @property
    def name(self) -> str:
        """What the model is called: its tower with method and keep rate or cost in percent, or its file's name."""
        if self.file is not None:
            return self.file.name
        if self.method is None:
            return self.model
        arch, dot, tag = self.model.partition(".")
        rate = self.options["keep"] if self.cost is None else self.cost
        short = f"{self.method}{'' if self.cost is None else '_adaptive'}{round(100 * rate)}"
        return f"{arch}_{short}{dot}{tag}" if arch in MODELS else f"{self.model} {short}"

    def load(self, *, random_weights: bool = False) -> Tower:
        """Load the tower with its reduction, in evaluation mode and float32; all else is the dense tower's.

        Raise what the tower or the method refuses; FileNotFoundError for weights, predictor or recovery.
        """
        if self.file is not None:
            raise ValueError(f"model {self.model!r} is exported already: give the name of a tower")
        if self.method is not None and not random_weights:
            require_predictor(self.model, self.method, self.options.get("keep", ANY_KEEP))
        tower = find_tower(self.model, random_weights=random_weights)
        return tower._replace(vit=self.reduce(tower))

    def reduce(self, tower: Tower) -> Host:
        """Return its dense tower with the reduction, which shares the tower's weights; raise what ``load`` does."""
        if self.method is None:
            return tower.vit
        adaptive: dict[str, Any] = {} if self.budgets is None else {"budgets": self.budgets, "cost": self.cost}
        vit, _ = reduce_tower(tower, self.method, self.options, **adaptive)
        return vit if self.recovery is None else add_recovery(vit, self.recovery).eval()

    def describe(self, tower: Tower) -> dict[str, Any]:
        """Return what the JSON file beside an exported one says of its loaded tower."""
        return {
            "model": self.name,
            "tower": self.model,
            "preprocessing": describe_preprocessing(tower.preprocess),
            "text_weights": None if tower.clip is None else weights_digest(tower.clip.model.text.state_dict()),
            "recovery": self.recovery,
        }

    def prepare(self, vit: nn.Module, example: Tensor) -> tuple[Prepared, str]:
        """Return a tower as the runtime runs it, for pictures like the example, and "" or why the tower runs eagerly.

        A tower that `zoo.optimize` refuses runs eagerly. An exported file is run as it is. Of an adaptive tower the
        runtime has one for each budget, and the signal is eager. Raise ValueError for what another runtime refuses, or
        for an exported file of another content or tower; FileNotFoundError without one.
        """
        runtime = find_runtime(self.runtime)
        runtime.require(self.precision, str(example.device), loading=self.exported is not None)
        if self.exported is not None:
            model = self.load_exported()
            if model.weights_sha256 != fingerprint(vit):
                message = f"{self.exported!r} was made of other weights than those of {self.name}"
                raise add_remedy(ValueError(message), "setup")
            return model.prepared.at_cost(self.cost), ""
        if isinstance(vit, Host) and isinstance(vit.reducer, Adaptive):
            reasons = list[str]()

            def prepare(tower: Host) -> Prepared:
                prepared, why = self.prepare(tower, example)
                reasons.append(why)
                return prepared

            return Prepared.of_budgets(vit, prepare), max(reasons)
        if runtime.recipes(self.precision):
            raise ValueError(
                f"{self.name} in {self.precision} by {self.runtime} needs pictures to calibrate with; make a file, and "
                f"give it as --model: patchrank export --model {self.model} --runtime {self.runtime} --precision "
                f"{self.precision} --calibrate FOLDER --output model{runtime.suffix}"
            )
        try:
            return runtime.prepare(vit, example, self.precision), ""
        except ValueError as error:
            if self.runtime != OPTIMIZED:
                raise
            return find_runtime(EAGER).prepare(vit, example, self.precision), str(error)

    def load_exported(self) -> ExportedModel:
        """Load the exported file; ValueError if it is another one than was chosen, FileNotFoundError without one."""
        try:
            model = load_exported(str(self.exported))
        except (FileNotFoundError, ValueError) as error:
            raise add_remedy(type(error)(str(error)), "setup") from error
        if self.exported_sha256 not in (None, model.digest):
            raise add_remedy(ValueError(f"{self.exported!r} has changed since it was chosen"), "setup")
        return model

    def build(self) -> Callable[[Tensor], Tensor]:
        """Load the model as `embed` runs it, on the CPU: a call from pictures (B, 3, H, W) to features (B, D) float32.

        Raise what ``load`` and ``prepare`` do.
        """
        if self.file is not None:
            return load_exported(self.file)
        vit = self.load().vit
        prepared, _ = self.prepare(vit, torch.zeros(1, 3, *vit.input_size))
        return lambda images: prepared.call(images.to(prepared.dtype)).float()


def _read_budgets(path: str, method: str | None, keep: float | None, cost: float | None) -> dict[str, Any]:
    """Return method, options and cost of a setup with budgets; raise ValueError for what doesn't fit the file."""
    file = BudgetFile.read(path)
    if method not in (None, file.method):
        raise ValueError(
            f"--method {method!r} with --budgets {path!r}, which are of {file.method}: leave the method out"
        )
    if keep is not None and cost is not None:
        raise ValueError(f"--keep {keep:g} with --cost {cost:g}: a keep rate says a cost, too; give one of the two")
    if cost is None:
        cost = file.cost if keep is None else file.budgets.cost_of(keep)
    file.budgets.penalty(cost)
    return {"method": file.method, "options": dict(file.options), "cost": cost}
