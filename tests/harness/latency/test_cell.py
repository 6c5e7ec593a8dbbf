"""One condition: models that fail say why, wrong ones are not timed, the rest are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from harness.latency import cell
from harness.latency.cell import ALLOWED, CHECKED, Found, measure_cell
from harness.latency.machine import Surroundings
from harness.latency.nvml import Gpu
from harness.latency.ways import COMPILE, EAGER

IMAGES = torch.randn(2, 3, 64, 64)


class Metronome:
    """Take 10 ms for the first model, 5 for the second and so on, whatever they do."""

    name = "metronome"

    def __init__(self) -> None:
        self.order: list[Any] = []

    def time_ms(self, call: Any, images: Tensor) -> float:
        if call not in self.order:
            self.order.append(call)
        return 10 / (1 + self.order.index(call))


@pytest.fixture
def models(dense: zoo.ReducedViT) -> dict[str, zoo.ReducedViT]:
    return {"dense": dense, "short": zoo.reduce(dense, method="random", keep=0.5).eval()}


def measure(models: Any, way: str = EAGER, **told: Any) -> tuple[dict[str, Found], Surroundings]:
    how: dict[str, Any] = {"rounds": 6, "seconds": 0.0, "watch": Metronome(), "gpu": None}
    return measure_cell(models, IMAGES, way, **(how | told))


def replace_ways(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, change: Callable[[Tensor], Tensor]
) -> None:
    """Let preparing the model ``wrong`` give one whose features are changed."""

    def prepared(model: Any, way: str, images: Tensor) -> Any:
        return (lambda batch: change(model(batch))) if model is wrong else model

    monkeypatch.setattr(cell, "prepared", prepared)


def fail(error: Exception) -> Callable[[Tensor], Tensor]:
    def change(features: Tensor) -> Tensor:
        raise error

    return change


def test_all_are_timed_and_compared_with_eager(models: dict[str, zoo.ReducedViT]):
    ticks: list[int] = []
    found, around = measure(models, tick=ticks.append)
    assert list(found) == ["dense", "short"]
    for one, time in zip(found.values(), (10, 5), strict=True):
        assert one.failed is None
        assert one.timing is not None
        assert one.timing.samples_ms == (time,) * 6
        assert (one.deviation, one.energy_mj_per_image, one.call) == (0, None, None)
        assert one.peak_mib > 0.1  # two images of 64 tokens and 48 channels in float32
        assert one.first_call_s > 0
    assert around != Surroundings()
    assert ticks == [1, 2, 3, 4, 5, 6]


def test_a_model_without_memory_says_so_and_the_rest_go_on(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    replace_ways(monkeypatch, models["dense"], fail(error))
    found, _ = measure(models)
    assert found["dense"] == Found(failed="out of memory")
    assert found["short"].failed is None
    assert found["short"].timing is not None


def test_memory_that_ends_in_a_round_ends_the_cell(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    class Full(Metronome):
        def time_ms(self, call: Any, images: Tensor) -> float:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    found, _ = measure(models, watch=Full())
    for one in found.values():
        assert one.failed == "out of memory, with all of them prepared"
        assert one.timing is None


def test_if_all_fail_nothing_is_timed(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    only = {"dense": models["dense"]}
    replace_ways(monkeypatch, models["dense"], fail(MemoryError()))
    assert measure(only) == ({"dense": Found(failed="out of memory")}, Surroundings())


def test_what_a_compiler_refuses_is_told(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    error = torch._dynamo.exc.Unsupported("\n  a graph break\nand more")
    replace_ways(monkeypatch, models["short"], fail(error))
    found, _ = measure(models, COMPILE)
    assert found["short"] == Found(failed="Unsupported: a graph break")


def test_an_error_of_our_own_is_not_swallowed(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    replace_ways(monkeypatch, models["short"], fail(RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measure(models)


@pytest.mark.parametrize("factor", [1.01, 0.0])
def test_a_wrong_model_is_not_timed(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch, factor: float
):
    replace_ways(monkeypatch, models["short"], lambda features: factor * features)
    found, _ = measure(models)
    assert found["dense"].timing is not None
    assert found["short"].timing is None
    assert "features differ from eager's by" in found["short"].failed
    assert f"allowed {ALLOWED[torch.float32]:g}" in found["short"].failed


def test_a_graph_that_keeps_its_first_images_is_found_out(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    kept: list[Tensor] = []

    def first(features: Tensor) -> Tensor:
        kept.append(features)
        return kept[0]

    replace_ways(monkeypatch, models["short"], first)
    assert "features differ" in measure(models)[0]["short"].failed


def test_a_token_that_ties_in_one_image_is_told_and_no_reason_to_refuse(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []

    def once(features: Tensor) -> Tensor:
        calls.append(len(features))
        return features * 1.02 if len(calls) == 3 else features

    replace_ways(monkeypatch, models["short"], once)
    found, _ = measure(models)
    assert found["short"].failed is None
    assert found["short"].deviation == pytest.approx(0.02, rel=1e-3)
    # The first call, that whose memory is measured, the checks, and warming up.
    assert sum(calls[2 : 2 + CHECKED // 2]) == CHECKED


def test_energy_is_the_counters_difference_by_images(
    models: dict[str, zoo.ReducedViT], monkeypatch: pytest.MonkeyPatch
):
    class Meter(Gpu):
        def __init__(self) -> None:
            self.counted = iter([1000, 1240, 5000, 5060])

        clock_mhz, slowed_by = 1000.0, ()

        @property
        def energy_mj(self) -> int:
            return next(self.counted)

    now = iter(range(1000))

    monkeypatch.setattr(cell, "ENERGY_S", 3.0)

    class Clock:
        perf_counter = staticmethod(cell.time.perf_counter)
        monotonic = staticmethod(lambda: float(next(now)))

    monkeypatch.setattr(cell, "time", Clock)
    found, around = measure(models, gpu=Meter())
    # A second each: begun at 0, calls at 1 and 2.
    assert found["dense"].energy_mj_per_image == 240 / (2 * 2)
    assert found["short"].energy_mj_per_image == 60 / (2 * 2)
    assert around.clock_mhz_before == 1000.0
