"""Text training sees training images and their captions, and nothing else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harness.datasets import get_dataset
from harness.datasets.packaged import CATEGORIES, CLOTHES, EmojiCategory, Fashion
from tools import train_text
from tools.train_text import LitModel, train_lit
from zoo.loading.clip import CompactText, load_text, tokenizer

TEXTS = ["a cat", "a photo of a cat", "a dog", "a photo of a dog", "an animal", "a tree"]
CAPTIONS = [[0, 1, 4], [2, 3, 4], [5]]  # of cats, dogs and trees
GEOMETRY = {"context_length": 12, "width": 24, "heads": 2, "layers": 2, "output_dim": 10}


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
    for index in (7, emoji.size - 1):
        variant, position = divmod(index, len(split))
        assert emoji.draw(index).tobytes() == split.variant(variant)[position].image.tobytes()


def test_every_class_caption_is_seen(emoji):
    per_image = len(get_dataset("emoji").split("train"))
    said = words([c for i in range(per_image) for c in emoji.captions(i)], EmojiCategory.templates)
    assert said >= {*CATEGORIES.values(), *train_text.SUBCATEGORIES.values()}


def test_fashion_takes_no_item_of_val_or_test(monkeypatch, tmp_path):
    """With a source made of shipped items, only what ships as training is left to draw."""
    fashion = Fashion()
    parts = [fashion.items[name] for name in ("train", "val", "test")]
    labels = [fashion.labels(name).astype(np.uint8) for name in ("train", "val", "test")]
    source = {"train": (np.concatenate(parts), np.concatenate(labels))}
    monkeypatch.setattr(train_text, "read_fashion", lambda _: source)
    taken = []
    monkeypatch.setattr(train_text, "sample_item", lambda items, _, i, rng: (taken.append(items[i].tobytes()),) * 2)
    source = train_text.fashion_source(tmp_path)
    for index in range(300):
        source.draw(index)
        assert any(name in source.captions(index)[0] for name in CLOTHES)
    assert len(set(taken)) > 200
    assert not {item.tobytes() for part in parts[1:] for item in part} & set(taken)


def test_the_shipped_text_tower_knows_every_seen_caption():
    text, _, length = load_text()
    for dataset in map(get_dataset, ("fashion", "emoji")):
        prompts = [t.format(c) for t in dataset.templates for c in dataset.classes]
        with torch.inference_mode():
            assert text(tokenizer(length)(prompts)).isfinite().all()


def test_images_come_to_their_own_captions():
    generator = torch.Generator().manual_seed(5)
    kinds = torch.arange(30) % 3
    images = 2 * torch.eye(3, 12)[kinds] + 0.2 * torch.randn(30, 12, generator=generator)
    captions, tokens = [CAPTIONS[int(kind)] for kind in kinds], tokenizer(12)(TEXTS)
    model = LitModel(12, CompactText(tokens.unique().tolist(), **GEOMETRY), 10)
    train_lit(model, images, captions, tokens, torch.ones(30), steps=40, batch=24, peak=3e-3, warmup=3)
    with torch.no_grad():
        nearest = (F.normalize(model.project(images)) @ F.normalize(model.text(tokens)).T).argmax(dim=1)
    assert all(int(text) in own for text, own in zip(nearest, captions, strict=True))
