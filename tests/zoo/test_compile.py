"""torch.compile without a graph break, torch.export with a free batch size, for every method."""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import zoo

OPTIONS = [
    ("evit", {"fuse": True, "reduce_at": [1, 3]}),
    ("tome", {"proportional": False}),
    ("clsattn", {"source": "previous"}),
    ("patchrank", {"arch": "mlp", "reduce_at": [1, 3]}),
    ("patchrank", {"arch": "mlp", "reduce_at": [1, 3], "rescore": True}),
    ("patchrank", {"arch": "mixer"}),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(model: nn.Module, images: Tensor, backend: str) -> None:
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        assert torch.allclose(compiled(images), model(images), atol=1e-4)


def check_exported(model: nn.Module, images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for count in (1, 2, 7):
            others = torch.randn(count, *images.shape[1:])
            assert torch.allclose(program(others), model(others), atol=1e-5)


def test_compiles_in_one_graph(half: zoo.ReducedViT, images: Tensor):
    check_compiled(half, images, "aot_eager")


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_compiles_with_options(
    name: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
    check_compiled(tiny(f"clip_vit_b16_{name}50", **options), images, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiles_to_machine_code(tiny: Callable[..., nn.Module], images: Tensor):
    check_compiled(tiny("clip_vit_b16_tome50", depth=3, keep=0.6), images, "inductor")


def test_compiled_training_step(half: zoo.ReducedViT, images: Tensor):
    half.train()
    half(images).square().sum().backward()
    wanted = half.blocks[0].attn.qkv.weight.grad.clone()
    half.zero_grad()
    torch.compile(half, fullgraph=True, backend="aot_eager")(images).square().sum().backward()
    assert torch.allclose(half.blocks[0].attn.qkv.weight.grad, wanted, atol=1e-4)


def test_exports_with_a_free_batch_size(half: zoo.ReducedViT, images: Tensor):
    check_exported(half, images)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_exports_with_options(
    name: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
    check_exported(tiny(f"clip_vit_b16_{name}50", **options), images)
