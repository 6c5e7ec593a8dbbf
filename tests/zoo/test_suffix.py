"""The rest of a tower on shortened sequences: precision, pooling, batches."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from harness.records.statistics import kendall_tau
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.suffix import Suffix
from zoo.towers.lean import LeanBlock, Product

Build = Callable[..., nn.Module]


def random_sets(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw which images (of 3) and which ``size`` of 64 patches are left."""
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randperm(64, generator=generator)[:size].sort().values for _ in range(count)]
    return torch.arange(count) % 3, torch.stack(drawn)


@torch.no_grad()
def alone(model: zoo.ReducedViT, start: Any, row: int, keep: Tensor) -> Tensor:
    """Run one sequence through the model's own blocks, norm and head."""
    patches = start.patches[row, keep]
    x = torch.cat((start.x[row, : start.prefix], patches))[None]
    idx = start.patch_idx[row, keep][None]
    tokens, _ = model.advance(start._replace(x=x, patch_idx=idx, patch_count=len(keep)), 2)
    return F.normalize(model.finish(tokens)[0], dim=0)


@pytest.mark.parametrize("style", [{}, {"reg_tokens": 4}, {"global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("size", [0, 60])
@torch.no_grad()
def test_equals_one_sequence_at_a_time(style: dict[str, Any], size: int, tiny: Build):
    """Where the tower pools patch tokens, its last block is run for all of them."""
    model = tiny("clip_vit_b16", **style)
    start, _ = model.advance(model.embed(torch.randn(3, 3, 64, 64)), stop=2)
    rows, keep = random_sets(7, size)
    found = Suffix(model, 2, batch=3).features(start, rows, keep)
    if style.get("global_pool") == "avg" and size == 0:
        assert torch.equal(found, torch.zeros(7, 7))  # the mean of no patches is nothing
        return
    for i in range(7):
        assert torch.allclose(found[i], alone(model, start, int(rows[i]), keep[i]), atol=1e-5)


def test_rankings_in_low_precision_agree():
    """On the embedded tower and images with a bright spot; how much so differs between CPUs."""
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(4, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        image[:, 20 * index : 60 + 20 * index, 80:150] += 2
    config = GoldenConfig(window=4, stride=4)
    exact, low = (GoldenEngine(model, config, precision=p).importance(images) for p in ("float32", "bfloat16"))
    assert not torch.equal(exact, low)
    assert kendall_tau(exact.numpy(), low.numpy()).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "half"}, "precision='half'"),
        ({"batch": 0}, "batch=0: expected an integer from 1"),
    ],
)
def test_refused_engines(options: dict[str, Any], match: str, tower: nn.Module):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenEngine(tower, GoldenConfig(), **options)


@pytest.mark.cuda
def test_rankings_on_a_gpu_agree():
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(1, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    config = GoldenConfig(window=4, stride=4)
    there = GoldenEngine(model.cuda(), config).importance(images)
    here = GoldenEngine(model.cpu(), config).importance(images)
    assert kendall_tau(here.numpy(), there.numpy())[0] > 0.98


BLOCK_STYLES: list[dict[str, Any]] = [
    {"init_values": 0.3, "qkv_bias": False},
    {"qk_norm": True, "proj_bias": False},
    {"scale_attn_norm": True, "act_layer": "gelu_tanh"},
    {"act_layer": "quick_gelu", "scale_mlp_norm": True},
    {"act_layer": "relu"},
]


@pytest.fixture(params=BLOCK_STYLES, ids=str)
def blocks(request: pytest.FixtureRequest, tiny: Build) -> Any:
    """The blocks of a small tower, in many styles."""
    return tiny("clip_vit_b16", noise=0.2, **request.param).blocks


@torch.inference_mode()
def test_equals_the_block(blocks: Any):
    """One after another, longer and shorter sequences."""
    for length in (23, 1, 40):
        x = torch.randn(3, length, 48)
        for block in blocks:
            expected = block(x)
            LeanBlock(block, torch.float32).run(x)
            assert torch.allclose(x, expected, atol=2e-5)


@torch.inference_mode()
def test_low_precision_stays_near(blocks: Any):
    """bfloat16 has 8 bits; the class token is nearer, as only its attention is rounded."""
    torch.manual_seed(0)
    x = torch.randn(8, 40, 48)
    errors = []
    for block in blocks:
        expected, mixed = block(x), x.clone()
        LeanBlock(block, torch.bfloat16, cls=True).run(mixed)
        error = (mixed - expected).norm(dim=-1) / (expected - x).norm(dim=-1)
        assert 0 < error.mean() < 0.03
        errors.append(error)
    every = torch.cat(errors)
    assert every[:, 0].mean() < every[:, 1:].mean()


@pytest.mark.parametrize("cls", [False, True])
@torch.inference_mode()
def test_projection_and_mlp_of_the_class_token_are_not_rounded(cls: bool, tiny: Build):
    """With all values 0, and the projection's bias kept, nothing else is left that could be."""
    block = tiny("clip_vit_b16", noise=0.3).blocks[3]
    lean = LeanBlock(block, torch.bfloat16, cls=cls)
    assert lean.low is not None
    qkv = lean.low.qkv
    assert qkv.bias is not None
    lean.low.qkv = Product(*(torch.cat((each[:96], torch.zeros_like(each[96:]))) for each in (qkv.weight, qkv.bias)))
    x = torch.randn(4, 30, 48)
    wanted = x + block.attn.proj.bias
    wanted = wanted + block.mlp(block.norm2(wanted))
    mixed = x.clone()
    lean.run(mixed)
    assert torch.allclose(mixed[:, 0], wanted[:, 0], atol=1e-5) == cls
    assert 1e-4 < (mixed[:, 1:] - wanted[:, 1:]).norm() / wanted.norm() < 0.03
