"""Rankings that are there: of the wanted images, made in the wanted way, of the wanted tower."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.datasets.base import Dataset
from harness.golden.rank import Source
from harness.golden.store import Rankings, own_store
from harness.studies.workshop import find
from zoo.golden import GoldenConfig

MODEL = "clip_vit_b16.openai"


@pytest.fixture
def look(toy: Dataset, ranked: Callable[..., Rankings]) -> Callable[..., Rankings | None]:
    """Look for rankings of a toy's test images, of which the first five are ranked."""
    made = ranked("test", 5)
    made.write(own_store(MODEL, "toy", "test", GoldenConfig()))

    def call(
        count: int, golden: GoldenConfig | None = None, weights: str = "", revision: str = ""
    ) -> Rankings | None:
        source = Source.of(toy, "test")
        if revision:
            source = replace(source, revision=revision)
        weights = weights or made.provenance.weights
        return find(
            MODEL, weights, source, golden or GoldenConfig(), source.images.image_ids[:count]
        )

    return call


@pytest.mark.parametrize(("count", "there"), [(3, 3), (5, 5), (9, 5)])
def test_those_of_the_wanted_images_are_returned(
    look: Callable[..., Rankings | None], toy: Dataset, count: int, there: int
):
    found = look(count)
    assert found is not None
    assert found.image_ids == toy.split("test").image_ids[:there]


def test_others_are_not(look: Callable[..., Rankings | None]):
    assert look(3, weights="0" * 16) is None
    assert look(3, revision="another") is None
    assert look(3, GoldenConfig(score="label")) is None
    assert look(3, GoldenConfig(block=2)) is None
    assert look(3, GoldenConfig(stride=2)) is None


def test_broken_ones_are_left_to_rank(look: Callable[..., Rankings | None]):
    own_store(MODEL, "toy", "test", GoldenConfig()).write_bytes(b"nothing")
    assert look(3) is None
