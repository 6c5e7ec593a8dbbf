"""Text training sees training images and their captions, and nothing else."""

import numpy as np
import pytest
import torch

from harness.datasets import get_dataset
from harness.datasets.emoji import CATEGORIES, SUBCATEGORIES, EmojiCategory
from harness.datasets.fashion import CLASSES, Fashion
from tools import build_fashion, train_text


@pytest.fixture(scope="module")
def emoji() -> train_text.Source:
    return train_text.emoji_source()


def words(captions: list[str], templates: tuple[str, ...]) -> set[str]:
    """Return what stands in the templates' holes, in whatever template."""
    cut = [t.split("{}") for t in (*templates, *sum(train_text.STYLE_TEMPLATES, ()))]
    return {
        caption[len(before) : len(caption) - len(after)]
        for caption in captions
        for before, after in cut
        if caption.startswith(before) and caption.endswith(after)
    }


def test_every_emoji_image_is_a_training_image(emoji):
    split = get_dataset("emoji").split("train")
    assert emoji.size == len(split) * train_text.EMOJI_VARIANTS
    for index in (0, 7, len(split), emoji.size - 1):
        variant, position = divmod(index, len(split))
        assert emoji.draw(index).tobytes() == split.variant(variant)[position].image.tobytes()


def test_what_counts_as_seen_is_what_captions_say(emoji):
    """A name of a test emoji counts as seen exactly where some training caption has it."""
    templates = EmojiCategory.templates
    per_image = len(get_dataset("emoji").split("train"))
    said = words([c for i in range(per_image) for c in emoji.captions(i)], templates)
    said |= set(CLASSES)
    names = get_dataset("emoji-names")
    assert [name in said for name in names.classes] == list(names.captions_seen)
    assert said >= set(CATEGORIES.values())
    used = set(get_dataset("emoji-subcategory").classes)
    assert said >= used
    assert used <= set(SUBCATEGORIES.values())


def test_fashion_takes_no_item_of_val_or_test(monkeypatch, tmp_path):
    """With a source made of shipped items, only what ships as training is left to draw."""
    fashion = Fashion()
    parts = [fashion.items(name) for name in ("train", "val", "test")]
    labels = [fashion.labels(name).astype(np.uint8) for name in ("train", "val", "test")]
    monkeypatch.setattr(build_fashion, "unpack", lambda source, into: source)
    monkeypatch.setattr(build_fashion, "read_part", lambda *_: (np.concatenate(parts), np.concatenate(labels)))
    taken = []
    monkeypatch.setattr(train_text, "sample", lambda items, labels, i, rng: (taken.append(items[i].tobytes()),) * 2)
    source = train_text.fashion_source(tmp_path)
    for index in range(300):
        source.draw(index)
        assert any(name in source.captions(index)[0] for name in CLASSES)
    held_out = {item.tobytes() for part in parts[1:] for item in part}
    assert len(set(taken)) > 200
    assert not held_out & set(taken)


def test_the_shipped_text_tower_knows_every_seen_caption():
    from zoo.loading.text import load_text, tokenizer

    text, _, length = load_text()
    for name in ("fashion", "emoji", "emoji-subcategory"):
        dataset = get_dataset(name)
        prompts = [t.format(c) for t in dataset.templates for c in dataset.classes]
        with torch.inference_mode():
            features = text(tokenizer(length)(prompts))
        assert features.isfinite().all()
