"""Ways to run a model: what a device can't do, and that each computes what eager does."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from harness.latency.ways import (
    CHANNELS_LAST,
    COMPILE,
    CUDA_GRAPHS,
    EAGER,
    REDUCE_OVERHEAD,
    WAYS,
    check_ways,
    deviations,
    memory_format,
    prepared,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
METHODS = (None, "random", "clsattn", "evit", "tome")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64)


def reduced(dense: zoo.ReducedViT, method: str | None) -> zoo.ReducedViT:
    options = {} if method is None else {"keep": 0.5}
    return zoo.reduce(dense, method=method, **options).eval()


def test_an_unknown_way_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"--ways 'compiled': did you mean 'compile'"):
        check_ways(["compiled"], CPU)


@pytest.mark.parametrize("way", [CUDA_GRAPHS, REDUCE_OVERHEAD])
def test_cuda_graphs_are_refused_on_a_cpu(way: str):
    with pytest.raises(ValueError, match=rf"--ways {way} on --device 'cpu': .*--device cuda"):
        check_ways([EAGER, way], CPU)


def test_without_a_compiler_there_is_no_compiling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"'no-such-compiler' isn't there: install it .*CXX"):
        check_ways([COMPILE], CPU)
    check_ways([EAGER, CHANNELS_LAST], CPU)


def test_without_triton_there_is_no_compiling_on_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.latency.ways.find_spec", lambda name: None)
    for way in (COMPILE, REDUCE_OVERHEAD):
        with pytest.raises(ValueError, match="needs triton: pip install triton"):
            check_ways([way], CUDA)
    check_ways([EAGER, CHANNELS_LAST, CUDA_GRAPHS], CUDA)


def test_a_compiler_that_is_there_will_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.latency.ways.shutil.which", lambda name: f"found {name}")
    check_ways([COMPILE], CPU)
    monkeypatch.setattr("harness.latency.ways.find_spec", lambda name: name)
    check_ways(list(WAYS), CUDA)


def test_eager_is_the_model_itself(dense: zoo.ReducedViT, images: torch.Tensor):
    assert prepared(dense, EAGER, images) is dense


def test_the_memory_format_is_given_back_and_weights_stay_shared(dense: zoo.ReducedViT):
    short = reduced(dense, "random")
    weight = dense.patch_embed.proj.weight
    before = weight.clone()
    with memory_format([dense, short], CHANNELS_LAST) as form:
        assert form is torch.channels_last
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert weight.is_contiguous()
    assert torch.equal(weight, before)
    assert short.patch_embed.proj.weight is weight


def test_the_memory_format_is_given_back_after_a_failure(dense: zoo.ReducedViT):
    with pytest.raises(RuntimeError, match="no"), memory_format([dense], CHANNELS_LAST):
        raise RuntimeError("no")
    assert dense.patch_embed.proj.weight.is_contiguous()


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_computes_what_eager_does(
    dense: zoo.ReducedViT, images: torch.Tensor, method: str | None
):
    vit = reduced(dense, method)
    with torch.inference_mode():
        eager = vit(images)
        with memory_format([vit], CHANNELS_LAST) as form:
            found = prepared(vit, CHANNELS_LAST, images)(images.contiguous(memory_format=form))
    assert deviations(found, eager).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_models_compute_what_eager_does(
    dense: zoo.ReducedViT, images: torch.Tensor, dtype: torch.dtype
):
    dense, images = dense.to(dtype), images.to(dtype)
    for method in (None, "clsattn", "tome"):
        vit = reduced(dense, method)
        with torch.inference_mode():
            found = prepared(vit, COMPILE, images)(images)
            apart = deviations(found, vit(images))
        assert apart.median() < (1e-4 if dtype == torch.float32 else 0.1), method
    torch._dynamo.reset()


def test_more_models_than_dynamo_keeps_of_one_are_compiled_once_each(
    monkeypatch: pytest.MonkeyPatch,
):
    compiled: list[int] = []

    def count(module: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        compiled.append(len(inputs))
        return module.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **told: real(call, backend=count, **told))
    models = [nn.Sequential(nn.Linear(4, 4 + index)) for index in range(12)]
    images = torch.randn(2, 4)
    with torch.inference_mode():
        calls = [prepared(model, COMPILE, images) for model in models]
        for _ in range(3):
            found = [call(images) for call in calls]
    assert len(compiled) == len(models)
    assert [features.shape[1] for features in found] == [4 + index for index in range(12)]
    torch._dynamo.reset()


def test_deviations_are_lengths_by_eagers_length():
    eager = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    found = torch.tensor([[3.0, 4.5], [0.0, 2.0], [-1.0, 0.0]])
    assert deviations(found, eager).tolist() == pytest.approx([0.1, 0.0, 2.0])


class FakeCuda:
    """Stand in for ``torch.cuda``: remember devices and streams in the order they are entered."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, Any]] = []
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.entered.append(("replay", 0)))

    def Stream(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self) -> SimpleNamespace:
        return self.Stream()

    def device(self, device: torch.device) -> Any:
        return self._inside("device", device)

    def stream(self, stream: Any) -> Any:
        return self._inside("warming up", stream)

    def graph(self, graph: Any, stream: Any) -> Any:
        return self._inside("capturing", stream)

    @contextmanager
    def _inside(self, what: str, told: Any) -> Iterator[None]:
        self.entered.append((what, told))
        yield
        self.entered.append((f"not {what}", told))


def test_a_graph_is_captured_on_its_device_and_on_the_stream_that_warmed_up(
    monkeypatch: pytest.MonkeyPatch,
):
    """Streams are made on the current device, which is the first one, whatever images are on."""
    fake, model = FakeCuda(), nn.Linear(4, 2)
    monkeypatch.setattr(torch, "cuda", fake)
    images = torch.randn(3, 4)
    call = prepared(model, CUDA_GRAPHS, images)
    whats = [what for what, _ in fake.entered]
    assert whats == [
        "device", "warming up", "not warming up", "capturing", "not capturing", "not device",
    ]  # fmt: skip
    (_, device), (_, warm), _, (_, capturing), *_ = fake.entered
    assert device == images.device
    assert capturing is warm
    features = call(torch.zeros(3, 4))
    assert fake.entered[-1] == ("replay", 0)
    assert torch.equal(features, model(images))  # as nothing was replayed for real


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", [CUDA_GRAPHS, REDUCE_OVERHEAD, COMPILE])
def test_graphs_compute_what_eager_does_on_new_images(
    dense: zoo.ReducedViT, images: torch.Tensor, method: str | None, way: str
):
    vit, images = reduced(dense.cuda(), method), images.cuda()
    with torch.inference_mode():
        call = prepared(vit, way, images)
        for other in (images, images.flip(0), torch.randn_like(images)):
            assert deviations(call(other).clone(), vit(other)).median() < 1e-3
    torch._dynamo.reset()
