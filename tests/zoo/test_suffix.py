"""The rest of a tower on shortened sequences: precision, pooling, batches, compiled or not."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from harness.records.agreement import kendall_tau
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.suffix import Suffix

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


@pytest.mark.slow
def test_compiled_equals_eager(tower: nn.Module):
    """9 windows of 2 images in batches of 7: the last batch is filled up, so nothing recompiles."""
    torch.compiler.reset()
    images = torch.randn(2, 3, 64, 64)
    config = GoldenConfig(window=3, stride=3, block=4)
    engines = [GoldenEngine(tower, config, batch=7, compiled=compiled) for compiled in (False, True)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        eager, fast = (engine.importance(images) for engine in engines)
    assert torch.allclose(eager, fast, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "half"}, "precision='half'"),
        ({"batch": 0}, "batch=0: expected an integer from 1"),
        ({"greedy": 4, "compiled": True}, "compiled=True needs one sequence length"),
        ({"approximate": "follow:4", "compiled": True}, "compiled=True with approximate='follow:4': exact only"),
    ],
)
def test_refused_engines(options: dict[str, Any], match: str, tower: nn.Module):
    config = GoldenConfig(greedy=options.get("greedy"), approximate=options.get("approximate"))
    settings = {k: v for k, v in options.items() if k not in ("greedy", "approximate")}
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenEngine(tower, config, **settings)


def test_towers_that_are_not_ready(tower: nn.Module):
    with pytest.raises(ValueError, match=r"evaluation mode: model.eval\(\)"):
        GoldenEngine(tower.train(), GoldenConfig())
    with pytest.raises(ValueError, match=r"need a float32 tower, this one has torch.bfloat16"):
        GoldenEngine(tower.eval().bfloat16(), GoldenConfig())


@pytest.mark.cuda
def test_rankings_on_a_gpu_agree():
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(1, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    config = GoldenConfig(window=4, stride=4)
    there = GoldenEngine(model.cuda(), config).importance(images)
    here = GoldenEngine(model.cpu(), config).importance(images)
    assert kendall_tau(here.numpy(), there.numpy())[0] > 0.98
