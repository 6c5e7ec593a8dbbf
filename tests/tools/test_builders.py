"""Builders of what ships: from the known sources alone, and by the rules that their first lines say."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import get_dataset
from harness.datasets.base import FINAL, SPLITS
from tools import build_emoji, build_fashion, build_photos
from tools.build_photos import LEAST, OVERLAP, PHOTOS, boxes
from tools.shipping import read_known, write_or_check


def test_check_tells_equal_from_different_and_a_source_must_be_the_known_one(tmp_path: Path, capsys):
    for content, check, code in ((b"1", True, 1), (b"1", False, 0), (b"1", True, 0), (b"2", True, 1)):
        assert write_or_check({"a": content}, tmp_path, check=check) == code
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert capsys.readouterr().out.count("DIFFERS") == 2
    with pytest.raises(FileNotFoundError, match=r"'x'.*`get x`"):
        read_known(tmp_path / "x", "0", "get x")
    with pytest.raises(ValueError, match=r"'a' has sha256 6b86b273.*expected 0"):
        read_known(tmp_path / "a", "0", "get x")


@pytest.mark.parametrize(("dataset", "builder"), [
    ("emoji", build_emoji), ("fashion", build_fashion), ("photos", build_photos),
])  # fmt: skip
def test_what_ships_is_of_the_pinned_sources(dataset: str, builder):
    data = get_dataset(dataset)
    assert json.loads(data.path(data.files[-1]).read_text())["sha256"] == builder.SHA256


def test_emoji_are_shared_out_by_their_groups():
    emoji = get_dataset("emoji").emoji
    groups = [build_emoji.group_of(one.name, one.subcategory) for one in emoji]
    first: dict[str, int] = defaultdict(lambda: len(SPLITS))  # that a group has a member in
    for one, own in zip(emoji, groups, strict=True):
        assert one.group == build_emoji.TWINS.get(one.name, build_emoji.TWINS.get(own, own))
        if one.split != FINAL:
            first[one.group] = min(first[one.group], SPLITS.index(build_emoji.split_of(own)))
    for one, own in zip(emoji, groups, strict=True):
        split = build_emoji.split_of(own)
        if one.split == FINAL:
            assert one.group not in first
        else:
            assert one.split == (split if split == SPLITS[first[one.group]] else None)


@pytest.mark.parametrize(("first", "second"), [
    ("green book", "blue book"), ("tiger face", "tiger"), ("bus", "oncoming bus"),
    ("waxing crescent moon symbol", "full moon with face"), ("imp", "smiling face with horns"),
])  # fmt: skip
def test_near_duplicates_share_a_group_and_different_things_do_not(first, second):
    assert build_emoji.group_of(first, "x") == build_emoji.group_of(second, "x")
    names = ["horse", "cow", "face with monocle", "face with thermometer", "red apple", "pear"]
    assert len({build_emoji.group_of(name, "x") for name in names}) == len(names)


def test_items_skip_equal_pixels_and_go_through_the_classes(monkeypatch):
    monkeypatch.setattr(build_fashion, "PLAN", {"train": ("train", 1), "test": ("t10k", 1)})
    monkeypatch.setattr(build_fashion, "CLASSES", 2)
    train = np.array([[[1]], [[2]], [[3]]], np.uint8), np.array([1, 0, 0], np.uint8)
    test = np.array([[[2]], [[1]], [[5]], [[6]]], np.uint8), np.array([0, 1, 0, 1], np.uint8)
    chosen = build_fashion.select({"train": train, "t10k": test}, seen_in_design=0)
    assert chosen == {"train": [1, 0], "test": [2, 3]}


def test_photographs_are_shared_out_by_their_series():
    rows = get_dataset("photos").photos
    for row, photo in zip(rows, PHOTOS, strict=True):
        assert {name: row[name] for name in vars(photo)} == vars(photo)
    assert {row["group"]: row["split"] for row in rows} == build_photos.split_of(PHOTOS)
    assert Counter(row["split"] for row in rows) == build_photos.SHARES


@pytest.mark.parametrize(("size", "most"), [((900, 600), 7), ((250, 230), 1)])
def test_regions_hardly_overlap_and_an_empty_half_has_none(size: tuple[int, int], most: int):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    noise[:, : size[0] // 2] = 128
    chosen = boxes(Image.fromarray(noise), 3)
    short = min(size)
    assert chosen[0] == ((size[0] - short) // 2, 0, (size[0] + short) // 2, short)
    assert 1 <= len(chosen) <= most
    covers: list[np.ndarray] = []
    for left, top, right, bottom in chosen[1:]:
        assert right - left >= LEAST
        cover = np.zeros((size[1], size[0]), dtype=bool)
        cover[top:bottom, left:right] = True
        assert cover[:, size[0] // 2 :].any()
        assert all((cover & other).sum() <= OVERLAP * min(cover.sum(), other.sum()) for other in covers)
        covers.append(cover)


def test_another_encoder_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build_photos.PIL, "__version__", "0.1")
    with pytest.raises(ValueError, match=r"Pillow 0\.1 .*`pip install pillow=="):
        build_photos.build_from(tmp_path, tmp_path)
