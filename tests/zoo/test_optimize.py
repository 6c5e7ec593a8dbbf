"""Optimised towers: the given model's outputs, the given model untouched, and refusals."""

import copy
import re
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build
from tiny_towers import build, images_of, options_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import zoo
from harness.measure.timing import peak_mib
from zoo.core.learned import VisualPrompts
from zoo.deploy.optimized import OptimizedHost
from zoo.towers.fused import Product

# Class token, average, both, maximum, attention pool, registers, LayerScale.
LEAN = ("deit 3", "averaged", "averaged with maximum", "maximum", "siglip b16", "dinov2 registers", "naflex siglip 2")
# Other blocks, of which the last is run for the class token alone.
POOLED = ("eva clip b", "eva clip e", "rope mixed")
STYLES: dict[str, dict[str, Any]] = {
    "scales": {"act_layer": "quick_gelu", "init_values": 0.3, "scale_attn_norm": True, "scale_mlp_norm": True},
    "no bias": {"act_layer": "gelu_tanh", "qk_norm": True, "qkv_bias": False, "proj_bias": False},
    "gate": {"reg_tokens": 2, "act_layer": "relu"},
    "learned tokens": {},
}


def apart(model: nn.Module, fast: nn.Module, images: Tensor) -> float:
    """Return the largest difference between features of unit length."""
    with torch.no_grad():
        wanted, found = model(images), fast(images)
    assert found.dtype == torch.float32
    return float((F.normalize(wanted, dim=1) - F.normalize(found, dim=1)).abs().max())


def assert_equal(model: nn.Module, fast: nn.Module) -> None:
    for images in images_of(model, 5).split([4, 1]):
        assert apart(model, fast, images) < 1e-5


# ToMe and others merge in the last block, too, which nothing is left to see.
CASES = [("deit 3", method) for method in (None, "evitfuse", "patchrank", "tome")]
CASES += [(kind, "rankmerge") for kind in (*LEAN, *POOLED)]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_methods_on_kinds_of_tower(kind: str, method: str | None):
    options = {} if method is None else {"keep": 0.5, **options_of(method)}
    tower = build(kind)
    model = zoo.reduce(tower, method=method, **options)
    fast = zoo.optimize(model)
    assert_equal(model, fast)
    assert isinstance(fast, type(tower))


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_blocks(style: str, tiny: Build):
    model = zoo.reduce(tiny("clip_vit_b16", **STYLES[style]), method="rankmerge", keep=0.5).eval()
    if style == "gate":
        for block in model.blocks:
            block.attn.gate = nn.Linear(48, 48)
    elif style == "learned tokens":
        model.prompts = VisualPrompts(3, 48, device=None, dtype=None).eval()
        nn.init.normal_(model.prompts.tokens)
    assert_equal(model, zoo.optimize(model))
    images = images_of(model, 5).bfloat16().float()
    for dtype, most in (("bfloat16", 0.1), ("float16", 0.02)):
        fast = zoo.optimize(model, dtype=dtype)
        assert 0 < apart(model, fast, images) < most
        assert torch.equal(fast(images.bfloat16()), fast(images))


def test_open_clips_own_tower_and_what_holds_one():
    vision = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.model.CLIP(24, vision, text).eval()
    reduced = zoo.reduce(clip, method="tome", keep=0.5)
    for model in (clip, reduced):
        fast = zoo.optimize(model)
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(fast.encode_image(images), model.encode_image(images), atol=1e-5)
        assert type(fast) is type(clip)
        assert fast.transformer is clip.transformer


def test_a_model_in_low_precision_becomes_float32_around_its_weights(tiny: Build):
    model = tiny("clip_vit_b16").bfloat16()
    images = torch.randn(2, 3, 64, 64)
    assert apart(copy.deepcopy(model).float(), zoo.optimize(model), images) < 1e-5
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_given_model_stays_as_it_is(dtype: str, tiny: Build):
    model = tiny("clip_vit_b16_patchrank50", init_values=0.3, act_layer="quick_gelu").train()
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    images = images_of(model, 5)
    fast = zoo.optimize(model, dtype=dtype)
    first = fast(images)
    assert torch.equal(fast(images), first)
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in fast.modules())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())


@pytest.mark.parametrize("method", ["evitfuse", "patchrank", "rankmerge"])
def test_tokens_that_others_read_are_not_written_and_low_precision_is_close(half: zoo.ReducedViT):
    """``trace``, and whoever runs blocks himself, read tokens that blocks would write into."""
    fast, images = zoo.optimize(half), images_of(half, 16)
    with torch.no_grad():
        low = zoo.optimize(half, dtype="bfloat16")(images)
        # Rounding may turn which of two near-equal tokens goes, so that not every image is close.
        assert F.cosine_similarity(low, half(images), dim=1).median() > 0.99
        tokens = fast.embed(images)
        kept = tokens.x.clone()
        last, taps = fast.advance(tokens, taps=range(6))
        _, plain = half.advance(half.embed(images), taps=range(6))
        assert torch.equal(tokens.x, kept)
        assert all(torch.allclose(one.x, other.x, atol=1e-4) for one, other in zip(taps, plain, strict=True))
        assert torch.equal(last.x, taps[-1].x)
        assert torch.allclose(fast.forward_features(images), half.forward_features(images), atol=1e-4)
        assert fast.trace(images).tokens_per_block == half.trace(images).tokens_per_block


@torch.no_grad()
def test_of_no_images_there_are_no_features(half: zoo.ReducedViT, images: Tensor):
    for model in (half, zoo.optimize(half), zoo.optimize(half, dtype="bfloat16")):
        assert model(images[:0]).shape == (0, 7)


@torch.no_grad()
def test_takes_no_more_memory_than_timm():
    """At 8 images and the widths of a real tower."""
    tower = timm.create_model("vit_small_patch16_224", depth=2, num_classes=0, global_pool="token").eval()
    images = torch.randn(8, 3, 224, 224)
    dense = peak_mib(tower, images)
    for dtype in ("float32", "bfloat16"):
        assert peak_mib(zoo.optimize(tower, dtype=dtype), images) < dense


@pytest.mark.parametrize(("use", "match"), [
    (lambda fast, _: fast.train(), "can't be trained"),
    (lambda fast, _: fast.load_state_dict(fast.state_dict()), "takes no other weights"),
    (lambda fast, _: copy.deepcopy(fast), "can't be copied or pickled"),
    (lambda fast, _: zoo.optimize(fast), "OptimizedViT is optimised already"),
    (lambda fast, _: zoo.reduce(fast, method="tome", keep=0.5), "OptimizedViT overrides parts of timm's"),
    (lambda fast, images: fast(images, attn_mask=torch.ones(65, 65)), "takes no attn_mask and no is_causal"),
    (lambda fast, images: fast(images.requires_grad_()), "has no gradients; use the model"),
    (lambda fast, _: zoo.optimize(fast, dtype="bf16"), "'bf16': did you mean 'bfloat16'"),
])  # fmt: skip
def test_refused(use: Callable[[OptimizedHost, Tensor], Any], match: str, tiny: Build, images: Tensor):
    with pytest.raises(ValueError, match=re.escape(match)):
        use(zoo.optimize(tiny("clip_vit_b16")), images)


def test_refused_towers(tiny: Build):
    normed = tiny("clip_vit_b16")
    parametrizations.weight_norm(normed.blocks[1].mlp.fc1)
    for tower, dtype, match in (
        (build("dinov3 s"), "bfloat16", r"dtype='bfloat16': .*EvaBlock"),
        (build("beit v2"), "float32", r"nothing to optimise in ReducedBeit: .*timm\.models\.beit"),
        (build("pe core"), "float32", "nothing to optimise in ReducedEva: .*EvaBlock"),
        (normed, "float32", "plain linear layers, this tower has Parametrized"),
    ):
        with pytest.raises(ValueError, match=match):
            zoo.optimize(tower, dtype=dtype)


def test_a_product_is_the_linear_layer_that_it_stands_for():
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(40, 64).bfloat16()
    product = Product(weight.bfloat16(), bias)
    exact = F.linear(x.double(), weight.bfloat16().double(), bias.double())
    for _ in range(2):  # the first call brings the weight into oneDNN's layout
        torch.testing.assert_close(product(x).double(), exact, rtol=2**-7, atol=0.02)
    rows = torch.randn(40, 96)
    wanted = rows.double() + exact
    product.add_to(rows, x)
    torch.testing.assert_close(rows.double(), wanted, rtol=2**-7, atol=0.02)
