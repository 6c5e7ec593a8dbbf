"""Files of what was learned for a tower: predictors, tokens, recoveries, schedules, budgets. They fit no other."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from zoo.core.adaptive import Budgets
from zoo.core.digests import digest
from zoo.core.errors import add_remedy
from zoo.core.files import EMBEDDED, cache_folder, write_whole
from zoo.core.json_reader import from_json, strict_json
from zoo.core.learned import PromptShape
from zoo.core.recipes import RecoveryConfig
from zoo.core.reducer import METHODS, ReducerConfig, configure, token_counts
from zoo.core.settings import tower_name

PredictorPath = str | Path | None
PREFIX = "reducer.predictor."  # of a predictor's weights in a model's state dict
FORMAT = 1  # of a schedule, and of budgets
RECOVERY_FORMAT = 3  # of a recovery
OPTIONS = ("reduce_at", "schedule", "keep")  # what a method takes of a schedule
_log = logging.getLogger(__name__)


def write_learned(path: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write what was learned as safetensors, with ``metadata`` and a hash of all under the name ``kind``."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = json.dumps(metadata | {"hash": _hash(metadata, plain)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(plain, {kind: content}))


def _hash(metadata: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    parts: list[Any] = [metadata]
    for name, value in sorted(tensors.items()):
        parts.append(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        parts.append(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest(*parts, length=64)


def read_facts(path: Path, kind: str) -> dict[str, Any]:
    """Read the metadata ``kind``, such as ``predictor``, of a safetensors file of ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of that kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {str(path)!r}: the file does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(kind)
        if text is None:
            raise ValueError(f"it lacks the {kind!r} metadata")
        metadata = strict_json(text)
        if not isinstance(metadata, dict):
            raise ValueError(f"its {kind!r} metadata is a {type(metadata).__name__}")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no {kind}: {error}") from error
    return metadata


def dataset_names(datasets: Any, field: str = "name") -> list[str]:
    """Return what a file calls its data sets, a list of objects; ValueError unless each has its name in ``field``."""
    sets = from_json(list[dict[str, Any]], datasets, "data sets")
    return [from_json(str, each.get(field), f"{field!r} of a data set") for each in sets]


ANY_KEEP = 0.5  # stands in where a method is asked for what doesn't depend on its keep rate


def check_settings(method: str, options: Mapping[str, Any]) -> None:
    """Refuse, by ValueError, settings that a method can't have; unknown methods are refused where they are used."""
    if method in METHODS:
        configure(method, dict(options), depth=0)


@dataclass(frozen=True, kw_only=True)
class LearnedFile:
    """Tensors in safetensors, with the fields of a subclass in their metadata."""

    path: Path
    model: str  # dense name of the tower, also where a method reduced it
    tag: str  # its weight tag

    # Unannotated, these are no fields.
    kind = verb = ""  # a verb for how such a thing gets to its tower
    mends = tuple[str, ...]()  # fields that say how another one is made
    gaps = tuple[str, ...]()  # tensors of which whole rows, but not all, may be NaN

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the facts of a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file of another kind or format, or a field is missing, unknown or of another type.
        """
        path, kind, wanted = Path(path), cls.kind, getattr(cls, "format", None)
        metadata = read_facts(path, kind)
        if wanted is not None and (have := metadata.get("format")) != wanted:
            raise add_remedy(ValueError(f"{kind} {str(path)!r} has format {have!r}, this version reads {wanted}"), kind)
        metadata.pop("hash", None)
        try:
            return from_json(cls, metadata, kind, path=path)
        except ValueError as error:
            raise add_remedy(ValueError(f"{str(path)!r} holds no {kind}: {error}"), kind) from error

    def load(self) -> dict[str, Tensor]:
        """Load all tensors; ValueError if they or the facts aren't those that were written, or aren't finite."""
        metadata = read_facts(self.path, self.kind)
        written = metadata.pop("hash", None)
        try:
            tensors: dict[str, Tensor] = load_file(self.path)
            if _hash(metadata, tensors) != written:
                raise ValueError("is damaged: its content is not what was written")
            for name, value in tensors.items():
                finite = value.isfinite()
                if name in self.gaps and finite.any():
                    finite = finite | value.isnan().all(dim=-1, keepdim=True)
                if not finite.all():
                    raise ValueError(f"has values that aren't finite in {name!r}")
        except (SafetensorError, ValueError) as error:
            reason = f"is damaged ({error})" if isinstance(error, SafetensorError) else error
            raise add_remedy(ValueError(f"{self.kind} {str(self.path)!r} {reason}"), self.kind, **metadata) from error
        return tensors

    def refusal(self, reason: str, **other: Any) -> ValueError:
        """Make an error that a file like this, but for ``other`` fields, would mend."""
        metadata = {name: getattr(self, name) for name in self.mends}
        return add_remedy(ValueError(f"{self.kind} {str(self.path)!r} {reason}"), self.kind, **metadata | other)

    def compare(self, source: Mapping[str, Any], target: Mapping[str, Any], **other: Any) -> None:
        """Raise ValueError if what it was learned for differs from what it is to serve; quote the first difference.

        ``other`` are fields for ``refusal``.
        """
        for name in (*source, *target):
            if source.get(name) != target.get(name):
                tower = f"{tower_name(self.model, self.tag)} with {name}={source.get(name)!r}"
                raise self.refusal(f"was {self.verb} {tower}, this model has {name}={target.get(name)!r}", **other)


@dataclass(frozen=True, kw_only=True)
class PredictorFile(LearnedFile):
    """A saved predictor, of reduction point ``block``, named as in ``Predictor``."""

    block: int
    options: dict[str, str | int]  # those that shape the network: ``arch``, ``width``
    weights: str | None = None  # the tower's ``blocks_fingerprint``, None in files that serve any of its name
    recipe: dict[str, Any] | None = None  # fields of ``FitConfig``
    provenance: dict[str, Any] | None = None  # facts about the rankings

    kind, verb = "predictor", "fitted to"
    mends = ("model", "tag", "block", "options")

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that it was fitted to; ValueError if the facts about the rankings are malformed."""
        try:
            return dataset_names((self.provenance or {}).get("rankings", []), "dataset")
        except ValueError as error:
            raise self.refusal(f"doesn't say what it was fitted to: {error}") from error

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``; raise ValueError if they ask for another network."""
        for key, value in self.options.items():
            option = options.setdefault(key, value)
            if option != value:
                raise self.refusal(f"has {key}={value!r}, not {key}={option!r}", options={**self.options, key: option})

    def require(self, **other: Any) -> None:
        """Raise ValueError unless it was fitted to these: ``model``, ``tag``, ``block`` or ``weights``."""
        weights = other.pop("weights", self.weights)
        fitted = {name: getattr(self, name) for name in other}
        self.compare({**fitted, "weights": self.weights or weights}, {**other, "weights": weights}, **other)

    def tensors(self) -> dict[str, Tensor]:
        """Load the weights, named as in a model's state dict."""
        return {PREFIX + name: tensor for name, tensor in self.load().items()}


def predictor_name(model: str, tag: str, block: int) -> str:
    """Return the file name of a predictor for a tower (dense timm name, weight tag) and block."""
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    return f"{tower}.patchrank.block{block}.safetensors"


def budgets_name(model: str, tag: str, method: str) -> str:
    """Return the file name of a method's budgets for a tower (dense timm name, weight tag)."""
    return predictor_name(model, tag, 0).replace("patchrank.block0.safetensors", f"{method}.budgets.json")


def find_budgets(model: str, tag: str, method: str) -> Path:
    """Find a method's budgets for a tower: the user's own, else the packaged ones, else raise FileNotFoundError."""
    name = budgets_name(model, tag, method)
    for folder in (cache_folder() / "budgets", EMBEDDED):
        if os.access(folder / name, os.R_OK):
            return folder / name
    message = f"no budgets of {method} for {tower_name(model, tag)}: neither packaged nor in the user's cache"
    raise add_remedy(FileNotFoundError(message), "budgets", method=method)


def find_fitted(model: str, tag: str) -> tuple[int, ...]:
    """Return the blocks for which ``find_predictor`` finds one by itself, ascending."""
    start, end = predictor_name(model, tag, 0).rsplit("0", 1)
    names = [path.name for folder in _folders() for path in folder.glob(f"{start}*{end}")]
    blocks = {name.removeprefix(start).removesuffix(end) for name in names}
    return tuple(sorted(int(block) for block in blocks if block.isdecimal()))


def _folders() -> tuple[Path, Path]:  # the user's own predictors, and those of the package
    return cache_folder() / "predictors", EMBEDDED


def find_predictor(model: str, tag: str, block: int, *, shape: Mapping[str, Any] | None = None) -> PredictorFile:
    """Find the predictor for a tower: the user's own, else the packaged one, else raise FileNotFoundError.

    ``shape`` holds ``arch`` and ``width`` of the one that is wanted.
    """
    name = predictor_name(model, tag, block)
    files = [folder / name for folder in _folders() if os.access(folder / name, os.R_OK)]
    if not files:
        blocks = ", ".join(map(str, find_fitted(model, tag)))
        there = f" (fitted so far: block {blocks})" if blocks else ""
        message = (
            f"no predictor for {tower_name(model, tag)} at block {block}: neither packaged nor in the user's "
            f"cache{there}; pass predictor=PATH, or use pretrained=False"
        )
        wanted = {"model": model, "tag": tag, "block": block, "options": dict(shape or {})}
        raise add_remedy(FileNotFoundError(message), "predictor", **wanted)
    if len(files) > 1:
        _log.warning("predictor %s of your own is used, not the packaged one; remove it to use that", files[0])
    return PredictorFile.read(files[0])


def with_predictor(
    model: str, tag: str, method: str, options: dict[str, Any], depth: int, path: PredictorPath = None
) -> tuple[dict[str, Any], PredictorFile | None]:
    """Read or find a model's predictor, None of a method without; add its network's shape to options."""
    block, completed = configure(method, options, depth).predictor_block(depth), dict(options)
    if block is None:
        return completed, None
    file = find_predictor(model, tag, block, shape=options) if path is None else PredictorFile.read(path)
    file.require(model=model, tag=tag, block=block)
    file.fill(completed)
    return completed, file


@dataclass(frozen=True, kw_only=True)
class PromptFile(LearnedFile):
    """Saved prompts.

    The tensors are ``classifier`` (classes, D), unit text features, a row of NaN for a class with words that the text
    tower never saw; ``logit_scale``; ``visual`` (count, D_v) if visual tokens were learned; ``context`` (1 or classes,
    count, D_t) if text tokens were.
    """

    weights: str  # the tower's ``blocks_fingerprint``
    width: int  # channels of its tokens
    classes: tuple[str, ...]  # names in the order of the logits
    dataset: str  # source of the classes and the labelled images
    recipe: dict[str, Any]  # fields of ``TuneConfig``
    shape: PromptShape
    provenance: dict[str, Any]  # further facts, such as shots and seed

    kind, verb = "prompts", "tuned on"
    mends, gaps = ("dataset", "recipe"), ("classifier",)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse, by ValueError, other names or another order; quote the first difference."""
        named = f"prompts {str(self.path)!r} are for {len(self.classes)} classes of {self.dataset}"
        if len(classes) != len(self.classes):
            raise ValueError(f"{named}, not for {len(classes)}")
        for place, (ours, theirs) in enumerate(zip(self.classes, classes, strict=True)):
            if ours != theirs:
                raise ValueError(f"{named}; their class {place} is {ours!r}, not {theirs!r}")

    def tensors(self, *, classify: bool) -> dict[str, Tensor]:
        """Load what an image tower needs, named as in its state dict."""
        saved = self.load()
        state = {"prompts.tokens": saved["visual"]} if "visual" in saved else {}
        if classify:
            state["head.classes.weight"] = saved["logit_scale"].exp() * saved["classifier"]
        return state


def save_prompts(path: Path, tensors: dict[str, Tensor], **fields: Any) -> PromptFile:
    """Write prompts whole or not at all; ``fields`` are those of ``PromptFile`` but shape."""
    visual, classifier = tensors.get("visual"), tensors["classifier"]
    count = 0 if visual is None else len(visual)
    shape = PromptShape(tokens=count, classes=len(classifier), features=classifier.shape[1])
    plain = {k: v.to("cpu", torch.float32) for k, v in tensors.items()}
    write_learned(path, "prompts", plain, {**fields, "classes": list(fields["classes"]), "shape": shape._asdict()})
    return PromptFile.read(path)


@dataclass(frozen=True, kw_only=True)
class RecoveryFile(LearnedFile):
    """A saved recovery, with float32 tensors, which ``zoo.add_recovery`` adds to a tower."""

    weights: str  # the tower's ``blocks_fingerprint``, for a head with that of the map's weight
    method: str
    options: dict[str, Any]  # the method's settings, as JSON values
    patches: int  # patch tokens of an image in training
    counts: dict[str, int]  # of these, how many were left after each reduction point: settings may leave it to a rule
    reducer: str | None  # digest of the reducer's own weights, such as a predictor's
    datasets: list[dict[str, Any]]  # name, revision, images, and 1 - cosine before and after, of each
    recipe: dict[str, Any]  # fields of ``RecoveryConfig``
    parameters: int  # learned
    format: int = RECOVERY_FORMAT
    commit: str | None = None  # of the code

    kind, verb = "recovery", "trained on"
    mends = ("datasets",)

    def __post_init__(self) -> None:
        check_settings(self.method, self.options)
        dataset_names(self.datasets)
        from_json(RecoveryConfig, self.recipe, "recipe", complete=True)

    def require(self, marks: Mapping[str, Any], *, tokens_learned: bool) -> None:
        """Raise ValueError unless a tower has these ``marks``, see ``reduction_marks``, and no learned tokens."""
        self.compare(_named_marks(vars(self), False), _named_marks(marks, tokens_learned))


def _named_marks(marks: Mapping[str, Any], tokens_learned: bool) -> dict[str, Any]:
    """Return the marks of a recovery's tower by the names, and in the order, in which a refusal quotes them."""
    first = {"weights": marks["weights"], "tokens learned": tokens_learned, "method": marks.get("method")}
    return {**first, **marks.get("options", {}), "counts": marks.get("counts"), "predictor": marks.get("reducer")}


@dataclass(frozen=True, kw_only=True)
class PlainFile:
    """What was found by measurement, with its provenance, as JSON; the fields are a subclass's."""

    model: str  # dense name of the tower that was measured
    tag: str  # its weight tag
    weights: str  # its ``blocks_fingerprint``
    method: str
    version: str  # of this package

    kind = ""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a file; raise FileNotFoundError or ValueError."""
        path, kind = Path(path), cls.kind
        if not path.is_file():
            raise add_remedy(FileNotFoundError(f"no {kind} at {str(path)!r}: the file does not exist"), kind)
        try:
            values = strict_json(path.read_bytes())
            wanted = getattr(cls, "format", None)
            if isinstance(values, dict) and (have := values.get("format")) != wanted:
                raise ValueError(f"it has format {have!r}, this version reads {wanted}")
            file: Self = from_json(cls, values, kind)
        except ValueError as error:
            raise add_remedy(ValueError(f"{str(path)!r} holds no {kind}: {error}"), kind) from error
        return file

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class ScheduleFile(PlainFile):
    """A schedule that was found by measurement."""

    reduce_at: tuple[int, ...]  # reduction points
    schedule: tuple[float, ...]  # keep rate after each but the last
    keep: float  # after the last
    options: dict[str, Any]  # the method's settings apart from these three
    cost: dict[str, Any]  # what was to be met, ``gflops`` or ``time``; as which model, ``asked`` and ``reached``
    found: bool  # by the search; else it is the method's default at that cost
    datasets: list[dict[str, Any]]  # with 1 - cosine on held-out images of the default and of the schedule, of each
    candidates: int  # schedules that were tried
    seconds: float  # of the search
    commit: str | None = None  # of the code
    format: int = FORMAT

    kind = "schedule"

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in OPTIONS}
        ReducerConfig(**numbers)
        token_counts(1, self.keep, self.reduce_at, self.schedule)
        check_settings(self.method, self.options | numbers)
        dataset_names(self.datasets)


def read_schedule(path: str | Path) -> dict[str, Any]:
    """Read the options ``reduce_at``, ``schedule`` and ``keep`` of a file of a schedule.

    Any tower with these blocks takes them, on any grid; whether they are good for it wasn't measured.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a schedule, or one of another format or with numbers out of range.
    """
    file = ScheduleFile.read(path)
    return {name: getattr(file, name) for name in OPTIONS}


@dataclass(frozen=True, kw_only=True)
class BudgetFile(PlainFile):
    """Budgets that were fitted to pictures without labels."""

    options: dict[str, Any]  # the method's settings apart from the keep rate, as JSON values
    budgets: Budgets
    cost: float  # mean share of the dense tower's multiply-adds on these pictures, where none is asked for
    bound: dict[str, Any]  # what that cost was solved for, ``min_cosine`` or ``min_cosine_95``; empty if it was given
    datasets: list[dict[str, Any]]  # name, revision and numbers of pictures, of each
    judged: list[dict[str, Any]]  # 1 - cosine of images held out at several costs, by a fixed keep rate and by budgets
    commit: str | None = None  # of the code
    format: int = FORMAT

    kind = "budgets"

    def __post_init__(self) -> None:
        check_settings(self.method, {**self.options, "keep": self.budgets.keeps[-1]})
        self.budgets.penalty(self.cost)
        dataset_names(self.datasets)

    def require(self, weights: str, method: str, options: Mapping[str, Any]) -> None:
        """Raise ValueError unless they were fitted to a tower of these weights, reduced in this way, by this package.

        ``options`` are all settings of the method, as JSON values, apart from the keep rate.
        """
        fitted = {"version": self.version, "weights": self.weights, "method": self.method, **self.options}
        asked = {"version": version("clip-patchrank"), "weights": weights, "method": method, **options}
        for name in (*fitted, *asked):
            if (was := fitted.get(name)) != (now := asked.get(name)):
                tower = tower_name(self.model, self.tag)
                raise add_remedy(
                    ValueError(f"these budgets were fitted to {tower} with {name}={was!r}, this is {name}={now!r}"),
                    self.kind,
                    method=method,
                )
