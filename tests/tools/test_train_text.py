"""Text training sees training images and their captions, and nothing else; a stopped run goes on."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.datasets import get_dataset
from harness.datasets.emoji import CATEGORIES, EmojiCategory
from harness.datasets.fashion import CLASSES, Fashion
from tools import build_fashion, train_text
from tools.train_text import LitConfig, LitModel, train_lit
from zoo.loading.clip import CompactText, load_text, tokenizer

TEXTS = ["a cat", "a photo of a cat", "a dog", "a photo of a dog", "an animal", "a tree"]
CAPTIONS = [[0, 1, 4], [2, 3, 4], [5]]  # of cats, dogs and trees
GEOMETRY = {"context_length": 12, "width": 24, "heads": 2, "layers": 2, "output_dim": 10}
CONFIG = LitConfig(steps=12, batch=24, warmup=3, learning_rate=3e-3, checkpoint_every=4)


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
    parts = [fashion.items(name) for name in ("train", "val", "test")]
    labels = [fashion.labels(name).astype(np.uint8) for name in ("train", "val", "test")]
    source = {"train": (np.concatenate(parts), np.concatenate(labels))}
    monkeypatch.setattr(build_fashion, "read_parts", lambda _: source)
    taken = []
    monkeypatch.setattr(train_text, "sample", lambda items, labels, i, rng: (taken.append(items[i].tobytes()),) * 2)
    source = train_text.fashion_source(tmp_path)
    for index in range(300):
        source.draw(index)
        assert any(name in source.captions(index)[0] for name in CLASSES)
    assert len(set(taken)) > 200
    assert not {item.tobytes() for part in parts[1:] for item in part} & set(taken)


def test_the_shipped_text_tower_knows_every_seen_caption():
    text, _, length = load_text()
    for dataset in map(get_dataset, ("fashion", "emoji")):
        prompts = [t.format(c) for t in dataset.templates for c in dataset.classes]
        with torch.inference_mode():
            assert text(tokenizer(length)(prompts)).isfinite().all()


class Job(NamedTuple):
    """Images of three kinds and their captions."""

    images: Tensor
    captions: list[list[int]]
    tokens: Tensor

    def run(
        self, config: LitConfig, checkpoint: Path, on_loss: Callable[[float], None] = lambda _: None, seed: int = 0
    ) -> LitModel:
        """Train a fresh model."""
        torch.manual_seed(seed)
        model = LitModel(12, CompactText(self.tokens.unique().tolist(), **GEOMETRY), 10)
        options = {"weights": torch.ones(len(self.images)), "checkpoint": checkpoint}
        train_lit(model, *self, config, on_step=lambda _, loss: on_loss(loss), **options)
        return model


@pytest.fixture
def job() -> Job:
    generator = torch.Generator().manual_seed(5)
    kinds = torch.arange(30) % 3
    images = 2 * torch.eye(3, 12)[kinds] + 0.2 * torch.randn(30, 12, generator=generator)
    return Job(images, [CAPTIONS[int(kind)] for kind in kinds], tokenizer(12)(TEXTS))


def test_a_stopped_run_ends_like_one_that_went_through(job: Job, tmp_path: Path):
    losses, rest = list[float](), list[float]()

    def stop(loss: float) -> None:
        if loss == losses[6]:
            raise KeyboardInterrupt

    through = job.run(CONFIG, tmp_path / "a.pt", losses.append)
    with pytest.raises(KeyboardInterrupt):
        job.run(CONFIG, tmp_path / "b.pt", stop)
    # Other initial weights and another state of the global generator: all comes from the file.
    resumed = job.run(CONFIG, tmp_path / "b.pt", rest.append, seed=9)
    assert rest == losses[4:]
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"a.pt' is of another recipe"):
        job.run(replace(CONFIG, steps=13), tmp_path / "a.pt")


def test_the_loss_counts_every_positive():
    logits = torch.randn(4, 5)
    positive = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0.0]])
    total = 0.0
    for row in range(4):
        log_sum = math.log(sum(math.exp(v) for v in logits[row].tolist()))
        mine = [c for c in range(5) if positive[row, c] == 1]
        total -= sum(logits[row, c].item() - log_sum for c in mine) / len(mine)
    assert train_text._spread_loss(logits, positive).item() == pytest.approx(total / 4, rel=1e-5)
