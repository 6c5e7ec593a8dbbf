"""Conditions of studies, and golden rankings that are there: which are taken, which are not."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.datasets.base import Dataset
from harness.golden.rank import Source
from harness.golden.store import Rankings, own_store
from harness.studies.run import get_study, list_studies
from harness.studies.workshop import StudyConfig, find
from zoo.golden import GoldenConfig
from zoo.prompt_learner import TuneConfig

MODEL = "clip_vit_b16.openai"
Find = Callable[..., Rankings | None]


@pytest.fixture
def search(toy: Dataset, ranked: Callable[..., Rankings]) -> Find:
    """Search for rankings of a toy's test images, of which the first five are ranked."""
    made = ranked("test", 5)
    made.write(own_store(MODEL, "toy", "test", GoldenConfig()))

    def call(count: int, golden: GoldenConfig | None = None, weights: str = "", revision: str = "") -> Rankings | None:
        source = Source.of(toy, "test")
        source = replace(source, revision=revision or source.revision)
        weights = weights or made.provenance.weights
        image_ids = source.images.image_ids[:count]
        return find(MODEL, weights, source, golden or GoldenConfig(), image_ids)

    return call


def test_rankings_of_these_images_are_returned(search, toy: Dataset):
    for count, there in ((3, 3), (5, 5), (9, 5)):
        assert search(count).image_ids == toy.split("test").image_ids[:there]


def test_rankings_under_other_conditions_and_broken_ones_are_not(search):
    assert search(3, weights="0" * 16) is None
    assert search(3, revision="another") is None
    for change in ({"score": "label"}, {"block": 2}, {"stride": 2}):
        assert search(3, GoldenConfig(**change)) is None
    own_store(MODEL, "toy", "test", GoldenConfig()).write_bytes(b"nothing")
    assert search(3) is None


def test_notes_say_what_was_learned(tiny: StudyConfig):
    config = replace(tiny, tune=TuneConfig(count=7, coupled=False), labelled=3)
    text = config.described(tunes=True)
    assert "7 tokens (vt, independent), depth 1, anchor 8" in text
    assert "3 labelled images per class" in text
    assert "predictors that ship" in text
    own = replace(config, own_predictors=True).described(tunes=True)
    assert f"predictors fitted to {config.golden.described()}" in own
    tuning = [name for name, study in list_studies().items() if study.tunes]
    assert tuning == ["count", "kinds", "order", "points", "tuning"]


def test_refusals(tiny: StudyConfig):
    with pytest.raises(ValueError, match="study 'scorse': did you mean 'scores'"):
        get_study("scorse")
    for field in ("limit", "train_limit", "seeds", "shots", "labelled"):
        with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} 0: expected a number"):
            replace(tiny, **{field: 0})
