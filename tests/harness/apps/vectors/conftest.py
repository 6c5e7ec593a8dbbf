"""A folder of odd and broken pictures, a tiny tower that commands can name, and jobs with both."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import zoo  # noqa: F401  (registers the models)
from harness.apps.vectors.embed import Embedded, embed
from harness.apps.vectors.settings import EmbedJob
from harness.apps.vectors.source import open_source
from harness.base.terminal import Progress
from zoo.deploy.setup import Setup

WHOLE = 40


def drawn(number: int, form: str = "png") -> bytes:
    generator = np.random.default_rng(number)
    size = (int(generator.integers(20, 90)), int(generator.integers(20, 90)), 3)
    sink = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(sink, form)
    return sink.getvalue()


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    return drawn


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in three folders, and four that can't be read."""
    folder = tmp_path_factory.mktemp("some") / "pictures"
    for number in range(WHOLE):
        form = ("png", "jpeg")[number % 2]
        place = folder / ("", "deep", "deep/er")[number % 3] / f"{number:02d}.{form}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(drawn(number, form))
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "cut.jpg").write_bytes(drawn(7, "jpeg")[:400])
    (folder / "deep" / "text.webp").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture, and it doesn't say so")
    return folder


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tower") / "tower"
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(15)
        vit = timm.create_model("clip_vit_b16.openai", num_classes=7, **shape)
        with torch.no_grad():
            for name, weight in vit.named_parameters():
                if name.endswith("weight") and weight.ndim > 1:  # else all pictures are alike
                    weight.add_(torch.randn_like(weight), alpha=0.2)
        save_for_hf(vit, folder, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.fixture
def job(pictures: Path, tower: str, tmp_path: Path) -> Callable[..., EmbedJob]:
    """Make a job of the pictures, in batches of 6 and files of 10."""

    def make(**facts: Any) -> EmbedJob:
        setup = Setup.of(facts.pop("model", tower), **facts.pop("how", {}))
        source = facts.pop("source", None) or open_source([str(pictures)])
        defaults = {"out": tmp_path / "vectors", "batch": 6, "shard_size": 10, "decoders": 0}
        return EmbedJob(setup=setup, source=source, **defaults | facts)

    return make


@pytest.fixture
def run(job: Callable[..., EmbedJob]) -> Callable[..., Embedded]:
    return lambda **facts: embed(job(**facts), Progress())


@pytest.fixture(scope="session")
def whole(pictures: Path, tower: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of an undisturbed run that decodes in its own process."""
    out = tmp_path_factory.mktemp("whole") / "vectors"
    how: dict[str, Any] = {"batch": 6, "shard_size": 10, "decoders": 0}
    embed(EmbedJob(setup=Setup.of(tower), source=open_source([str(pictures)]), out=out, **how), Progress())
    return out
