"""The rest of a tower on shortened sequences: precision, pooling, batches, compiled or not."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from harness.agreement import kendall_tau
from zoo import suffix as module
from zoo.golden import GoldenConfig, GoldenEngine, best_precision
from zoo.suffix import Suffix, fitting_batch

STYLES: list[dict[str, Any]] = [
    {},
    {"init_values": 0.3},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"reg_tokens": 4},
]


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    return tiny("clip_vit_b16", noise=0.3)


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
    tokens, _ = model.advance(start._replace(x=x), 2)
    return F.normalize(model.finish(tokens)[0], dim=0)


@pytest.mark.parametrize("style", [*STYLES, {"global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("size", [0, 1, 60])
@torch.no_grad()
def test_equals_one_sequence_at_a_time(
    style: dict[str, Any], size: int, tiny: Callable[..., nn.Module]
):
    """Where the tower pools patch tokens, its last block is run for all of them."""
    if style.get("global_pool") == "avg" and size == 0:
        pytest.skip("the mean of no patches is nothing")
    model = tiny("clip_vit_b16", **style)
    start, _ = model.advance(model.embed(torch.randn(3, 3, 64, 64)), stop=2)
    rows, keep = random_sets(7, size)
    found = Suffix(model, 2, batch=3).features(start, rows, keep)
    for i in range(7):
        assert torch.allclose(found[i], alone(model, start, int(rows[i]), keep[i]), atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_rankings_in_low_precision_agree(precision: str):
    """On the embedded tower and images with a bright spot; how much so differs between CPUs."""
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(4, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        image[:, 20 * index : 60 + 20 * index, 80:150] += 2
    config = GoldenConfig(window=4, stride=4)
    exact, low = (
        GoldenEngine(model, config, precision=p).importance(images) for p in ("float32", precision)
    )
    assert not torch.equal(exact, low)
    assert kendall_tau(exact.numpy(), low.numpy()).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_equals_eager(precision: str, tower: nn.Module):
    """9 windows of 2 images in batches of 7: the last batch is filled up, so nothing recompiles."""
    torch.compiler.reset()
    images = torch.randn(2, 3, 64, 64)
    config = GoldenConfig(window=3, stride=3, block=4)
    engines = [
        GoldenEngine(tower, config, precision=precision, batch=7, compiled=compiled)
        for compiled in (False, True)
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        eager, fast = (engine.importance(images) for engine in engines)
    assert torch.allclose(eager, fast, atol=1e-5 if precision == "float32" else 1e-2)


def test_batch_from_memory(monkeypatch: pytest.MonkeyPatch):
    free = 4 * 2**30

    def answer(name: str) -> int:
        return 4096 if name == "SC_PAGE_SIZE" else free // 4096

    monkeypatch.setattr(module.os, "sysconf", answer)
    cpu = torch.device("cpu")
    most = module.LARGEST_BATCH["cpu"]
    assert fitting_batch(384, 197, cpu) == most
    free = 200 * 2**20
    assert fitting_batch(1024, 577, cpu) == 1  # 33 MB each, 50 MB to use
    assert 1 < fitting_batch(384, 197, cpu) < most


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "half"}, "precision='half': expected one of float32, bfloat16, float16"),
        ({"batch": 0}, "batch=0: expected an integer from 1"),
    ],
)
def test_refused_engines(options: dict[str, Any], match: str, tower: nn.Module):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenEngine(tower, GoldenConfig(), **options)


def test_a_search_can_not_be_compiled(tower: nn.Module):
    with pytest.raises(ValueError, match="needs one sequence length; a greedy search has many"):
        GoldenEngine(tower, GoldenConfig(greedy=4), compiled=True)


def test_towers_that_are_not_ready(tower: nn.Module):
    with pytest.raises(ValueError, match=r"evaluation mode: model.eval\(\)"):
        GoldenEngine(tower.train(), GoldenConfig())
    with pytest.raises(ValueError, match=r"need a float32 tower, this one has torch.bfloat16"):
        GoldenEngine(tower.eval().bfloat16(), GoldenConfig())


def test_the_best_precision_is_one_that_works():
    assert best_precision("cpu") in module.PRECISIONS


@pytest.mark.cuda
def test_rankings_on_a_gpu_agree():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(1, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    config = GoldenConfig(window=4, stride=4)
    there = GoldenEngine(model.cuda(), config).importance(images)
    here = GoldenEngine(model.cpu(), config).importance(images)
    assert kendall_tau(here.numpy(), there.numpy())[0] > 0.98
