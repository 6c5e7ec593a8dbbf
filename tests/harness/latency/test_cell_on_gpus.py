"""One condition, what goes wrong on a GPU: graphs that break or are left out, heat, no numbers."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import zoo
from harness.latency import cell
from harness.latency.cell import Found, measure_cell
from harness.latency.machine import Surroundings
from harness.latency.nvml import Gpu
from harness.latency.stopwatch import WallClock
from harness.latency.ways import COMPILE, EAGER, REDUCE_OVERHEAD

IMAGES = torch.randn(2, 3, 64, 64)


@pytest.fixture
def models(dense: zoo.ReducedViT) -> dict[str, zoo.ReducedViT]:
    return {"dense": dense, "short": zoo.reduce(dense, method="random", keep=0.5).eval()}


def measure(
    models: Any, way: str = EAGER, gpu: Gpu | None = None
) -> tuple[dict[str, Found], Surroundings]:
    return measure_cell(models, IMAGES, way, rounds=6, seconds=0.0, watch=WallClock(), gpu=gpu)


def replace(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, change: Callable[[Tensor], Tensor]
) -> None:
    """Let preparing the model ``wrong`` give one whose features are changed, others themselves."""

    def prepared(model: Any, way: str, images: Tensor) -> Any:
        return (lambda batch: change(model(batch))) if model is wrong else model

    monkeypatch.setattr(cell, "prepared", prepared)


def test_features_that_are_not_finite_are_told_and_leave_no_number_that_json_lacks(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    for value in (float("nan"), float("inf")):
        replace(monkeypatch, models["short"], lambda features, by=value: by * features)
        found, _ = measure(models)
        assert found["short"].timing is None
        assert "features aren't finite" in found["short"].failed
        assert found["short"].deviation is None


def test_a_capture_that_broke_is_told_by_what_broke_it(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    """Ending a capture that broke is an error, too, which hides the first."""
    late = "operation failed due to a previous error during capture"
    for first, told in (
        (RuntimeError("operation not permitted when stream is capturing"), "not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    ):

        def captured(features: Tensor, first: Exception = first) -> Tensor:
            try:
                raise first
            finally:
                raise RuntimeError(late)

        replace(monkeypatch, models["short"], captured)
        assert told in measure(models)[0]["short"].failed


def test_graphs_that_the_compiler_leaves_out_are_told_instead_of_timed(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    def skip(features: Tensor) -> Tensor:
        counters["inductor"]["cudagraph_skips"] += 1
        return features

    replace(monkeypatch, models["short"], skip)
    found, _ = measure(models, REDUCE_OVERHEAD)
    assert found["dense"].timing is not None
    assert found["short"] == Found(
        failed="the compiler left out CUDA graphs, so this would be compile"
    )
    assert measure(models, COMPILE)[0]["short"].failed is None


def test_the_compilers_advice_on_precision_is_not_repeated(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    def advise(features: Tensor) -> Tensor:
        warnings.warn("TensorFloat32 tensor cores for float32 ... not enabled.", stacklevel=1)
        return features

    calls: list[int] = []

    def once(features: Tensor) -> Tensor:
        calls.append(1)
        return advise(features) if len(calls) == 1 else features

    replace(monkeypatch, models["short"], once)
    assert measure(models)[0]["short"].failed is None


def test_what_slowed_a_gpu_down_between_rounds_is_told(models: dict[str, zoo.ReducedViT]):
    class Hot(Gpu):
        clock_mhz, energy_mj = 1000.0, None

        def __init__(self) -> None:
            self.asked = 0

        @property
        def slowed_by(self) -> tuple[str, ...]:
            self.asked += 1
            return ("power cap",) if self.asked == 2 else ()

    _, around = measure(models, gpu=Hot())
    assert around.slowed_by == ("power cap",)
