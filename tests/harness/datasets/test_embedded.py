"""The datasets that ship: emoji, fashion canvases, photographs; their splits, masks and pixels never drift."""

import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from harness.datasets import get_dataset
from harness.datasets.base import DATA_DIR, FINAL, SPLITS
from harness.datasets.images import measure_detail
from harness.datasets.packaged import CAPTION, CAPTIONED, SMALLEST, STYLES, compose_item, seeded
from zoo.loading.clip import read_known_ids, tokenizer, unseen_words


@pytest.mark.parametrize(("name", "split", "index", "expected"), [
    ("fashion", "train", 0, "d64714116bb5c9e6"),
    ("fashion", "test", 1799, "22143dbd4b0139e3"),
    ("emoji", "test", 0, "ce2bd32a20eea6bc"),
    ("emoji", "test", 226, "2719b8301c21d419"),
])  # fmt: skip
def test_a_canvas_is_the_same_on_every_machine(name, split, index, expected):
    example = get_dataset(name).split(split)[index]
    assert hashlib.sha256(example.image.tobytes() + example.mask.tobytes()).hexdigest()[:16] == expected


def test_both_styles_of_an_emoji_share_its_split_and_its_group():
    dataset = get_dataset("emoji")
    codes: Counter[str] = Counter()
    for name in SPLITS:
        members, split = dataset.members(name), dataset.split(name)
        codes.update(emoji.code for emoji in members)
        groups = [dataset.group_of(image_id) for image_id in split.image_ids]
        assert groups[::2] == groups[1::2]
        assert split.image_ids == tuple(f"emoji/{emoji.code}/{style}" for emoji in members for style in STYLES)
    assert set(codes.values()) == {1}
    places = {(emoji.group, emoji.split) for emoji in dataset.emoji if emoji.split}
    assert len({group for group, _ in places}) == len(places)  # no group is in two splits


def test_captions_are_of_names_that_the_embedded_text_tower_knows():
    dataset, spell, known = get_dataset("emoji-captions"), tokenizer(20), read_known_ids()
    split = dataset.split("test")
    for emoji in dataset.emoji:
        if emoji.split == "test":
            assert (emoji.name in CAPTIONED) != bool(unseen_words(spell([CAPTION.format(emoji.name)]), known))
    texts = [dataset.captions_of(image_id) for image_id in split.image_ids]
    assert len(texts) == len(STYLES) * len(set(texts)) == len(STYLES) * len(CAPTIONED)
    assert dataset.captions_of(split.variant(1).image_ids[0]) == texts[0]


def released(name: str) -> Any:
    return get_dataset(name).released()


def test_items_are_in_one_split_and_none_that_was_seen_is_tested_by():
    fashion = released("fashion")
    sources, pixels, total = set(), set(), 0
    for split, per_class in (("train", 120), ("val", 60), ("test", 180), (FINAL, 50)):
        labels, (part, positions) = fashion.labels(split), fashion.sources[split]
        source = np.array(positions)
        assert part == ("t10k" if split in ("test", FINAL) else "train")
        assert np.bincount(labels).tolist() == [per_class] * 10
        # Classes come in the source's order; the design looked at the first hundred of each in t10k.
        assert part == "train" or min(source[labels == label].min() for label in range(10)) >= 100
        sources |= {(part, i) for i in positions}
        pixels |= {item.tobytes() for item in fashion.items[split]}
        total += len(labels)
    assert len(sources) == len(pixels) == total


def test_the_mask_of_an_item_is_what_the_item_changes():
    """Paint once with the item and once with an empty one: only the mask's soft border differs."""
    items = released("fashion").items["val"]
    for index in range(20):
        clutter = items[[index + 1, index + 2, index + 3]]
        image, mask = compose_item(items[index], clutter, seeded(index))
        without, nothing = compose_item(np.zeros_like(items[index]), clutter, seeded(index))
        changed = (np.asarray(image) != np.asarray(without)).any(axis=-1)
        assert not nothing.any()
        assert changed[mask].mean() > 0.99
        assert not (changed & ~binary_dilation(mask, np.ones((9, 9)))).any()
        rows, cols = np.nonzero(mask)
        assert 40 <= max(np.ptp(rows), np.ptp(cols)) + 1 <= 112


def test_packs_hold_what_their_indexes_say_and_frames_are_whole():
    photos, frames = released("photos"), released("frames")
    splits = {row["group"]: row["split"] for row in photos.photos}
    for dataset, side in ((photos, 224), (frames, 448)):
        file = io.BytesIO((DATA_DIR / dataset.files[0]).read_bytes())
        for row in dataset.photos:
            assert splits.setdefault(row["group"], row["split"]) == row["split"]
            for left, top, right, bottom, size in row["crops"]:
                assert 0 <= left < right <= row["size"][0]
                assert 0 <= top < bottom <= row["size"][1]
                with Image.open(io.BytesIO(file.read(size))) as image:
                    assert image.size == (min(side, right - left),) * 2 == (min(side, bottom - top),) * 2
                    if dataset is frames:
                        assert right - left == min(row["size"])
                        assert measure_detail(image, (224, 224)) == pytest.approx(row["detail"], abs=0.1)
        assert not file.read()
    assert {row["name"] for row in photos.photos} < {row["name"] for row in frames.photos}


def test_notice_names_every_photograph():
    notice = (Path(__file__).parents[3] / "NOTICE").read_text()
    for row in released("frames").photos:
        assert f"  {row['name']} | {row['author']} | {row['licence']}\n" in notice
        assert row["package"] in notice


def test_other_variants_are_parts_of_the_crop_and_half_are_mirrored():
    split, seen = released("photos").split("val"), set()
    whole = np.asarray(split[0].image)
    for variant in range(1, 5):
        part = np.asarray(split.variant(variant)[0].image)
        assert len(whole) * SMALLEST // 100 <= len(part) <= len(whole)
        windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)[:, :, 0, ::9, ::9]
        found = (windows == image[::9, ::9] for image in (part, part[:, ::-1]))
        mirrored = [bool(equal.all(axis=(2, 3, 4)).any()) for equal in found]
        assert sum(mirrored) == 1
        seen.add(mirrored[0])
    assert seen == {False, True}
