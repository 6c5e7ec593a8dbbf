"""Traces without models: rows whose rankings are drawn, and small copies of their images."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from harness.traces import Facts, RowTraces
from harness.traces.row import RANKING
from harness.traces.sealed import seal
from harness.traces.thumbnails import thumbnails_path

IMAGES, SIDE = 12, 6
FACTS = Facts(
    version="0.1.0",
    model="clip_vit_b16",
    method="dense",
    keep=1.0,
    method_config={},
    tag="openai",
    weights_sha256="ab" * 32,
    dataset="toy",
    dataset_revision="0123456789ab",
    split="test",
    shots=0,
    tuning=None,
    prompt_tokens=None,
    seed=0,
    image_count=250,
    device="cpu",
    device_name="a processor",
    dtype="float32",
    threads=2,
    torch="2.13",
    timm="1.0.31",
)


class Written:
    """Writes rows of a run as `compare` would."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.ids = tuple(f"toy/test-{i}" for i in range(IMAGES))

    def row(self, method: str, keep: float, *, seed: int = 0, **changes: Any) -> RowTraces:
        """Draw a ranking and keep the first of each image; dense keeps all and ranks nothing."""
        drawn = np.random.default_rng((seed, len(method), round(100 * keep)))
        cells = SIDE**2
        importance = np.argsort(drawn.random((IMAGES, cells)), axis=1).astype(np.int16)
        left = np.where(importance >= cells - round(keep * cells), -1, 3).astype(np.int16)
        if method == "dense":
            importance[:] = -1
        token = np.where(left == -1, np.arange(cells), -1).astype(np.int16)
        name = "clip_vit_b16"
        name += "" if method == "dense" else f"_{method}{round(100 * keep)}"
        told = {"model": name, "method": method, "keep": keep, "method_config": {"keep": keep}}
        row = RowTraces(
            facts=replace(FACTS, **{**told, **changes}),
            grid=(SIDE, SIDE),
            image_ids=self.ids,
            labels=tuple("cat" if i % 2 else "dog" for i in range(IMAGES)),
            predicted=("cat",) * IMAGES,
            importance=importance,
            left=left,
            token=token,
        )
        return self.put(row)

    def golden(self, **changes: Any) -> RowTraces:
        """Write a golden ranking."""
        told = {"model": "clip_vit_b16", "method_config": {"score": "preservation"}} | changes
        row = self.row(RANKING, 1.0, **told)
        return self.put(replace(row, predicted=(None,) * IMAGES))

    def put(self, row: RowTraces) -> RowTraces:
        path = self.run / "traces" / row.facts.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.encode())
        return row

    def thumbnails(self, grain: int = 8, side: int = 48) -> None:
        """Write small copies of the images, the finer the grain the larger."""
        made = []
        for i in range(IMAGES):
            drawn = np.random.default_rng(i).integers(0, 256, (side // grain, side // grain, 3))
            pixels = drawn.repeat(grain, axis=0).repeat(grain, axis=1).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
            made.append(buffer.getvalue())
        path = thumbnails_path(self.run, FACTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            seal(pa.table({"image_id": list(self.ids), "jpeg": made}), "thumbnails", 1)
        )


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Written]:
    """Return what writes into a folder."""
    return lambda name="run": Written(tmp_path / name)


@pytest.fixture
def run(written: Callable[..., Written]) -> Written:
    """A run of two methods at two keep rates, random pruning and a golden ranking."""
    made = written()
    made.row("dense", 1.0)
    made.golden()
    for keep in (0.5, 0.25):
        for method in ("evit", "patchrank", "random"):
            made.row(method, keep)
    made.thumbnails()
    return made
