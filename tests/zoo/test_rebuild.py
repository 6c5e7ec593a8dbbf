"""Models made by ``zoo.reduce`` survive being saved and loaded."""

import pytest
import timm
import torch
from timm.models import save_for_hf

import zoo

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64}


def round_trip(model, folder):
    save_for_hf(model, str(folder), safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize(
    ("base", "method", "options"),
    [
        ("deit_small_patch16_224", "tome", {"keep": 0.5}),
        ("vit_small_patch14_dinov2", "evit", {"keep": 0.4, "reduce_at": [1, 2], "fuse": True}),
        ("clip_vit_b16_tome50", "evit", {"stage_rate": 0.7, "reduce_at": [1]}),
        ("clip_vit_b16.openai", "patchrank", {"keep": 0.5, "reduce_at": 2, "width": 8}),
        ("vit_base_patch16_clip_quickgelu_224.openai", None, {}),
    ],
)
def test_a_reduced_model_loads_as_it_was_saved(base, method, options, tmp_path):
    size = {**SMALL, "img_size": 56} if "dinov2" in base else SMALL
    model = zoo.reduce(timm.create_model(base, **size), method=method, **options).eval()
    loaded = round_trip(model, tmp_path)
    images = torch.randn(2, 3, size["img_size"], size["img_size"])
    assert isinstance(loaded, zoo.ReducedViT)
    assert torch.equal(loaded(images), model(images))
    if method is not None:
        assert loaded.reducer.config == model.reducer.config


def test_reducing_twice_keeps_the_first_base(tmp_path):
    tower = timm.create_model("deit_small_patch16_224", **SMALL)
    model = zoo.reduce(zoo.reduce(tower, method="tome", keep=0.5), method="random", keep=0.3).eval()
    loaded = round_trip(model, tmp_path)
    images = torch.randn(1, 3, 64, 64)
    assert loaded.reducer.method == "random"
    assert torch.equal(loaded(images), model(images))


def test_the_source_keeps_its_own_description():
    tower = timm.create_model("deit_small_patch16_224", **SMALL)
    zoo.reduce(tower, method="tome", keep=0.5)
    assert tower.pretrained_cfg["architecture"] == "deit_small_patch16_224"
    assert "method" not in getattr(tower, "_model_args", {})


def test_a_rebuilt_model_needs_a_base():
    with pytest.raises(ValueError, match="base=NAME"):
        timm.create_model("reduced_vit")
