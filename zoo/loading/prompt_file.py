"""Files of learned visual tokens and text features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo.core.files import load_learned, read_learned, write_learned
from zoo.core.messages import tower_name, wanting
from zoo.core.prompts import PromptShape

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
