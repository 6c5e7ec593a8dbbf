"""Recoveries of reduced towers, trained on datasets without looking at a label."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.datasets.few_shot import batches
from harness.learning.settings import Sources
from harness.learning.sources import checkpoint_of, learning_sets
from harness.measure.rows import make_row, require_rows
from zoo.core.files import cache_file
from zoo.core.recipes import RecoveryConfig
from zoo.learning.recovery import recover, save_recovery
from zoo.loading.learned_files import RecoveryFile
from zoo.loading.towers import load_tower


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
    datasets = [images.provenance for images in sets]
    conditions = [asdict(config), datasets, [images.image_ids for images in sets], tower.name, row.config]

    def read(split: Split) -> Tensor:
        return torch.cat([images.to(torch.bfloat16) for _, images in batches(split, tower.preprocess)])

    with lock_file(path), checkpoint_of(*conditions) as checkpoint:
        progress.say(f"reading images of {', '.join(images.dataset.name for images in sets)}")
        train, held_out = [read(images.train) for images in sets], [read(images.held_out) for images in sets]
        vit = row.vit.to(device)
        with progress.task(f"steps of {row.model}", config.rounds * config.steps) as update:
            recovered = recover(vit, train, held_out, config, on_step=update, checkpoint=checkpoint)
        names = {"name": tower.arch, "tag": tower.tag}
        return save_recovery(path, vit, recovered, config, **names, datasets=datasets, commit=git_commit())
