"""What save_for_hf writes, local-dir: brings back, settings and predictor included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.predictor import ARCHITECTURES

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("b16", {}),
    ("b16_patchrank60", {"keep": 0.4, "reduce_at": [1, 3], "arch": "mlp", "width": 16}),
    ("b16_patchrank60", {"reduce_at": [0, 2, 5], "arch": "mlp", "width": 16, "rescore": True}),
    ("b16_patchrank60", {"arch": "mixer", "schedule": "linear"}),
    ("b16_patchrank60", {"arch": "mixer", "width": 48}),
    ("b16_patchrank60", {"arch": "pooledmixer", "width": 16}),
    ("b16_patchrank60", {"arch": "transformer", "width": 32}),
    ("b16_patchrank60", {"arch": "linear"}),
    ("b16_patchrank60", {"arch": "conv", "width": 8}),
    ("b16_clsattn60", {"keep": 0.45, "source": "previous", "reduce_at": 2}),
    ("b16_evit60", {"stage_rate": 0.7, "fuse": True, "reduce_at": [0, 2, 4]}),
    ("b16_evit60", {"keep": 0.3}),
    ("b16_tome60", {"r": 5, "proportional": False}),
    ("b16_tome60", {"keep": 0.7, "reduce_at": [1, 2, 3], "schedule": "geometric"}),
    ("b16_random60", {"seed": 17, "reduce_at": [2]}),
]


def test_all_methods_and_architectures_are_saved_below():
    assert {zoo.MODELS[f"clip_vit_{name}"].method for name, _ in OPTIONS} == {None, *zoo.METHODS}
    assert {options.get("arch") for _, options in OPTIONS} == {None, *ARCHITECTURES}


@pytest.mark.parametrize("tag", ["openai", "laion2b"])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
@torch.no_grad()
def test_round_trip(
    name: str,
    options: dict[str, Any],
    tag: str,
    tiny: Callable[..., nn.Module],
    images: Tensor,
    tmp_path: Path,
):
    model = tiny(f"clip_vit_{name}.{tag}", **options)
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"].items() >= options.items()
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(again, zoo.ReducedViT)
    assert repr(again) == repr(model)  # activation and settings
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert torch.equal(again(images), model(images))
    assert tuple(again.pretrained_cfg["mean"]) == model.pretrained_cfg["mean"]
    assert again.pretrained_cfg["crop_pct"] == 1.0


@torch.no_grad()
def test_round_trip_through_pickled_weights(
    tiny: Callable[..., nn.Module], images: Tensor, tmp_path: Path
):
    model = tiny("clip_vit_b16_patchrank60.openai", arch="conv", width=8)
    save_for_hf(model, tmp_path, safe_serialization=False)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_settings_can_be_changed_on_the_way_back(
    tiny: Callable[..., nn.Module], images: Tensor, tmp_path: Path
):
    model = tiny("clip_vit_b16_evit60.openai", reduce_at=[1, 3])
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, keep=0.25).eval()
    assert again.reducer.points == (1, 3)
    assert again.trace(images).final_tokens == 16


@torch.no_grad()
def test_rescoring_can_be_left_off_on_the_way_back_but_not_made_up(
    tiny: Callable[..., nn.Module], images: Tensor, tmp_path: Path
):
    options = {"reduce_at": [1, 3], "arch": "mlp"}
    model = tiny("clip_vit_b16_patchrank60.openai", rescore=True, **options)
    save_for_hf(model, tmp_path / "new", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True, rescore=False)
    carried = zoo.reduce(model, method="patchrank", keep=0.6, **options).eval()
    carried.reducer.predictor = model.reducer.predictor
    assert torch.equal(again.eval()(images), carried(images))
    save_for_hf(again, tmp_path / "old", safe_serialization=True)
    with pytest.raises(ValueError, match=r"no predictor: 'reducer\.rescorers\.3\..* is missing"):
        timm.create_model(f"local-dir:{tmp_path / 'old'}", pretrained=True, rescore=True)


@torch.no_grad()
def test_another_head_is_saved(tiny: Callable[..., nn.Module], images: Tensor, tmp_path: Path):
    model = tiny("clip_vit_b16_tome60.openai")
    model.reset_classifier(3)
    model.set_input_size(img_size=96)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 96, 96)
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_without_weights_only_the_form_comes_back(tiny: Callable[..., nn.Module], tmp_path: Path):
    model = tiny("clip_vit_b16_random60.openai", seed=3)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}")
    assert again.reducer.config == model.reducer.config
    assert not torch.equal(again.head.weight, model.head.weight)


def test_a_saved_dense_model_has_no_predictor(tiny: Callable[..., nn.Module], tmp_path: Path):
    save_for_hf(tiny("clip_vit_b16.openai"), tmp_path, safe_serialization=True)
    weights = {"file": str(tmp_path / "model.safetensors")}
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai"):
        tiny("clip_vit_b16_patchrank60.openai", pretrained=True, pretrained_cfg_overlay=weights)
