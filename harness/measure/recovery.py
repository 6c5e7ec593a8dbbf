"""Recoveries of reduced towers: trained on datasets without looking at a label, and as rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import git_commit
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import batches, require_images, seeded_order, subset
from harness.measure.rows import Variant, reduced_row, require_rows
from harness.models.towers import load_tower, split_method
from zoo.core.files import cache_folder, digest
from zoo.core.messages import tower_name
from zoo.learning.recovery import recover
from zoo.loading.recovery_file import RecoveryConfig, RecoveryFile, add_recovery, save_recovery
from zoo.towers.vit import ReducedViT

PREPARED = 0.2  # of a tower's run on an image that reading and preparing it takes, about
HELD_OUT = 5  # one training image in so many, where a dataset has no val split


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Which images are learned from without labels."""

    datasets: tuple[str, ...]
    limit: int | None = 800  # training images per dataset, None for all
    held_out: int = 60  # images per dataset to stop or to judge by


def train_recovery(
    model: str,
    sources: Sources,
    config: RecoveryConfig,
    *,
    method: str | None = None,
    keep: float | None = None,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress,
) -> RecoveryFile:
    """Train a recovery of a reduced model and write it; a run that was stopped goes on where it was.

    ``model`` is a reduced name, or a dense one with ``method`` and ``keep``. ``out`` None is for the
    user's cache.

    Raises:
        ValueError: no reduction or two, an unknown name, a dataset without images, or what
            `zoo.recover` refuses.
    """
    if not sources.datasets:
        raise ValueError("nothing to train on: give --dataset")
    dense, named, percent = split_method(model)
    if (named is None) == (method is None) or (named is None) == (keep is None):
        raise ValueError(
            f"--model {model!r}: expected a reduced model, such as clip_vit_s14_tome30, or a dense one with --methods "
            "and --keeps, not both"
        )
    kind, rate = (named, percent) if named is not None else (method, keep)
    assert kind is not None
    assert rate is not None
    datasets = [get_dataset(name) for name in sources.datasets]
    splits = [learning_splits(dataset, sources) for dataset in datasets]
    require_rows(dense, [(kind, rate)])
    tower = load_tower(dense)
    name = f"{tower.arch}_{kind}{round(100 * rate)}"
    row = reduced_row(tower.vit, tower.arch, tower.tag, name, kind, {"keep": rate})
    steps, units = config.rounds * config.steps, 3 * config.batch  # gradients take as long again, twice
    images = sum(len(each) for pair in splits for each in pair)
    with progress.overall(f"recovery of {name}", images * PREPARED + steps * units):
        train, val = (
            [
                preprocessed(each[at], tower.preprocess, dataset.name, progress, torch.bfloat16)
                for dataset, each in zip(datasets, splits, strict=True)
            ]
            for at in range(2)
        )
        facts = [
            {"name": dataset.name, "revision": dataset.revision, "images": len(each[0]), "held_out": len(each[1])}
            for dataset, each in zip(datasets, splits, strict=True)
        ]
        ids = [[each.image_ids for each in pair] for pair in splits]
        decisive = [asdict(config), facts, ids, tower.name, row.config, torch.__version__]
        key = digest(decisive)
        checkpoint = cache_folder() / "fits" / f"{key}.pt"
        vit = row.vit.to(device)
        with progress.task(f"steps of {name}", steps, units=units) as update:
            recovered = recover(vit, train, val, config, on_step=update, checkpoint=checkpoint)
    path = out or cache_folder() / "recoveries" / f"{name}.{tower.tag or 'own'}.{config.what}.safetensors"
    origin: dict[str, Any] = {"name": tower.arch, "tag": tower.tag, "datasets": facts, "commit": git_commit()}
    file = save_recovery(path, vit, recovered, config, **origin)
    checkpoint.unlink(missing_ok=True)
    return file


def learning_splits(dataset: Dataset, sources: Sources) -> tuple[Split, Split]:
    """Return a dataset's images to learn from and those held out; the test split isn't touched."""
    require_images(dataset, "train", "images to learn from asked for")
    train, val = dataset.split("train"), dataset.split("val")
    if not len(val):
        order = seeded_order(len(train), 0)
        count = len(train) // HELD_OUT
        train, val = train.subset(order[count:]), train.subset(order[:count])
    train, val = subset(train, sources.limit), subset(val, sources.held_out)
    if not len(train) or not len(val):
        raise ValueError(
            f"dataset {dataset.name!r} has {len(train)} images to learn from and {len(val)} to stop by; "
            "it needs both, from its train and val splits"
        )
    return train, val


def preprocessed(
    split: Split, preprocess: Any, name: str, progress: Progress, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the images of a split of the dataset ``name``, (n, C, H, W)."""
    parts, done = [], 0
    with progress.task(f"images of {name}", len(split), units=PREPARED) as update:
        for examples, images in batches(split, preprocess):
            parts.append(images.to(dtype))
            done += len(examples)
            update(done)
    return torch.cat(parts)


def recovered_row(dense: ReducedViT, arch: str, tag: str, file: RecoveryFile) -> Variant:
    """Make a row of a method with a recovery, whose file says method and settings.

    Raises:
        ValueError: a recovery of another tower or predictor, or one without keep rate.
    """
    keep = file.options.get("keep")
    if keep is None:
        raise ValueError(f"recovery {str(file.path)!r} is of a model without keep rate, which no row can show")
    name = f"{arch}_{file.method}{round(100 * keep)}"
    row = reduced_row(dense, arch, tag, name, file.method, file.options)
    mark = digest(file.path)
    vit = add_recovery(row.vit, file).eval()
    return replace(row, vit=vit, config=row.config | {"recovery": mark}, what=f"with recovery {mark}")


def recovered_rows(dense: ReducedViT, arch: str, tag: str, paths: Sequence[Path]) -> list[Variant]:
    """Make the rows of those recoveries that are of this tower."""
    files = [RecoveryFile.read(path) for path in paths]
    return [recovered_row(dense, arch, tag, file) for file in files if (file.model, file.tag) == (arch, tag)]


def require_towers(paths: Sequence[Path], models: Sequence[str]) -> None:
    """Raise ValueError for a recovery that is of no tower of ``models``, dense names."""
    known = {split_method(name)[0].partition(".")[0] for name in models}
    for path in paths:
        file = RecoveryFile.read(path)
        if file.model not in known:
            raise ValueError(
                f"recovery {str(path)!r} is of {tower_name(file.model, file.tag)}, which is not measured: add it to "
                "--model"
            )
