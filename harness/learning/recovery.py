"""Recoveries of reduced towers, trained on datasets without looking at a label."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import git_commit
from harness.base.lines import claim_file
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import batches, require_images, seeded_order, subset
from harness.learning.settings import Sources
from harness.measure.rows import make_row, require_rows
from zoo.core.files import cache_file, digest
from zoo.core.recipes import RecoveryConfig
from zoo.learning.recovery import recover
from zoo.loading.recovery_file import RecoveryFile, save_recovery
from zoo.loading.towers import load_tower

HELD_OUT = 5  # one training image in so many, where a dataset has no val split


@dataclass(frozen=True)
class LearningSet:
    """A dataset's images to learn from and those held out; its test split isn't touched."""

    dataset: Dataset
    train: Split
    held_out: Split

    @property
    def facts(self) -> dict[str, Any]:
        """What a file that was learned from it says of it."""
        counts = {"images": len(self.train), "held_out": len(self.held_out)}
        return {"name": self.dataset.name, "revision": self.dataset.revision, **counts}

    @property
    def image_ids(self) -> list[Any]:
        """The images of both parts."""
        return [self.train.image_ids, self.held_out.image_ids]


def learning_sets(sources: Sources) -> list[LearningSet]:
    """Return the images of each dataset; ValueError for an unknown one, or one without images."""
    sets = []
    for dataset in map(get_dataset, sources.datasets):
        require_images(dataset, "train", "images to learn from asked for")
        train, val = dataset.split("train"), dataset.split("val")
        if not len(val):
            order, count = seeded_order(len(train), 0), len(train) // HELD_OUT
            train, val = train.subset(order[count:]), train.subset(order[:count])
        train, val = subset(train, sources.limit), subset(val, sources.held_out)
        if not len(train) or not len(val):
            raise ValueError(
                f"dataset {dataset.name!r} has {len(train)} images to learn from and {len(val)} to stop by; it needs "
                "both, from its train and val splits"
            )
        sets.append(LearningSet(dataset, train, val))
    return sets


def train_recovery(
    model: str,
    method: str,
    options: Mapping[str, Any],
    sources: Sources,
    config: RecoveryConfig,
    *,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress,
) -> RecoveryFile:
    """Train a recovery of a dense ``model`` by a method and write it; a run that was stopped goes on where it was.

    ``out`` None is for the user's cache.

    Raises:
        ValueError: an unknown name, a dataset without images, or what `zoo.recover` refuses.
    """
    sets = learning_sets(sources)
    require_rows(model, [(method, options["keep"])])
    tower = load_tower(model)
    row = make_row(tower, method, options)
    path = out or cache_file("recoveries", f"{row.model}.{tower.tag or 'own'}.{config.what}.safetensors")

    facts, ids = [one.facts for one in sets], [one.image_ids for one in sets]
    decisive = [asdict(config), facts, ids, tower.name, row.config, torch.__version__]

    def read(split: Split) -> Tensor:
        return torch.cat([images.to(torch.bfloat16) for _, images in batches(split, tower.preprocess)])

    with claim_file(path):
        progress.say(f"reading images of {', '.join(one.dataset.name for one in sets)}")
        train, val = [read(one.train) for one in sets], [read(one.held_out) for one in sets]
        checkpoint = cache_file("fits", f"{digest(decisive)}.pt")
        vit = row.vit.to(device)
        with progress.task(f"steps of {row.model}", config.rounds * config.steps) as update:
            recovered = recover(vit, train, val, config, on_step=update, checkpoint=checkpoint)
        origin: dict[str, Any] = {"name": tower.arch, "tag": tower.tag, "datasets": facts, "commit": git_commit()}
        file = save_recovery(path, vit, recovered, config, **origin)
        checkpoint.unlink(missing_ok=True)
        return file
