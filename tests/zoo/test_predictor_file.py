"""Saved predictors: what the file holds is what ranks in the model, and only there; where they come from."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.core.files import blocks_fingerprint, cache_folder
from zoo.core.predictor import Predictor
from zoo.learning.fit import FitConfig, save_predictor
from zoo.loading import predictor_file
from zoo.loading.predictor_file import (
    PredictorFile,
    find_fitted,
    find_predictor,
    load_predictor,
    predictor_name,
    with_predictor,
)

NAME, TAG = "clip_vit_b16", "openai"
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's cache at an empty folder, and the packaged weights at another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(predictor_file, "EMBEDDED", tmp_path / "packaged")


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
    named = {"model": NAME, "tag": TAG, "block": 3, "provenance": {"images": 9}} | facts
    save_predictor(predictor, path, config=config, **named)
    return copy.deepcopy(predictor).half().float()


@torch.no_grad()
def test_saved_predictors_rank(tiny: Build, tower: dict, images: Tensor, tmp_path: Path):
    path = tmp_path / "new" / "p.safetensors"
    saved = save(path)
    created = tiny(f"{NAME}_patchrank60.{TAG}", predictor=str(path), **tower)
    dense = zoo.reduce(created, method=None)
    options, found = with_predictor(NAME, TAG, "patchrank", {"keep": 0.6}, 6, path)
    reduced = zoo.reduce(dense, method="patchrank", **options)
    load_predictor(reduced, found)
    entering, _ = dense.advance(dense.embed(images), stop=3)
    importance = saved(entering.x, 1, (8, 8))
    for model in (created, reduced):
        [went] = model.trace(images).reductions
        torch.testing.assert_close(went.importance, importance)
    torch.testing.assert_close(created(images), reduced(images))


def same(network: nn.Module, saved: Predictor) -> bool:
    pairs = zip(network.state_dict().values(), saved.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("facts", "options", "match"),
    [
        ({"tag": "laion2b"}, {}, "fitted to clip_vit_b16.laion2b with tag='laion2b', this model has tag='openai'"),
        ({"block": 5}, {}, "was fitted at block 5, this model scores before block 3"),
        ({}, {"arch": "conv"}, "has arch='mlp', not arch='conv'"),
        ({}, {"pretrained": False}, "without the tower it was made for: add pretrained=True"),
    ],
)
def test_refused_predictors(facts: dict, options: dict, match: str, tiny: Build, tower: dict, tmp_path: Path):
    save(tmp_path / "p", arch="mlp", **facts)
    with pytest.raises(ValueError, match=re.escape(match)):
        tiny(f"{NAME}_patchrank60.{TAG}", **{**tower, "predictor": str(tmp_path / "p"), **options})


@pytest.mark.parametrize("where", ["blocks.0.attn.qkv.bias", "blocks.5.mlp.fc2.weight"])
def test_predictors_of_other_weights(where: str, tiny: Build, tower: dict, tmp_path: Path):
    """The name is the same, one number in one block isn't: created by name, or by reduce."""
    file = tower["pretrained_cfg_overlay"]["file"]
    state = load_file(file)
    save(tmp_path / "p", arch="mlp", weights=blocks_fingerprint(state))
    state[where].view(-1)[0] += 1
    save_file(state, file)
    match = r"' was fitted to clip_vit_b16\.openai with weights='\w{16}', this model has weights="
    with pytest.raises(ValueError, match=match):
        tiny(f"{NAME}_patchrank60.{TAG}", **tower, predictor=str(tmp_path / "p"))
    reduced = zoo.reduce(tiny(f"{NAME}.{TAG}", **tower), method="patchrank", keep=0.6, arch="mlp", width=24)
    with pytest.raises(ValueError, match=match):
        load_predictor(reduced, PredictorFile.read(tmp_path / "p"))


def test_the_users_predictor_comes_before_the_packaged_one_and_is_told(tmp_path: Path, caplog: Any):
    name = predictor_name(NAME, TAG, 3)
    save(tmp_path / "packaged" / name)
    assert find_predictor(NAME, TAG, 3).path == tmp_path / "packaged" / name
    assert not caplog.records
    save(cache_folder() / "predictors" / name)
    assert find_predictor(NAME, TAG, 3).path.is_relative_to(tmp_path / "cache")
    assert f"{name} of your own is used, not the packaged one" in caplog.text


def test_a_saved_model_carries_its_predictor_and_scores_where_it_was_fitted(tiny: Build, tower: dict, tmp_path: Path):
    """``predictor=PATH`` replaces it."""
    saved = {name: save(tmp_path / name, seed, "mlp") for seed, name in enumerate("ab")}
    model = tiny(f"{NAME}_patchrank60.{TAG}", **tower, predictor=tmp_path / "a")
    for folder in ("saved", "again"):
        save_for_hf(model, tmp_path / folder)
        place = f"local-dir:{tmp_path / folder}"
        for options, name in (({"predictor": tmp_path / "b"}, "b"), ({}, "a")):
            model = timm.create_model(place, pretrained=True, **options)
            assert same(model.reducer.predictor, saved[name])
        with pytest.raises(ValueError, match=r"fitted at block 3, these options score at block 4; leave reduce_at"):
            timm.create_model(place, pretrained=True, reduce_at=4)


@torch.no_grad()
def test_a_model_gets_the_predictor_of_its_first_point(tiny: Build, tower: dict, images: Tensor, tmp_path: Path):
    """Found in the cache, given to ``reduce`` by its file, or saved with the model."""
    folder = cache_folder() / "predictors"
    saved = {at: save(folder / predictor_name(NAME, TAG, at), at, "mlp", block=at) for at in (3, 1)}
    created = tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=[1, 3], **tower)
    assert find_fitted(NAME, TAG) == (1, 3)
    with pytest.raises(FileNotFoundError, match=r"at block 0: .* \(fitted so far: block 1, 3\)"):
        tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=(0,), **tower)
    path = folder / predictor_name(NAME, TAG, 1)
    reduced = zoo.reduce(created, method="patchrank", keep=0.6, reduce_at=[1, 3], predictor=path)
    for model in (created, reduced):
        assert same(model.reducer.predictor, saved[1])
    torch.testing.assert_close(created(images), reduced(images))
    save_for_hf(created, tmp_path / "saved", safe_serialization=True)
    shutil.rmtree(folder)
    for pretrained in (True, False):
        again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=pretrained).eval()
        assert again.reducer.config == created.reducer.config
        assert torch.allclose(again(images), created(images), atol=1e-5) == pretrained


def test_models_that_a_file_does_not_fill(tiny: Build, tmp_path: Path):
    save(tmp_path / "a", arch="mlp")
    with pytest.raises(ValueError, match="has another architecture"):
        load_predictor(tiny(f"{NAME}_patchrank60.{TAG}", arch="mlp", width=8), PredictorFile.read(tmp_path / "a"))
    assert with_predictor(NAME, TAG, "tome", {"keep": 0.6}, 12) == ({"keep": 0.6}, None)
    with pytest.raises(ValueError, match="has no predictor to fill: it isn't reduced by patc"):
        load_predictor(tiny(f"{NAME}_tome60"), PredictorFile.read(tmp_path / "a"))


def test_a_predictor_serves_the_action_that_it_was_fitted_to(tmp_path: Path):
    """Patches that may be removed are not those that may be merged."""
    names = {action: predictor_name(NAME, TAG, 0, action) for action in ("remove", "merge")}
    assert len(set(names.values())) == 2
    rank = {"keep": 0.6, "reduce_at": [0]}
    merge = rank | {"rank": "predictor", "rank_at": 0}
    methods = {"remove": ("patchrank", rank), "merge": ("rankmerge", merge)}
    for action, (method, options) in methods.items():
        with pytest.raises(FileNotFoundError, match=rf"no predictor for {NAME}.{TAG} at block 0: ") as caught:
            with_predictor(NAME, TAG, method, options, 6)
        assert caught.value.wanted.facts["action"] == action
        path = cache_folder() / "predictors" / names[action]
        save(path, block=0, action=action)
        assert find_fitted(NAME, TAG, action) == (0,)
        _, found = with_predictor(NAME, TAG, method, options, 6)
        assert (found.path, found.action) == (path, action)
    other = cache_folder() / "predictors" / names["remove"]
    with pytest.raises(ValueError, match=r"action='remove', this model has action='merge'") as caught:
        with_predictor(NAME, TAG, "rankmerge", merge, 6, other)
    assert caught.value.wanted.facts["action"] == "merge"
