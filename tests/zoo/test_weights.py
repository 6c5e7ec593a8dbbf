"""Where weights and predictors come from, and what is said when they are missing."""

import json
import re
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
from zoo.predictor import PredictorFile, predictor_name
from zoo.weights import blocks_fingerprint, cache_folder, find_predictor, load_predictor

NAME, TAG = "clip_vit_b16_patchrank60", "openai"
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the user's cache at an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clip-patchrank" / "predictors"


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    """Save a dense tower; return how to load it."""
    path = tmp_path / "tower.safetensors"
    save_file(tiny(f"clip_vit_b16.{TAG}").state_dict(), path)
    return {"file": str(path), "num_classes": 7}


def save_predictor(path: Path, source: zoo.ReducedViT, **facts: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        k.removeprefix("reducer.predictor."): v.contiguous()
        for k, v in source.state_dict().items()
        if k.startswith("reducer.predictor.")
    }
    config = source.reducer.config
    options = {"arch": config.arch, "width": config.width}
    told = {"model": "clip_vit_b16", "tag": TAG, "block": 3, "options": options} | facts
    save_file(found, path, metadata={"predictor": json.dumps(told)})
    return path


def test_a_missing_predictor_is_an_error_with_the_command(tiny: Build, tower: dict[str, Any]):
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai") as error:
        tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower)
    command = "python -m harness fit predictor --model clip_vit_b16.openai --block 3"
    assert command in str(error.value)
    assert "predictor=PATH" in str(error.value)
    assert "pretrained=False" in str(error.value)


@pytest.mark.parametrize("method_", ["clsattn", "evit", "tome", "random"])
@torch.no_grad()
def test_other_methods_need_none(method_: str, tiny: Build, tower: dict[str, Any], images: Tensor):
    name = f"clip_vit_b16_{method_}60.{TAG}"
    model = tiny(name, pretrained=True, pretrained_cfg_overlay=tower)
    assert model.trace(images).final_tokens == round(0.6 * 64)


def same_predictor(model: nn.Module, source: nn.Module) -> bool:
    ours, theirs = model.reducer.state_dict(), source.reducer.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("where", ["cache", "argument"])
def test_a_predictor_is_found_and_shapes_the_network(
    where: str, tiny: Build, tower: dict[str, Any], cache: Path, tmp_path: Path
):
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    folder = cache if where == "cache" else tmp_path
    path = save_predictor(folder / predictor_name("clip_vit_b16", TAG, 3), source)
    given = {} if where == "cache" else {"predictor": str(path)}
    model = tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower, noise=0, **given)
    assert (model.reducer.config.arch, model.reducer.config.width) == ("mlp", 24)
    assert same_predictor(model, source)


def test_a_predictor_serves_one_tower_only(tiny: Build, cache: Path, tower: dict[str, Any]):
    source = tiny(f"{NAME}.{TAG}", arch="mlp")
    path = save_predictor(cache / predictor_name("clip_vit_b16", TAG, 3), source)
    found = PredictorFile.read(path)
    assert found == find_predictor("clip_vit_b16", TAG, 3)
    assert cache_folder() in found.path.parents
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.laion2b"):
        find_predictor("clip_vit_b16", "laion2b", 3)
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_l14\.openai"):
        tiny("clip_vit_l14_patchrank60.openai", pretrained=True, pretrained_cfg_overlay=tower)


@pytest.mark.parametrize(
    ("facts", "options", "match"),
    [
        ({"tag": "laion2b"}, {}, "was fitted to clip_vit_b16.laion2b, not to clip_vit_b16.openai"),
        ({"model": "clip_vit_l14"}, {}, "was fitted to clip_vit_l14.openai, not to clip_vit_b16"),
        ({"block": 5}, {}, "was fitted at block 5, this model scores before block 3; fit one with"),
        ({}, {"reduce_at": [2, 4]}, "--block 2 --arch mlp --width 64 --dataset NAME"),
        ({}, {"arch": "conv"}, "arch='conv': the predictor"),
        ({}, {"width": 7}, "width=7: the predictor"),
        ({}, {"width": 7}, "--block 3 --arch mlp --width 7 --dataset NAME --out PATH, and give"),
    ],
)
def test_predictors_that_do_not_fit(
    facts: dict, options: dict, match: str, tiny: Build, tower: dict[str, Any], tmp_path: Path
):
    source = tiny(f"{NAME}.{TAG}", arch="mlp")
    path = save_predictor(tmp_path / "p.safetensors", source, **facts)
    with pytest.raises(ValueError, match=re.escape(match)):
        tiny(
            f"{NAME}.{TAG}",
            pretrained=True,
            pretrained_cfg_overlay=tower,
            predictor=str(path),
            **options,
        )


@pytest.fixture
def fitted(tiny: Build, tower: dict[str, Any], tmp_path: Path) -> Path:
    """A predictor that tells the weights of the tower in ``tower``."""
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    weights = blocks_fingerprint(load_file(tower["file"]))
    return save_predictor(tmp_path / "told.safetensors", source, weights=weights)


@pytest.mark.parametrize("overrides", [{}, {"num_classes": 0}, {"img_size": 96}], ids=str)
def test_head_and_image_size_are_free(
    overrides: dict, tiny: Build, tower: dict[str, Any], fitted: Path
):
    told = {"pretrained_cfg_overlay": tower, "predictor": str(fitted), "noise": 0, **overrides}
    model = tiny(f"{NAME}.{TAG}", pretrained=True, **told)
    assert model.reducer.config.arch == "mlp"


@pytest.mark.parametrize("where", ["blocks.0.attn.qkv.bias", "blocks.5.mlp.fc2.weight"])
def test_a_predictor_of_other_weights_is_refused(
    where: str, tiny: Build, tower: dict[str, Any], fitted: Path
):
    """The name is the same, one number in one block isn't: created by name, or by reduce."""
    state = load_file(tower["file"])
    state[where].view(-1)[0] += 1
    save_file(state, tower["file"])
    match = r"told\.safetensors' was fitted to clip_vit_b16\.openai with weights \w{16}, these are"
    told = {"pretrained_cfg_overlay": tower, "noise": 0}
    with pytest.raises(ValueError, match=match):
        tiny(f"{NAME}.{TAG}", pretrained=True, predictor=str(fitted), **told)
    dense = tiny(f"clip_vit_b16.{TAG}", pretrained=True, **told)
    reduced = zoo.reduce(dense, method="patchrank", keep=0.6, arch="mlp", width=24)
    with pytest.raises(ValueError, match=match):
        load_predictor(reduced, PredictorFile.read(fitted))


def test_files_that_do_not_tell_weights_serve_the_name(tiny: Build, tmp_path: Path):
    """As files did before there was the fingerprint."""
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    found = PredictorFile.read(save_predictor(tmp_path / "p.safetensors", source))
    assert found.weights is None
    load_predictor(source, found)


def test_a_model_that_reduces_elsewhere_is_not_filled(tiny: Build, fitted: Path):
    model = tiny(f"{NAME}.{TAG}", arch="mlp", width=24, reduce_at=[1, 3])
    with pytest.raises(ValueError, match="was fitted at block 3, this model scores before block 1"):
        load_predictor(model, PredictorFile.read(fitted))


@pytest.mark.parametrize("options", [{"arch": "mlp", "width": 8}, {"arch": "linear"}], ids=str)
def test_a_model_of_another_shape_is_not_filled(options: dict, tiny: Build, fitted: Path):
    with pytest.raises(ValueError, match="has another architecture"):
        load_predictor(tiny(f"{NAME}.{TAG}", **options), PredictorFile.read(fitted))


def test_a_predictor_for_random_weights_is_refused(tiny: Build, fitted: Path):
    with pytest.raises(ValueError, match=r"predictor='.+' without .* add pretrained=True"):
        tiny(f"{NAME}.{TAG}", predictor=str(fitted))


@torch.no_grad()
def test_another_predictor_for_a_saved_model(
    tiny: Build, tower: dict[str, Any], fitted: Path, tmp_path: Path
):
    """``local-dir:`` carries its predictor; ``predictor=PATH`` replaces it."""
    own = tiny(f"{NAME}.{TAG}", arch="mlp", width=24, noise=0)
    own.load_state_dict(load_file(tower["file"]), strict=False)
    save_for_hf(own, tmp_path / "saved", safe_serialization=True)
    folder = f"local-dir:{tmp_path / 'saved'}"
    carried = timm.create_model(folder, pretrained=True)
    assert same_predictor(carried, own)
    other = timm.create_model(folder, pretrained=True, predictor=str(fitted))
    assert not same_predictor(other, own)
    state = load_file(fitted)
    assert torch.equal(other.reducer.predictor.net.score.weight, state["net.score.weight"])


def test_files_that_are_no_predictors(tiny: Build, tower: dict[str, Any]):
    for path, error, match in (
        ("gone.safetensors", FileNotFoundError, "no predictor at 'gone.safetensors'"),
        (tower["file"], ValueError, "holds no predictor: it lacks the 'predictor' metadata"),
    ):
        with pytest.raises(error, match=match):
            tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower, predictor=path)


def test_without_pretrained_the_predictor_is_random_by_choice(tiny: Build):
    assert tiny(f"{NAME}.{TAG}").reducer.predictor is not None


@torch.no_grad()
def test_timms_own_checkpoint_loads(tiny: Build, images: Tensor, tmp_path: Path):
    theirs = tiny("vit_base_patch16_clip_quickgelu_224.openai")
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    source = {"file": str(tmp_path / "w.safetensors"), "num_classes": 7}
    for name in ("clip_vit_b16.openai", "clip_vit_b16_tome60.openai"):
        ours = tiny(name, noise=0, pretrained=True, pretrained_cfg_overlay=source)
        assert torch.equal(zoo.reduce(ours, method=None)(images), theirs(images))
