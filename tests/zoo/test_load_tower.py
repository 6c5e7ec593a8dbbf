"""Towers by name: ours, timm's, open_clip's; from files, caches and nowhere; those refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lively import lively
from PIL import Image
from safetensors.torch import save, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor

import zoo
from harness.base.hints import describe_error
from zoo.core.files import fingerprint
from zoo.deploy.setup import Setup
from zoo.loading.towers import find_tower, load_tower, require_predictor, split_method, split_name

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
Saved = Callable[..., str]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(model: Any) -> str:
        save_for_hf(model, tmp_path / "mine", safe_serialization=True)
        return f"local-dir:{tmp_path / 'mine'}"

    return save


def test_the_embedded_tower_comes_with_its_text_side_by_either_name():
    tower = load_tower("clip_vit_s14")
    assert tower.name == load_tower("timm:clip_vit_s14").name == "clip_vit_s14.imgfocus_lit"
    assert tower.vit is tower.clip.model.visual
    assert not tower.vit.training
    assert fingerprint(tower.vit) == fingerprint(timm.create_model("clip_vit_s14", pretrained=True))
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    assert tower.preprocess(image).shape == (3, 196, 196)
    for prefix in ("", "timm:"):
        assert split_name(f"{prefix}clip_vit_b16") == ("clip_vit_b16", "openai")
    assert split_name("clip_vit_b16.laion2b") == ("clip_vit_b16", "laion2b")
    for name in ("clip_vit_s14", "clip_vit_s14_tome50.imgfocus_lit", "vit_small_patch16_224"):
        assert split_method(f"timm:{name}") == split_method(name)
        assert Setup.of(f"timm:{name}") == Setup.of(name)
    towers = [find_tower(f"{prefix}clip_vit_s14", random_weights=True) for prefix in ("", "timm:")]
    assert towers[0].name == towers[1].name
    assert fingerprint(towers[0].vit) == fingerprint(towers[1].vit)
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai"):
        require_predictor("timm:clip_vit_b16", "patchrank", 0.5)


@pytest.mark.parametrize("name", ["test_vit", "timm:test_vit.r160_in1k"])
@torch.no_grad()
def test_a_timm_name_is_found_in_the_cache(name, fill):
    model = lively(timm.create_model("test_vit"))
    fill("timm/test_vit.r160_in1k", "model.safetensors", lambda path: save_file(model.state_dict(), path))
    tower = load_tower(name)
    assert tower.name == "test_vit.r160_in1k"
    assert tower.clip is None
    images = torch.randn(2, 3, 160, 160)
    wanted = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
    assert tower.preprocess(Image.new("RGB", (300, 200))).shape == (3, 160, 160)


PLAIN = {
    "vit_small_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_224": {"global_pool": "avg", "class_token": True},
    "vit_base_patch16_224.augreg_in21k": {"global_pool": "map", "num_classes": 9},
    "eva02_base_patch16_clip_224": {"num_classes": 5},
}


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_a_plain_vit_gives_its_pooled_features(name, saved, images):
    model = lively(timm.create_model(name, **{**SMALL, **PLAIN[name]}))
    tower = load_tower(saved(model))
    wanted = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
    assert tower.vit.global_pool == model.global_pool
    assert isinstance(tower.vit, type(model))
    assert {p.dtype for p in tower.vit.parameters()} == {torch.float32}
    assert (tower.name, tower.clip) == ("local-dir:mine", None)
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    settings = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    assert torch.equal(tower.preprocess(image), create_transform(**settings)(image))


@pytest.mark.parametrize(("name", "width", "bias", "projects"), [
    ("vit_base_patch16_clip_224.openai", 24, 0.0, True),
    ("vit_base_patch16_clip_224.laion2b_ft_in1k", 1000, 0.1, False),
    ("vit_base_patch16_224", 24, 0.0, False),
    ("vit_pe_core_base_patch16_224", 24, 0.0, True),
    ("clip_vit_b16.openai", 100, 0.0, False),
])  # fmt: skip
@torch.no_grad()
def test_a_head_is_a_projection_or_goes_and_so_does_a_reduction(name, width, bias, projects, saved, images):
    model = lively(timm.create_model(name, num_classes=width, **SMALL))
    model.head.bias.fill_(bias)
    wanted = model.forward_head(model.forward_features(images), pre_logits=not projects)
    for kept in (model, zoo.reduce(model, method="random", keep=0.5, reduce_at=1)):
        tower = load_tower(saved(kept))
        assert torch.allclose(tower.vit(images), wanted, atol=1e-5)
        assert tower.vit.num_classes == (width if projects else 0)
        assert tower.vit.reducer is None
    named = lively(timm.create_model("clip_vit_b16_random50", num_classes=512, reduce_at=1, **SMALL))
    dense = load_tower(saved(named)).vit
    torch.testing.assert_close(dense(images), zoo.reduce(named, method=None)(images))
    assert not torch.equal(dense(images), named(images))


@pytest.mark.parametrize(("name", "match"), [
    ("vit_smal_patch16_224", "'vit_smal_patch16_224': did you mean 'vit_small_patch16_224'?"),
    ("ViT-B-16", "model 'ViT-B-16': did you mean 'open_clip:ViT-B-16/PRETRAINED'? expected"),
    ("", "model '': expected"),
    ("clip_vit_b16.opnai", "weight tag 'opnai' of clip_vit_b16: did you mean 'openai'?"),
    ("vit_small_patch16_224.augreg_in21k_ft_in1", "vit_small_patch16_224: did you mean 'aug"),
    ("vit_base_patch16_xp_224", "model 'vit_base_patch16_xp_224': timm has no weights for it"),
    ("vit_base_patch16_clip_224.openai", "; use vit_base_patch16_clip_quickgelu_224.openai"),
    ("open_clip:ViT-B-61/openai", "open_clip model 'ViT-B-61': did you mean 'ViT-B-16'?"),
    ("open_clip:ViT-B-16/opnai", "weights 'opnai' of open_clip model 'ViT-B-16': did you mean"),
])  # fmt: skip
def test_unknown_names(name, match):
    with pytest.raises(ValueError, match=re.escape(match)):
        load_tower(name)


@pytest.mark.parametrize(("name", "options", "match"), [
    ("test_resnet", {}, "ResNet is no tower that can be reduced"),
    ("deit_small_distilled_patch16_224", SMALL, "VisionTransformerDistilled overrides parts"),
    ("vit_base_patch16_224", {**SMALL, "global_pool": ""}, "global_pool='' gives tokens, not"),
])  # fmt: skip
def test_towers_that_cannot_be_ranked(name, options, match, saved):
    with pytest.raises(ValueError, match=rf"model 'local-dir:.*mine': {re.escape(match)}"):
        load_tower(saved(timm.create_model(name, **options)))


@pytest.mark.parametrize(("name", "match"), [
    ("clip_vit_b16.openai", r"no weights of clip_vit_b16\.openai: not .*pass local-dir:FOLDER"),
    ("open_clip:ViT-B-16/laion2b_s34b_b88k", "no weights of ViT-B-16/laion2b_s34b_b88k: not .*give a file: open_clip:"),
    ("open_clip:hf-hub:nobody/nothing", "no weights of hf-hub:nobody/nothing: not .*give a file: open_clip:ARCH/FILE"),
])  # fmt: skip
def test_offline_the_error_names_what_is_wanted_and_ways_to_get_it(name, match, hub, caplog):
    with pytest.raises(FileNotFoundError, match=match) as caught:
        load_tower(name)
    if name == "clip_vit_b16.openai":
        assert "; to time or export a model without weights, add --random" in describe_error(caught.value)
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []


def test_folders_without_a_model_and_broken_weights_or_descriptions_are_refused(saved, tmp_path):
    for name in ("local-dir:", f"local-dir:{tmp_path}"):
        with pytest.raises(FileNotFoundError, match=r"no config.json there; timm.models.save_for_"):
            load_tower(name)
    (tmp_path / "open_clip_config.json").touch()
    with pytest.raises(ValueError, match=r"was saved by open_clip: use open_clip:local-dir:"):
        load_tower(f"local-dir:{tmp_path}")
    name = saved(timm.create_model("vit_small_patch16_224", **SMALL))
    weights, config = (tmp_path / "mine" / file for file in ("model.safetensors", "config.json"))
    half = weights.read_bytes()[: weights.stat().st_size // 2]
    other = save({"x": torch.zeros(1)})
    for file, content in ((weights, half), (weights, other), (config, b"{"), (config, b'{"architecture": "none"}')):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"the weights of local-dir:.* can't be used: "):
            load_tower(name)
