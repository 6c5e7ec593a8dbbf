"""Choices of images from a split: a balanced part, K shots per class, batches."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.datasets.base import Dataset, Example, Split, SplitName
from zoo.core.settings import expected

Preprocess = Callable[[Image.Image], Tensor]
BATCH = 32
SUBSET_SEED = 0
SHOTS = (1, 2, 4, 8, 16)
VAL_SHOTS = 4  # validation images per class at most, as in CoOp
OURS, COOP = "ours", "coop"
DRAWS = (OURS, COOP)  # K images of a class for a seed: nested, or as in CoOp's own runs


def subset(split: Split, limit: int | None) -> Split:
    """Take a fixed, class-balanced part of a split: ``limit`` images, or all if None; a smaller one is part of it."""
    if limit is None or limit >= len(split):
        return split
    return split.subset(np.sort(turns(split.labels)[:limit]))


def turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order images, (n,) positions, so that the first few, however many, are class-balanced.

    Classes give images in turn, each in an order that is drawn once and for all. Images of unknown class count as one
    class.
    """
    order = seeded_order(len(labels), SUBSET_SEED)
    grouped = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][grouped], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[grouped] = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort(turn, kind="stable")]


def batches(split: Split, preprocess: Preprocess) -> Iterator[tuple[list[Example], Tensor]]:
    """Yield the examples of a split with their images (B, C, H, W), ``BATCH`` at a time."""
    for start in range(0, len(split), BATCH):
        examples = list(split[start : start + BATCH])
        yield examples, torch.stack([preprocess(example.image) for example in examples])


def stack_images(split: Split, preprocess: Preprocess) -> Tensor:
    """Return all images of a split, (n, C, H, W)."""
    return torch.cat([images for _, images in batches(split, preprocess)])


def undo_preprocess(preprocess: Preprocess, images: Tensor) -> Tensor:
    """Return preprocessed images (B, C, H, W) as colours in [0, 1], as the model sees them, without normalisation.

    Any affine map per channel at the end is undone: its constants are read off a black and a white image.
    """
    size = (images.shape[3], images.shape[2])
    black, white = (
        preprocess(Image.new("RGB", size, colour)).flatten(1).mean(dim=1)[:, None, None].float()
        for colour in ("black", "white")
    )
    return ((images.float().cpu() - black) / (white - black)).clamp(0.0, 1.0)


class FewShot(NamedTuple):
    """Labelled images: K per class to learn from, and min(K, 4), or all, to validate by."""

    train: Split
    val: Split


def draw(dataset: Dataset, shots: int, seed: int, draws: str = OURS) -> FewShot:
    """Draw labelled images as CoOp does: K per class to train on, min(K, 4) to validate by.

    Training images come from the split ``Dataset.shots_from``, and no group of images is in both parts, see
    ``Dataset.group_of``. One seed gives nested sets to train on. With ``draws="coop"`` the images are those that CoOp
    (2109.01134) itself draws, see ``_draw_as_coop``. ValueError if a class has too few images.
    """
    if draws == COOP:
        return _draw_as_coop(dataset, shots, seed)
    if draws != OURS:
        raise ValueError(f"--draws {draws!r}: {expected(draws, DRAWS)}")
    train = draw_train(dataset, shots, seed)
    split = dataset.split("val")
    order, beside = seeded_order(len(split), seed), ""
    if dataset.shots_from == "val":
        ids, beside = split.image_ids, f" beside the {shots} to learn from"
        taken = {dataset.group_of(name) for name in train.image_ids}  # a group may span classes
        free = [i for i in _keep_back(dataset, shots, seed) if dataset.group_of(ids[i]) not in taken]
        order = np.array(free, dtype=np.int64)
    _require_each(dataset, split.labels[order], shots, 1, f"validation images{beside}")
    return FewShot(train, split.subset(_first_of_each(dataset, split.labels, order, min(shots, VAL_SHOTS))))


def draw_train(dataset: Dataset, shots: int, seed: int) -> Split:
    """Draw the training images of ``draw`` alone; the dataset needs no validation images."""
    _require_shots(dataset, shots)
    split = dataset.split(dataset.shots_from)
    _require_each(dataset, split.labels, shots, shots, "training images")
    order = seeded_order(len(split), seed)
    if dataset.shots_from == "val":
        order = order[~np.isin(order, _keep_back(dataset, shots, seed))]
    return split.subset(_first_of_each(dataset, split.labels, order, shots))


def _keep_back(dataset: Dataset, shots: int, seed: int) -> list[int]:
    """Return positions in val for validation if val also trains, the first choice first.

    Of each class take the groups that come last in the seed's order, until they make min(K, 4) images or no more than K
    would be left to train on.
    """
    split = dataset.split("val")
    ids, order = split.image_ids, seeded_order(len(split), seed)
    positions: list[int] = []
    for label in range(len(dataset.classes)):
        groups: dict[str, list[int]] = defaultdict(list)
        members = order[split.labels[order] == label].tolist()
        for index in members:
            groups[dataset.group_of(ids[index])].append(index)
        kept: list[int] = []
        for group in reversed(groups.values()):
            if len(kept) >= min(shots, VAL_SHOTS) or len(members) - len(kept) - len(group) < shots:
                break
            kept += group
        positions += kept
    return positions


def _draw_as_coop(dataset: Dataset, shots: int, seed: int) -> FewShot:
    """Draw the images that CoOp's runs of a seed (1, 2 and 3 are the published ones) learn from.

    Python's ``random`` is seeded; then each class, in the order in which the list of train first names one, gives K of
    its images, in the order of the list, by ``random.sample``, and each class of val min(K, 4) by the same stream. A
    class with fewer gives all and takes nothing from the stream. docs/learning.md names what is uncertain.
    """
    reason = "" if dataset.listed_by_coop else f"{dataset.name!r} isn't read from a list that CoOp draws from"
    if dataset.left_out:
        reason = f"{len(dataset.left_out)} images of {dataset.name!r} are left out by --skip-bad"
    if reason:
        raise ValueError(f"--draws coop: {reason}; use --draws ours")
    if seed < 1:
        raise ValueError(f"--draws coop with seed {seed}: CoOp's seeds begin at 1; give --seed 1")
    _require_shots(dataset, shots)
    _require_each(dataset, dataset.labels("val"), shots, 1, "validation images")
    stream, parts = random.Random(seed), list[Split]()
    for split, most in ((dataset.split("train"), shots), (dataset.split("val"), min(shots, VAL_SHOTS))):
        members: dict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(split.labels.tolist()):
            members[label].append(index)
        drawn = [stream.sample(images, most) if len(images) >= most else images for images in members.values()]
        parts.append(split.subset(np.sort(np.concatenate(drawn))))
    return FewShot(*parts)


def draw_ranked(
    dataset: Dataset, image_ids: Sequence[str], labels: NDArray[np.int64], shots: int, seed: int
) -> NDArray[np.int64]:
    """Draw K positions per class out of images that are ranked: (classes * K,) int64, sorted.

    One seed gives nested sets, which depend on the ranked images, not on their order; images of unknown class (-1) are
    left out.
    """
    require_labels(dataset, f"--shots {shots}")
    _require_each(dataset, labels[labels >= 0], shots, shots, "ranked images")
    order = np.argsort(np.array(image_ids))[seeded_order(len(labels), seed)]
    return _first_of_each(dataset, labels, order, shots)


def seeded_order(count: int, seed: int) -> NDArray[np.int64]:
    """Return the positions 0 to count - 1 in the order that a seed from 0 gives them."""
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected a number from 0")
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def _first_of_each(
    dataset: Dataset, labels: NDArray[np.int64], order: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Take the first few positions of every class in an order; sorted."""
    drawn = [order[labels[order] == label][:most] for label in range(len(dataset.classes))]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _require_each(dataset: Dataset, labels: NDArray[np.int64], shots: int, least: int, what: str) -> None:
    """Refuse a class with fewer images than ``least``; ``labels`` are of all images to draw from."""
    counts = np.bincount(labels, minlength=len(dataset.classes))
    if counts.min() < least:
        have = f"class {dataset.classes[int(counts.argmin())]!r} of {dataset.name!r} has {counts.min()} {what}"
        raise ValueError(f"--shots {shots}: {have}; every class needs {least}")


def _require_shots(dataset: Dataset, shots: int) -> None:
    if shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1; 0 shots draw no image")
    require_labels(dataset, f"--shots {shots}")
    require_images(dataset, dataset.shots_from, f"--shots {shots}", "0 shots or another dataset")


def require_labels(dataset: Dataset, what: str) -> None:
    """Refuse a dataset without classes; ``what`` names the option that needs them."""
    if not dataset.labelled:
        raise ValueError(f"{what}: dataset {dataset.name!r} has no labels; expected one with classes")


def require_images(dataset: Dataset, split: SplitName, asked: str, instead: str = "another dataset") -> None:
    """Refuse a split without images, by a ValueError that says who ``asked``, and what to take ``instead``."""
    if len(dataset.split(split)):
        return
    prefix, _, path = dataset.asked_as.partition(":")
    parted = f", or folder-parted:{path}, which makes splits" if prefix == "folder" else ""
    raise ValueError(
        f"{asked}, but {dataset.name!r} has no {split} images: it is for testing only, or they are missing, which "
        f"`patchrank datasets check --dataset {dataset.asked_as}` tells; take {instead}{parted}"
    )


def require_unseen(dataset: Dataset, split: SplitName) -> None:
    """Refuse to judge few-shot models by a split that they may have learnt from."""
    if split in (dataset.shots_from, "val"):
        raise ValueError(
            f"--split {split}: labelled images of {dataset.name!r} for shots come from there; judge by --split test"
        )
