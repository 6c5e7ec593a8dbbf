"""Nothing reduced means timm's own model, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import zoo

# Names of timm's own towers and what makes each of them different.
RELATIVES: dict[str, dict[str, Any]] = {
    "vit_base_patch16_clip_224.laion2b": {},
    "vit_base_patch16_clip_quickgelu_224.openai": {},
    "vit_small_patch14_dinov2.lvd142m": {},
    "vit_small_patch14_reg4_dinov2.lvd142m": {},
    "deit_tiny_patch16_224.fb_in1k": {},
    "vit_tiny_patch16_224.augreg_in21k": {"init_values": 0.1, "qk_norm": True},
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k": {"dynamic_img_size": True},
    "vit_small_patch32_224.augreg_in21k": {"global_pool": "avg", "qkv_bias": False},
    "vit_base_patch16_224.augreg_in21k": {"scale_attn_norm": True, "scale_mlp_norm": True},
}


@pytest.mark.parametrize("relative", RELATIVES)
def test_keep_one_is_timm_bit_for_bit(
    relative: str, method: str, tiny: Callable[..., nn.Module], images: Tensor
):
    theirs = tiny(relative, **RELATIVES[relative])
    ours = zoo.reduce(theirs, method=method, keep=1.0)
    with torch.no_grad():
        assert torch.equal(ours.forward_features(images), theirs.forward_features(images))
        assert torch.equal(ours(images), theirs(images))
        assert torch.equal(ours.trace(images).output, theirs(images))


@pytest.mark.parametrize(
    ("tag", "relative"),
    [("openai", "vit_base_patch16_clip_quickgelu_224"), ("laion2b", "vit_base_patch16_clip_224")],
)
@pytest.mark.parametrize("percent", [90, 30])
def test_registered_names_at_keep_one_are_timm(
    tag: str,
    relative: str,
    percent: int,
    method: str,
    tiny: Callable[..., nn.Module],
    images: Tensor,
):
    ours = tiny(f"clip_vit_b16_{method}{percent}.{tag}", keep=1.0)
    theirs = tiny(f"{relative}.{tag}")
    weights = {k: v for k, v in ours.state_dict().items() if not k.startswith("reducer.")}
    theirs.load_state_dict(weights, strict=True)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("size", ["b32", "b16", "l14", "s14"])
def test_dense_names_are_timm(size: str, tiny: Callable[..., nn.Module], images: Tensor):
    tag = "laion2b" if size != "s14" else "lvd142m"
    relatives = {
        "b32": "vit_base_patch32_clip_224",
        "b16": "vit_base_patch16_clip_224",
        "l14": "vit_large_patch14_clip_224",
        "s14": "vit_small_patch14_dinov2",
    }
    ours = tiny(f"clip_vit_{size}.{tag}" if size != "s14" else "clip_vit_s14")
    theirs = tiny(f"{relatives[size]}.{tag}")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_full_size_b32_is_timm_with_every_method():
    theirs = timm.create_model("vit_base_patch32_clip_224.laion2b").eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = theirs(images)
        for method in zoo.METHODS:
            assert torch.equal(zoo.reduce(theirs, method=method, keep=1.0)(images), wanted), method


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("evit", {"stage_rate": 1.0}),
        ("evit", {"keep": 1.0, "fuse": True}),
        ("tome", {"r": 0}),
        ("clsattn", {"keep": 1.0, "source": "previous"}),
        ("random", {"keep": 1.0, "reduce_at": [0, 5], "schedule": "linear"}),
        ("patchrank", {"keep": 1.0, "arch": "mixer", "width": 8}),
    ],
)
def test_other_ways_to_say_all(
    method: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
    theirs = tiny("deit_tiny_patch16_224.fb_in1k")
    ours = zoo.reduce(theirs, method=method, **options)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_training_draws_the_same_random_numbers(
    method: str, tiny: Callable[..., nn.Module], images: Tensor
):
    """Dropout and stochastic depth stay in place and in order."""
    kinds = ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate")
    rates = dict.fromkeys(kinds, 0.2)
    theirs = tiny("deit_tiny_patch16_224.fb_in1k", **rates).train()
    ours = zoo.reduce(theirs, method=method, keep=1.0)
    assert ours.training
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(5)
        outputs.append(model(images))
    assert torch.equal(*outputs)


def test_masks_reach_every_block_of_a_dense_tower(tiny: Callable[..., nn.Module], images: Tensor):
    theirs = tiny("deit_tiny_patch16_224.fb_in1k")
    ours = zoo.reduce(theirs, method=None)
    mask = torch.ones(65, 65).tril().bool()
    with torch.no_grad():
        for mode in ({"attn_mask": mask}, {"is_causal": True}):
            wanted = theirs.forward_features(images, **mode)
            assert torch.equal(ours.forward_features(images, **mode), wanted)


def test_masks_are_refused_with_reduction(half: zoo.ReducedViT, images: Tensor):
    with pytest.raises(ValueError, match="attn_mask and is_causal need all tokens"):
        half.forward_features(images, is_causal=True)
    with pytest.raises(ValueError, match="use a dense model"):
        half.forward_features(images, attn_mask=torch.zeros(65, 65))
