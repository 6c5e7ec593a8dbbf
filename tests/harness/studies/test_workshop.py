"""Conditions of studies, and golden rankings that are there: which are taken, which are not."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from harness.base.terminal import Progress
from harness.datasets.base import Dataset
from harness.golden.rank import Source
from harness.golden.store import Rankings, own_store
from harness.studies.run import get_study, list_studies, make
from harness.studies.workshop import StudyConfig, find
from zoo.core.files import cache_folder, read_facts
from zoo.learning.prompt_learner import RECIPES, TuneConfig
from zoo.loading.predictor_file import PredictorFile
from zoo.ranking.golden import GoldenConfig

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


def without_hash(path: Path) -> None:
    facts = read_facts(path, "predictor")
    del facts["hash"]
    save_file(load_file(path), path, {"predictor": json.dumps(facts)})


def other_weights(path: Path) -> None:
    facts = read_facts(path, "predictor")
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"predictor": json.dumps(facts)})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (without_hash, "has no hash of its content: an earlier version wrote it"),
        (other_weights, "is damaged: its content is not what was written"),
        (lambda path: path.write_bytes(b"nothing"), "holds no predictor: "),
    ],
)
def test_a_predictor_of_an_earlier_run_that_cannot_be_loaded_is_fitted_anew(
    spoil: Callable[[Path], object], why: str, few: StudyConfig, staged: dict[str, Dataset]
):
    def fidelity(console: Console) -> list[float | None]:
        sheets = make(get_study("losses"), replace(few, seeds=1), [], Progress(console))
        return [record.mean("cosine_distance") for _, records in sheets for record in records]

    whole = fidelity(Console(quiet=True))
    path, *others = sorted((cache_folder() / "studies").glob("*.safetensors"))
    spoil(path)
    before, told = {other: other.stat().st_mtime_ns for other in others}, Console(file=io.StringIO(), width=1000)
    assert fidelity(told) == whole
    said = [line for line in told.file.getvalue().splitlines() if "fitted anew" in line]
    assert len(said) == 1
    assert said[0].startswith("a predictor of an earlier run is fitted anew: ")
    assert why in said[0]
    assert path.name in said[0]
    assert PredictorFile.read(path).tensors()
    assert {other: other.stat().st_mtime_ns for other in others} == before


def test_notes_say_what_was_learned(tiny: StudyConfig):
    config = replace(tiny, tune=TuneConfig(count=7, coupling="none"), labelled=3)
    text = config.described(tunes=True)
    assert "7 tokens (vt, independent), depth 1, anchor 32" in text
    assert f"3 labelled images per class in {config.tune.described()}; 2 seeds from 0 on" in text
    assert "up to 4 others per class to validate by." in text
    assert "predictors that ship" in text
    own = replace(config, own_predictors=True).described(tunes=True)
    assert f"predictors fitted to {config.golden.describe()}" in own
    tuning = [name for name, study in list_studies().items() if study.tunes]
    assert tuning == ["count", "kinds", "order", "points", "tuning"]


def test_notes_say_how_many_steps_epochs_are(tiny: StudyConfig, staged: dict[str, Dataset]):
    """Three classes of three images: a shot each is one batch of two, and four shots are three: four batches."""
    maple = replace(RECIPES["maple"], batch=2, seed=1)
    for labelled, steps in ((1, 5), (2, 15), (4, 20)):
        text = replace(tiny, tune=maple, labelled=labelled, draws="coop").described(tunes=True)
        assert text.endswith(f" Steps in all: {steps} on plain, {steps} on other.")
        assert f"{labelled} labelled images per class, CoOp's own draws, in at most 5 epochs of 2 images" in text
        assert "2 tokens (vt, coupled as printed), beginning as 'a photo', depth 9, anchor 0" in text
        assert "validate" not in text.replace("nothing validated", "")


def test_refusals(tiny: StudyConfig):
    with pytest.raises(ValueError, match="study 'scorse': did you mean 'scores'"):
        get_study("scorse")
    for field in ("limit", "train_limit", "seeds", "shots", "labelled"):
        with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} 0: expected a number"):
            replace(tiny, **{field: 0})
