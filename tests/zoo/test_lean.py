"""Lean blocks against timm's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.attention import attend_cls
from zoo.suffix import LeanBlock, Scratch

STYLES: list[dict[str, Any]] = [
    {},
    {"init_values": 0.3},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"reg_tokens": 4},
    {"proj_bias": False},
    {"scale_attn_norm": True},
    {"scale_mlp_norm": True},
    {"act_layer": "quick_gelu"},
    {"act_layer": "quick_gelu", "scale_mlp_norm": True},
    {"act_layer": "gelu_tanh"},
    {"act_layer": "relu"},
]


@pytest.fixture(params=STYLES, ids=str)
def blocks(request: pytest.FixtureRequest, tiny: Callable[..., nn.Module]) -> Any:
    """The blocks of a small tower, in many styles."""
    return tiny("clip_vit_b16", noise=0.2, **request.param).blocks


@pytest.mark.parametrize("fresh", [False, True])
@torch.inference_mode()
def test_equals_the_block(fresh: bool, blocks: Any):
    """One after another on shared memory, longer and shorter sequences."""
    scratch = None if fresh else Scratch()
    for length in (23, 1, 40):
        x = torch.randn(3, length, 48)
        for block in blocks:
            expected = block(x)
            LeanBlock(block, torch.float32, scratch).run(x)
            assert torch.allclose(x, expected, atol=2e-5)


@torch.inference_mode()
def test_class_token_alone_equals_the_whole_block(blocks: Any):
    x = torch.randn(2, 23, 48)
    for block in blocks:
        assert torch.allclose(attend_cls(block, x), block(x)[:, :1], atol=2e-5)


@pytest.mark.parametrize("fresh", [False, True])
@torch.inference_mode()
def test_low_precision_stays_near(fresh: bool, blocks: Any):
    """bfloat16 has 8 bits; the class token is nearer, as only what it attends to is rounded."""
    torch.manual_seed(0)
    scratch = None if fresh else Scratch()
    x = torch.randn(8, 40, 48)
    errors = []
    for block in blocks:
        expected, mixed = block(x), x.clone()
        LeanBlock(block, torch.bfloat16, scratch).run(mixed)
        error = (mixed - expected).norm(dim=-1) / (expected - x).norm(dim=-1)
        assert 0 < error.mean() < 0.03
        errors.append(error)
    every = torch.cat(errors)
    assert every[:, 0].mean() < every[:, 1:].mean()


@torch.inference_mode()
def test_only_the_patches_that_the_class_token_sees_are_rounded(
    tiny: Callable[..., nn.Module],
):
    """With every patch token's keys and values 0, nothing that is rounded reaches it."""
    block = tiny("clip_vit_b16", noise=0.3).blocks[3]
    lean = LeanBlock(block, torch.bfloat16, Scratch())
    assert lean.low is not None
    for tensor in lean.low.qkv:
        tensor[48:] = 0
    x = torch.randn(4, 30, 48)
    query, key, value = (
        t.reshape(4, 3, 16) for t in block.attn.qkv(block.norm1(x[:, 0])).chunk(3, dim=1)
    )
    own = (query * key).sum(dim=-1, keepdim=True) * block.attn.scale
    weight = own.exp() / (own.exp() + 29)
    cls = x[:, 0] + block.attn.proj((weight * value).reshape(4, 48))
    cls = cls + block.mlp(block.norm2(cls))
    mixed, exact = x.clone(), block(x)
    lean.run(mixed)
    assert torch.allclose(mixed[:, 0], cls, atol=1e-5)
    assert not torch.allclose(mixed[:, 1:], exact[:, 1:], atol=1e-3)


def test_weights_without_constants_are_not_copied(tiny: Callable[..., nn.Module]):
    block = tiny("clip_vit_b16", act_layer="gelu").blocks[0]
    lean = LeanBlock(block, torch.float32, None)
    for mine, theirs in (
        (lean.exact.qkv, block.attn.qkv),
        (lean.exact.proj, block.attn.proj),
        (lean.exact.hidden, block.mlp.fc1),
    ):
        assert mine[0].data_ptr() == theirs.weight.data_ptr()


def test_scratch_gives_the_same_memory_for_the_same_use():
    scratch, like = Scratch(), torch.zeros(1, dtype=torch.bfloat16)
    large = scratch("wide", like, 6, 5)
    small = scratch("wide", like, 3, 4)
    assert (large.shape, small.shape) == ((6, 5), (3, 4))
    assert large.dtype == torch.bfloat16
    assert large.data_ptr() == small.data_ptr()
    others = [scratch("logits", like, 3, 4), scratch("wide", like.float(), 3, 4)]
    assert large.data_ptr() not in [other.data_ptr() for other in others]


def test_engines_leave_the_model_alone(tiny: Callable[..., nn.Module]):
    model = tiny("clip_vit_b16", init_values=0.3, act_layer="quick_gelu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = zoo.GoldenConfig(stride=2)
    images: Tensor = torch.randn(2, 3, 64, 64)
    first = zoo.GoldenEngine(model, config, precision="bfloat16").importance(images)
    again = zoo.GoldenEngine(model, config, precision="bfloat16").importance(images)
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
