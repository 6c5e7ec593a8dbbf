"""The fashion canvases: where the items come from, what the mask covers, that nothing drifts."""

import hashlib
import json

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from harness.datasets import get_dataset
from harness.datasets.base import FINAL, SPLITS
from harness.datasets.canvas import SIZE, draw, draws, seeded
from harness.datasets.fashion import CLUTTER, Fashion, compose, sample, silhouette
from tools import build_fashion


@pytest.fixture(scope="module")
def fashion() -> Fashion:
    dataset = get_dataset("fashion").released()
    assert isinstance(dataset, Fashion)
    return dataset


def test_every_class_has_the_planned_number_of_items(fashion):
    for split, (_, per_class) in build_fashion.PLAN.items():
        assert np.bincount(fashion.labels(split)).tolist() == [per_class] * 10
    assert len(fashion.split("test")) >= 1000
    assert len(fashion.split("final")) == 500


def test_no_item_is_in_two_splits(fashion):
    sources, pixels = set(), set()
    for split in (*SPLITS, FINAL):
        part = fashion._index["splits"][split]["part"]
        assert part == ("t10k" if split in ("test", FINAL) else "train")
        sources |= {(part, int(i)) for i in fashion.source_index(split)}
        pixels |= {item.tobytes() for item in fashion.items(split)}
    total = sum(len(fashion.split(split)) for split in (*SPLITS, FINAL))
    assert len(sources) == len(pixels) == total


@pytest.mark.parametrize(("split", "index", "expected"), [
    ("train", 0, "d64714116bb5c9e6"),
    ("val", 7, "6ab0ad279e0ecf26"),
    ("test", 1799, "22143dbd4b0139e3"),
])  # fmt: skip
def test_a_canvas_is_the_same_on_every_machine(fashion, split, index, expected):
    example = fashion.split(split)[index]
    digest = hashlib.sha256(example.image.tobytes() + example.mask.tobytes()).hexdigest()
    assert digest[:16] == expected


def test_order_of_access_does_not_matter(fashion):
    forward = [fashion.split("test")[i].image.tobytes() for i in range(4)]
    split = fashion.split("test")
    assert [split[i].image.tobytes() for i in (3, 2, 1, 0)] == forward[::-1]
    assert [example.image.tobytes() for example in split[:4]] == forward
    assert [example.image.tobytes() for example in split.subset([2, 0])] == [forward[2], forward[0]]


def test_another_variant_shows_the_same_item_elsewhere(fashion):
    first, other = fashion.split("train")[5], fashion.split("train").variant(1)[5]
    assert first.label == other.label
    assert first.image.tobytes() != other.image.tobytes()
    assert first.image_id != other.image_id


def test_mask_is_exactly_what_the_item_changes(fashion):
    """Paint once with the item and once with an empty one: only the mask's soft border differs."""
    items = fashion.items("val")
    for index in range(20):
        clutter = items[[index + 1, index + 2, index + 3]]
        image, mask = compose(items[index], clutter, seeded(index))
        without, nothing = compose(np.zeros_like(items[index]), clutter, seeded(index))
        changed = (np.asarray(image) != np.asarray(without)).any(axis=-1)
        assert not nothing.any()
        assert changed[mask].mean() > 0.99
        assert not (changed & ~binary_dilation(mask, np.ones((9, 9)))).any()


def test_silhouette_fills_holes_and_keeps_the_outside_out():
    item = np.zeros((28, 28), np.uint8)
    item[5:20, 5:20] = 200
    item[10:12, 10:12] = 0  # a dark print: inside
    item[5:15, 17] = 0  # a slit from the border: outside
    expected = np.zeros((28, 28), bool)
    expected[5:20, 5:20] = True
    expected[5:15, 17] = False
    assert (silhouette(item) == expected).all()


def test_the_item_is_whole_and_has_the_promised_size(fashion):
    for index in range(0, 200, 10):
        example = fashion.split("test")[index]
        rows, cols = np.nonzero(example.mask)
        assert example.image.size == (SIZE, SIZE)
        assert example.image.mode == "RGB"
        assert 40 <= max(np.ptp(rows), np.ptp(cols)) + 1 <= 112


def test_clutter_comes_from_other_classes_only(fashion):
    """Class 1 is empty items: an empty target gets clutter of class 0, a full one gets none."""
    items = np.stack([np.full((28, 28), 255, np.uint8), np.zeros((28, 28), np.uint8)])
    labels = np.array([0, 1])
    for index in range(2):
        image, mask = sample(items, labels, index, seeded(3))
        rng = seeded(3)
        count = draw(rng, *CLUTTER)
        chosen = items[[1 - index] * count]
        draws(rng, 0, 1, (count,))
        expected, expected_mask = compose(items[index], chosen, rng)
        assert image.tobytes() == expected.tobytes()
        assert (mask == expected_mask).all()


def test_build_refuses_another_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get download"):
        build_fashion.build(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"else")
    with pytest.raises(ValueError, match="has sha256"):
        build_fashion.build(tmp_path)
    assert json.loads(Fashion.path("fashion-index.json").read_text())["sha256"] == (build_fashion.SHA256)


def test_selection_skips_equal_pixels_and_goes_through_the_classes(monkeypatch):
    monkeypatch.setattr(build_fashion, "PLAN", {"train": ("train", 1), "test": ("t10k", 1)})
    monkeypatch.setattr(build_fashion, "CLASSES", 2)
    train = np.array([[[1]], [[2]], [[3]]], np.uint8), np.array([1, 0, 0], np.uint8)
    test = np.array([[[2]], [[1]], [[5]], [[6]]], np.uint8), np.array([0, 1, 0, 1], np.uint8)
    chosen = build_fashion.select({"train": train, "t10k": test}, seen_in_design=0)
    assert chosen == {"train": [1, 0], "test": [2, 3]}


def test_no_test_item_was_looked_at_while_the_canvas_was_designed(fashion):
    """The design looked at the first hundred test items per class at most; see the builder."""
    for split in ("test", FINAL):
        source, labels = fashion.source_index(split), fashion.labels(split)
        for label in range(10):
            # Class members come in the source's order, so a hundred items of the class come before.
            assert source[labels == label].min() >= build_fashion.SEEN_IN_DESIGN
