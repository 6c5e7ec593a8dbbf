"""Saved predictors: what the file holds is what ranks in the model, and only there."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo import weights
from zoo.architectures import ARCHITECTURES
from zoo.fit import FitConfig, save_predictor
from zoo.predictor import Predictor
from zoo.weights import cache_folder, find_predictor, load_predictor, predictor_name

NAME, TAG = "clip_vit_b16", "openai"
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's cache at an empty folder, and the packaged weights at another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "packaged")


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    """Save a dense tower; return what makes a patchrank model load it."""
    save_file(tiny(f"{NAME}.{TAG}").state_dict(), tmp_path / "tower.safetensors")
    source = {"file": str(tmp_path / "tower.safetensors"), "num_classes": 7}
    return {"pretrained": True, "pretrained_cfg_overlay": source, "noise": 0}


def save(path: Path, seed: int = 0, arch: str = "conv", **facts: Any) -> Predictor:
    """Save a random predictor for the tiny tower; return it in the precision of the file."""
    torch.manual_seed(seed)
    config = FitConfig(arch=arch, width=24)
    predictor = Predictor(arch, 48, 24, (8, 8), None, None)
    told = {"model": NAME, "tag": TAG, "block": 3, "provenance": {"images": 9}} | facts
    save_predictor(predictor, path, config=config, **told)
    return copy.deepcopy(predictor).half().float()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_a_saved_predictor_ranks_in_the_model(
    arch: str, tiny: Build, tower: dict[str, Any], images: Tensor, tmp_path: Path
):
    path = tmp_path / "new" / "p.safetensors"
    saved = save(path, arch=arch)
    assert [p.name for p in path.parent.iterdir()] == ["p.safetensors"]
    created = tiny(f"{NAME}_patchrank60.{TAG}", predictor=str(path), **tower)
    dense = zoo.reduce(created, method=None)
    options: dict[str, Any] = {"keep": 0.6}
    found = find_predictor(NAME, TAG, path)
    found.fill(options, zoo.METHODS["patchrank"].Config)
    reduced = zoo.reduce(dense, method="patchrank", **options)
    load_predictor(reduced, found)
    entering, _ = dense.advance(dense.embed(images), stop=3)
    importance = saved(entering.x, 1, (8, 8))
    for model in (created, reduced):
        [went] = model.trace(images).reductions
        assert torch.equal(went.importance, importance)
    assert torch.equal(created(images), reduced(images))


def test_the_packaged_predictor_comes_before_the_users(tmp_path: Path):
    name = predictor_name(NAME, TAG)
    save(cache_folder() / "predictors" / name)
    assert find_predictor(NAME, TAG).path.is_relative_to(tmp_path / "cache")
    save(tmp_path / "packaged" / name)
    assert find_predictor(NAME, TAG).path == tmp_path / "packaged" / name


def test_a_predictor_of_another_architecture_does_not_load(tiny: Build, tmp_path: Path):
    save(tmp_path / "p.safetensors", arch="mlp")
    model = tiny(f"{NAME}_patchrank60", arch="conv")
    with pytest.raises(ValueError, match=re.escape("p.safetensors' has another architecture")):
        load_predictor(model, find_predictor(NAME, TAG, tmp_path / "p.safetensors"))


def test_a_file_that_is_no_safetensors_at_all(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=re.escape("notes.txt' is not a predictor")):
        find_predictor(NAME, TAG, path)
