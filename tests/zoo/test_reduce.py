"""``zoo.reduce`` works on any timm VisionTransformer with a class token, sharing its weights."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

import zoo

FAMILY = {
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", {"img_size": 56, "patch_size": 14}),
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "deit": ("deit_tiny_patch16_224.fb_in1k", {"patch_size": 4, "img_size": 32}),
    "augreg": ("vit_tiny_patch16_224.augreg_in21k", {"patch_size": 16}),
    "clip": ("vit_base_patch32_clip_quickgelu_224.openai", {"patch_size": 32, "img_size": 128}),
    "qk norm": ("vit_tiny_patch16_224.augreg_in21k", {"qk_norm": True, "init_values": 0.5}),
    "averaged": ("vit_tiny_patch16_224.augreg_in21k", {"global_pool": "avg"}),
    "dynamic": ("vit_tiny_patch16_224.augreg_in21k", {"dynamic_img_size": True}),
    "swiglu": ("vit_giant_patch14_dinov2.lvd142m", {"mlp_ratio": 2.0}),
    "gated": ("vit_tiny_patch16_224.augreg_in21k", {"scale_attn_norm": True}),
}


@pytest.mark.parametrize("kind", FAMILY)
@torch.no_grad()
def test_every_kind_of_tower_is_reduced(kind: str, method: str, tiny: Callable[..., nn.Module]):
    name, overrides = FAMILY[kind]
    tower = tiny(name, **overrides)
    size = tower.patch_embed.img_size
    images = torch.randn(2, 3, *size)
    state = {key: value.clone() for key, value in tower.state_dict().items()}
    wanted = tower(images)

    model = zoo.reduce(tower, method=method, keep=0.6)
    trace = model.trace(images)
    patches = tower.patch_embed.num_patches
    assert trace.final_tokens == round(0.6 * patches)
    assert trace.tokens_per_block[-1] == tower.num_prefix_tokens + round(0.6 * patches)
    assert trace.output.shape == wanted.shape
    assert not torch.allclose(trace.output, wanted, atol=1e-4)

    assert type(tower) is VisionTransformer
    assert not hasattr(tower, "reducer")
    assert torch.equal(tower(images), wanted)
    assert tower.state_dict().keys() == state.keys()
    assert all(torch.equal(tower.state_dict()[key], state[key]) for key in state)


def test_weights_are_shared_not_copied(method: str, tiny: Callable[..., nn.Module], images: Tensor):
    tower = tiny("deit_tiny_patch16_224.fb_in1k")
    model = zoo.reduce(tower, method=method, keep=0.5)
    theirs, ours = dict(tower.named_parameters()), dict(model.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert all(name.startswith("reducer.") for name in ours.keys() - theirs.keys())
    with torch.no_grad():
        before = model(images)
        tower.head.bias.add_(1.0)
        assert torch.allclose(model(images), before + 1.0, atol=1e-5)


def test_replacing_the_head_of_one_leaves_the_other(tiny: Callable[..., nn.Module], images: Tensor):
    tower = tiny("deit_tiny_patch16_224.fb_in1k")
    model = zoo.reduce(tower, method="random", keep=0.5)
    model.reset_classifier(0)
    assert tower(images).shape == (3, 7)
    assert model(images).shape == (3, 48)
    assert (tower.num_classes, model.num_classes) == (7, 0)


def test_reducing_again_replaces_the_method(tiny: Callable[..., nn.Module], images: Tensor):
    first = zoo.reduce(tiny("deit_tiny_patch16_224.fb_in1k"), method="tome", keep=0.5)
    second = zoo.reduce(first, method="evit", keep=0.7)
    assert second.trace(images).final_tokens == round(0.7 * 64)
    assert first.trace(images).final_tokens == 32
    dense = zoo.reduce(second, method=None)
    assert dense.reducer is None
    assert dense.trace(images).final_tokens == 64
    assert set(dense.state_dict()) == {k for k in second.state_dict() if "reducer." not in k}


def test_a_deep_copy_is_independent(tiny: Callable[..., nn.Module], images: Tensor):
    tower = tiny("deit_tiny_patch16_224.fb_in1k")
    model = zoo.reduce(copy.deepcopy(tower), method="random", keep=0.5)
    with torch.no_grad():
        before = tower(images)
        model.blocks[0].mlp.fc1.weight.zero_()
        assert torch.equal(tower(images), before)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_meta_device_are_taken_over(
    training: bool, method: str, tiny: Callable[..., nn.Module]
):
    model = zoo.reduce(tiny("deit_tiny_patch16_224").train(training), method=method, keep=0.5)
    assert {module.training for module in model.modules()} == {training}
    tower = timm.create_model("vit_tiny_patch16_224", device="meta")
    model = zoo.reduce(tower, method=method, keep=0.5)
    assert all(p.is_meta for p in model.parameters())


def test_default_points_stop_at_the_last_block(tiny: Callable[..., nn.Module]):
    tower = tiny("deit_tiny_patch16_224.fb_in1k", depth=8)
    assert zoo.reduce(tower, method="evit", keep=0.5).reducer.points == (3, 6)
    with pytest.raises(ValueError, match="reduce_at=9: this tower has blocks 0 to 7"):
        zoo.reduce(tower, method="evit", keep=0.5, reduce_at=[3, 6, 9])


def test_towers_that_cannot_be_reduced(method: str):
    tiny = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3}
    none = VisionTransformer(**tiny, class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="has no class token; token reduction needs one"):
        zoo.reduce(none, method=method, keep=0.5)
    post = VisionTransformer(**tiny, block_fn=ResPostBlock, init_values=1.0)
    with pytest.raises(ValueError, match="blocks are ResPostBlock with Attention; expected timm's"):
        zoo.reduce(post, method=method, keep=0.5)
    differential = VisionTransformer(**tiny, attn_layer="diff")
    with pytest.raises(ValueError, match="Block with DiffAttention"):
        zoo.reduce(differential, method=method, keep=0.5)
    parallel = VisionTransformer(**tiny, block_fn=ParallelScalingBlock)
    with pytest.raises(ValueError, match="blocks are ParallelScalingBlock"):
        zoo.reduce(parallel, method=method, keep=0.5)
    dropping = VisionTransformer(**tiny, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"patch_drop_rate > 0 loses patch positions; set it to 0"):
        zoo.reduce(dropping, method=method, keep=0.5)


def test_other_models_are_refused(method: str):
    with pytest.raises(ValueError, match="Linear is not a timm VisionTransformer"):
        zoo.reduce(nn.Linear(2, 2), method=method, keep=0.5)
    with pytest.raises(ValueError, match="ResNet is not a timm VisionTransformer"):
        zoo.reduce(timm.create_model("resnet10t", device="meta"), method=method, keep=0.5)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", device="meta")
    with pytest.raises(ValueError, match="VisionTransformerDistilled overrides parts of timm's"):
        zoo.reduce(distilled, method=method, keep=0.5)


@pytest.mark.parametrize(
    ("method_", "options", "match"),
    [
        ("evitt", {"keep": 0.5}, r"method 'evitt': did you mean 'evit'\?"),
        ("prune", {"keep": 0.5}, "method 'prune': expected one of"),
        ("evit", {"keep": 0.5, "fused": True}, r"no option 'fused': did you mean 'fuse'\?"),
        ("random", {"keep": 0.5, "zzz": 1}, "random has no option 'zzz': expected one of keep,"),
        ("random", {}, "expected exactly one of keep, got none of them"),
    ],
)
def test_unknown_words(method_: str, options: dict, match: str, tiny: Callable[..., nn.Module]):
    with pytest.raises(ValueError, match=match):
        zoo.reduce(tiny("deit_tiny_patch16_224"), method=method_, **options)
