"""Does it work on this GPU? `pytest -m cuda` answers; each body runs on the CPU as well, so that it is seen to run."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import Build
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
from harness.apps.vectors.embed import embed, read_vectors
from harness.apps.vectors.settings import EmbedJob
from harness.apps.vectors.source import open_source
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.measure import timing
from harness.records.statistics import kendall_tau
from harness.records.times import read_latencies
from zoo.core.attention import attend, attend_by_channels
from zoo.core.recipes import GoldenConfig, RecoveryConfig
from zoo.core.settings import PRECISIONS, torch_dtype
from zoo.deploy.export import export_model
from zoo.deploy.runtime import COMPILE, CUDA_GRAPHS, EAGER, ONNXRUNTIME, OPTIMIZED, TOLERANCES, find_runtime
from zoo.deploy.setup import Setup
from zoo.learning.recovery import recover
from zoo.ranking.golden import GoldenEngine

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
both = pytest.mark.parametrize("device", ["cpu", CUDA])
ROUNDED = (EAGER, COMPILE, CUDA_GRAPHS)
COUNTS = (9, 64, 117, 192)  # of tokens; cuDNN's gradients were NaN where 64 are left of 128
MOST = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 0.06}  # apart from float64's, of values up to 5
GOLDEN = [("float32", 0.98), ("bfloat16", 0.95)]
no_context = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # torch's thread of gradients
on_device = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]  # torch tells why it has no kernel


class Attention(nn.Module):
    """Attention in proportion to random sizes, to which queries, keys and values come as one tensor."""

    def __init__(self, form: Any, count: int) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("bias", torch.randint(1, 200, (2, 1, 1, count)).log())

    def forward(self, parts: Tensor) -> Tensor:
        return self.form(*parts.unbind(0), self.bias)

    def slow(self, parts: Tensor) -> Tensor:
        query, key, value = parts.double()
        logits = query @ key.transpose(2, 3) / query.shape[3] ** 0.5 + self.bias.double()
        return logits.softmax(dim=-1) @ value


MATH, FLASH = SDPBackend.MATH, SDPBackend.FLASH_ATTENTION
KERNELS = [
    *(("cpu", EAGER, kernel) for kernel in (MATH, FLASH)),
    *(
        pytest.param("cuda", runtime, kernel, marks=on_device)
        for runtime in ROUNDED
        for kernel in (MATH, FLASH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    ),
]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("device", "runtime", "kernel"), KERNELS, ids=str)
def test_every_kernel_attends_in_proportion_to_size(device: str, runtime: str, kernel: SDPBackend, dtype: str):
    ran, most = 0, MOST[dtype] * (10 if device == "cuda" else 1)
    for form, count in product((attend, attend_by_channels), COUNTS):
        model = Attention(form, count).to(device)
        parts = torch.randn(3, 2, 3, count, 32).to(device, torch_dtype(dtype))
        wanted, found = model.slow(parts), [model(parts)]  # by torch's choice
        try:
            with sdpa_kernel(kernel):
                found.append(find_runtime(runtime).prepare(model, parts, dtype).call(parts))
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
        ran += len(found) - 1
        for one in found:
            assert one.dtype == parts.dtype
            assert (one.double() - wanted).abs().max() < most
    torch._dynamo.reset()
    if not ran:
        pytest.skip(f"{kernel.name} takes neither a mask nor channels in {dtype}")


@both
@no_context
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_gradients_of_attention_in_proportion_to_size(device: str, dtype: str):
    for form, count in product((attend, attend_by_channels), COUNTS):
        model = Attention(form, count).to(device)
        parts = torch.randn(3, 2, 3, count, 32).to(device, torch_dtype(dtype)).requires_grad_()
        [found], [wanted] = (torch.autograd.grad(call(parts).square().sum(), parts) for call in (model, model.slow))
        assert (found - wanted).norm() < 10 * MOST[dtype] * wanted.norm()


TOWERS = [
    *(("cpu", runtime) for runtime in (EAGER, OPTIMIZED)),
    *(pytest.param("cuda", runtime, marks=on_device) for runtime in (*ROUNDED, OPTIMIZED)),
]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("method", ["dense", "patchrank", "rankmerge", "tome"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("device", "runtime"), TOWERS)
def test_towers_in_every_runtime_and_precision(
    device: str, runtime: str, dtype: str, method: str, tiny: Build, images: Tensor
):
    vit = tiny("clip_vit_b16" if method == "dense" else f"clip_vit_b16_{method}50")
    every = torch.cat((images, images.flip(0), images.roll(9, dims=-1)))
    wanted = vit(every)
    every = every.to(device)
    weights = torch_dtype(timing.weights_precision(runtime, dtype))
    ready = timing.prepare(vit.to(device, weights), runtime, every, dtype)
    assert ready.failed is None
    every = every.to(weights)
    for turn in range(2):  # a graph has no images of its own
        with torch.inference_mode():  # as it was compiled
            found = ready.call(every.roll(turn, dims=0)).clone()
        assert timing.deviations(found.cpu(), wanted.roll(turn, dims=0)).median() < TOLERANCES[dtype].deviation
    torch._dynamo.reset()


@both
@pytest.mark.usefixtures("no_grad")
def test_the_device_keeps_what_the_cpu_keeps(device: str, half: zoo.ReducedViT, images: Tensor):
    here = half.double().trace(images.double())
    there = half.to(device).trace(images.double().to(device))
    assert torch.allclose(there.output.cpu(), here.output, atol=1e-6)
    for one, other in zip(here.reductions, there.reductions, strict=True):
        assert torch.equal(one.after, other.after.cpu())


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(("device", "precision", "least"), [
    ("cpu", "bfloat16", 0.95), *(pytest.param("cuda", *how, marks=pytest.mark.cuda) for how in GOLDEN),
])  # fmt: skip
def test_golden_rankings_agree_on_the_device_and_in_low_precision(device: str, precision: str, least: float):
    """On the embedded tower and images with a bright spot; how much so differs between CPUs."""
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(2, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        image[:, 20 * index : 60 + 20 * index, 80:150] += 2
    config = GoldenConfig(window=4, stride=4)
    exact = GoldenEngine(model, config).importance(images)
    other = GoldenEngine(model.to(device), config, precision=precision).importance(images)
    assert precision == "float32" or not torch.equal(exact, other)
    assert kendall_tau(exact.numpy(), other.numpy()).mean() > least


@both
@no_context
def test_recovery_learns_the_same(device: str, tiny: Build):
    vit, train, val = tiny("clip_vit_b16_evitfuse50"), torch.randn(12, 3, 64, 64), torch.randn(4, 3, 64, 64)
    how = RecoveryConfig(what="head+norm", rounds=3, steps=4, batch=4, precision="float32", learning_rate=3e-3)
    here, there = (recover(vit.to(place), [train], [val], how) for place in ("cpu", device))
    assert there.before == pytest.approx(here.before, rel=1e-3)
    assert there.after == pytest.approx(here.after, rel=1e-2)
    assert there.after < there.before


@pytest.mark.usefixtures("hub")
@both
@no_context
def test_prompts_are_tuned_on_the_device(device: str, tmp_path: Path):
    words = f"fit prompts --dataset fashion --shots 1 --tune rounds=1,steps=2 --device {device} --output"
    assert main([*words.split(), str(tmp_path / "prompts.safetensors")]) == 0


@both
def test_embed_gives_the_cpus_vectors_and_goes_on_with_the_same_bytes(device: str, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for number in range(11):
        noise = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 70)).save(tmp_path / "pictures" / f"{number}.png")
    source, vectors = open_source([str(tmp_path / "pictures")]), {}
    for place in ("cpu", device):
        how: dict[str, Any] = {"setup": Setup.of("clip_vit_s14_rankmerge60"), "source": source, "device": place}
        job = EmbedJob(**how, out=tmp_path / f"at {place}", batch=4, shard_size=6, decoders=0)
        embed(job, Progress())
        vectors[place] = np.concatenate([shard.embeddings for shard in read_vectors(job.out)]).astype(np.float32)
    assert (vectors[device] * vectors["cpu"]).sum(axis=1).min() > 0.999
    last = job.out / "part-00001.parquet"
    whole = last.read_bytes()
    last.unlink()
    assert embed(job, Progress()).binds in ("decoding", "copying", "model")
    assert last.read_bytes() == whole


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(("provider", "method"), [
    ("CPUExecutionProvider", "rankmerge"),
    *(pytest.param(f"{name}ExecutionProvider", method, marks=pytest.mark.cuda)
      for name, method in product(("CUDA", "Tensorrt"), ("patchrank", "rankmerge", "tome"))),
])  # fmt: skip
def test_exported_models_in_onnx_runtime(
    provider: str, method: str, tiny: Build, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # TensorRT has no option for it
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime has no {provider}")
    vit, path = tiny(f"clip_vit_b16_{method}50", depth=3, reduce_at=1), tmp_path / "model.onnx"
    export_model(vit, path, images, runtime=ONNXRUNTIME)
    options = {"use_tf32": 0} if provider.startswith("CUDA") else {}
    session = onnxruntime.InferenceSession(path, providers=[(provider, options)])
    if provider not in session.get_providers():  # it names TensorRT where that isn't installed
        pytest.skip(f"onnxruntime can't load {provider}")
    found = [torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in images.split(2)]
    assert timing.deviations(torch.cat(found), vit(images)).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("device", "runs"), [
    ("cpu", ["--runtimes eager --batches 1 --rounds 6 --seconds 0"]),
    pytest.param("cuda", [
        "--runtimes eager compile cuda-graphs --batches 1 32 --precisions float16",
        "--scenario server --rate 500 --rounds 6 --batches 32 --precisions float16 --runtimes eager cuda-graphs",
    ], marks=on_device),
], ids=str)  # fmt: skip
def test_latency_times_the_embedded_model_in_every_runtime_of_the_device(device: str, runs: list[str], tmp_path: Path):
    words = f"latency --model clip_vit_s14_patchrank60 clip_vit_s14_tome60 --device {device} --output {tmp_path}"
    for how in runs:
        assert main([*words.split(), *how.split()]) == 0
    for record in read_latencies(tmp_path / "latency.jsonl"):
        assert record.failed is None
        assert ("cudnn_benchmark" in record.machine) == (device == "cuda")
        if record.load is None:
            assert record.stopwatch == "wall clock after 2 calls"
            assert record.peak_mib is not None
            assert record.attention


@both
def test_a_stopwatch_times_what_the_device_does_and_not_its_launch(device: str):
    side = 2048 if device == "cuda" else 256
    matrix = torch.randn(side, side, device=device)
    watch = timing.wall_clock(timing.synchronizer(matrix.device))

    def many(images: Tensor) -> Tensor:
        for _ in range(50):
            images = images @ matrix
        return images

    for call in (many, lambda images: images @ matrix):
        watch.time_ms(call, matrix)
    one = min(watch.time_ms(lambda images: images @ matrix, matrix) for _ in range(5))
    assert 0 < 10 * one < watch.time_ms(many, matrix)


MATRIX = torch.zeros(1, 256, 1024)  # 1 MiB


def three_of_which_two(images: Tensor) -> Tensor:
    """Allocate 2, 4 and 1 MiB, and let go of the first before the last."""
    first = images.repeat(2, 1, 1)
    second = images.repeat(4, 1, 1)
    del first
    third = images + 1
    return second[:1] + third


@both
def test_the_peak_is_what_is_held_at_a_time_not_the_sum(device: str, capfd: pytest.CaptureFixture[str]):
    # First and second, or second, third and the result.
    assert timing.peak_mib(three_of_which_two, MATRIX.to(device)) == pytest.approx(6, abs=0.1)
    assert timing.peak_mib(lambda images: images, MATRIX.to(device)) == pytest.approx(0, abs=0.01)
    assert timing.peak_mib(lambda images: images, MATRIX.to("meta")) is None
    assert capfd.readouterr() == ("", "")  # the profiler is silent
