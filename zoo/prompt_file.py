"""Files of tuned prompts: what they hold and which tower they serve."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from zoo.files import read_facts, write_whole
from zoo.predictor_file import tower_name
from zoo.prompts import PromptShape

_KIND = "prompts"


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Saved prompts: tensors in safetensors, provenance in its metadata.

    The tensors are ``classifier`` (classes, D), unit text features; ``logit_scale``; ``visual``
    (depth, count, D_v) if visual tokens were learned; ``context`` (1 or classes, depth, count, D_t)
    if text tokens were.

    Attributes:
        path: the file.
        model: dense name of the tower, whatever method reduced it.
        tag: weight tag of that tower.
        weights: ``blocks_fingerprint`` of that tower.
        width: channels of its tokens.
        classes: names of what is told apart, in the order of the logits.
        dataset: where the classes and the labelled images are from.
        recipe: fields of ``TuneConfig``.
        shape: what a model needs to hold them.
        provenance: further facts, such as shots and seed.
    """

    path: Path
    model: str
    tag: str
    weights: str
    width: int
    classes: tuple[str, ...]
    dataset: str
    recipe: dict[str, Any]
    shape: PromptShape
    provenance: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "PromptFile":
        """Read the provenance of ``path``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of prompts.
        """
        facts = read_facts(path, _KIND)
        told = {**facts, "classes": tuple(facts["classes"]), "shape": PromptShape(**facts["shape"])}
        return cls(path=path, **told)

    def require_tower(self, width: int, weights: str) -> None:
        """Refuse another tower than the one that these were tuned on.

        Args:
            width: channels of the tower's tokens.
            weights: the tower's ``blocks_fingerprint``.

        Raises:
            ValueError: one of them differs.
        """
        named = f"prompts {str(self.path)!r} were tuned on {tower_name(self.model, self.tag)}"
        mend = f"tune some for this tower with: {tune_command(self)}"
        if width != self.width:
            raise ValueError(f"{named}, whose tokens have width {self.width}, not {width}; {mend}")
        if weights != self.weights:
            raise ValueError(f"{named} with weights {self.weights}, these are {weights}; {mend}")

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse another list of classes.

        Raises:
            ValueError: the names or their order differ; names the first difference.
        """
        if self.classes == tuple(classes):
            return
        named = f"prompts {str(self.path)!r} are for {len(self.classes)} classes of {self.dataset}"
        if len(classes) != len(self.classes):
            raise ValueError(f"{named}, not for {len(classes)}")
        pairs = zip(self.classes, classes, strict=True)
        place, (ours, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        raise ValueError(f"{named}; their class {place} is {ours!r}, not {theirs!r}")

    def load(self) -> dict[str, Tensor]:
        """Load all tensors."""
        return load_file(self.path)

    def tensors(self, *, classify: bool) -> dict[str, Tensor]:
        """Load what an image tower needs, named as in its state dict."""
        found = self.load()
        state = {"prompts.tokens": found["visual"]} if "visual" in found else {}
        if classify:
            state["head.classes.weight"] = found["logit_scale"].exp() * found["classifier"]
        return state


def save_prompts(path: Path, tensors: dict[str, Tensor], **facts: Any) -> PromptFile:
    """Write prompts whole or not at all.

    Args:
        path: the file.
        tensors: see ``PromptFile``.
        facts: the other fields of ``PromptFile``, ``path`` and ``shape`` excepted.
    """
    visual, classifier = tensors.get("visual"), tensors["classifier"]
    depth, count = (1, 0) if visual is None else visual.shape[:2]
    shape = PromptShape(
        depth=depth, tokens=count, classes=len(classifier), features=classifier.shape[1]
    )
    plain = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    told = {**facts, "classes": list(facts["classes"]), "shape": shape._asdict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(plain, {_KIND: json.dumps(told, sort_keys=True)}))
    return PromptFile.read(path)


def tune_command(like: PromptFile) -> str:
    """Return the command that tunes prompts of the same kind."""
    told = {"tokens": "vt", "count": 16, **like.recipe}
    return (
        f"python -m harness fit prompts --model MODEL --dataset {like.dataset} --tokens "
        f"{told['tokens']} --num-tokens {told['count']} --out PATH"
    )
