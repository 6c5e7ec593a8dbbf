"""K images per class: balanced, nested, seeded; which images a seed draws never changes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.datasets import get_dataset, shipped_facts
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.coop import CoopSplit
from harness.datasets.few_shot import SHOTS, draw, draw_ranked, draw_train, require_apart, undrawn

WITH_VAL = ("fashion", "emoji")
RANKED = np.array([0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 0, 3], dtype=np.int64)
IDS = tuple(f"toy/train-{i:02d}" for i in range(len(RANKED)))


class Uneven(Dataset):
    """A dataset of given labels; nothing in it can be drawn."""

    name = "uneven"

    def __init__(self, **labels: list[int]) -> None:
        self._told = labels

    @property
    def classes(self) -> tuple[str, ...]:
        return ("cat", "dog", "house")

    @property
    def captions_seen(self) -> tuple[bool, ...]:
        return (True,) * 3

    def _split(self, name: SplitName) -> Split:
        labels = np.array(self._told.get(name, []), dtype=np.int64)
        return Split(labels, lambda index: f"uneven/{name}-{index}", pytest.fail)


def per_class(dataset: Dataset, split: Split) -> list[int]:
    return np.bincount(split.labels, minlength=len(dataset.classes)).tolist()


def slowly(labels: NDArray[np.int64], most: int, seed: int, classes: int, *, backwards: bool = False) -> list[int]:
    """Go through the images in the order of their random numbers; take one while there is room."""
    numbers = np.random.PCG64(seed).random_raw(len(labels)).tolist()
    room, taken = [most] * classes, []
    order = sorted(range(len(labels)), key=numbers.__getitem__, reverse=backwards)
    for place in order:
        if room[labels[place]]:
            room[labels[place]] -= 1
            taken.append(place)
    return sorted(taken)


@pytest.mark.parametrize("shots", [*SHOTS, 3])
def test_the_draw_is_the_slow_one(shots: int):
    """From fashion both parts come from val, whose order is gone through from both ends."""
    uneven = Uneven(train=[0, 1, 2, 2, 1, 0] * 9, val=[2, 1, 0, 0] * 7)
    for dataset, names in ((get_dataset("fashion"), ("val", "val")), (uneven, ("train", "val"))):
        drawn, size = draw(dataset, shots, seed=3), len(dataset.classes)
        for name, part, count in zip(names, drawn, (shots, min(shots, 4)), strict=True):
            backwards = part is drawn.val and names[0] == "val"
            whole = dataset.split(name)
            wanted = slowly(whole.labels, count, 3, size, backwards=backwards)
            assert part.image_ids == tuple(whole.image_ids[i] for i in wanted)
            assert per_class(dataset, part) == [count] * size


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shots", SHOTS)
def test_no_emoji_is_both_learned_from_and_validated_by(shots: int, seed: int):
    """Nor its other style, nor its near-duplicates."""
    emoji = get_dataset("emoji")
    drawn = draw(emoji, shots, seed)
    groups = [{emoji.group_of(name) for name in part.image_ids} for part in drawn]
    assert not groups[0] & groups[1]
    assert per_class(emoji, drawn.train) == [shots] * 8
    assert max(per_class(emoji, drawn.val)) == min(shots, 4)
    assert min(per_class(emoji, drawn.val)) >= 1


def test_images_are_groups_of_their_own_if_nothing_else_is_said():
    assert get_dataset("fashion").group_of("fashion/val/3") == "fashion/val/3"
    emoji = get_dataset("emoji")
    for name in ("train", "val", "test"):
        groups = [emoji.group_of(image_id) for image_id in emoji.split(name).image_ids]
        assert groups[::2] == groups[1::2]


def test_the_rarest_class_leaves_fewer_to_validate_by():
    emoji = get_dataset("emoji")
    assert per_class(emoji, draw(emoji, 16, seed=0).val) == [4] * 7 + [2]
    with pytest.raises(ValueError, match=r"'sign or symbol' of 'emoji' has 0 .* beside the 18"):
        draw(emoji, 18, seed=0)


@pytest.mark.parametrize("name", WITH_VAL)
def test_draws_are_nested_seeded_and_apart(name: str):
    dataset = get_dataset(name)
    test = set(dataset.split("test").image_ids)
    before: tuple[set[str], set[str]] = (set(), set())
    for shots in SHOTS:
        drawn, again = draw(dataset, shots, seed=3), draw(dataset, shots, seed=3)
        train, val = (set(part.image_ids) for part in drawn)
        assert [part.image_ids for part in again] == [part.image_ids for part in drawn]
        assert before[0] < train
        assert before[1] <= val or name == "emoji"  # whose rarest class runs out
        assert not (train & val) | (train & test) | (val & test)
        before = train, val
    others = [draw(dataset, 4, seed) for seed in range(8)]
    assert [len({drawn[i].image_ids for drawn in others}) for i in (0, 1)] == [8, 8]


def test_judged_apart_from_what_is_learned_from():
    require_apart(get_dataset("fashion"), "test")
    for name, split in (("fashion", "val"), ("emoji-subcategory", "train")):
        with pytest.raises(ValueError, match=f"--split {split}: labelled images .*--split test"):
            require_apart(get_dataset(name), split)


@pytest.mark.parametrize("name", [*WITH_VAL, "emoji-subcategory"])
@pytest.mark.parametrize("shots", SHOTS)
def test_training_images_alone_are_the_same(name: str, shots: int):
    """Subcategories of emoji have a class without validation images; a probe needs none."""
    dataset = get_dataset(name)
    train = draw_train(dataset, shots, seed=1)
    assert per_class(dataset, train) == [shots] * len(dataset.classes)
    if name in WITH_VAL:
        assert train.image_ids == draw(dataset, shots, seed=1).train.image_ids


def test_a_class_with_few_validation_images_gives_what_it_has():
    dataset = Uneven(train=[0, 1, 2] * 5, val=[0, 1, 1, 2, 2, 2, 2, 2])
    assert per_class(dataset, draw(dataset, 5, seed=0).val) == [1, 2, 4]
    assert per_class(dataset, draw(dataset, 2, seed=0).val) == [1, 2, 2]
    assert per_class(dataset, draw(dataset, 1, seed=0).val) == [1, 1, 1]


@pytest.mark.parametrize(("seed", "wanted"), [
    (0, [11, 92, 108, 117, 150, 196, 269, 365, 403, 504]),
    (3, [20, 186, 225, 304, 431, 459, 467, 472, 548, 593]),
])  # fmt: skip
def test_a_seed_draws_what_it_always_drew(seed: int, wanted: list[int]):
    dataset = get_dataset("fashion")
    ids = dataset.split("val").image_ids
    assert draw_train(dataset, 1, seed).image_ids == tuple(ids[i] for i in wanted)


@pytest.mark.parametrize("draw_from", [draw, draw_train])
def test_refusals_of_training_images(draw_from):
    uneven = Uneven(train=[0, 0, 1, 2, 2], val=[0, 1, 2])
    for dataset, shots, match in (
        ("fashion", 61, r"61 shots .*'t-shirt' of 'fashion' has 60 training .*can be at most 60"),
        ("fashion", 0, "--shots 0: expected a number from 1"),
        ("fashion", -1, "--shots -1: expected a number from 1"),
        ("emoji-names", 1, "but 'emoji-names' has no train images: it is for"),
        ("photos", 1, "--shots 1: dataset 'photos' has no labels; expected one with classes"),
        (uneven, 2, r"2 shots .*'dog' of 'uneven' has 1 .*can be at most 1"),
    ):
        with pytest.raises(ValueError, match=match):
            draw_from(get_dataset(dataset) if isinstance(dataset, str) else dataset, shots, seed=0)


@pytest.mark.parametrize("shots", SHOTS)
def test_refusals_of_validation_images(shots: int):
    train = [0, 1, 2] * 16
    match = f"{shots} shots .*'dog' of 'uneven' has 0 validation images, of 3 in its val split"
    with pytest.raises(ValueError, match=match):
        draw(Uneven(train=train, val=[0, 0, 2]), shots, seed=0)
    with pytest.raises(ValueError, match="'cat' of 'uneven' has 0 validation images, of 0 in its"):
        draw(Uneven(train=train), shots, seed=0)
    assert len(draw_train(Uneven(train=train), shots, seed=0)) == 3 * shots


def ranked(toy: Dataset, shots: int, seed: int = 0) -> NDArray[np.int64]:
    return draw_ranked(toy, IDS, RANKED, shots, seed)


@pytest.mark.parametrize("seed", range(5))
def test_ranked_images(seed: int, toy: Dataset):
    """They are the slow draw's; more of them hold the fewer."""
    drawn = [ranked(toy, shots, seed).tolist() for shots in (1, 2, 3)]
    assert drawn == [slowly(RANKED, shots, seed, 4) for shots in (1, 2, 3)]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert np.bincount(RANKED[drawn[2]]).tolist() == [3] * 4


@pytest.mark.parametrize(("seed", "wanted"), [
    (0, [6, 21, 34, 37, 48, 82, 129, 130, 163, 185]),
    (3, [6, 7, 24, 30, 65, 71, 93, 99, 108, 192]),
])  # fmt: skip
def test_ranked_images_in_whatever_order(seed: int, wanted: list[int]):
    dataset = get_dataset("fashion")
    val = dataset.split("val")[:200]
    assert draw_ranked(dataset, val.image_ids, val.labels, 1, seed).tolist() == wanted
    turned = draw_ranked(dataset, val.image_ids[::-1], val.labels[::-1], 1, seed)
    assert np.sort(199 - turned).tolist() == wanted


def test_ranked_images_without_label_are_left_out(toy: Dataset):
    labels = np.where(np.arange(14) == 0, -1, RANKED)
    rows = draw_ranked(toy, IDS, labels, 3, 0)
    assert 0 not in rows
    assert np.bincount(labels[rows]).tolist() == [3] * 4


def test_refusals_of_ranked_images(toy: Dataset):
    match = "--shots 4: class 'dog' of 'toy' has 3 ranked images; k can be at most that"
    with pytest.raises(ValueError, match=match):
        ranked(toy, 4)
    known = RANKED != 3
    with pytest.raises(ValueError, match="class 'zebra' of 'toy' has 0 ranked images"):
        draw_ranked(toy, [i for i, k in zip(IDS, known, strict=True) if k], RANKED[known], 1, 0)


# Images of a split file, in its order: c cat, d dog, e emu, by label; emus come first, dogs last.
TRAIN, VAL = "ececdeddcecdecde", "ddcecedcedceced"
SPLIT_FILE: dict[str, list[list[Any]]] = {
    split: [[f"{'cde'.index(letter)}/{split}-{place:02d}.png", "cde".index(letter), name] for place, letter in
            enumerate(letters) for name in ("cat", "dog", "emu") if name[0] == letter]
    for split, letters in (("train", TRAIN), ("val", VAL), ("test", "cde"))
}  # fmt: skip


@pytest.fixture
def listed(tmp_path: Path, write_images) -> CoopSplit:
    """Read the split file with its images."""
    write_images(tmp_path / "images", [path for entries in SPLIT_FILE.values() for path, _, _ in entries])
    file = tmp_path / "split_zhou_Zoo.json"
    file.write_text(json.dumps(SPLIT_FILE))
    return CoopSplit(file)


# By a script of its own that follows Dassl: random.seed(seed), then for each class as it comes
# random.sample([(place, letter), ...], K), first of train, then min(K, 4) of val.
@pytest.mark.parametrize(("seed", "shots", "train", "val"), [
    (1, 1, "2 4 13", "2 6 11"),
    (1, 3, "0 1 2 3 7 8 11 12 14", "0 1 2 3 4 8 9 10 11"),
    (2, 3, "0 3 7 8 11 12 13 14 15", "0 1 4 6 7 8 10 11 13"),
    (3, 3, "2 4 7 8 10 12 13 14 15", "0 1 2 4 5 9 11 12 13"),
    (1, 6, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "1 2 3 4 6 8 9 10 11 12 13 14"),
])  # fmt: skip
def test_coops_own_draws(listed: CoopSplit, seed: int, shots: int, train: str, val: str):
    state = random.getstate()
    drawn = draw(listed, shots, seed, "coop")
    for split, part, wanted in (("train", drawn.train, train), ("val", drawn.val, val)):
        places = [int(name[-6:-4]) for name in part.image_ids]
        assert places == [int(place) for place in wanted.split()], split
        assert all(f"/{split}-" in name for name in part.image_ids)
    assert random.getstate() == state


def test_a_class_with_fewer_images_gives_all_to_coops_draws(listed: CoopSplit):
    with pytest.raises(ValueError, match="6 shots asked for, but class 'cat'"):
        draw(listed, 6, 1)
    assert per_class(listed, draw(listed, 6, 1, "coop").train) == [5, 5, 6]
    assert per_class(listed, draw(listed, 6, 1, "coop").val) == [4, 4, 4]


def test_refusals_of_coops_draws(listed: CoopSplit):
    less = listed.without([listed.split("train").image_ids[0]])
    uneven = Uneven(train=[0, 1, 2], val=[0, 1, 2])
    for dataset, shots, seed, draws, match in (
        (get_dataset("fashion"), 1, 1, "coop", "--draws coop: 'fashion' isn't read from a list .*--draws ours"),
        (uneven, 1, 1, "coop", "'uneven' isn't read from a list"),
        (shipped_facts("imagenet"), 1, 1, "coop", "'imagenet' isn't read from a list"),
        (less, 1, 1, "coop", "--draws coop: 1 images of 'coop-zoo' are left out by --skip-bad"),
        (listed, 1, 0, "coop", "--draws coop with seed 0: CoOp's seeds begin at 1; give --seed 1"),
        (listed, 0, 1, "coop", "--shots 0: expected a number from 1"),
        (listed, 1, 1, "theirs", "--draws 'theirs': expected one of ours, coop"),
    ):
        with pytest.raises(ValueError, match=match):
            draw(dataset, shots, seed, draws)
    assert all(shipped_facts(name).listed_by_coop for name in ("caltech101", "fgvc-aircraft", "ucf101"))


@pytest.mark.parametrize("name", WITH_VAL)
@pytest.mark.parametrize("seed", [0, 4])
def test_what_a_draw_left_of_val(name: str, seed: int):
    dataset = get_dataset(name)
    few = draw(dataset, 16, seed)
    left, val = undrawn(dataset, few), dataset.split("val")
    drawn = {dataset.group_of(one) for part in few for one in part.image_ids}
    assert list(left.image_ids) == [one for one in val.image_ids if dataset.group_of(one) not in drawn]
    assert 60 < len(left) <= len(val) - sum(map(len, few))


def test_a_draw_that_leaves_nothing():
    dataset = Uneven(train=[0, 1, 2], val=[0, 1, 2])
    with pytest.raises(ValueError, match="'uneven': the draw took all 3 images of val, none is left"):
        undrawn(dataset, draw(dataset, 1, seed=0))
