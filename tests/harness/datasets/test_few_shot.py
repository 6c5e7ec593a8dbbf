"""K images per class: balanced, nested, seeded; which images a seed draws never changes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from packing import write_images
from PIL import Image

from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import SHOTS, draw, draw_ranked, draw_train, undo_preprocess
from harness.datasets.public import CoopSplit
from zoo.loading.clip import image_transform

RANKED = np.array([0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 0, 3], dtype=np.int64)
IDS = tuple(f"toy/train-{i:02d}" for i in range(len(RANKED)))


def per_class(dataset: Dataset, split: Split) -> list[int]:
    return np.bincount(split.labels, minlength=len(dataset.classes)).tolist()


def draw_slowly(labels: NDArray[np.int64], most: int, seed: int, classes: int, *, backwards: bool = False) -> list[int]:
    """Go through the images in the order of their random numbers; take one while there is room."""
    numbers = np.random.PCG64(seed).random_raw(len(labels)).tolist()
    room, taken = [most] * classes, []
    for index in sorted(range(len(labels)), key=numbers.__getitem__, reverse=backwards):
        if room[labels[index]]:
            room[labels[index]] -= 1
            taken.append(index)
    return sorted(taken)


def test_the_draw_is_the_slow_one(toy: Dataset):
    """From fashion both parts come from val, whose order is gone through from both ends."""
    for dataset, names in ((get_dataset("fashion"), ("val", "val")), (toy, ("train", "val"))):
        drawn, size = draw(dataset, 2, seed=3), len(dataset.classes)
        for name, part in zip(names, drawn, strict=True):
            whole, backwards = dataset.split(name), part is drawn.val and names[0] == "val"
            wanted = draw_slowly(whole.labels, 2, 3, size, backwards=backwards)
            assert part.image_ids == tuple(whole.image_ids[i] for i in wanted)
            assert per_class(dataset, part) == [2] * size


def test_draws_are_nested_seeded_and_apart():
    """No emoji is both learned from and validated by, nor its other style, nor its near-duplicates."""
    emoji = get_dataset("emoji")
    test = set(emoji.split("test").image_ids)
    before: set[str] = set()
    for shots in SHOTS:
        drawn = draw(emoji, shots, seed=3)
        train, val = (set(part.image_ids) for part in drawn)
        assert draw_train(emoji, shots, seed=3).image_ids == drawn.train.image_ids
        assert before < train
        assert not (train | val) & test
        assert not {emoji.group_of(name) for name in train} & {emoji.group_of(name) for name in val}
        assert per_class(emoji, drawn.train) == [shots] * 8
        assert 1 <= min(per_class(emoji, drawn.val)) <= max(per_class(emoji, drawn.val)) == min(shots, 4)
        before = train
    assert len({draw(emoji, 4, seed).val.image_ids for seed in range(8)}) == 8


@pytest.mark.parametrize(("dataset", "shots", "draws", "match"), [
    ("fashion", 61, "ours", "--shots 61: .*'t-shirt' of 'fashion' has 60"),
    ("fashion", 0, "ours", "--shots 0"),
    ("fashion", 1, "coop", "--draws coop: 'fashion'"),
    ("photos", 1, "ours", "--shots 1: dataset 'photos' has no labels"),
    ("emoji", 18, "ours", "'sign or symbol' of 'emoji' has 0 .* beside the 18"),
])  # fmt: skip
def test_refusals(dataset: str, shots: int, draws: str, match: str):
    with pytest.raises(ValueError, match=match):
        draw(get_dataset(dataset), shots, 0, draws)


def test_ranked_images(toy: Dataset):
    """They are the slow draw's; more of them hold the fewer; those without a label are left out."""
    for seed in range(3):
        drawn = [draw_ranked(toy, IDS, RANKED, shots, seed).tolist() for shots in (1, 2, 3)]
        assert drawn == [draw_slowly(RANKED, shots, seed, 4) for shots in (1, 2, 3)]
    labels = np.where(np.arange(14) == 0, -1, RANKED)
    assert 0 not in draw_ranked(toy, IDS, labels, 3, 0)


@pytest.mark.parametrize(("seed", "whole", "part"), [
    (0, [11, 92, 108, 117, 150, 196, 269, 365, 403, 504], [6, 21, 34, 37, 48, 82, 129, 130, 163, 185]),
    (3, [20, 186, 225, 304, 431, 459, 467, 472, 548, 593], [6, 7, 24, 30, 65, 71, 93, 99, 108, 192]),
])  # fmt: skip
def test_a_seed_draws_what_it_always_drew_in_whatever_order(seed: int, whole: list[int], part: list[int]):
    dataset = get_dataset("fashion")
    val = dataset.split("val")
    assert draw_train(dataset, 1, seed).image_ids == tuple(val.image_ids[i] for i in whole)
    few = val[:200]
    assert draw_ranked(dataset, few.image_ids, few.labels, 1, seed).tolist() == part
    turned = draw_ranked(dataset, few.image_ids[::-1], few.labels[::-1], 1, seed)
    assert np.sort(199 - turned).tolist() == part


# Images of a split file, in its order: c cat, d dog, e emu, by label; emus come first, dogs last.
TRAIN, VAL = "ececdeddcecdecde", "ddcecedcedceced"
SPLIT_FILE: dict[str, list[list[Any]]] = {
    split: [[f"{'cde'.index(letter)}/{split}-{index:02d}.png", "cde".index(letter), name] for index, letter in
            enumerate(letters) for name in ("cat", "dog", "emu") if name[0] == letter]
    for split, letters in (("train", TRAIN), ("val", VAL), ("test", "cde"))
}  # fmt: skip


@pytest.fixture
def listed(tmp_path: Path) -> CoopSplit:
    write_images(tmp_path / "images", [path for entries in SPLIT_FILE.values() for path, _, _ in entries])
    file = tmp_path / "split_zhou_Zoo.json"
    file.write_text(json.dumps(SPLIT_FILE))
    return CoopSplit(file)


# By a script of its own that follows Dassl: random.seed(seed), then for each class as it comes
# random.sample([(index, letter), ...], K), first of train, then min(K, 4) of val.
@pytest.mark.parametrize(("seed", "shots", "train", "val"), [
    (1, 3, "0 1 2 3 7 8 11 12 14", "0 1 2 3 4 8 9 10 11"),
    (2, 3, "0 3 7 8 11 12 13 14 15", "0 1 4 6 7 8 10 11 13"),
    # of the cats and dogs there are five: all
    (1, 6, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "1 2 3 4 6 8 9 10 11 12 13 14"),
])  # fmt: skip
def test_coops_own_draws(listed: CoopSplit, seed: int, shots: int, train: str, val: str):
    state = random.getstate()
    drawn = draw(listed, shots, seed, "coop")
    for split, part, wanted in (("train", drawn.train, train), ("val", drawn.val, val)):
        assert part.image_ids == tuple(listed.split(split).image_ids[int(index)] for index in wanted.split())
    assert random.getstate() == state


@pytest.mark.parametrize(("left_out", "shots", "seed", "match"), [
    (1, 1, 1, "1 images of 'coop-zoo'"), (0, 1, 0, "seed 0.*--seed 1"), (0, 0, 1, "--shots 0"),
])  # fmt: skip
def test_refusals_of_coops_draws(left_out: int, shots: int, seed: int, match: str, listed: CoopSplit):
    dataset = listed.without(listed.split("train").image_ids[:left_out])
    with pytest.raises(ValueError, match=match):
        draw(dataset, shots, seed, "coop")


def test_normalisation_is_undone_whatever_its_constants(parts):
    """A tower that sees 48 x 80 pixels; the image has these already."""
    vit = timm.create_model("clip_vit_b16", img_size=(48, 80), pretrained_cfg_overlay={
        "input_size": (3, 48, 80), "std": (0.1, 0.5, 0.9)})  # fmt: skip
    image = Image.effect_mandelbrot((80, 48), (-2, -1, 1, 1), 50).convert("RGB")
    for preprocess in (image_transform(vit), parts.preprocess):
        seen = undo_preprocess(preprocess, preprocess(image)[None])[0].permute(1, 2, 0)
        assert (255 * seen - torch.from_numpy(np.array(image))).abs().max() < 0.01
