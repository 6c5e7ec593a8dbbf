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
from zoo.predictor_file import predictor_name
from zoo.weights import cache_folder, find_predictor, fitted_blocks, load_predictor, with_predictors

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
    options, found = with_predictors(NAME, TAG, "patchrank", {"keep": 0.6}, 6, path)
    reduced = zoo.reduce(dense, method="patchrank", **options)
    load_predictor(reduced, found)
    entering, _ = dense.advance(dense.embed(images), stop=3)
    importance = saved(entering.x, 1, (8, 8))
    for model in (created, reduced):
        [went] = model.trace(images).reductions
        assert torch.equal(went.importance, importance)
    assert torch.equal(created(images), reduced(images))


def test_the_packaged_predictor_comes_before_the_users(tmp_path: Path):
    name = predictor_name(NAME, TAG, 3)
    save(cache_folder() / "predictors" / name)
    assert find_predictor(NAME, TAG, 3).path.is_relative_to(tmp_path / "cache")
    save(tmp_path / "packaged" / name)
    assert find_predictor(NAME, TAG, 3).path == tmp_path / "packaged" / name


def test_predictors_of_several_blocks_lie_side_by_side(
    tiny: Build, tower: dict[str, Any], tmp_path: Path
):
    folders = {3: tmp_path / "packaged", 5: cache_folder() / "predictors"}
    saved = {
        block: save(folder / predictor_name(NAME, TAG, block), seed=block, block=block)
        for block, folder in folders.items()
    }
    assert fitted_blocks(NAME, TAG) == (3, 5)
    for block in folders:
        model = tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=(block,), **tower)
        weight = model.reducer.predictor.net.score.weight
        assert torch.equal(weight, saved[block].net.score.weight)
    match = r"at block 2: .* \(fitted so far: block 3, 5\); make one with: python .* --block 2 "
    with pytest.raises(FileNotFoundError, match=match):
        tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=(2,), **tower)


def test_what_is_named_as_a_predictor_of_its_block(tmp_path: Path):
    for name in ("block5.old", "blockx", "block"):
        (tmp_path / "packaged" / f"{NAME}.{TAG}.patchrank.{name}.safetensors").touch()
    assert fitted_blocks(NAME, TAG) == ()


def test_every_block_means_the_first(tmp_path: Path):
    save(tmp_path / "p.safetensors", block=0)
    options, [found] = with_predictors(
        NAME, TAG, "patchrank", {"keep": 0.6, "reduce_at": None}, 6, tmp_path / "p.safetensors"
    )
    assert (found.block, options["arch"]) == (0, "conv")


def test_a_file_under_the_name_of_another_block(tmp_path: Path):
    save(tmp_path / "packaged" / predictor_name(NAME, TAG, 5), block=3)
    match = "fitted at block 3, this model scores before block 5; fit one with: python -m harness"
    with pytest.raises(ValueError, match=re.escape(match)):
        find_predictor(NAME, TAG, 5)


def test_a_predictor_of_another_architecture_does_not_load(tiny: Build, tmp_path: Path):
    save(tmp_path / "p.safetensors", arch="mlp")
    model = tiny(f"{NAME}_patchrank60", arch="conv")
    with pytest.raises(ValueError, match=re.escape("p.safetensors' has another architecture")):
        load_predictor(model, find_predictor(NAME, TAG, 3, tmp_path / "p.safetensors"))


def test_a_file_that_is_no_safetensors_at_all(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=re.escape("notes.txt' is not a predictor")):
        find_predictor(NAME, TAG, 3, path)
