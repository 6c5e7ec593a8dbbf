"""What to rank: images, tower and settings, and the command line that says the same."""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.images import folder_images
from harness.golden.provenance import FOLDER_SPLIT
from harness.towers import Tower, text_classifier
from zoo.golden import GoldenConfig

AUTO = "auto"
SHARD_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to rank.

    Attributes:
        name: of the dataset or folder.
        revision: of the dataset or folder.
        split: train, val or test; ``all`` for a folder.
        images: the images.
        dataset: where the classes are from; None for a folder.
        flags: how the command line names them.
    """

    name: str
    revision: str
    split: str
    images: Split
    dataset: Dataset | None
    flags: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, split: SplitName) -> "Source":
        """Take a split of a dataset."""
        return cls(
            name=dataset.name,
            revision=dataset.revision,
            split=split,
            images=dataset.split(split),
            dataset=dataset,
            flags=("--dataset", dataset.asked_as, *dataset.asked_with, "--split", split),
        )

    @classmethod
    def folder(cls, path: Path) -> "Source":
        """Take all images below a folder.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no images in it.
        """
        found = folder_images(path)
        return cls(
            name=found.name,
            revision=found.revision,
            split=FOLDER_SPLIT,
            images=found.split,
            dataset=None,
            flags=("--images", str(path)),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to rank, and how.

    Attributes:
        model: dense tower, see ``harness.towers.load_tower``.
        source: the images.
        config: score, block, windows.
        budget: passes per image that window, stride and approximation are picked for; None to
            take those of ``config``.
        limit: images, None for all. A smaller limit's images are the first of a larger one's.
        out: the store; None for the user's cache, where ``compare`` looks.
        shard_size: images per shard.
        batch: sequences per forward pass; None for what the free memory allows.
        dtype: precision, or ``auto``: that of the store, else the fastest of the device.
        compiled: use torch.compile.
        device: torch device.
    """

    model: str
    source: Source
    config: GoldenConfig = field(default_factory=GoldenConfig)
    budget: float | None = None
    limit: int | None = None
    out: Path | None = None
    shard_size: int = SHARD_SIZE
    batch: int | None = None
    dtype: str = "float32"
    compiled: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        for name, value in (("limit", self.limit), ("shard-size", self.shard_size)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: expected a number from 1")

    def command(self, out: Path) -> str:
        """Return the command line of this job."""
        config = self.config
        parts = ["--model", self.model, *self.source.flags]
        for flag in ("score", "block", "window", "stride", "greedy"):
            if (value := getattr(config, flag)) is not None:
                parts += [f"--{flag}", str(value)]
        parts += ["--approx", config.approximate] if config.approximate else []
        parts += ["--full"] if self.limit is None else ["--limit", str(self.limit)]
        parts += ["--out", str(out), "--shard-size", str(self.shard_size)]
        parts += ["--batch", str(self.batch)] if self.batch else []
        parts += ["--compile"] if self.compiled else []
        parts += ["--dtype", self.dtype, "--device", self.device]
        return f"python -m harness rank {shlex.join(parts)}"


def within_budget(job: Job, tower: Tower) -> Job:
    """Return the job with the window, stride and approximation that its budget allows.

    Raises:
        ValueError: the budget is below the cheapest way.
    """
    if job.budget is None:
        return job
    from harness.golden.budget import recipe_for

    vit = tower.vit
    shape = {"grid": vit.patch_embed.grid_size, "depth": len(vit.blocks), "dim": vit.embed_dim}
    # Of the ways that it can pick, two need features made from the class token alone.
    pooled = vit.global_pool == "token"
    recipe = recipe_for(job.budget, block=job.config.block, token_pooled=pooled, **shape)
    return replace(job, config=replace(job.config, **recipe), budget=None)


def classes(job: Job, tower: Tower) -> tuple[Tensor | None, float]:
    """Encode the classes for scores that need them.

    Returns:
        (classes, D) unit features, or None for a score without classes; and the factor on cosines.

    Raises:
        ValueError: there are no classes or no text tower, or it lacks words for a class.
    """
    score, dataset = job.config.score, job.source.dataset
    if score == "preservation":
        return None, 1.0
    if dataset is None:
        raise ValueError(
            f"score={score!r} needs classes, and a folder of images has none; "
            "use --score preservation, or a --dataset"
        )
    if tower.clip is None:
        raise ValueError(
            f"score={score!r} needs a text tower, and {tower.name} has none here; use --score "
            "preservation, or --model open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    text, left_out = text_classifier(tower.clip, dataset)
    if left_out:
        raise ValueError(
            f"score={score!r} needs every class named, but {len(left_out)} of "
            f"{dataset.name} have words the text tower never saw: {', '.join(left_out[:5])}; "
            "use --score preservation"
        )
    return text, tower.clip.model.logit_scale.exp().item()
