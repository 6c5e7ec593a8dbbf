"""Ways to run a model: each computes what eager does, and what can't be run says why."""

from collections.abc import Callable
from unittest.mock import Mock

import pytest
import timm
import torch
from torch import Tensor, nn

import zoo
from harness.measure import timing
from harness.records.times import EAGER
from zoo.core.files import is_out_of_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
Change = Callable[[Tensor], Tensor]
Prepare = Callable[..., timing.ReadyModel]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64)


def reduced(dense: zoo.ReducedViT, method: str | None) -> zoo.ReducedViT:
    options = {} if method is None else {"keep": 0.5}
    return zoo.reduce(dense, method=method, **options).eval()


@pytest.mark.parametrize(("flag", "way", "device", "message"), [
    ("--ways", "compiled", CPU, r"--ways 'compiled': did you mean 'compile'"),
    ("--ways", timing.CUDA_GRAPHS, CPU, r"--ways cuda-graphs on --device 'cpu': .*--device cuda"),
    ("--ways", timing.COMPILE, CPU, r"'no-such-compiler' isn't there: install it .*CXX"),
    ("--ways", timing.COMPILE, CUDA, "needs triton: pip install triton"),
    ("--runtimes", timing.ONNX, CUDA, "--runtimes onnx on --device 'cuda:0': exported files"),
    ("--runtimes", timing.OPENVINO, CPU, r"needs openvino, onnx, onnxscript: pip install '.*export\]'"),
])  # fmt: skip
def test_what_a_device_cannot_do_is_refused(flag, way, device, message, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for module in ("zoo.deploy.export", "harness.measure.timing"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        timing.check_ways(flag, [EAGER, way], ["float32"], device)
    monkeypatch.undo()
    timing.check_ways(flag, [EAGER, timing.OPTIMIZED, timing.COMPILE], ["float32"], CPU)


def test_an_optimised_model_in_low_precision_is_eager_nearly(dense, images):
    """In float32 a run of `latency` says so."""
    vit, images = reduced(dense, "tome").bfloat16(), images.bfloat16()
    ready = timing.prepare(vit, timing.OPTIMIZED, images)
    assert (ready.failed, ready.deviation < 0.5) == (None, True)
    assert next(vit.parameters()).dtype == torch.bfloat16


def test_compiled_models_are_eager_and_what_cannot_be_optimized_says_so():
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    tower, images = timm.create_model("vit_small_patch16_224", **small), torch.randn(4, 3, 32, 32)
    vit = reduced(zoo.reduce(tower, method=None), "tome")
    with torch.inference_mode():
        features = timing.as_run(vit, timing.COMPILE, images)(images)
        assert timing.deviations(features, vit(images)).median() < 1e-4
    torch._dynamo.reset()
    tower = timm.create_model("vit_small_patch16_dinov3", **small)
    ready = timing.prepare(zoo.reduce(tower.eval(), method=None), timing.OPTIMIZED, images)
    assert ready.call is None
    assert "nothing to optimise in ReducedEva" in str(ready.failed)


def test_more_models_than_dynamo_keeps_are_compiled_once_each(monkeypatch):
    compiled: list[int] = []

    def count(module: torch.fx.GraphModule, inputs: list[Tensor]):
        compiled.append(len(inputs))
        return module.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: real(call, backend=count, **how))
    models = [nn.Sequential(nn.Linear(4, 4 + index)) for index in range(12)]
    images = torch.randn(2, 4)
    with torch.inference_mode():
        calls = [timing.as_run(model, timing.COMPILE, images) for model in models]
        for _ in range(3):
            widths = [call(images).shape[1] for call in calls]
    assert (len(compiled), widths) == (len(models), [4 + index for index in range(12)])
    torch._dynamo.reset()


def test_deviations_are_lengths_by_eagers_length():
    eager = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    features = torch.tensor([[3.0, 4.5], [0.0, 2.0], [-1.0, 0.0]])
    assert timing.deviations(features, eager).tolist() == pytest.approx([0.1, 0.0, 2.0])


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("method", [None, "tome"])
@pytest.mark.parametrize("way", [timing.CUDA_GRAPHS, timing.REDUCE_OVERHEAD, timing.COMPILE])
def test_graphs_are_eager_on_new_images(dense, images, method, way):
    vit, images = reduced(dense.cuda(), method), images.cuda()
    with torch.inference_mode():
        call = timing.as_run(vit, way, images)
        for other in (images, images.flip(0), torch.randn_like(images)):
            assert timing.deviations(call(other).clone(), vit(other)).median() < 1e-3
    torch._dynamo.reset()


@pytest.fixture
def prepare_changed(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepare a model whose features are changed."""

    def run(change: Change = lambda features: features, way: str = EAGER) -> timing.ReadyModel:
        vit = reduced(dense, "random")
        monkeypatch.setattr(timing, "as_run", lambda model, *_: lambda batch: change(model(batch)))
        return timing.prepare(vit, way, torch.randn(2, 3, 64, 64))

    return run


def test_a_prepared_model_has_a_call_its_deviation_and_its_memory(prepare_changed):
    ready = prepare_changed()
    assert (ready.failed, ready.deviation) == (None, 0)
    assert ready.call is not None
    assert ready.peak_mib > 0.1  # two images of 64 tokens and 48 channels in float32
    assert ready.first_call_s > 0


def broken_capture(first: Exception) -> Change:
    """Ending a capture that broke is an error, too, which hides the first."""

    def change(features: Tensor) -> Tensor:
        try:
            raise first
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    return change


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(("change", "reason"), [
    (Mock(side_effect=NO_MEMORY), "out of memory"),
    (Mock(side_effect=torch._dynamo.exc.Unsupported("\n  a graph break\nand more")), "a graph break"),
    (broken_capture(RuntimeError("not permitted when stream is capturing")), "not permitted"),
    (broken_capture(NO_MEMORY), "out of memory"),
    (lambda features: 1.01 * features, f"allowed {timing.ALLOWED['float32']:g}"),
    (lambda features: 0 * features, "features differ from eager's by 1 "),
    (lambda features: float("nan") * features, "features aren't finite"),
])  # fmt: skip
def test_a_model_that_cannot_be_timed(prepare_changed, change, reason):
    ready = prepare_changed(change)
    assert ready.call is None
    assert reason in ready.failed
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # an error of our own
        prepare_changed(Mock(side_effect=RuntimeError("shapes cannot be multiplied")))


def test_a_graph_that_keeps_its_first_images_is_found_out(prepare_changed):
    kept: list[Tensor] = []
    assert "features differ" in prepare_changed(lambda features: kept.append(features) or kept[0]).failed


def test_a_token_that_ties_in_one_image_is_no_reason_to_refuse(prepare_changed):
    calls: list[int] = []
    change = Mock(side_effect=lambda f: calls.append(len(f)) or (f * 1.02 if len(calls) == 3 else f))
    ready = prepare_changed(change)
    assert (ready.failed, ready.deviation) == (None, pytest.approx(0.02, rel=1e-3))
    # The first call, that whose memory is measured, and the checks.
    assert sum(calls[2:]) == timing.CHECKED


MATRIX = torch.zeros(1, 256, 1024)  # 1 MiB


def three_of_which_two(images: Tensor) -> Tensor:
    """Allocate 2, 4 and 1 MiB, and let go of the first before the last."""
    first = images.repeat(2, 1, 1)
    second = images.repeat(4, 1, 1)
    del first
    third = images + 1
    return second[:1] + third


def test_the_peak_is_what_is_held_at_a_time_not_the_sum(capfd):
    # First and second, or second, third and the result.
    assert timing.peak_mib(three_of_which_two, MATRIX) == pytest.approx(6, abs=0.1)
    assert timing.peak_mib(lambda images: images, MATRIX) == pytest.approx(0, abs=0.01)
    assert timing.peak_mib(lambda images: images, MATRIX.to("meta")) is None
    assert capfd.readouterr() == ("", "")  # the profiler is silent


@pytest.mark.cuda
def test_the_peak_on_cuda():
    assert timing.peak_mib(three_of_which_two, MATRIX.cuda()) == pytest.approx(6, abs=0.1)


def test_weights_are_parameters_and_buffers_in_their_precision():
    norm = nn.BatchNorm1d(512)  # 2 parameters and 2 buffers of 512, and a count
    assert timing.weights_mib(norm, torch.float32) == (4 * 512 * 4 + 8) / timing.MIB
    assert timing.weights_mib(norm, torch.float16) == (4 * 512 * 2 + 8) / timing.MIB


@pytest.mark.parametrize(("error", "is_memory"), [
    (MemoryError(), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
])  # fmt: skip
def test_what_says_that_memory_did_not_suffice(error, is_memory):
    assert is_out_of_memory(error) is is_memory
