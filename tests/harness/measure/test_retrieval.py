"""Retrieval: recalls as a loop counts them, in records beside the dense row's, on tars and on toys."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.apps.compare import compare
from harness.base.terminal import Progress
from harness.datasets.text_features import caption_features
from harness.measure.rows import captions_of
from harness.measure.settings import Plan
from harness.records import metrics
from harness.records.metrics import RECALL_AT, Captions, MetricInput, recalls

NAMES = [f"recall_{found}_{k}" for found in ("image", "text") for k in RECALL_AT]


def slow_recalls(images: Tensor, texts: Tensor, own: list[set[int]]) -> dict[str, list[float]]:
    """Sort everything by cosine, rivals before what is as near, and look for what belongs together."""
    cosines = (images @ texts.T).tolist()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for image, mine in enumerate(own):
        order = sorted(range(len(texts)), key=lambda text: (-cosines[image][text], text in mine))
        for k in RECALL_AT:
            found[f"recall_text_{k}"].append(float(bool(mine & set(order[:k]))))
        places = []
        for text in mine:
            theirs = {other for other, texts_of in enumerate(own) if text in texts_of}
            order = sorted(range(len(images)), key=lambda other: (-cosines[other][text], other in theirs))
            places.append(min(order.index(other) for other in theirs))
        for k in RECALL_AT:
            found[f"recall_image_{k}"].append(sum(place < k for place in places) / len(places))
    return found


@pytest.mark.parametrize(("seed", "part"), [(0, 7), (1, 2048)])
def test_recalls_are_those_of_a_loop(seed, part, monkeypatch):
    """Several captions an image, several images a caption, features that tie, and galleries in parts."""
    monkeypatch.setattr(metrics, "_PART", part)
    generator = np.random.default_rng(seed)
    # Few whole numbers, so that products are exact and many are equal.
    images, texts = (torch.from_numpy(generator.integers(-1, 2, (n, 4))).float() for n in (23, 31))
    own = [{int(text) for text in generator.choice(31, generator.integers(1, 4))} for _ in range(23)]
    own[0] |= set(range(31)) - set.union(*own)  # none without an image
    pairs = np.array([(image, text) for image, mine in enumerate(own) for text in sorted(mine)])
    found = recalls(images, Captions(features=texts, pairs=pairs))
    expected = slow_recalls(images, texts, own)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.astype(float).tolist() == pytest.approx(expected[name])
    assert 0 < found["recall_text_5"].mean() < 1


def test_features_that_are_all_alike_find_nothing():
    features = F.normalize(torch.ones(20, 3), dim=1)
    pairs = np.stack([np.arange(20)] * 2, axis=1)
    assert not any(values.any() for values in recalls(features, Captions(features=features, pairs=pairs)).values())
    with pytest.raises(ValueError, match="image features overflowed"):
        MetricInput(features=features * torch.nan)


def test_equal_captions_are_one_text_and_unseen_words_are_refused(captioned, parts):
    ids = captioned.split("test").image_ids
    texts, pairs = captions_of(captioned, ids)
    assert len(set(texts)) == len(texts) == len(ids) + 3
    for image, text in pairs.tolist():
        assert texts[text] in captioned.captions_of(ids[image])
    assert len(pairs) == 2 * len(ids)
    with pytest.raises(ValueError, match=r"captions of pets: the embedded text tower never saw 'zebra'"):
        caption_features(parts, ["a photo of a cat.", "a zebra"], "pets")


@torch.no_grad()
@pytest.mark.usefixtures("benchmark")
def test_records_by_hand(captioned, parts, monkeypatch):
    monkeypatch.setattr("harness.apps.compare.get_dataset", lambda name: captioned)
    where: dict[str, Any] = {"models": ("clip_vit_b16",), "datasets": ("captioned",), "limit": None, "batches": ()}
    [[dense, random]] = compare(Plan(**where, keeps=(0.5,), methods=("random",)), [], Progress())
    split = captioned.split("test")
    images = torch.stack([parts.preprocess(example.image) for example in split])
    texts, pairs = captions_of(captioned, split.image_ids)
    features = parts.model.encode_text(parts.tokenizer(texts), normalize=True)
    own = [{text for image, text in pairs.tolist() if image == at} for at in range(len(split))]
    expected = slow_recalls(parts.model.encode_image(images, normalize=True), features, own)
    assert (dense.image_count, dense.caption_count) == (len(split), len(texts))
    assert not dense.labelled
    assert "dense_agreement" not in random.metrics
    for name in NAMES:
        mine, other, apart = dense.metrics[name], random.metrics[name], random.metrics[f"{name}_diff"]
        assert mine.mean == pytest.approx(np.mean(expected[name]), abs=1e-3)
        assert mine.low <= mine.mean <= mine.high
        assert f"{name}_diff" not in dense.metrics
        assert apart.mean == pytest.approx(other.mean - mine.mean, abs=1e-3)
        assert apart.low <= other.mean - mine.mean + 1e-3
    assert random.mean("cosine_distance") > 0
