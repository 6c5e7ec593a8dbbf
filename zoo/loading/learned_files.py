"""Files of learned tokens and of schedules, and how a file of something learned refuses another tower."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.core.files import from_json, load_learned, read_learned, strict_json, wanting, write_learned, write_whole
from zoo.core.learned import PromptShape
from zoo.core.messages import tower_name
from zoo.core.reducer import METHODS, ReducerConfig, configure, spread

FORMAT = 1  # of a schedule
OPTIONS = ("reduce_at", "schedule", "keep")  # what a method takes of a schedule


def difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say which fact differs first, of what something was learned for and of what it is to serve; "" if none does."""
    for name in (*own, *other):
        if own.get(name) != other.get(name):
            return f"with {name}={own.get(name)!r}, this model has {name}={other.get(name)!r}"
    return ""


def dataset_names(facts: Any, field: str = "name") -> list[str]:
    """Return what a file calls its data sets, a list of objects; ValueError unless each has its name in ``field``."""
    sets = from_json(list[dict[str, Any]], facts, "data sets")
    return [from_json(str, one.get(field), f"{field!r} of a data set") for one in sets]


def check_settings(method: str, options: Mapping[str, Any]) -> None:
    """Refuse, by ValueError, settings that a method can't have; one that isn't registered is refused where it is used.

    ``options`` have its reduction points.
    """
    if method in METHODS:
        configure(method, dict(options), depth=0)


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Saved prompts: tensors in safetensors, provenance in its metadata.

    The tensors are ``classifier`` (classes, D), unit text features; ``logit_scale``; ``visual`` (count, D_v) if
    visual tokens were learned; ``context`` (1 or classes, count, D_t) if text tokens were.
    """

    path: Path
    model: str  # dense name of the tower, also where a method reduced it
    tag: str  # its weight tag
    weights: str  # its ``blocks_fingerprint``
    width: int  # channels of its tokens
    classes: tuple[str, ...]  # names in the order of the logits
    dataset: str  # source of the classes and the labelled images
    recipe: dict[str, Any]  # fields of ``TuneConfig``
    shape: PromptShape
    provenance: dict[str, Any]  # further facts, such as shots and seed

    @classmethod
    def read(cls, path: Path) -> "PromptFile":
        """Read the provenance of ``path``; raise as ``read_learned`` does."""
        return read_learned(path, "prompts", cls)

    def require_tower(self, width: int, weights: str) -> None:
        """Refuse, by ValueError, a tower of another ``width`` or ``blocks_fingerprint``."""
        own, other = {"width": self.width, "weights": self.weights}, {"width": width, "weights": weights}
        if differs := difference(own, other):
            name = tower_name(self.model, self.tag)
            message = f"prompts {str(self.path)!r} were tuned on {name} {differs}"
            raise wanting(ValueError(message), "prompts", dataset=self.dataset, recipe=self.recipe)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse, by ValueError, other names or another order; quote the first difference."""
        named = f"prompts {str(self.path)!r} are for {len(self.classes)} classes of {self.dataset}"
        if len(classes) != len(self.classes):
            raise ValueError(f"{named}, not for {len(classes)}")
        for place, (ours, theirs) in enumerate(zip(self.classes, classes, strict=True)):
            if ours != theirs:
                raise ValueError(f"{named}; their class {place} is {ours!r}, not {theirs!r}")

    def load(self) -> dict[str, Tensor]:
        """Load all tensors; raise as ``load_learned`` does."""
        # A class that was left out, for words that the text tower never saw, has a row of NaN.
        return load_learned(self.path, "prompts", gaps=["classifier"])

    def tensors(self, *, classify: bool) -> dict[str, Tensor]:
        """Load what an image tower needs, named as in its state dict."""
        saved = self.load()
        state = {"prompts.tokens": saved["visual"]} if "visual" in saved else {}
        if classify:
            state["head.classes.weight"] = saved["logit_scale"].exp() * saved["classifier"]
        return state


def save_prompts(path: Path, tensors: dict[str, Tensor], **facts: Any) -> PromptFile:
    """Write prompts whole or not at all; ``facts`` are the fields of ``PromptFile`` but shape."""
    visual, classifier = tensors.get("visual"), tensors["classifier"]
    count = 0 if visual is None else len(visual)
    shape = PromptShape(tokens=count, classes=len(classifier), features=classifier.shape[1])
    plain = {k: v.to("cpu", torch.float32) for k, v in tensors.items()}
    write_learned(path, "prompts", plain, {**facts, "classes": list(facts["classes"]), "shape": shape._asdict()})
    return PromptFile.read(path)


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """A schedule that was found by measurement, with its provenance, as JSON."""

    reduce_at: tuple[int, ...]  # reduction points
    schedule: tuple[float, ...]  # keep rate after each but the last
    keep: float  # after the last
    model: str  # dense name of the tower that it was searched on
    tag: str  # its weight tag
    weights: str  # its ``blocks_fingerprint``
    method: str
    options: dict[str, Any]  # the method's settings apart from these three
    cost: dict[str, Any]  # what was to be met, ``gflops`` or ``time``; as which model, ``asked`` and ``reached``
    found: bool  # by the search; else it is the method's default at that cost
    datasets: list[dict[str, Any]]  # with 1 - cosine on held-out images of the default and of the schedule, of each
    candidates: int  # schedules that were tried
    seconds: float  # of the search
    version: str  # of this package
    commit: str | None = None  # of the code
    format: int = FORMAT

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in OPTIONS}
        ReducerConfig(**numbers)
        spread(1, self.keep, self.reduce_at, self.schedule)
        check_settings(self.method, self.options | numbers)
        dataset_names(self.datasets)

    @classmethod
    def read(cls, path: Path) -> "ScheduleFile":
        """Read and check a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a schedule, or one of another format or with numbers out of range.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no schedule at {str(path)!r}: the file does not exist")
        try:
            facts = strict_json(path.read_bytes())
            if isinstance(facts, dict) and (have := facts.get("format")) != FORMAT:
                raise ValueError(f"it has format {have!r}, this version reads {FORMAT}")
            file: ScheduleFile = from_json(cls, facts, "schedule")
        except ValueError as error:
            raise wanting(ValueError(f"{str(path)!r} holds no schedule: {error}"), "schedule") from error
        return file

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_schedule(path: str | Path) -> dict[str, Any]:
    """Read the options ``reduce_at``, ``schedule`` and ``keep`` of a file of a schedule.

    They are shares of the patch tokens, so that any tower with these blocks takes them, on any grid; whether they are
    good for it wasn't measured. ``ScheduleFile`` says for which one they were found, and what ``read`` refuses.
    """
    file = ScheduleFile.read(Path(path))
    return {name: getattr(file, name) for name in OPTIONS}
