"""Fits that go on, that share what was computed, and that learn from a few images per class."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import zoo
from harness.datasets.base import Dataset
from harness.fit import fit
from harness.gather import gather
from harness.progress import Progress
from harness.towers import Tower
from zoo.fit import FitConfig
from zoo.weights import blocks_fingerprint, cache_folder

MODEL = "clip_vit_b16.openai"
QUICK = FitConfig(arch="mlp", width=16, epochs=3)
Write = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("miniature")


def test_the_second_fit_runs_no_tower(write: Write, monkeypatch: pytest.MonkeyPatch):
    files = [write("train")], [write("val")]
    fit(MODEL, *files, QUICK, out=None, progress=Progress())

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the tower ran")

    monkeypatch.setattr(zoo.ReducedViT, "advance", never)
    monkeypatch.setattr(zoo.ReducedViT, "embed", never)
    other = replace(QUICK, arch="linear", loss="bce")
    fit(MODEL, *files, other, out=None, progress=Progress(), shots=2)


def test_the_same_command_writes_the_same_bytes(write: Write, tmp_path: Path):
    files = [write("train")], [write("val")]
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    for out, config in ((a, QUICK), (b, QUICK), (c, replace(QUICK, seed=1))):
        fit(MODEL, *files, config, out=out, progress=Progress())
    assert a.read_bytes() == b.read_bytes()
    assert not torch.equal(load_file(a)["net.token.weight"], load_file(c)["net.token.weight"])


def test_stopped_and_asked_again_it_goes_on(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second epoch is broken off; the same call does it and the third, to the same bytes."""
    files = [write("train")], [write("val")]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    fit(MODEL, *files, QUICK, out=whole, progress=Progress())
    epochs: list[int] = []

    class Watched(Progress):
        @contextmanager
        def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
            def update(done: int) -> None:
                if name.startswith("predictor"):
                    epochs.append(done)
                    if epochs == [1, 2]:
                        raise KeyboardInterrupt

            yield update

    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, *files, QUICK, out=stopped, progress=Watched())
    assert not stopped.exists()
    [kept] = (cache_folder() / "fits").iterdir()
    fit(MODEL, *files, replace(QUICK, seed=5), out=None, progress=Progress())  # another's
    assert kept.is_file()
    fit(MODEL, *files, QUICK, out=stopped, progress=Watched())
    assert epochs == [1, 2, 3]
    assert stopped.read_bytes() == whole.read_bytes()
    assert list((cache_folder() / "fits").iterdir()) == []


def test_shots_are_ranked_images_of_each_class(
    tower: Tower, write: Write, toy: Dataset, tmp_path: Path
):
    """Of each store; what is left is as if the others had never been ranked."""
    gathered = gather(tower, [write("train"), write("test")], Progress(), shots=2, seed=4)
    labels = {e.image_id: e.label for split in ("train", "test") for e in toy.split(split)}
    drawn = [(name.split("-")[0], labels[name]) for name in gathered.image_ids]
    assert {drawn.count((f"toy/{s}", label)) for s in ("train", "test") for label in range(4)} == {
        2
    }
    assert len(gathered.data) == len(drawn) == 16
    whole = gather(tower, [write("train"), write("test")], Progress())
    rows = torch.tensor([whole.image_ids.index(name) for name in gathered.image_ids])
    assert torch.equal(gathered.data.importance, whole.data.importance[rows])
    every = torch.arange(16)
    assert torch.equal(gathered.data.tokens[every], whole.data.tokens[rows])


def test_more_shots_than_ranked_images(write: Write):
    files = [write("train", 10)], [write("val", 4)]
    with pytest.raises(ValueError, match="--shots 3: class 'house' of 'toy' has 2 ranked images"):
        fit(MODEL, *files, QUICK, out=None, progress=Progress(), shots=3)


def test_the_file_tells_what_it_was_fitted_to(write: Write, dense: zoo.ReducedViT):
    files = [write("train")], [write("val", 5)]
    path, _ = fit(MODEL, *files, QUICK, out=None, progress=Progress(), shots=1)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["predictor"])
    assert facts["weights"] == blocks_fingerprint(dense.state_dict())
    assert facts["recipe"] == asdict(QUICK)
    assert (facts["provenance"]["images"], facts["provenance"]["shots"]) == (4, 1)
    assert [r["split"] for r in facts["provenance"]["rankings"]] == ["train", "val"]
