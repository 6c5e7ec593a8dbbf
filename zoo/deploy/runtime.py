"""How a model is run: one registry of runtimes, with the precisions of each, what it takes, and what it makes."""

import importlib
import pkgutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.adaptive import Budgets
from zoo.core.host import Host
from zoo.core.settings import PRECISIONS, best_precision, expected, torch_dtype
from zoo.deploy.graph import quiet, require_exportable
from zoo.deploy.quantization import INT8, RECIPES, is_made_for_int8, require_pictures

EAGER, OPTIMIZED, COMPILE, CUDA_GRAPHS = "eager", "optimized", "compile", "cuda-graphs"
ONNXRUNTIME, OPENVINO, EXPORTED_PROGRAM, AOTI = "onnxruntime", "openvino", "exported-program", "aoti"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model ready to be run by a runtime."""

    call: Callable[[Tensor], Tensor]  # from pictures (B, 3, H, W) to features (B, D)
    dtype: torch.dtype = torch.float32  # of the pictures
    file: Path | None = None  # that it was written to or loaded from
    batch: int | None = None  # the only B that the call takes without preparing anew; None for any
    adaptive: "PreparedBudgets | None" = None  # what the call consists of if each picture takes one of a few keep rates

    @classmethod
    def of_budgets(cls, tower: Host, prepare: Callable[[Host], "Prepared"]) -> Self:
        """Return an adaptive tower, each of whose budgets is run as ``prepare`` makes it; the signal is eager."""
        budgets, cost = tower.adaptive.budgets, tower.adaptive.config.cost
        each = tuple(prepare(tower.budget(number)) for number in range(len(budgets.keeps)))
        signals = torch.no_grad()(tower.signals)
        return cls.join(PreparedBudgets(budgets=budgets, cost=cost, signals=signals, each=each))

    def at_cost(self, cost: float | None) -> "Prepared":
        """Return the same adaptive model at another mean cost; any model as it is for None."""
        return self if cost is None or self.adaptive is None else self.join(replace(self.adaptive, cost=cost))

    @classmethod
    def join(cls, adaptive: "PreparedBudgets") -> Self:
        """Return the model that gives each picture its budget, of float32 pictures."""
        return cls(call=adaptive.run, adaptive=adaptive)


@dataclass(frozen=True, kw_only=True)
class PreparedBudgets:
    """An adaptive tower ready to be run: what gives pictures their budgets, and a model for each budget."""

    budgets: Budgets
    cost: float  # mean multiply-adds by the dense tower's
    signals: Callable[[Tensor], Tensor]  # from float32 pictures (B, 3, H, W) to their signals (B,)
    each: tuple[Prepared, ...]  # in the order of the budgets

    @cached_property
    def penalty(self) -> float:
        """What a unit of cost weighs against a unit of error."""
        return self.budgets.penalty(self.cost)

    def assign(self, images: Tensor) -> Tensor:
        """Return the budget of each of float32 images (B, 3, H, W), (B,) int64; ValueError for one with NaN."""
        return self.budgets.assign(self.signals(images), self.penalty)

    def run(self, images: Tensor) -> Tensor:
        """Map float32 images (B, 3, H, W) to features (B, D) float32, each by the model of its budget."""
        return run_groups(self.assign(images), images, self._run_budget)

    def _run_budget(self, number: int, images: Tensor) -> Tensor:
        part = self.each[number]
        size = part.batch or len(images)
        rows = (F.pad(some, (0,) * 7 + (size - len(some),)) for some in images.to(part.dtype).split(size))
        return torch.cat([part.call(some) for some in rows])[: len(images)].float()


def run_groups(budgets: Tensor, images: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return features (B, D) of images (B, ...), those of one budget (B,) in one call of ``run`` with its number."""
    groups = [(number, (budgets == number).nonzero().squeeze(1)) for number in budgets.unique().tolist()]
    parts = [run(number, images[rows.to(images.device)]) for number, rows in groups]
    return torch.cat(parts)[torch.cat([rows for _, rows in groups]).argsort().to(images.device)]


class Target(NamedTuple):
    """What a model is prepared for."""

    example: Tensor  # pictures (B, 3, H, W), which give size and device, and B where the runtime's batches are fixed
    precision: str  # of the runtime's
    calibration: Tensor | None  # pictures (n, 3, H, W) for a precision that needs them
    recipe: str | None  # of the precision's; None for a precision without recipes
    path: Path | None  # where a runtime with files writes; None writes to a folder that is removed


@dataclass(frozen=True)
class FeatureTolerance:
    """How far features may be from the eager model's."""

    deviation: float  # length of the difference by the features' length, at most, of the median picture
    cosine: float  # at least, on average


# Rounding may turn which of two equal tokens goes, in low precision in most images, so that features of compiled
# models differ by about as much as those of float32.
TOLERANCES = {
    "float32": FeatureTolerance(1e-3, 0.999),
    "float16": FeatureTolerance(5e-2, 0.99),
    "bfloat16": FeatureTolerance(2e-1, 0.99),
    INT8: FeatureTolerance(4e-1, 0.97),
}


class Runtime(ABC):
    """A way to run a model on some devices in some precisions. A subclass is registered by ``register_runtime``."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    suffix: ClassVar[str] = ""  # of the file that the runtime makes; "" for a runtime without files
    devices: ClassVar[tuple[str, ...]] = ()  # types of torch's devices; () for all
    packages: ClassVar[tuple[str, ...]] = ()  # that run a model
    writers: ClassVar[tuple[str, ...]] = ()  # further packages, that prepare one
    extra: ClassVar[str] = "export"  # of our package, which brings these
    runs_code: ClassVar[bool] = False  # whether a file is machine code, or torch evaluates what it says
    rounds_weights: ClassVar[bool] = False  # whether ``prepare`` takes a model that is in the precision already, too

    def recipes(self, precision: str) -> tuple[str, ...]:
        """Return the recipes by which the precision can be made, the fastest first.

        A precision with recipes needs pictures to calibrate with; a float precision has none.
        """
        return tuple(RECIPES) if precision == INT8 else ()

    def tolerance(self, precision: str) -> FeatureTolerance:
        """Return how far features may be from eager float32, or, where weights are rounded, from eager alike."""
        return TOLERANCES[precision]

    def refusal(self, precision: str, device: str = "cpu", *, loading: bool = False) -> str:
        """Say why the runtime can't be had here in a precision on a device, "" if it can.

        ``loading`` asks for running a file that was made elsewhere, which needs fewer packages.
        """
        if precision not in self.precisions:
            return f"{self.name} has no precision {precision!r}: {expected(precision, self.precisions)}"
        if self.devices and device.partition(":")[0] not in self.devices:
            return f"{self.name} runs on {' and '.join(self.devices)} alone, not on {device}"
        if precision == INT8 and not is_made_for_int8():
            return "int8 needs a processor with VNNI, and this one has none: give another precision"
        packages = dict.fromkeys(self.packages if loading else self.packages + self.writers, self.extra)
        if precision == INT8 and not loading:
            packages |= {"nncf": "openvino"}
        if missing := [package for package in packages if find_spec(package) is None]:
            extras = ",".join(dict.fromkeys(packages[package] for package in missing))
            return f"runtime {self.name!r} needs {', '.join(missing)}: pip install 'clip-patchrank[{extras}]'"
        return ""

    def require(self, precision: str, device: str = "cpu", *, loading: bool = False) -> None:
        """Raise ValueError with the ``refusal``, if there is one."""
        if why := self.refusal(precision, device, loading=loading):
            raise ValueError(why)

    def is_refusal(self, error: Exception) -> bool:
        """Tell whether an error of ``prepare`` or of the first call means that the runtime can't run this model."""
        return False

    def prepare(
        self,
        model: nn.Module,
        example: Tensor,
        precision: str,
        calibration: Tensor | None = None,
        *,
        recipe: str | None = None,
        path: Path | None = None,
    ) -> Prepared:
        """Return a model as the runtime runs it; compiling and capturing may wait for the first call.

        The model is in evaluation mode, in float32 on the device of ``example``, and stays as it is. All else is as in
        ``Target``; without a ``recipe`` the precision's first one is taken.

        Raises:
            ValueError: the runtime can't be had here, an unknown recipe, or too few pictures to calibrate with.
        """
        self.require(precision, str(example.device))
        recipe = self.require_calibration(precision, recipe, calibration)
        return self.make(model, Target(example, precision, calibration, recipe, path))

    def require_calibration(self, precision: str, recipe: str | None, calibration: Tensor | None) -> str | None:
        """Return the recipe, or the precision's first for None; raise what ``prepare`` does about recipe and pictures.

        A float precision has no recipe and takes no notice of pictures.
        """
        recipes = self.recipes(precision)
        if recipe is not None and recipe not in recipes:
            allowed = expected(recipe, recipes) if recipes else "the precision has no recipes"
            raise ValueError(f"recipe {recipe!r} for {precision} of {self.name}: {allowed}")
        if not recipes:
            return None
        if calibration is None:
            raise ValueError(f"{precision} of {self.name} needs pictures to calibrate with: give calibration=")
        require_pictures(calibration)
        return recipe or recipes[0]

    @abstractmethod
    def make(self, model: nn.Module, target: Target) -> Prepared:
        """Do what ``prepare`` does, where the runtime can be had."""


class FileRuntime(Runtime):
    """A runtime that runs files: float32 pictures in, float32 features out, for any batch, on the CPU."""

    devices = ("cpu",)

    def make(self, model: nn.Module, target: Target) -> Prepared:
        """Write the model and load what was written."""
        require_exportable(model)
        if target.path is None:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / f"model{self.suffix}"
                return replace(self.make(model, target._replace(path=place)), file=None)
        # What comes of inference mode can't be recorded; exporters can't undo views of what needs gradients. A batch
        # of one would be recorded as fixed.
        with quiet(), torch.inference_mode(mode=False), torch.no_grad():
            pair = target.example[[0, -1]].float()
            self.write(model, target.path, target._replace(example=pair))
            return self.load(target.path, target.precision, torch.get_num_threads(), target.recipe)

    def bytes_per_weight(self, precision: str) -> int:
        """Return how much room on the disk a weight takes while a file is written."""
        return 1 if precision == INT8 else torch_dtype(precision).itemsize

    def is_refusal(self, error: Exception) -> bool:
        """Take any error for a refusal: exporters and runtimes of others raise whatever they like."""
        return True

    @abstractmethod
    def write(self, model: nn.Module, path: Path, target: Target) -> None:
        """Write a model to a file; the target's ``example`` is two pictures."""

    @abstractmethod
    def load(self, path: Path, precision: str, threads: int, recipe: str | None = None) -> Prepared:
        """Return the model of a file that was written; ``threads`` are for runtimes that don't go by torch's number."""


RUNTIMES: dict[str, Runtime] = {}
R = TypeVar("R", bound=type[Runtime])


def register_runtime(cls: R) -> R:
    """Make a runtime known by its name, or raise ValueError if another one has the name."""
    taken = RUNTIMES.get(cls.name)
    if taken is not None and type(taken).__qualname__ != cls.__qualname__:
        raise ValueError(f"runtime name {cls.name!r} is taken by {type(taken).__qualname__}")
    RUNTIMES[cls.name] = cls()
    return cls


def find_runtime(name: str) -> Runtime:
    """Return a registered runtime; raise ValueError for an unknown name."""
    if not isinstance(name, str) or name not in RUNTIMES:  # of JSON, which may be a list
        raise ValueError(f"runtime {name!r}: {expected(str(name), RUNTIMES)}")
    return RUNTIMES[name]


def usual_precisions(device: str | torch.device) -> tuple[str, ...]:
    """Return the precisions that are tried where none are named: float32, the fastest of a device, and int8."""
    return tuple(dict.fromkeys(("float32", best_precision(device), INT8)))


def every_precision() -> tuple[str, ...]:
    """Return the precisions that any runtime has."""
    return tuple(dict.fromkeys(precision for runtime in RUNTIMES.values() for precision in runtime.precisions))


# Last, as each registers its runtimes with this module.
for _file in pkgutil.iter_modules([str(Path(__file__).with_name("runtimes"))]):
    importlib.import_module(f"zoo.deploy.runtimes.{_file.name}")
