"""What a set of golden rankings was made from, as JSON beside the data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from harness.datasets import Dataset, kind_of
from zoo.golden import GoldenConfig

FOLDER_SPLIT = "all"  # the split of a folder of images, which has no others


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a set of rankings was made from, and how. Two are equal whatever their versions.

    Attributes:
        model: name of the dense tower, with its weight tag.
        weights: fingerprint of the tower's weights, see ``zoo.weights.fingerprint``.
        dataset: name of the dataset or of the folder of images.
        revision: revision of the dataset or folder.
        split: train, val or test; ``all`` for a folder.
        score: preservation, label or confidence.
        block: reduction point, 0-based.
        window: side of the window in patches.
        stride: step of the window in patches.
        dtype: of the computation.
        greedy: patches removed per round; None = one-shot.
        approximate: how the score was approximated; None = exact.
        versions: of the packages that computed it.
    """

    model: str
    weights: str
    dataset: str
    revision: str
    split: str
    score: str
    block: int
    window: int
    stride: int
    dtype: str
    greedy: int | None = None
    approximate: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read what ``json`` wrote; fields that came later may be missing.

        Raises:
            ValueError: not JSON, or fields that this version doesn't know or misses.
        """
        facts = json.loads(text)
        known = {entry.name for entry in fields(cls)}
        if not isinstance(facts, dict) or not facts.keys() <= known:
            raise ValueError(
                f"provenance {facts!r}: expected the fields {', '.join(sorted(known))}"
            )
        try:
            return cls(**facts)
        except TypeError as error:
            raise ValueError(f"provenance {facts!r}: {error}") from error

    def json(self) -> str:
        """Return everything as JSON, sorted by name."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, wanted: "Provenance") -> list[str]:
        """Say in which fields ``wanted`` differs, versions aside: name, value here, value there."""
        names = [entry.name for entry in fields(self) if entry.compare]
        return [
            f"{name}={getattr(self, name)!r} there, {getattr(wanted, name)!r} wanted"
            for name in names
            if getattr(self, name) != getattr(wanted, name)
        ]

    def described(self) -> str:
        """Return the settings in words."""
        names = [entry.name for entry in fields(GoldenConfig)]
        return GoldenConfig(**{name: getattr(self, name) for name in names}).described()

    def command(self) -> str:
        """Return the command that makes such rankings."""
        return rank_command(**asdict(self))


def ranked_revision(dataset: Dataset, score: str) -> str:
    """Return the revision that rankings of a dataset go by; by some scores, prompts matter."""
    return dataset.revision if score == "preservation" else dataset.condition


def rank_command(**facts: Any) -> str:
    """Return the command that makes rankings with these fields of ``Provenance``."""
    source = "--dataset {dataset} --split {split}"
    if (prefix := kind_of(facts["dataset"])) is not None:
        source = f"--dataset {prefix}:PATH --split {{split}}"
    if facts["split"] == FOLDER_SPLIT:
        source = "--images FOLDER"
    text = (
        "python -m harness rank --model {model} " + source + " --score {score} --block {block} "
        "--window {window} --stride {stride}"
    )
    if facts["greedy"] is not None:
        text += " --greedy {greedy}"
    if facts["approximate"] is not None:
        text += " --approx {approximate}"
    return text.format(**facts)
