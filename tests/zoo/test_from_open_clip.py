"""Image towers of open_clip, converted: the same features, the same golden scores."""

import re
from typing import Any

import pytest
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from zoo.open_clip import from_open_clip

import zoo
from zoo.clip import image_transform
from zoo.text import OpenClipText

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
B16 = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
B32 = {**B16, "patch_size": 16, "image_size": 64}
TRUNK = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
EXACT = {
    "b16": B16,
    "b32": B32,
    "mlp ratio of so400m": {**B16, "mlp_ratio": 4.3637},
    "mlp ratio that rounds": {**B16, "mlp_ratio": 1.23},
    "eps": {**B16, "norm_kwargs": {"eps": 1e-3}},
    "tanh": {**B16, "act_kwargs": {"approximate": "tanh"}},
    "no pre-norm": {**B16, "no_ln_pre": True},
    "layer scale": {**B16, "ls_init_value": 0.3},
    "fixed positions": {**B16, "pos_embed_type": "sin_cos_2d"},
    "custom blocks without customs": {**B16, "block_type": "custom"},
    "wide image": {**B16, "image_size": (32, 48)},
    "oblong patches": {**B16, "patch_size": (8, 16)},
    "image that patches don't fill": {**B16, "image_size": 37},
    "norm after pool": {**B16, "final_ln_after_pool": True},
    "avg": {**B16, "pool_type": "avg"},
    "norm after avg": {**B16, "pool_type": "avg", "final_ln_after_pool": True},
    "trunk": {**TRUNK, "timm_proj": "linear"},
    "trunk with bias": {**TRUNK, "timm_proj": "linear", "timm_proj_bias": True},
    "trunk with its own head": {**TRUNK, "timm_proj": ""},
    "trunk with mlp": {**TRUNK, "timm_proj": "mlp"},
    "trunk without projection": {**TRUNK, "timm_proj": "none"},
    "trunk with avg": {**TRUNK, "timm_pool": "avg", "timm_proj": "linear"},
    "trunk with map": {**TRUNK, "timm_pool": "map", "timm_proj": ""},
}


def build(vision: dict[str, Any], quick: bool = False, kind: type = CLIP) -> Any:
    """Make an open_clip model lively: fresh biases, norms and layer scales would hide mistakes."""
    torch.manual_seed(2)
    model = kind(24, dict(vision), dict(TEXT), quick_gelu=quick).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def images_for(vision: dict[str, Any], count: int = 2) -> Tensor:
    size = vision["image_size"]
    return torch.randn(count, 3, *((size, size) if isinstance(size, int) else size))


@pytest.mark.parametrize(
    ("name", "quick"), [*((n, False) for n in EXACT), *((n, True) for n in ("b16", "b32", "avg"))]
)
@torch.no_grad()
def test_features_are_open_clips(name: str, quick: bool):
    vision = EXACT[name]
    model = build(vision, quick)
    tower = from_open_clip(model)
    images = images_for(vision)
    wanted = model.encode_image(images)
    assert torch.allclose(tower(images), wanted, atol=1e-5)
    assert wanted.std() > 0.1
    assert tower.num_classes == (0 if name == "trunk without projection" else 24)
    assert tower.reducer is None
    assert not tower.training


@torch.no_grad()
def test_the_activation_is_the_models():
    """The same weights with the other activation are another tower."""
    model, other = build(B16, quick=True), build(B16, quick=False)
    other.load_state_dict(model.state_dict())
    images = images_for(B16)
    assert (from_open_clip(model)(images) - from_open_clip(other)(images)).abs().max() > 1e-3


@torch.no_grad()
def test_the_image_tower_alone_and_a_custom_text_model_will_do():
    images = images_for(B16)
    model = build(B16, kind=CustomTextCLIP)
    wanted = model.encode_image(images)
    assert torch.allclose(from_open_clip(model)(images), wanted, atol=1e-5)
    assert torch.allclose(from_open_clip(model.visual)(images), wanted, atol=1e-5)


@torch.no_grad()
def test_without_projection_the_features_are_the_pooled_ones():
    model = build(B16)
    model.visual.proj = None
    tower = from_open_clip(model)
    images = images_for(B16)
    assert torch.allclose(tower(images), model.encode_image(images), atol=1e-5)
    assert tower.num_classes == 0


def test_a_native_tower_is_copied_and_a_trunk_shared():
    model = build(B16)
    ours = {p.data_ptr() for p in from_open_clip(model).parameters()}
    assert not ours & {p.data_ptr() for p in model.parameters()}
    model = build(EXACT["trunk"])
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in from_open_clip(model).parameters()} <= theirs


def test_half_precision_becomes_float32_without_loss():
    model = build(B16).half()
    tower = from_open_clip(model)
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    assert torch.equal(tower.head.weight.half(), model.visual.proj.T)
    assert from_open_clip(model.train()).training


@torch.no_grad()
def test_a_converted_tower_can_be_reduced():
    model = build(B16)
    images = images_for(B16)
    tower = from_open_clip(model)
    kept = zoo.reduce(tower, method="random", keep=1.0, reduce_at=1)
    assert torch.allclose(kept(images), model.encode_image(images), atol=1e-5)
    assert zoo.reduce(tower, method="random", keep=0.5, reduce_at=1).trace(images).final_tokens == 8


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_preprocessing_goes_along(mode: str):
    told = {"size": (32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "resize_mode": mode}
    cfg = PreprocessCfg(**told, interpolation="bicubic")
    model = build(B16)
    model.visual.preprocess_cfg = {**vars(cfg)}
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    ours = image_transform(from_open_clip(model))(image)
    theirs = image_transform_v2(cfg, is_train=False)(image)
    assert ours.shape == theirs.shape == (3, 32, 32)
    assert torch.equal(ours, theirs)


def test_preprocessing_that_timm_does_otherwise_is_not_claimed():
    model = build(B16)
    model.visual.preprocess_cfg = {**vars(PreprocessCfg(size=32, resize_mode="longest"))}
    assert not hasattr(from_open_clip(model), "pretrained_cfg")


@torch.no_grad()
def test_the_text_side_is_the_models_without_its_image_tower():
    for kind in (CLIP, CustomTextCLIP):
        model = build(B16, kind=kind)
        tokens = torch.randint(1, 64, (3, 8))
        wanted = model.encode_text(tokens)
        text = OpenClipText(model)
        assert torch.equal(text(tokens), wanted)
        assert not any("visual" in name for name, _ in text.named_parameters())


@pytest.mark.parametrize(
    ("vision", "match"),
    [
        ({**B16, "attentional_pool": True}, "attentional_pool: this tower pools by attention"),
        ({**B16, "pool_type": "none"}, "pool_type='none': expected one of tok, avg"),
        ({**B16, "patch_dropout": 0.5}, "patch_dropout > 0 loses patch positions"),
        ({**B16, "qk_norm": True}, "differs from timm's VisionTransformer in 'blocks.0.attn"),
        ({**B16, "scaled_cosine_attn": True}, "in 'blocks.0.attn.logit_scale'; expected plain"),
        ({**B16, "scale_heads": True}, "in 'blocks.0.attn.head_scale'"),
        ({**B16, "scale_attn_inner": True}, "differs from timm's"),
        ({**B16, "scale_attn": True}, "differs from timm's"),
        ({**B16, "scale_fc": True}, "in 'blocks.0.mlp.ln"),
        ({**B16, "layers": (1, 1, 1, 1), "width": 32, "head_width": 32}, "ModifiedResNet is not"),
        ({**TRUNK, "timm_proj": "", "timm_pool": ""}, "timm_pool='' hands out tokens"),
        ({**TRUNK, "patch_dropout": 0.5}, "patch_drop_rate > 0 loses patch positions"),
        (
            {**TRUNK, "timm_model_name": "test_resnet", "timm_pool": "avg"},
            "ResNet is not a timm VisionTransformer",
        ),
        (
            {**TRUNK, "timm_model_name": "test_vit4", "timm_pool": "avg"},
            "this tower has no class token",
        ),
    ],
)
def test_what_has_no_exact_counterpart_is_refused(vision: dict, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        from_open_clip(build(vision))


def test_other_norms_and_activations_are_refused():
    model = build(B16)
    model.visual.transformer.resblocks[1].ln_2.eps = 0.1
    with pytest.raises(ValueError, match=re.escape("norms of several eps: [1e-05, 0.1]")):
        from_open_clip(model)
    model = build(B16)
    model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.ReLU()
    with pytest.raises(ValueError, match="activation ReLU: expected GELU or QuickGELU"):
        from_open_clip(model)
    with pytest.raises(ValueError, match="Linear is not a vision transformer of open_clip"):
        from_open_clip(torch.nn.Linear(2, 2))


def test_timms_own_conversion_of_a_whole_checkpoint_gives_the_same_tower():
    """The state dict that a user has on disk, and the model in memory: one tower."""
    model = build(B16)
    loaded = timm.create_model(
        "clip_vit_b16.laion2b",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": model.state_dict(), "num_classes": 24},
        **{"num_classes": 24, "img_size": 32, "patch_size": 8},
        **{"embed_dim": 48, "depth": 3, "num_heads": 3},
    )
    ours = from_open_clip(model).state_dict()
    theirs = loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
