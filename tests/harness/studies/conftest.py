"""Studies in miniature: the toy tower, two toy datasets whose classes all have a name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.datasets.base import Dataset, Split, SplitName
from harness.progress import Progress
from harness.records import Record
from harness.studies import get_study
from harness.studies.config import StudyConfig
from harness.studies.run import make
from harness.studies.sheet import Sheet
from harness.towers import Tower
from zoo.clip import ClipParts
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.prompt_learner import TuneConfig

NAME = "clip_vit_b16.openai"


@pytest.fixture
def tiny() -> StudyConfig:
    return StudyConfig(
        model=NAME,
        datasets=("plain", "other"),
        limit=7,
        train_limit=9,
        seeds=2,
        golden=GoldenConfig(block=2, window=4, stride=4),
        fit=FitConfig(arch="mlp", width=8, epochs=2, steps=2),
        tune=TuneConfig(count=2, rounds=1, steps=2, batch=3, dtype="float32"),
        labelled=1,
    )


@pytest.fixture
def plain(toy: Dataset) -> dict[str, Dataset]:
    """Toy images of the three classes that have a name, in two orders."""
    Toy: Any = type(toy)

    class Plain(Toy):
        name = "plain"
        shift = 0

        @property
        def classes(self) -> tuple[str, ...]:
            return super().classes[:3]

        def _split(self, name: SplitName) -> Split:
            whole = super()._split(name)
            known = np.flatnonzero(whole.labels < 3)
            return whole.subset(np.roll(known, self.shift))

    class Other(Plain):
        name = "other"
        shift = 2

    return {"plain": Plain(), "other": Other()}


@pytest.fixture
def studied(
    parts: ClipParts, plain: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Make a study of the toy tower; return its tables and records by dataset."""
    tower = Tower(parts.model.visual, parts.preprocess, NAME, parts)
    for place in ("studies.run", "studies.tuning_shop", "fit", "golden.rank"):
        monkeypatch.setattr(f"harness.{place}.load_tower", lambda name: tower)
    for place in ("studies.run", "studies.workshop", "gather"):
        monkeypatch.setattr(f"harness.{place}.get_dataset", plain.__getitem__)

    def call(
        name: str, config: StudyConfig, records: list[Record] | None = None
    ) -> dict[str, tuple[Sheet, list[Record]]]:
        made = make(get_study(name), config, records or [], Progress())
        return {sheet.dense.dataset: (sheet, found) for sheet, found in made}

    return call
