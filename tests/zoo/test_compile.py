"""torch.compile, torch.export, torch.fx and TorchScript of every method."""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.towers.vit import straight_line

Build = Callable[..., nn.Module]
pytestmark = pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
# What evit and tome run is in evitfuse and tofu.
METHODS = sorted(set(zoo.METHODS) - {"evit", "tome"})
CASES = [
    *((name, {"reduce_at": 1} if name != "clsattn" else {"source": "previous"}) for name in METHODS),
    ("patchrank", {"arch": "transformer", "reduce_at": [1, 2]}),
    ("patchrank", {"arch": "mixer", "reduce_at": 1}),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=CASES, ids=str)
def model(request: pytest.FixtureRequest, tiny: Build) -> nn.Module:
    name, options = request.param
    return tiny(f"clip_vit_b16_{name}50", depth=3 if name != "clsattn" else 4, **options)


@torch.no_grad()
def check_compiled(model: nn.Module, images: Tensor, backend: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(compiled(images), model(images), atol=1e-4)


@torch.no_grad()
def check_same(recorded: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 64, 64)
        assert torch.allclose(recorded(images), model(images), atol=1e-5)


def test_compiles_in_one_graph(model: nn.Module, images: Tensor):
    check_compiled(model, images, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiles_to_machine_code(tiny: Build, images: Tensor):
    check_compiled(tiny("clip_vit_b16_tome50", depth=3, keep=0.6), images, "inductor")


@pytest.mark.parametrize("method", ["patchrank", "rankmerge"])
@pytest.mark.parametrize("compiled", [True, False])
def test_trains_compiled_or_recorded(compiled: bool, method: str, tiny: Build, images: Tensor):
    half = tiny(f"clip_vit_b16_{method}50", depth=2, reduce_at=1, **({"arch": "mlp"} if method == "patchrank" else {}))
    half.train()
    half(images).square().sum().backward()
    wanted = half.blocks[0].attn.qkv.weight.grad.clone()
    half.zero_grad()
    options = {"fullgraph": True, "backend": "aot_eager"}
    other = torch.compile(half, **options) if compiled else straight_line(half)
    other(images).square().sum().backward()
    assert torch.allclose(half.blocks[0].attn.qkv.weight.grad, wanted, atol=1e-4)


def test_exports_with_a_free_batch_size(model: nn.Module, images: Tensor):
    batch = torch.export.Dim("batch", min=1, max=64)
    check_same(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module(), model)


def test_recorded_by_fx(half: zoo.ReducedViT):
    recorded = straight_line(half)
    check_same(recorded, half)
    assert dict(recorded.named_parameters()).keys() == dict(half.named_parameters()).keys()
    assert recorded.head.weight is half.head.weight
    # Nothing is recorded whose result nobody reads, such as the history.
    assert all(n.users or n.op in ("placeholder", "output") for n in recorded.graph.nodes)


def test_scripted(model: nn.Module):
    check_same(torch.jit.script(model), model)
