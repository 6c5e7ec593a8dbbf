"""Studies in miniature: the toy tower, and toy datasets whose classes all have a name."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import replace

from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Split, SplitName
from harness.learning import prompts
from harness.measure import rows as measured_rows
from harness.measure.cost import OperatorCost
from harness.records.record import Record
from harness.studies import case
from harness.studies.answer import answer
from harness.studies.questions import list_studies
from harness.studies.reproduce import TABLES, Comparison, compare_rows
from harness.studies.study import StudyConfig
from zoo.core.recipes import FitConfig, GoldenConfig, TuneConfig
from zoo.loading.towers import Tower

NAME = "clip_vit_b16.openai"
NAMES = ("plain", "caltech101", "other", "dtd", "imagenet", "elsewhere")
Reproduced = Callable[..., tuple[Comparison, list[Record]]]


@pytest.fixture
def tiny() -> StudyConfig:
    return StudyConfig(
        model=NAME, datasets=("plain", "other"), limit=7, train_limit=9, seeds=2, labelled=1,
        golden=GoldenConfig(block=2, window=4, stride=4),
        fit=FitConfig(arch="mlp", width=8, epochs=2, steps=2),
        tune=TuneConfig(count=2, rounds=1, steps=2, batch=3, precision="float32"),
    )  # fmt: skip


@pytest.fixture
def few(tiny: StudyConfig) -> StudyConfig:
    return replace(tiny, keeps=(0.5,), datasets=("plain",))


@pytest.fixture
def paper_s(tiny: StudyConfig) -> StudyConfig:
    return replace(tiny, datasets=("caltech101", "dtd"), split="test")


@pytest.fixture
def staged(tower: Tower, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """Let names mean toys of the three classes that have a name, each in an order of its own."""
    Toy: Any = type(toy)

    def made(dataset: str, shift: int) -> Dataset:
        class Shifted(Toy):
            name, listed_by_coop = dataset, True

            @property
            def classes(self) -> tuple[str, ...]:
                return super().classes[:3]

            def _split(self, split: SplitName) -> Split:
                whole = super()._split(split)
                return whole.subset(np.roll(np.flatnonzero(whole.labels < 3), shift))

        return Shifted()

    datasets = {name: made(name, shift) for shift, name in enumerate(NAMES)}

    def get(name: str) -> Dataset:
        if name not in datasets:
            raise ValueError(f"no dataset is called {name!r}")
        return datasets[name]

    monkeypatch.setattr("harness.datasets.names_of", lambda names, _: list(names))
    for place in ("studies.answer", "learning.predictor", "golden.rank"):
        monkeypatch.setattr(f"harness.{place}.load_tower", lambda name: tower)
    for place in (
        *("studies.case", "studies.answer", "studies.reproduce"),
        *("learning.predictor", "datasets"),
    ):
        monkeypatch.setattr(f"harness.{place}.get_dataset", get)
    return datasets


@pytest.fixture
def studied(staged: dict[str, Dataset]) -> Callable[..., Any]:

    def call(name: str, config: StudyConfig, records: Sequence[Record] = ()) -> dict[str, Any]:
        sheets = answer(list_studies()[name], config, list(records), Progress())
        return {sheet.dense.dataset: (sheet, own) for sheet, own in sheets}

    return call


@pytest.fixture
def reproduced(staged: dict[str, Dataset]) -> Reproduced:

    def call(name: str, config: StudyConfig) -> tuple[Comparison, list[Record]]:
        target = TABLES[name]
        target = replace(target, keeps=config.keeps or target.keeps)
        config = target.conditions(config)
        parts = [one for part in target.groups(config) for one in answer(target.study, part, [], Progress())]
        records = [record for _, group in parts for record in group]
        return compare_rows(name, config, [table for table, _ in parts]), records

    return call


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is made; anything fails once the key ``done`` is set."""
    made: Counter[str] = Counter()

    def count(module: Any, name: str, kind: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            assert not made["done"], f"{kind} once more"
            made[kind] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    count(case, "rank", "rankings")
    count(case, "fit", "predictors")
    count(prompts, "tune", "prompts")
    count(measured_rows, "run_split", "outcomes")
    return made


@pytest.fixture
def quick_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count tokens through blocks instead of every operator's multiply-adds, which takes a hundred times as long."""

    @torch.inference_mode()
    def count(model: Any, size: Any, **_: Any) -> OperatorCost:
        like = next(model.parameters())
        tokens = model.trace(torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)).tokens_per_block
        return OperatorCost(gflops=sum(tokens) / 1e3, by_operator={}, unsupported=(), params=1)

    for place in ("measure.plan", "measure.cost", "studies.case"):
        monkeypatch.setattr(f"harness.{place}.gflops", count)
