"""Files of learned tokens and of schedules."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo.core.files import load_learned, read_learned, strict_json, write_learned, write_whole
from zoo.core.messages import tower_name, wanting
from zoo.core.prompts import PromptShape
from zoo.core.reducer import ReducerConfig, spread

_KIND = "prompts"


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Saved prompts: tensors in safetensors, provenance in its metadata.

    The tensors are ``classifier`` (classes, D), unit text features; ``logit_scale``; ``visual`` (depth, count, D_v) if
    visual tokens were learned; ``context`` (1 or classes, depth, count, D_t) if text tokens were.
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
        """Read the provenance of ``path``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of prompts.
        """
        file = read_learned(path, _KIND, cls)
        expected = {"classifier": [file.shape.classes, file.shape.features]}
        if file.shape.tokens:
            expected["visual"] = [file.shape.depth, file.shape.tokens, file.width]
        with safe_open(path, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        for name, shape in expected.items():
            if shapes.get(name) != shape or len(file.classes) != file.shape.classes:
                have = (
                    f"its {name!r} has shape {shapes.get(name)}, {len(file.classes)} classes and its facts say {shape}"
                )
                raise file._refusal(f"{str(path)!r} holds no {_KIND}: {have}")
        return file

    def require_tower(self, width: int, weights: str) -> None:
        """Refuse, by ValueError, a tower of another ``width`` or ``blocks_fingerprint``."""
        named = f"prompts {str(self.path)!r} were tuned on {tower_name(self.model, self.tag)}"
        if width != self.width:
            raise self._refusal(f"{named}, whose tokens have width {self.width}, not {width}")
        if weights != self.weights:
            raise self._refusal(f"{named} with weights {self.weights}, these are {weights}")

    def _refusal(self, message: str) -> ValueError:
        return wanting(ValueError(message), _KIND, dataset=self.dataset, recipe=self.recipe)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse, by ValueError, other names or another order; quote the first difference."""
        if self.classes == tuple(classes):
            return
        named = f"prompts {str(self.path)!r} are for {len(self.classes)} classes of {self.dataset}"
        if len(classes) != len(self.classes):
            raise ValueError(f"{named}, not for {len(classes)}")
        pairs = zip(self.classes, classes, strict=True)
        place, (ours, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        raise ValueError(f"{named}; their class {place} is {ours!r}, not {theirs!r}")

    def load(self) -> dict[str, Tensor]:
        """Load all tensors; raise as ``load_learned`` does."""
        # A class that was left out, for words that the text tower never saw, has a row of NaN.
        return load_learned(self.path, _KIND, gaps=["classifier"])

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
    depth, count = (1, 0) if visual is None else visual.shape[:2]
    shape = PromptShape(depth=depth, tokens=count, classes=len(classifier), features=classifier.shape[1])
    plain = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    fields = {**facts, "classes": list(facts["classes"]), "shape": shape._asdict()}
    write_learned(path, _KIND, plain, fields)
    return PromptFile.read(path)


FORMAT = 1  # of a file
OPTIONS = ("reduce_at", "schedule", "keep")  # what a method takes of a file


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """A schedule with its provenance, as JSON.

    Attributes:
        reduce_at: reduction points.
        schedule: keep rate after each but the last.
        keep: keep rate after the last.
        model: dense name of the tower that it was searched on.
        tag: weight tag.
        weights: its ``blocks_fingerprint``.
        method: reduction method.
        options: the method's settings apart from these three, as JSON values.
        cost: what was to be met, ``gflops`` or ``time``; as which model, ``asked`` and ``reached``.
        found: whether the search found it; else it is the method's default at that cost.
        datasets: name, revision, images, and 1 - cosine on held-out ones of the default (``before``), of the schedule
            (``after``) and the mean difference with its 95 % interval, of each.
        candidates: schedules that were tried.
        seconds: of the search.
        version: of this package.
        commit: of the code.
    """

    reduce_at: tuple[int, ...]
    schedule: tuple[float, ...]
    keep: float
    model: str
    tag: str
    weights: str
    method: str
    options: dict[str, Any]
    cost: dict[str, Any]
    found: bool
    datasets: list[dict[str, Any]]
    candidates: int
    seconds: float
    version: str
    commit: str | None = None
    format: int = FORMAT

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
            if not isinstance(facts, dict) or not set(OPTIONS) <= set(facts):
                raise ValueError(f"it lacks {', '.join(OPTIONS)}")
            if facts.get("format") != FORMAT:
                raise ValueError(f"it has format {facts.get('format')!r}, this version reads {FORMAT}")
            config = ReducerConfig(**{name: facts[name] for name in OPTIONS})
            facts |= {name: getattr(config, name) for name in OPTIONS}
            spread(1, facts["keep"], facts["reduce_at"], facts["schedule"])
            return cls(**facts)
        except (TypeError, ValueError) as error:
            raise wanting(ValueError(f"{str(path)!r} holds no schedule: {error}"), "schedule") from error

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_schedule(path: str | Path) -> dict[str, Any]:
    """Read the options ``reduce_at``, ``schedule`` and ``keep`` of a file of a schedule.

    They are shares of the patch tokens, so that any tower with these blocks takes them, on any grid; whether they are
    good for it wasn't measured. ``ScheduleFile`` says for which one they were found.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a schedule.
    """
    file = ScheduleFile.read(Path(path))
    return {name: getattr(file, name) for name in OPTIONS}
