"""Towers by other runtimes: their files, which the user's cache keeps by all that they depend on, and dense rows."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.hints import describe_error
from harness.base.lines import lock_file
from harness.datasets import get_dataset
from harness.datasets.few_shot import stack_images, subset
from harness.measure.rows import Variant
from harness.records.times import describe_machine
from zoo.core.digests import digest, fingerprint
from zoo.core.errors import NoRoomError
from zoo.core.files import cache_file
from zoo.core.host import Host
from zoo.core.settings import best_precision
from zoo.deploy.export import export_model, load_exported
from zoo.deploy.quantization import calibration_digest
from zoo.deploy.runtime import Prepared, find_runtime, usual_precisions
from zoo.deploy.setup import Setup
from zoo.loading.preprocessing import describe_preprocessing
from zoo.loading.towers import Tower

MAKERS = ("clip-patchrank", "torch", "openvino", "nncf", "onnxruntime")  # what files and features depend on
CALIBRATION, CHECKED = 96, 16  # pictures that int8 models are made with, and others on which a file is checked


def calibration_pictures(preprocess: Any, count: int = CALIBRATION) -> Tensor:
    """Return embedded photographs (count, 3, H, W) that no test reads; ``preprocess`` maps a PIL image to (3, H, W)."""
    return stack_images(subset(get_dataset("photos").split("train"), count), preprocess)


@dataclass(frozen=True, kw_only=True)
class ExportCache:
    """Files of one tower and its reductions."""

    tower: Tower  # in float32 on the CPU
    check: Callable[[], Tensor]  # pictures (n, 3, H, W) on which a file is compared with its model
    calibration: Tensor | None  # pictures (n, 3, H, W) of which int8 models are made
    predictors: Sequence[Path] = ()  # that reductions use
    say: Callable[[str], object]

    @classmethod
    def for_runtimes(cls, tower: Tower, runtimes: Iterable[str], say: Callable[[str], object]) -> "ExportCache | None":
        """Return files of a tower as it is now, to calibrate with embedded photographs; None if no runtime has any."""
        if not any(find_runtime(runtime).suffix for runtime in runtimes):
            return None
        tower = tower._replace(vit=copy.deepcopy(tower.vit))
        pictures = calibration_pictures(tower.preprocess, CALIBRATION + CHECKED)
        return cls(tower=tower, check=lambda: pictures[CALIBRATION:], calibration=pictures[:CALIBRATION], say=say)

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the tower."""
        return fingerprint(self.tower.vit)

    @cached_property
    def calibrated(self) -> str | None:
        """Digest of the pictures to calibrate with."""
        return None if self.calibration is None else calibration_digest(self.calibration)

    @cached_property
    def makers(self) -> list[str]:
        """The packages with their versions, and the processor."""
        machine = describe_machine(torch.device("cpu"))
        return [*map(_version, MAKERS), *(machine[name] for name in ("device_name", "cpu_capability"))]

    def find(self, setup: Setup) -> Path:
        """Return the place of a setup's file in the cache; one with budgets has the same for each cost."""
        way = (setup.runtime, setup.precision, setup.recipe)
        what = (self.weights, setup.method, setup.options, way, [digest(path) for path in self.predictors])
        budgets = None if setup.budgets is None else digest(Path(setup.budgets))
        calibrated = None if setup.recipe is None else self.calibrated
        name = digest(what, budgets, calibrated, self.makers, describe_preprocessing(self.tower.preprocess))
        return cache_file("exports", f"{name}{find_runtime(setup.runtime).suffix}")

    def load(self, setup: Setup, name: str) -> Prepared:
        """Load a setup's file, which is made if it isn't there whole; raise what reducing and exporting do.

        Messages call it by the ``name``.
        """
        path = self.find(setup)
        with lock_file(path, "the cache", partial(self.say, f"{name}: waiting for another run, which writes its file")):
            with suppress(OSError, ValueError):  # not there, or damaged
                return load_exported(path).prepared.at_cost(setup.cost)
            self.say(f"{name}: writing its file")
            how: dict[str, Any] = {field: getattr(setup, field) for field in ("runtime", "precision", "recipe")}
            how["facts"] = setup.describe(self.tower) | {"random_weights": False}
            how["calibration"] = None if setup.recipe is None else self.calibration
            export_model(setup.reduce(self.tower), path, self.check(), **how)
        return load_exported(path).prepared.at_cost(setup.cost)


def runtime_row(dense: Variant, runtime: str, precision: str, exports: ExportCache | None) -> Variant:
    """Make a row of the dense tower by another runtime, whose name is its method, by the precision's fastest recipe.

    ``exports`` has the tower's files, which some runtimes run. Raises what the runtime does.
    """
    engine, name, like = find_runtime(runtime), f"{runtime} {precision}", next(dense.vit.parameters())
    engine.require(precision, str(like.device))
    config, recipe = {"precision": precision}, next(iter(engine.recipes(precision)), None)
    if engine.suffix:
        assert exports is not None
        if recipe is not None:
            config |= {"recipe": recipe, "calibration": str(exports.calibrated)}
        setup = Setup(model=exports.tower.name, runtime=runtime, precision=precision, recipe=recipe)
        return replace(dense, method=runtime, prepared=exports.load(setup, name), config=config, what=name)
    prepared = engine.prepare(dense.vit, torch.zeros(1, 3, *dense.vit.input_size).to(like), precision)
    model: dict[str, Any] = {"vit": prepared.call} if isinstance(prepared.call, Host) else {"prepared": prepared}
    return replace(dense, method=runtime, config=config, what=name, **model)


def runtime_rows(
    dense: Variant, runtimes: Sequence[str], exports: ExportCache | None, say: Callable[[str], object]
) -> list[Variant]:
    """Make rows of the dense tower by other runtimes: in the device's fastest precision, and files in all usual ones.

    What can't be had is told, with the reason.
    """
    device, rows = next(dense.vit.parameters()).device, list[Variant]()
    for runtime in map(find_runtime, runtimes):
        usual = usual_precisions(device) if runtime.suffix else (best_precision(device),)
        for precision in (each for each in usual if each in runtime.precisions):
            try:
                rows.append(runtime_row(dense, runtime.name, precision, exports))
            except NoRoomError:
                raise
            except Exception as error:
                if not (isinstance(error, ValueError) or runtime.is_refusal(error)):
                    raise
                reason = describe_error(error).partition("\n")[0]
                say(f"no row of the dense tower by {runtime.name} in {precision}: {reason}")
    return rows


def _version(package: str) -> str:
    """Return a package with its version, or without one where it isn't installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
