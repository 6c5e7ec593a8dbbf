"""What can be ranked: any images, any tower, and every score that has what it needs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import Dataset
from harness.golden import rank as module
from harness.golden.rank import Job, Ranked, Source, rank
from harness.golden.store import Rankings
from harness.progress import Progress
from harness.towers import Tower
from zoo.clip import ClipParts
from zoo.golden import GoldenConfig

Run = Callable[..., Ranked]


@pytest.mark.parametrize("score", ["label", "confidence"])
def test_classes_without_words_leave_no_holes_in_rankings(score: str, run: Run):
    """The posterior would be NaN, and so would every importance."""
    match = f"score='{score}' needs every class named, but 1 of toy have words .*: zebra; use"
    with pytest.raises(ValueError, match=match):
        run(GoldenConfig(score=score))


def test_scores_with_classes_need_a_text_tower(
    run: Run, parts: ClipParts, monkeypatch: pytest.MonkeyPatch
):
    tower = Tower(parts.model.visual, parts.preprocess, "vit.some", None)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    with pytest.raises(ValueError, match=r"'label' needs a text tower.*--model open_clip:ARCH"):
        run(GoldenConfig(score="label"))
    assert run().images == 10


def test_a_folder_of_images_needs_no_labels(run: Run, tmp_path: Path):
    generator = np.random.default_rng(0)
    (tmp_path / "holiday").mkdir()
    for i in range(5):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "holiday" / f"{i}.png")
    source = Source.folder(tmp_path / "holiday")
    found = Rankings.read(run(source=source, out=tmp_path / "r").path)
    assert len(set(found.image_ids)) == 5
    assert (found.labels == -1).all()
    assert (found.provenance.dataset, found.provenance.split) == ("holiday", "all")
    with pytest.raises(ValueError, match="needs classes, and a folder of images has none"):
        run(GoldenConfig(score="label"), source=source, out=tmp_path / "r")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (GoldenConfig(block=6), "block=6: this tower has blocks 0 to 5"),
        (GoldenConfig(window=9), "window=9: larger than the 8 x 8 patch grid"),
    ],
)
def test_refusals_leave_no_folder(config: GoldenConfig, match: str, run: Run, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(match)):
        run(config, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["limit", "shard_size"])
def test_numbers_from_one(name: str, run: Run):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} 0: expected a number from 1"):
        run(**{name: 0})


def test_unknown_towers(toy: Dataset):
    with pytest.raises(ValueError, match="model 'clip_vit_b61': did you mean 'clip_vit_b16'"):
        rank(Job(model="clip_vit_b61", source=Source.of(toy, "test")), Progress())


def test_the_command_of_a_job_says_all_of_it(toy: Dataset):
    config = GoldenConfig(window=3, greedy=4)
    told = {"limit": 5, "batch": 8, "compiled": True, "dtype": "auto", "device": "cuda"}
    job = Job(model="clip_vit_b16", source=Source.of(toy, "val"), config=config, **told)
    assert job.command(Path("my store")) == (
        "python -m harness rank --model clip_vit_b16 --dataset toy --split val "
        "--score preservation --block 3 --window 3 --stride 1 --greedy 4 --limit 5 "
        "--out 'my store' --shard-size 64 --batch 8 --compile --dtype auto --device cuda"
    )


def test_a_budget_picks_by_the_tower_at_hand(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked = {}

    def recipe(budget: float, **shape: Any) -> dict[str, Any]:
        asked.update(shape, budget=budget)
        return {"window": 3, "stride": 2, "approximate": None}

    monkeypatch.setattr("harness.golden.curve.recipe_for", recipe)
    found = Rankings.read(run(GoldenConfig(block=2), budget=20.0, out=tmp_path / "r").path)
    shape = {"grid": (8, 8), "depth": 6, "block": 2, "dim": 48, "token_pooled": True}
    assert asked == {"budget": 20.0, **shape}
    found.require(block=2, window=3, stride=2, approximate=None)
