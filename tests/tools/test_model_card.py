"""The model card says what the shipped files hold, and what the tower does without names and with a probe."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.datasets import get_dataset
from harness.datasets.base import FINAL
from harness.datasets.emoji import EmojiCategory, EmojiNames
from harness.datasets.few_shot import batches
from harness.models.towers import load_clip, named, text_classifier
from harness.records.metrics import predicted
from zoo.core.files import read_facts
from zoo.loading.predictor_file import find_predictor

CARD = " ".join((Path(__file__).parents[2] / "docs" / "model_card.md").read_text("utf-8").split())


def test_the_predictor_is_as_its_file_says():
    path = find_predictor("clip_vit_s14", "imgfocus_lit", 3).path
    facts = read_facts(path, "predictor")
    recipe, origin = facts["recipe"], facts["provenance"]
    words = [f"`{path.name}`: architecture `{recipe['arch']}`", f"{recipe['width']} channels, free of N"]
    words += [f"fitted at block {facts['block']} by the loss `{recipe['loss']}` to golden rankings of "]
    words += [f"golden rankings of {origin['images']:,} training images"]
    for part in words:
        assert part in CARD


def test_classes_and_splits_are_counted():
    names, emoji = get_dataset("emoji-names"), get_dataset("emoji").released()
    (_, unknown) = text_classifier(load_clip("clip_vit_s14")[0], names.without_unknown())
    assert f'1 of {len(names.classes)} ("coat"' in CARD
    assert f"Of `emoji-names`' {len(names.classes)} classes {len(unknown)} have words" in CARD
    assert f"all {len(get_dataset('emoji-subcategory').classes)} |" in CARD
    final, lost = len(emoji.split(FINAL)), sum(one.split is None for one in emoji.emoji)
    assert f"{final} images of {final // 2} emoji" in CARD
    assert f"{len(get_dataset('fashion').released().split(FINAL))} items of `fashion`" in CARD
    assert f"The {lost} emoji of val and test" in CARD


@torch.inference_mode()
def test_names_beside_what_the_category_alone_would_give():
    """Guess among a category's names: of the category that the tower says, and of the true one."""
    parts, _, _ = load_clip("clip_vit_s14")
    names, category = EmojiNames().without_unknown(), EmojiCategory()
    text, _ = text_classifier(parts, names)
    whole = names.split("test")
    split = whole.subset(np.flatnonzero(named(text)[whole.labels]))
    encoded = [parts.model.encode_image(images, normalize=True) for _, images in batches(split, parts.preprocess)]
    features = torch.cat(encoded)
    label_of = {emoji.name: category.label_of(emoji) for emoji in names.emoji}
    of_name = np.array([label_of[name] for name in names.classes])
    shares = 1 / np.maximum(np.bincount(of_name[named(text)], minlength=len(category.classes)), 1)
    true = of_name[split.labels]
    said = predicted(features, text_classifier(parts, category)[0])
    top1 = np.mean(predicted(features, text) == split.labels)
    found = re.search(r"names ([\d.]+) % .*? of (\d+) images.*? gives ([\d.]+) %.*? true category, ([\d.]+) %", CARD)
    assert found is not None
    expected = [100 * top1, len(split), 100 * np.mean((said == true) * shares[true]), 100 * np.mean(shares[true])]
    assert [float(value) for value in found.groups()] == pytest.approx(expected, abs=0.051)
