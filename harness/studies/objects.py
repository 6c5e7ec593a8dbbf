"""Whether rankings find the object: its share among the top patches, where its mask is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from harness.base.table import Table, json_values, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset, list_datasets, shipped_facts
from harness.datasets.base import Dataset, Example, SplitName
from harness.datasets.few_shot import subset
from harness.golden.maps import (
    class_text,
    golden_maps,
    method_maps,
    object_patches,
    patch_grid,
    reduced,
    undo_preprocess,
)
from harness.models.towers import Tower, load_tower
from harness.records.statistics import Interval, bootstrap_mean
from zoo.ranking.golden import GoldenConfig

BATCH = 8
KEEP = 0.5  # what methods run at; those that rank at one point rank alike at every keep rate

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ObjectShare:
    """How well a ranking finds objects; one value per image that has object and background."""

    used: NDArray[np.bool_]  # (n,) bool, which images these are; k of n
    # (k,) of an object's m patches, the share among the m most important ones. Patches that tie
    # at the border count by the share of object patches among them
    share: Floats
    chance: Floats  # (k,) m / N, what a random ranking gets on average
    auc: Floats  # (k,) probability that an object patch ranks above a background patch, ties half

    def intervals(self) -> dict[str, Interval]:
        """Return mean and 95 % bootstrap interval of share, (share - chance) and auc."""
        values = {"share": self.share, "difference": self.share - self.chance, "auc": self.auc}
        return {name: bootstrap_mean(value, seed=0) for name, value in values.items()}

    @property
    def lift(self) -> float:
        """Mean share divided by mean chance; 1 for a random ranking."""
        return float(self.share.mean() / self.chance.mean())


def object_share(importance: NDArray[np.floating], patches: NDArray[np.bool_]) -> ObjectShare:
    """Compare importance (n, N), higher = keep, with which patches (n, N) are an object's.

    Raises:
        ValueError: shapes differ, importance is NaN, or no image has object and background.
    """
    if importance.shape != patches.shape or importance.ndim != 2:
        shapes = f"importance is {importance.shape} and patches {patches.shape}"
        raise ValueError(f"{shapes}: not (n, N)")
    if np.isnan(importance).any():
        raise ValueError(f"importance of {int(np.isnan(importance).any(1).sum())} images is NaN")
    total = patches.shape[1]
    used = np.asarray(patches.any(axis=1) & ~patches.all(axis=1))
    if not used.any():
        raise ValueError(f"none of {len(patches)} images has both object and background patches")
    values, inside = importance[used], patches[used]
    m = inside.sum(axis=1)
    border = np.take_along_axis(-np.sort(-values, axis=1), (m - 1)[:, None], axis=1)
    above, tied = values > border, values == border
    sure = (above & inside).sum(axis=1)
    luck = (m - above.sum(axis=1)) * (tied & inside).sum(axis=1) / tied.sum(axis=1)
    ranks = rankdata(values, axis=1)
    wins = (ranks * inside).sum(axis=1) - m * (m + 1) / 2
    return ObjectShare(used=used, share=(sure + luck) / m, chance=m / total, auc=wins / (m * (total - m)))


def find_objects(
    model: str,
    dataset_name: str,
    split_of: SplitName,
    *,
    limit: int | None,
    scores: Sequence[str],
    methods: Sequence[str],
    config: GoldenConfig,
    progress: Progress,
    device: str = "cpu",
) -> dict[str, ObjectShare]:
    """Measure golden scores and registered methods on the masks of a dataset.

    Returns:
        "golden SCORE" or method -> its shares, all on the same images.

    Raises:
        ValueError: a name or setting that doesn't fit, or a dataset without masks.
        FileNotFoundError: a method's predictor, or weights, are missing.
    """
    if not scores and not methods:
        raise ValueError("nothing to measure: give --scores or --methods")
    dataset = get_dataset(dataset_name)
    split = subset(dataset.split(split_of), limit)
    if not len(split):
        raise ValueError(f"dataset {dataset_name!r} has no {split_of} images")
    if split[0].mask is None:
        shipped = [d for d in map(shipped_facts, list_datasets()) if d.files]
        masked = [d.name for d in shipped if d.split("test")[0].mask is not None]
        raise ValueError(f"dataset {dataset_name!r} has no object masks; expected one of {', '.join(masked)}")
    tower = load_tower(model)
    text, scale = _text(tower, dataset, scores)
    text = None if text is None else text.to(device)
    tower.vit.to(device)
    towers = {method: reduced(tower, method, keep=KEEP, block=config.block) for method in methods}
    importance: dict[str, list[NDArray[np.float32]]] = {}
    inside = []
    with progress.task(f"rankings of {dataset.name} {split_of}", len(split)) as update:
        for start in range(0, len(split), BATCH):
            examples = list(split[start : start + BATCH])
            images = torch.stack([tower.preprocess(one.image) for one in examples]).to(device)
            labels = torch.tensor([example.label for example in examples], device=device)
            maps = golden_maps(tower.vit, images, scores, config, text=text, scale=scale, labels=labels)
            maps = {f"golden {score}": value for score, value in maps.items()}
            maps |= {name: method_maps(vit, images)[0] for name, vit in towers.items()}
            for name, value in maps.items():
                importance.setdefault(name, []).append(value.cpu().numpy())
            inside.append(_patches(tower, examples))
            update(start + len(examples))
    patches = np.concatenate(inside)
    return {name: object_share(np.concatenate(own), patches) for name, own in importance.items()}


def _text(tower: Tower, dataset: Dataset, scores: Sequence[str]) -> tuple[Tensor | None, float]:
    """Return the classes' features and the scale, where a score needs them."""
    needy = [score for score in scores if score in ("label", "confidence")]
    if not needy:
        return None, 1.0
    try:
        return class_text(tower, dataset.classes, dataset.templates)
    except ValueError as error:
        raise ValueError(f"score={needy[0]!r}: {error}; use --scores preservation") from error


def _patches(tower: Tower, examples: Sequence[Example]) -> NDArray[np.bool_]:
    """Return the object patches of each image; masks go the way that images go, crop included."""
    masks = [Image.fromarray(np.asarray(example.mask)).convert("RGB") for example in examples]
    images = torch.stack([tower.preprocess(mask) for mask in masks])
    inside = undo_preprocess(tower.preprocess, images).mean(dim=1)
    return np.asarray(object_patches(inside, patch_grid(tower.vit, images)).numpy())


def shares_data(shares: ObjectShare) -> dict[str, Any]:
    """Return means and intervals as JSON values; shares are fractions."""
    counts = {"images": len(shares.share), "images_left_out": int((~shares.used).sum())}
    means = {"chance": float(shares.chance.mean()), "lift": shares.lift}
    values: dict[str, Any] = json_values(counts | means | shares.intervals())
    return values


def objects_table(shares_of: Mapping[str, ObjectShare], title: str) -> Table:
    """Lay out how well rankings find objects."""
    heads = ("ranking", "images", "share", "chance", "difference", "lift", "AUC")
    rows: list[list[str]] = []
    for name, shares in shares_of.items():
        intervals = shares.intervals()
        share = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in intervals["share"]))
        auc = "{:.3f} [{:.3f}, {:.3f}]".format(*intervals["auc"])
        means = f"{100 * float(shares.chance.mean()):.1f}", points(intervals["difference"]), f"{shares.lift:.2f}"
        rows.append([name, str(len(shares.share)), share, *means, auc])
    left_out = int((~next(iter(shares_of.values())).used).sum())
    caption = (
        "of an object's m patches, the share among the m most important ones, in %; intervals: 95 % bootstrap over "
        "images, paired for the difference; AUC: how often an object patch ranks above a background patch; "
        f"{left_out} images without object or background left out"
    )
    return Table.of(title, heads, rows, words={"ranking"}, wide={"images", "chance", "lift"}, caption=caption)
