"""A run in miniature with its traces: four methods on sixteen images that can be named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import towers
from harness.datasets.base import Dataset
from harness.golden.store import Rankings, own_store
from harness.measure import compare as module
from harness.measure.compare import compare
from harness.measure.plan import Plan
from harness.progress import Progress
from harness.records import Record
from harness.traces import Tracer
from zoo.clip import ClipParts
from zoo.golden import GoldenConfig

ARCH = "clip_vit_b16"
PLAN = Plan(
    models=(ARCH,),
    methods=("evit", "golden", "random", "tome"),
    keeps=(0.6, 0.5),
    datasets=("toy",),
    limit=None,
    batches=(),
)


@pytest.fixture(autouse=True)
def _miniature(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create_clip", lambda name: parts)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)


@pytest.fixture
def golden(ranked: Callable[..., Rankings]) -> Rankings:
    """Random golden rankings of all images, where they are looked for."""
    rankings = ranked()
    store = own_store(f"{ARCH}.openai", "toy", "test", GoldenConfig())
    rankings.write(store.with_name(f"{store.name}.parquet"))
    return rankings


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., list[Record]]:
    """Measure into a folder, other fields of the plan or of the tracer as they are given."""

    def call(
        *,
        known: list[Record] | None = None,
        console: Console | None = None,
        run: Path = tmp_path / "run",
        images: int = 64,
        thumbnails: bool = True,
        **changes: Any,
    ) -> list[Record]:
        progress = Progress(console)
        tracer = Tracer(run=run, progress=progress, images=images, thumbnails=thumbnails)
        found = compare(replace(PLAN, **changes), known or [], progress, tracer)
        return [record for group in found for record in group]

    return call
