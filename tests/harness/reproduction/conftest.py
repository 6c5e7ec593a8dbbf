"""The paper's conditions in miniature: a toy tower and toy datasets that have the paper's names."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.datasets.base import Dataset, Split, SplitName
from harness.progress import Progress
from harness.records import Record
from harness.reproduction import get_reproduction
from harness.reproduction.run import produce, under_its_conditions
from harness.reproduction.sheet import Comparison, compared
from harness.studies.config import StudyConfig
from harness.towers import Tower
from zoo.clip import ClipParts
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.tune_config import TuneConfig

NAME = "clip_vit_b16.openai"
NAMES = ("caltech101", "dtd", "imagenet", "elsewhere")
Reproduced = Callable[..., tuple[Comparison, list[Record]]]


@pytest.fixture
def tiny() -> StudyConfig:
    return StudyConfig(
        model=NAME,
        datasets=("caltech101", "dtd"),
        split="test",
        limit=7,
        train_limit=9,
        seeds=2,
        golden=GoldenConfig(block=2, window=4, stride=4),
        fit=FitConfig(arch="mlp", width=8, epochs=2, steps=2),
        tune=TuneConfig(count=2, rounds=1, steps=2, batch=3, dtype="float32"),
        labelled=1,
    )


@pytest.fixture
def named(toy: Dataset) -> dict[str, Dataset]:
    """Toy images of the three classes that have a name, in an order of each dataset's own."""
    Toy: Any = type(toy)

    def made(dataset: str, shift: int) -> Dataset:
        class Shifted(Toy):
            name = dataset

            @property
            def classes(self) -> tuple[str, ...]:
                return super().classes[:3]

            def _split(self, split: SplitName) -> Split:
                whole = super()._split(split)
                return whole.subset(np.roll(np.flatnonzero(whole.labels < 3), shift))

        return Shifted()

    return {name: made(name, shift) for shift, name in enumerate(NAMES)}


def find(named: dict[str, Dataset]) -> Callable[[str], Dataset]:
    def get(name: str) -> Dataset:
        if name not in named:
            raise ValueError(f"no dataset is called {name!r}")
        return named[name]

    return get


@pytest.fixture
def staged(
    parts: ClipParts, named: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Dataset]:
    """Let every name of the paper mean the toys."""
    monkeypatch.setattr("harness.datasets.names_of", lambda given, **_: list(given))
    tower = Tower(parts.model.visual, parts.preprocess, NAME, parts)
    places = ("studies.run", "studies.tuning_shop", "fit", "golden.rank", "reproduction.pace")
    for place in places:
        monkeypatch.setattr(f"harness.{place}.load_tower", lambda name: tower)
    places = ("studies.run", "studies.workshop", "gather", "reproduction.rehearsal")
    for place in (*places, "reproduction.commands"):
        monkeypatch.setattr(f"harness.{place}.get_dataset", find(named))
    return named


@pytest.fixture
def reproduced(staged: dict[str, Dataset]) -> Reproduced:
    """Measure a table on the toys."""

    def call(
        name: str, config: StudyConfig, known: list[Record] | None = None
    ) -> tuple[Comparison, list[Record]]:
        recipe = get_reproduction(name)
        told = under_its_conditions(recipe, config)
        found = list(produce(recipe, told, known or [], Progress()))
        sheets = [sheet for sheet, _ in found]
        records = [record for _, group in found for record in group]
        return compared(recipe, told, 6, NAME, sheets), records

    return call
