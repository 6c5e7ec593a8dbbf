"""Small copies of traced images: as the tower sees them, once each, and only if wanted."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.datasets.base import Dataset
from harness.records import Record
from harness.traces import Facts, read_thumbnails, read_traces
from harness.traces import thumbnails as module
from harness.traces.thumbnails import keep_thumbnails, thumbnails_path

Measure = Callable[..., list[Record]]
TOLD = {"methods": ("random",), "keeps": (0.5,)}


def facts_of(run: Path) -> Facts:
    return read_traces(run)[0].facts


def preprocess_wide(image: Image.Image) -> torch.Tensor:
    """Crop to twice as wide as high, and normalise by other constants than usual."""
    pixels = np.asarray(image.resize((600, 300)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.3) / np.array([0.1, 0.2, 0.4], np.float32)).permute(2, 0, 1)


def test_traced_images_have_small_copies(measure: Measure, toy: Dataset, tmp_path: Path):
    measure(images=7, **TOLD)
    run = tmp_path / "run"
    found, row = read_thumbnails(run, facts_of(run)), read_traces(run)[0]
    assert sorted(found.jpeg) == sorted(row.image_ids)
    assert len(found.jpeg) == 7
    images = {example.image_id: example.image for example in toy.split("test")}
    for name in row.image_ids:
        assert name in found
        off = found.view(name) * 255 - np.asarray(images[name], dtype=np.float32)
        assert np.abs(off).mean() < 3  # JPEG's error


def test_a_copy_is_the_preprocessed_image_of_at_most_224_pixels(
    measure: Measure, toy: Dataset, tmp_path: Path
):
    measure(images=2, thumbnails=False, **TOLD)
    run = tmp_path / "run"
    split = toy.split("test").subset([5])
    keep_thumbnails(run, facts_of(run), split, preprocess_wide, lambda done: None)
    [content] = read_thumbnails(run, facts_of(run)).jpeg.values()
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (224, 112)
        off = np.asarray(image, dtype=np.float32) - np.asarray(split[0].image.resize((224, 112)))
    assert np.abs(off).mean() < 6


def test_images_that_are_there_are_not_drawn_again(measure: Measure, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    run = tmp_path / "run"
    measure(images=4, **TOLD)
    drawn: list[int] = []

    def counted(split: Dataset, *args: object) -> object:
        drawn.append(len(split))
        return real(split, *args)

    real = module.batches
    monkeypatch.setattr(module, "batches", counted)
    measure(images=7, methods=("evit",), keeps=(0.5,))
    measure(images=5, **TOLD)
    assert drawn == [3, 0]
    assert len(read_thumbnails(run, facts_of(run)).jpeg) == 7


def test_none_are_stored_if_none_are_wanted(measure: Measure, tmp_path: Path):
    measure(thumbnails=False, **TOLD)
    run = tmp_path / "run"
    assert [path.name for path in run.iterdir()] == ["traces"]
    assert read_thumbnails(run, facts_of(run)).jpeg == {}
    for path in (run / "traces").iterdir():
        assert b"JFIF" not in path.read_bytes()


def test_a_torn_file_is_told_and_made_again(measure: Measure, tmp_path: Path):
    measure(**TOLD)
    run = tmp_path / "run"
    path = thumbnails_path(run, facts_of(run))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"is broken \(cut off.*with --fresh"):
        read_thumbnails(run, facts_of(run))
    measure(**TOLD)
    assert path.read_bytes() == whole


def test_other_images_or_another_tower_are_another_file(measure: Measure, tmp_path: Path):
    measure(**TOLD)
    facts = facts_of(tmp_path / "run")
    changes = ({"dataset_revision": "other"}, {"weights_sha256": "0" * 64}, {"split": "val"})
    others = [thumbnails_path(tmp_path, replace(facts, **change)) for change in changes]
    assert len({thumbnails_path(tmp_path, facts), *others}) == 4
    same = replace(facts, method="tome", model="clip_vit_b16_tome50", keep=0.5, dtype="bfloat16")
    assert thumbnails_path(tmp_path, same) == thumbnails_path(tmp_path, facts)
