"""``zoo.reduce`` works on any timm VisionTransformer with a class token, sharing its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

import zoo

Build = Callable[..., nn.Module]
FAMILY = {
    "clip": ("vit_base_patch32_clip_quickgelu_224.openai", {"patch_size": 32, "img_size": 128}),
    "qk norm": ("vit_tiny_patch16_224.augreg_in21k", {"qk_norm": True, "init_values": 0.5}),
    "dynamic": ("vit_tiny_patch16_224.augreg_in21k", {"dynamic_img_size": True}),
    "swiglu": ("vit_giant_patch14_dinov2.lvd142m", {"mlp_ratio": 2.0}),
    "attn norm": ("vit_tiny_patch16_224.augreg_in21k", {"scale_attn_norm": True}),
    "mlp norm": ("vit_base_patch16_clip_224.laion2b", {"scale_mlp_norm": True}),
}


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("method_", ["clsattn", "rankmerge"])
@torch.no_grad()
def test_every_kind_of_tower_is_reduced(kind: str, method_: str, tiny: Build):
    name, overrides = FAMILY[kind]
    tower = tiny(name, **overrides)
    images = torch.randn(2, 3, *tower.patch_embed.img_size)
    state = {key: value.clone() for key, value in tower.state_dict().items()}
    expected = tower(images)
    whole = zoo.reduce(tower, method=method_, keep=1.0)  # is timm's bit for bit
    assert torch.equal(whole.forward_features(images), tower.forward_features(images))
    assert torch.equal(whole(images), expected)
    trace = zoo.reduce(tower, method=method_, keep=0.6).trace(images)
    left = round(0.6 * tower.patch_embed.num_patches)
    assert (trace.final_tokens, trace.tokens_per_block[-1]) == (left, tower.num_prefix_tokens + left)
    assert not torch.allclose(trace.output, expected, atol=1e-4)
    assert type(tower) is VisionTransformer
    assert not hasattr(tower, "reducer")
    assert "method" not in getattr(tower, "_model_args", {})
    torch.testing.assert_close(dict(tower.state_dict()), state, rtol=0, atol=0)


def test_weights_are_shared_not_copied(tiny: Build, images: Tensor):
    tower = tiny("deit_tiny_patch16_224.fb_in1k")
    model = zoo.reduce(tower, method="patchrank", keep=0.5)
    theirs, ours = dict(tower.named_parameters()), dict(model.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert all(name.startswith("reducer.") for name in ours.keys() - theirs.keys())
    with torch.no_grad():
        before = model(images)
        tower.head.bias.add_(1.0)
        assert torch.allclose(model(images), before + 1.0, atol=1e-5)
    model.reset_classifier(0)
    assert (tower(images).shape, model(images).shape) == ((3, 7), (3, 48))
    assert (tower.num_classes, model.num_classes) == (7, 0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.Linear(2, 2), "Linear is no tower that can be reduced; expected one of timm's Vision"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", device="meta"), "overrides parts of timm's"),
        ({"block_fn": ResPostBlock, "init_values": 1.0}, "blocks are ResPostBlock with Attention; expected timm's"),
        ({"attn_layer": "diff"}, "Block with DiffAttention"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate > 0 loses patch positions; set it to 0"),
    ],
)
def test_towers_that_cannot_be_reduced(make: Any, match: str):
    small = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3}
    tower = VisionTransformer(**small, **make) if isinstance(make, dict) else make()
    with pytest.raises(ValueError, match=match):
        zoo.reduce(tower, method="tome", keep=0.5)


PATCHRANK = {"keep": 0.4, "reduce_at": [1, 3], "arch": "mlp", "width": 16}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("clip_vit_b16.laion2b", "", {}),
        ("clip_vit_b16_patchrank60.openai", "", PATCHRANK),
        ("clip_vit_b16_evit60.openai", "", {"reduce_at": [1, 3]}),
        ("deit_small_patch16_224", "tome", {"keep": 0.5}),
        ("clip_vit_b16_tome50", "evit", {"stage_rate": 0.7, "fuse": True, "reduce_at": [0, 2, 4]}),
        ("vit_base_patch16_clip_quickgelu_224.openai", None, {}),
    ],
)
@torch.no_grad()
def test_round_trip(
    name: str, method: str | None, options: dict, safe: bool, tiny: Build, images: Tensor, tmp_path: Path
):
    if method == "":
        model = tiny(name, **options)
    else:
        first = zoo.reduce(tiny(name), method="random", keep=0.3)  # reducing again keeps the first base
        model = zoo.reduce(first, method=method, **options).eval()
    save_for_hf(model, tmp_path, safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(again, zoo.ReducedViT)
    assert repr(again.blocks) == repr(model.blocks)  # the activation, too
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again(images), model(images))
    assert tuple(again.pretrained_cfg["mean"]) == tuple(model.pretrained_cfg["mean"])
    empty = timm.create_model(f"local-dir:{tmp_path}")
    assert not torch.equal(empty.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    if model.reducer is not None:
        assert again.reducer.config == empty.reducer.config == model.reducer.config
    if method:
        with pytest.raises(ValueError, match=r"keep=0\.25: a saved model has its method's settings"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, keep=0.25)
    elif method == "" and model.reducer is not None:
        fewer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, keep=0.25).eval()
        assert fewer.reducer.points == model.reducer.points
        assert fewer.trace(images).final_tokens == 16
