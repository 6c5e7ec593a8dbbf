"""The emoji tasks: both styles together, near-duplicates together, masks, labels, the build."""

import hashlib
import json
from collections import defaultdict

import numpy as np
import pytest

from harness.datasets import get_dataset
from harness.datasets.base import FINAL, SPLITS
from harness.datasets.canvas import SIZE, compose, decode, seeded
from harness.datasets.emoji import CAPTION, CAPTIONED, CATEGORIES, STYLES, EmojiNames
from tools import build_emoji
from zoo.loading.text import EmbeddedTokenizer, tokenizer, unseen_words

TASKS = ("emoji", "emoji-subcategory", "emoji-names")


def test_both_styles_of_an_emoji_share_its_split():
    for task in TASKS:
        dataset = get_dataset(task)
        where = defaultdict(set)
        for split in SPLITS:
            members = dataset.members(split)
            assert len(dataset.split(split)) == len(STYLES) * len(members)
            for index in range(0, len(dataset.split(split)), 97):
                example = dataset.split(split)[index]
                emoji, label = members[index // 2]
                assert example.image_id == f"emoji/{emoji.code}/{STYLES[index % 2]}"
                assert example.label == label == dataset.labels(split)[index]
            for emoji, _ in members:
                where[emoji.code].add(split)
        assert all(len(splits) == 1 for splits in where.values())


def test_splits_are_the_same_in_every_task_and_follow_the_group():
    splits, groups, images = defaultdict(set), defaultdict(set), set()
    drawn = [(emoji, build_emoji.group_of(emoji.name, emoji.subcategory)) for emoji in get_dataset("emoji").emoji]
    first = defaultdict(lambda: len(SPLITS))  # of train, val and test, that a group has a member in
    for emoji, own in drawn:
        twins = build_emoji.TWINS
        assert emoji.group == twins.get(emoji.name, twins.get(own, own))
        if emoji.split != FINAL:
            first[emoji.group] = min(first[emoji.group], SPLITS.index(build_emoji.split_of(own)))
        groups[emoji.name].add(emoji.group)
        images |= set(emoji.images)
    for emoji, own in drawn:
        if emoji.split == FINAL:
            assert emoji.group not in first
            continue
        splits[emoji.group] |= {emoji.split} - {None}
        later = build_emoji.split_of(own) != SPLITS[first[emoji.group]]
        assert emoji.split == (None if later else build_emoji.split_of(own))
    assert all(len(found) == 1 for found in (*splits.values(), *groups.values()))
    assert len(images) == 2 * len(get_dataset("emoji").emoji)


@pytest.mark.parametrize(("first", "second"), [
    ("green book", "blue book"),
    ("tiger face", "tiger"),
    ("waxing crescent moon symbol", "full moon with face"),
    ("closed mailbox with raised flag", "open mailbox with lowered flag"),
    ("kissing face", "kissing face with closed eyes"),
    ("imp", "smiling face with horns"),
    ("bus", "oncoming bus"),
])  # fmt: skip
def test_near_duplicates_share_a_group(first, second):
    assert build_emoji.group_of(first, "x") == build_emoji.group_of(second, "x")


def test_different_things_have_different_groups():
    names = ["horse", "cow", "face with monocle", "face with thermometer", "red apple", "pear"]
    assert len({build_emoji.group_of(name, "x") for name in names}) == len(names)


def test_counts_and_majority_are_what_the_report_says():
    dataset = get_dataset("emoji")
    assert len(dataset.split("test")) >= 350
    assert len(dataset.released().split(FINAL)) >= 150
    assert set(dataset.classes) == set(CATEGORIES.values())
    for split in SPLITS:
        counts = np.bincount(dataset.labels(split), minlength=len(dataset.classes))
        assert (counts > 0).all()
        assert counts.max() / counts.sum() < 0.27
    assert {emoji.category for emoji in dataset.emoji} == set(CATEGORIES)


def test_subcategories_have_sixteen_shots_and_test_images():
    dataset = get_dataset("emoji-subcategory")
    classes = len(dataset.classes)
    assert classes == len(set(dataset.classes)) >= 20
    assert (np.bincount(dataset.labels("train"), minlength=classes) >= 16).all()
    assert (np.bincount(dataset.labels("test"), minlength=classes) >= 4).all()


def test_names_are_those_of_test_emoji_and_of_no_other():
    dataset = get_dataset("emoji-names")
    assert isinstance(dataset, EmojiNames)
    others = {emoji.name for emoji in dataset.emoji if emoji.split in ("train", "val")}
    assert len(dataset.classes) == len(set(dataset.classes))
    assert not others & set(dataset.classes)
    seen = [n for n, s in zip(dataset.classes, dataset.captions_seen, strict=True) if s]
    assert seen == ["coat"]  # a class of fashion
    assert all(get_dataset("emoji").captions_seen)
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0
    assert (np.bincount(dataset.labels("test")) == 2).all()


def test_captions_are_of_names_that_the_embedded_text_tower_knows():
    dataset, spell, known = get_dataset("emoji-captions"), tokenizer(20), EmbeddedTokenizer().known
    split = dataset.split("test")
    for emoji in dataset.emoji:
        spelt = spell([CAPTION.format(emoji.name)])
        knows = emoji.split == "test" and not unseen_words(spelt, known)
        assert knows == (emoji.name in CAPTIONED and emoji.split == "test")
    texts = [dataset.captions_of(image_id) for image_id in split.image_ids]
    assert len(texts) == len(STYLES) * len(set(texts)) == len(STYLES) * len(CAPTIONED)
    assert ("an emoji showing coat.",) in texts
    assert dataset.captions_of(split.variant(1).image_ids[0]) == texts[0]
    assert not len(dataset.split("train"))


def test_a_canvas_is_the_same_on_every_machine_and_in_every_task():
    expected = {0: "ce2bd32a20eea6bc", 1: "d7ec98417eb9572d", 226: "2719b8301c21d419"}
    for index, digest in expected.items():
        example, other = (get_dataset(task).split("test")[index] for task in ("emoji", "emoji-names"))
        content = example.image.tobytes()
        assert hashlib.sha256(content + example.mask.tobytes()).hexdigest()[:16] == digest
        assert (other.image_id, other.image.tobytes()) == (example.image_id, content)


def test_mask_is_exactly_what_the_drawing_changes():
    for emoji in get_dataset("emoji").emoji[::150]:
        for image in emoji.images:
            drawing = decode(image)
            canvas, mask = compose(drawing, seeded(1))
            without, nothing = compose(np.zeros_like(drawing), seeded(1))
            changed = (np.asarray(canvas) != np.asarray(without)).any(axis=-1)
            assert not nothing.any()
            assert changed[mask].mean() > 0.98
            assert mask.any()


def test_mask_agrees_with_the_alpha_channel_pixel_by_pixel():
    """An opaque square of 32 px in a 64 px drawing covers a quarter of the drawn square."""
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[16:48, 16:48] = (255, 0, 0, 255)
    image, mask = compose(drawing, seeded(2))
    rows, cols = np.nonzero(mask)
    side = np.ptp(rows) + 1
    assert side == np.ptp(cols) + 1
    assert 96 // 2 - 1 <= side <= 160 // 2 + 1
    assert side * side - 4 <= mask.sum() <= side * side  # a corner's alpha is below half
    inner = np.asarray(image)[rows.min() + 2 : rows.max() - 1, cols.min() + 2 : cols.max() - 1]
    assert (inner == (255, 0, 0)).all()
    assert image.size == (SIZE, SIZE)


def test_build_refuses_another_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm pack"):
        build_emoji.build(tmp_path)
    (tmp_path / next(iter(build_emoji.SHA256))).write_bytes(b"else")
    with pytest.raises(ValueError, match="has sha256"):
        build_emoji.build(tmp_path)
    index = json.loads(get_dataset("emoji").path("emoji-index.json").read_text())
    assert index["sha256"] == build_emoji.SHA256
