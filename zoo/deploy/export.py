"""Write a model, dense or reduced, as a file that another runtime runs, and hold that runtime to the eager model.

A file maps images (B, 3, H, W) float32 to features (B, D) float32, for any B. A JSON file beside it says what it is.
"""

import glob
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.adaptive import LEAST, Adaptive, Budgets
from zoo.core.digests import digest, fingerprint
from zoo.core.errors import add_remedy, no_room
from zoo.core.files import PARTIAL, write_whole
from zoo.core.host import Host
from zoo.core.json_reader import from_json, strict_json
from zoo.core.settings import expected
from zoo.deploy.graph import quiet, require_exportable
from zoo.deploy.quantization import calibration_digest, require_apart
from zoo.deploy.runtime import (
    RUNTIMES,
    FeatureTolerance,
    FileRuntime,
    Prepared,
    PreparedBudgets,
    Runtime,
    Target,
    find_runtime,
)

TIED = 1e-5  # two images this equally similar to a third are both its nearest
BATCHES = (2, 5)  # images per call when a file is checked
GRAPH = 2**22  # bytes beside the weights that a file takes at most


@dataclass(frozen=True, kw_only=True)
class FeatureAgreement:
    """How features of an exported file agree with the eager float32 model's on real images."""

    images: int  # how many were run, once per batch size
    batches: tuple[int, ...]  # images per call
    deviation: float  # largest difference of an image's features, by their length
    median_deviation: float
    cosine_mean: float  # of an image's features with the eager ones
    cosine_q05: float  # its 5 % quantile
    same_nearest: float  # share of images whose nearest other image is the same

    @classmethod
    def of(cls, features: Sequence[Tensor], eager: Tensor, batches: Sequence[int]) -> "FeatureAgreement":
        """Compare features (n, D), one tensor per batch size, with the eager model's (n, D)."""
        ours, wanted = torch.stack(list(features)).double(), eager.double()
        deviations = ((ours - wanted).norm(dim=2) / wanted.norm(dim=1)).flatten()
        cosine = F.cosine_similarity(ours, wanted, dim=2).flatten()
        # An image's nearest other one by our features has to be the nearest by the eager ones, or to tie with it.
        theirs, mine = (F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT for x in (wanted, ours))
        itself = torch.eye(len(eager), dtype=torch.bool)
        nearest = mine.masked_fill(itself, -2.0).argmax(dim=2, keepdim=True)
        best = theirs.masked_fill_(itself, -2.0).amax(dim=1)
        same = theirs.expand_as(mine).gather(2, nearest).squeeze(2) >= best - TIED
        return cls(
            images=len(eager),
            batches=tuple(batches),
            deviation=float(deviations.max()),
            median_deviation=float(deviations.median()),
            cosine_mean=float(cosine.mean()),
            cosine_q05=float(cosine.quantile(0.05)),
            same_nearest=float(same.double().mean()),
        )

    def problem(self, precision: str, tolerance: FeatureTolerance, *, reduced: bool = False) -> str:
        """Say why the file may not be used, "" if it may; near ties may move images of a ``reduced`` model."""
        if precision == "float32":
            if not (self.median_deviation if reduced else self.deviation) <= tolerance.deviation:  # NaN, too
                size = f"{self.deviation:.2g} of their length (median {self.median_deviation:.2g})"
                return f"features differ from eager's by {size}, above {tolerance.deviation:g}"
            if self.same_nearest < 1 and not reduced:
                return f"the nearest image is another one for {100 * (1 - self.same_nearest):.1f} % of the images"
        if not self.cosine_mean >= tolerance.cosine:
            return f"the mean cosine with eager float32 is {self.cosine_mean:.5f}, below {tolerance.cosine:g}"
        return ""


class DisagreementError(RuntimeError):
    """An exported file computes something else than the model; it was not kept."""

    def __init__(self, text: str, agreement: FeatureAgreement) -> None:
        super().__init__(text)
        self.agreement = agreement


def export_model(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    runtime: str,
    precision: str = "float32",
    batches: Sequence[int] = BATCHES,
    least_cosine: float | None = None,
    recipe: str | None = None,
    calibration: Tensor | None = None,
    facts: Mapping[str, Any] | None = None,
    tick: Callable[[int], object] = lambda _: None,
) -> FeatureAgreement:
    """Write a model for a runtime, run real images through that runtime, and keep the file if it agrees.

    Of an adaptive tower, ``path`` gives the signals of images, and has a file beside it for each budget, such as
    ``model.keep80.onnx``; all of them are held to the tower on their own, and together.

    Args:
        model: a tower with features (B, D) as output, in float32 on the CPU and in evaluation mode.
        path: file to write, with the ending of the runtime's files. OpenVINO has a ``.bin`` beside it.
        images: (n, 3, H, W) float32 preprocessed real images, two at least.
        runtime: name of one with files, of ``zoo.deploy.runtime.RUNTIMES``.
        precision: of the runtime's.
        batches: images per call in the check.
        least_cosine: mean with the eager float32 features, in lower precision; None for the runtime's tolerance.
        recipe: of the precision's, None for its first one.
        calibration: (n, 3, H, W) further images, for a precision that needs them.
        facts: more JSON values for the file beside it.
        tick: takes the number of images checked so far, of ``len(batches) * n``.

    Raises:
        ValueError: a runtime, precision, path or model that doesn't fit, or a package that is missing.
        DisagreementError: the runtime gives other features; nothing is left at ``path``.
        NoRoomError: there is no room on the disk.
    """
    path = Path(path)
    maker = find_file_runtime(runtime, precision, path=path)
    require_exportable(model)
    if isinstance(model, Host) and isinstance(model.reducer, Adaptive):
        how: dict[str, Any] = {"batches": batches, "least_cosine": least_cosine, "recipe": recipe}
        how |= {"runtime": runtime, "precision": precision, "calibration": calibration}
        return _export_adaptive(model, path, images, facts or {}, tick, how)
    if images.ndim != 4 or images.dtype != torch.float32 or len(images) < 2:
        raise ValueError(f"images {tuple(images.shape)} of {images.dtype}: expected (n, 3, H, W) float32 with n from 2")
    recipe = maker.require_calibration(precision, recipe, calibration)
    if recipe is not None and calibration is not None:
        require_apart(calibration, images)
    with torch.no_grad():
        first = model(images[:2])
        if not isinstance(first, Tensor) or first.ndim != 2:
            output = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(f"{type(model).__name__} gives no features (B, D) but {output}: expected a pool")
        eager = torch.cat([model(part) for part in images.split(max(batches))])
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(weight.numel() for weight in model.parameters()) * maker.bytes_per_weight(precision)
    real = Path(os.path.realpath(path))
    _require_room(real, weights + GRAPH)  # torch's writer aborts the process later
    beside: dict[str, Any] = {"prefix": f".{real.name}.", "suffix": PARTIAL, "dir": real.parent}
    with tempfile.TemporaryDirectory(**beside) as folder, quiet(), torch.no_grad():
        # Under its final name, which files with weights apart keep inside.
        place = Path(folder) / path.name
        try:
            prepared = maker.make(model, Target(images, precision, calibration, recipe, place))
        except Exception:  # some writers say in their own words that the disk is full
            written = sum(file.stat().st_size for file in Path(folder).iterdir())
            shutil.rmtree(folder)
            _require_room(real, max(weights, written) + GRAPH)
            raise
        features, done = [], 0
        for part in itertools.chain.from_iterable(images.split(batch) for batch in batches):
            features.append(prepared.call(part))
            done += len(part)
            tick(done)
        agreement = FeatureAgreement.of(torch.cat(features).split(len(images)), eager, batches)
        reduced = getattr(model, "reducer", None) is not None
        _require_agreement(agreement, path, maker, precision, least_cosine, reduced=reduced)
        # The file that is asked for comes last: who finds it finds the others.
        files = sorted(Path(folder).glob(f"{glob.escape(path.stem)}.*"), key=lambda file: file == place)
        description = {**_describe(model), "features": eager.shape[1], **(facts or {})}
        description |= {"runtime": runtime, "precision": precision, "files": [file.name for file in files]}
        if recipe is not None:
            assert calibration is not None
            description |= {"recipe": recipe, "calibration": calibration_digest(calibration)}
        description["agreement"] = asdict(agreement)
        _write_description(path, description)
        for file in files:
            write_whole(path.with_name(file.name), file)
    return agreement


def _require_agreement(
    agreement: FeatureAgreement,
    path: Path,
    runtime: Runtime,
    precision: str,
    least_cosine: float | None,
    *,
    reduced: bool,
) -> None:
    """Raise DisagreementError if a file may not be used."""
    tolerance = runtime.tolerance(precision)
    if least_cosine is not None and precision != "float32":
        tolerance = replace(tolerance, cosine=least_cosine)
    if problem := agreement.problem(precision, tolerance, reduced=reduced):
        raise DisagreementError(f"{runtime.name} in {precision}: {problem}; {path.name} was not written", agreement)


class SignalStem(nn.Module):
    """What an adaptive tower computes before pictures have budgets: images (B, 3, H, W) to signals (B, 1) float32."""

    def __init__(self, tower: Host) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        """Return the signals, clamped to what `Budgets.assign` tells apart."""
        return self.tower.signals(images).clamp(min=LEAST).unsqueeze(1)


def _export_adaptive(
    tower: Host,
    path: Path,
    images: Tensor,
    facts: Mapping[str, Any],
    tick: Callable[[int], object],
    how: dict[str, Any],
) -> FeatureAgreement:
    """Do what ``export_model`` does, of an adaptive tower; ``how`` are its other arguments.

    All calibration images serve each budget: few of them may take a budget on their own.
    """
    keeps, done, count = tower.adaptive.budgets.keeps, 0, len(images) * len(how["batches"])
    parts = {f"{path.stem}.keep{100 * keep:g}{path.suffix}": tower.budget(i) for i, keep in enumerate(keeps)}

    def advance(checked: int) -> None:
        tick(min(count - 1, (done + checked) // (len(parts) + 2)))

    path.parent.mkdir(parents=True, exist_ok=True)
    real = Path(os.path.realpath(path))
    with tempfile.TemporaryDirectory(prefix=f".{real.name}.", suffix=PARTIAL, dir=real.parent) as folder:
        place = Path(folder) / path.name
        stem = how | {"precision": "float32", "recipe": None, "calibration": None}
        for name, part in parts.items():
            export_model(part, Path(folder) / name, images, facts=facts, tick=advance, **how)
            done += count
        export_model(SignalStem(tower).eval(), place, images, tick=advance, **stem)
        description = strict_json(_description_file(place).read_bytes()) | _describe(tower) | facts
        first = read_description(Path(folder) / next(iter(parts)))
        description |= {name: getattr(first, name) for name in ("precision", "recipe", "calibration", "features")}
        description["budget_files"] = list(parts)
        _write_description(place, description)
        model = load_exported(place)
        with torch.no_grad():
            eager = torch.cat([tower(part) for part in images.split(max(how["batches"]))])
        features = [torch.cat([model(part) for part in images.split(batch)]) for batch in how["batches"]]
        agreement = FeatureAgreement.of(features, eager, how["batches"])
        maker = find_runtime(how["runtime"])
        _require_agreement(agreement, path, maker, how["precision"], how["least_cosine"], reduced=True)
        _write_description(place, description | {"agreement": asdict(agreement)})
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == place):
            write_whole(path.with_name(file.name), file)
    tick(count)
    return agreement


def find_file_runtime(name: str, precision: str, *, path: Path | None = None, loading: bool = False) -> FileRuntime:
    """Return a runtime with files; raise ValueError if it can't be had here, or its files end otherwise than a path."""
    runtime = find_runtime(name)
    if not isinstance(runtime, FileRuntime):
        raise ValueError(
            f"runtime {name!r} has no files: {expected(name, [each.name for each in RUNTIMES.values() if each.suffix])}"
        )
    runtime.require(precision, loading=loading)
    if path is not None and path.suffix != runtime.suffix:
        raise ValueError(f"{str(path)!r}: a file of {name} ends with {runtime.suffix!r}")
    return runtime


def _require_room(path: Path, size: int) -> None:
    """Raise NoRoomError if ``size`` bytes can't be written beside ``path``."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as full:
        if (told := no_room(path, size, full)) is not None:
            raise told from full
    except AttributeError:  # not on macOS and Windows
        pass


@dataclass(frozen=True, kw_only=True)
class ExportDescription:
    """What the JSON file beside an exported one says; None is what nobody told ``export_model``."""

    runtime: str
    precision: str
    files: tuple[str, ...]  # names of all files that the runtime reads, the one that is asked for last
    features: int  # D
    recipe: str | None = None  # by which it was made int8
    calibration: str | None = None  # digest of the pictures that showed ranges
    image_size: tuple[int, int] | None = None  # height and width
    model: str | None = None  # name, with method and keep rate
    tower: str | None = None  # name of the dense tower, whose text tower belongs to the features
    method: str | None = None  # that reduces the tower; None of a dense one
    options: dict[str, Any] = field(default_factory=dict)  # of the method
    recovery: str | None = None  # file of ``zoo.recover``'s result
    preprocessing: dict[str, Any] | None = None  # from picture to image
    weights_sha256: str | None = None  # of the image tower
    text_weights: str | None = None  # digest of the text tower's weights, which aren't in the file; None without one
    # Of an adaptive tower, whose ``files`` give signals in float32: names of the files of its budgets.
    budget_files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportedModel(ExportDescription):
    """An exported file, loaded: a call on images (B, 3, H, W) float32, with what the file is."""

    path: Path
    prepared: Prepared = field(repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float32 to features (B, D) float32."""
        return self.prepared.call(images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of all files, in hex."""
        return read_digest(self.path)


def _load_budgets(path: Path, description: ExportDescription, runtime: FileRuntime, threads: int) -> PreparedBudgets:
    """Load the files of an adaptive tower; ValueError if one isn't what it was written as."""
    budgets = from_json(Budgets, description.options.get("budgets"), "budgets", complete=True)
    each = []
    for name in description.budget_files:
        part = read_description(path.with_name(name))  # before it is loaded, which may run code
        if (part.runtime, part.precision) != (description.runtime, description.precision):
            raise ValueError(f"{name!r} is for {part.runtime} in {part.precision}, not a budget of {str(path)!r}")
        each.append(load_exported(path.with_name(name), threads=threads).prepared)
    if len(each) != len(budgets.keeps):
        raise ValueError(f"{str(path)!r} has {len(each)} files for {len(budgets.keeps)} budgets")
    signals = runtime.load(path, "float32", threads).call
    return PreparedBudgets(
        budgets=budgets,
        cost=from_json(float, description.options.get("cost"), "cost"),
        signals=lambda images: signals(images).squeeze(1),
        each=tuple(each),
    )


def read_description(path: Path) -> ExportDescription:
    """Read the JSON file beside an exported one; raise FileNotFoundError without one of its files, or ValueError."""
    beside = _description_file(path)
    if not path.is_file():
        raise add_remedy(FileNotFoundError(f"no exported model at {str(path)!r}"), "exported model")
    if not beside.is_file():
        raise add_remedy(FileNotFoundError(f"{str(path)!r} has no {beside.name} beside it"), "exported model")
    try:
        values, known = strict_json(beside.read_bytes()), {each.name for each in fields(ExportDescription)}
        values = {name: value for name, value in from_json(dict[str, Any], values, "it").items() if name in known}
        description: ExportDescription = from_json(ExportDescription, values, "it")
        siblings = _siblings(path, description)
    except ValueError as error:
        message = f"{str(beside)!r} doesn't describe an exported model: {error}"
        raise add_remedy(ValueError(message), "exported model") from error
    if missing := [file for file in siblings if not file.is_file()]:
        message = f"{str(path)!r} needs {str(missing[0])!r}, which is missing"
        raise add_remedy(FileNotFoundError(message), "exported model")
    return description


def read_digest(path: Path) -> str:
    """Return the SHA-256 over the content of all files of an exported model, in hex."""
    description = read_description(path)
    parts = [read_digest(path.with_name(name)) for name in description.budget_files]
    rest = [*parts, description.options] if parts else []  # with budgets and their cost
    own = (path.with_name(name) for name in description.files[:-1])
    return digest(*own, path, *rest, length=64)


def copy_exported(source: Path, path: Path, *, adaptive: tuple[str, float] | None = None) -> Path:
    """Copy an exported model with the files that belong to it, and return where it is, at ``path`` if it can be.

    A file that keeps the names of others inside keeps its own. An ``adaptive`` model gets another name and mean cost.
    Raise what ``read_description`` does.
    """
    if source.absolute() == path.absolute():
        return path
    description = strict_json(_description_file(source).read_bytes())
    names = read_description(source).files
    if any(not name.startswith(f"{source.stem}.") or Path(name).stem != source.stem for name in names):
        path = path.with_name(source.name)
    renamed = [name.replace(source.stem, path.stem, 1) for name in names]
    budgets = [
        copy_exported(source.with_name(name), path.with_name(name.replace(source.stem, path.stem, 1))).name
        for name in description.get("budget_files", ())
    ]
    if adaptive is not None:
        name, cost = adaptive
        description |= {"model": name, "options": description["options"] | {"cost": cost}}
    _write_description(path, {**description, "files": renamed, "budget_files": budgets})
    for old, new in zip(names, renamed, strict=True):
        write_whole(path.with_name(new), source.with_name(old).read_bytes())
    return path


def load_exported(path: str | Path, *, threads: int | None = None) -> ExportedModel:
    """Load a file with the runtime that it is for; the result maps images (B, 3, H, W) to features (B, D) float32.

    ONNX and OpenVINO files are data. Torch evaluates expressions in an exported program, and an AOTInductor package is
    machine code: load only those that somebody wrote whom you trust.

    Args:
        path: what ``export_model`` wrote, with the JSON file beside it.
        threads: of ONNX Runtime and OpenVINO; None for torch's number. Torch's own formats go by torch's.

    Raises:
        FileNotFoundError: no such file, or a file beside it is missing.
        ValueError: not such a file, or the runtime can't be had here.
    """
    path = Path(path)
    description = read_description(path)
    runtime = find_file_runtime(description.runtime, description.precision, path=path, loading=True)
    try:
        with quiet():
            threads = threads or torch.get_num_threads()
            if description.budget_files:
                prepared = Prepared.join(_load_budgets(path, description, runtime, threads))
            else:
                prepared = runtime.load(path, description.precision, threads, description.recipe)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # runtimes of others raise whatever they like
        reason = " ".join(str(error).strip().splitlines()[-1:])
        message = f"{str(path)!r} can't be loaded by {runtime.name} ({reason})"
        raise add_remedy(ValueError(message), "exported model") from error
    return ExportedModel(path=path, prepared=prepared, **vars(description))


def _siblings(path: Path, description: ExportDescription) -> list[Path]:
    """Return the files that belong to an exported one, without itself."""
    return [path.with_name(name) for name in (*description.files[:-1], *description.budget_files)]


def _description_file(path: Path) -> Path:
    """Return the place of the JSON file that describes an exported one."""
    return path.with_name(f"{path.name}.json")


def _write_description(path: Path, description: Mapping[str, Any]) -> None:
    write_whole(_description_file(path), (json.dumps(description, indent=2, allow_nan=False) + "\n").encode())


def _describe(model: nn.Module) -> dict[str, Any]:
    description: dict[str, Any] = {"version": version("clip-patchrank"), "method": None, "options": {}}
    if isinstance(model, Host):
        description |= {"weights_sha256": fingerprint(model), "image_size": list(model.input_size)}
        if model.reducer is not None:
            description |= {"method": model.reducer.method, "options": model.reducer.config.plain()}
    return description
