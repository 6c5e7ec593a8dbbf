"""Order, pairing and arithmetic with clocks that only working advances; runtimes, each as eager."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
from harness.measure import timing
from harness.records.times import Timing
from zoo.deploy.runtime import (
    COMPILE,
    CUDA_GRAPHS,
    EAGER,
    ONNXRUNTIME,
    OPENVINO,
    OPTIMIZED,
    RUNTIMES,
    TOLERANCES,
    Prepared,
    find_runtime,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
IMAGES = torch.zeros(4, 3, 8, 8)
WATCH, RULE = timing.watch_others, timing.why_busy  # which a fixture patches


class Workshop:
    """Hold a clock that only working advances, and a diary of what happened."""

    def __init__(self) -> None:
        self.now = 0.0
        self.diary: list[str] = []

    @property
    def stopwatch(self) -> timing.Stopwatch:
        return timing.wall_clock(lambda: self.diary.append("sync"), lambda: int(self.now * 1e9))

    def worker(self, name: str, durations_ms: Iterator[float]) -> Callable[[Tensor], Tensor]:
        def work(images: Tensor) -> Tensor:
            self.diary.append(name)
            self.now += next(durations_ms) / 1e3
            return images

        return work

    def time(self, workers: dict[str, Any], **options: Any) -> dict[str, Timing]:
        options = {"warmup": 0, "stopwatch": self.stopwatch, "now": lambda: self.now} | options
        return timing.interleave(workers, IMAGES, **options)


def test_samples_are_what_the_clock_says_and_warmup_is_not_among_them():
    shop = Workshop()
    slow = shop.worker("slow", iter([900, 10, 20, 30]))
    fast = shop.worker("fast", iter([900, 5, 5, 6]))
    timings = shop.time({"slow": slow, "fast": fast}, rounds=3, warmup=1)
    assert timings["slow"].samples_ms == pytest.approx((10, 20, 30))
    assert timings["fast"].samples_ms == pytest.approx((5, 5, 6))
    assert timings["slow"].spread_ms == pytest.approx((20, 15, 25))


def test_a_latency_has_quartiles_throughput_and_the_ratio_of_paired_rounds_whose_drift_cancels():
    dense, half = (Timing(batch=4, samples_ms=(ms, 2 * ms, 3 * ms)) for ms in (10.0, 5.0))
    plain = {"batch": 4, "median_ms": 20.0, "q1_ms": 15.0, "q3_ms": 25.0, "images_per_s": 200.0}
    assert asdict(dense.latency()) == plain | dict.fromkeys(("ratio_to_dense", "ratio_low", "ratio_high"))
    latency = half.latency(dense)
    assert (latency.ratio_to_dense, latency.ratio_low, latency.ratio_high) == (0.5, 0.5, 0.5)
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    dense = Timing(batch=1, samples_ms=tuple(drift))
    noisy = Timing(batch=1, samples_ms=(0.5, 1.2, 2.8, 4.0, 8.0, 19.2, 25.6))
    assert noisy.ratio_to(dense) == pytest.approx((0.5, 0.4, 0.7))
    with pytest.raises(ValueError, match=r"not timed together.*\(3, 4\) and \(7, 1\)"):
        half.ratio_to(dense)


def test_order_rotates_and_every_call_is_fenced_by_the_device():
    shop = Workshop()
    shop.time({name: shop.worker(name, iter([1.0] * 9)) for name in "abc"}, rounds=4)
    assert shop.diary == [entry for name in "abcbcacababc" for entry in ("sync", name, "sync")]


def test_models_run_in_inference_mode_without_garbage_collection_which_comes_back():
    modes = []

    def fail_third(images: Tensor) -> Tensor:
        modes.append((torch.is_inference_mode_enabled(), gc.isenabled(), images is IMAGES))
        if len(modes) == 3:
            raise RuntimeError("third")
        return images

    timing.interleave({"good": fail_third}, IMAGES, rounds=1, warmup=1)
    assert modes == [(True, False, True)] * 2
    with pytest.raises(RuntimeError, match="third"):
        timing.interleave({"bad": fail_third}, IMAGES, rounds=1, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize(("options", "untimed", "rounds"), [
    ({}, 0, 3), ({"seconds": 0.051}, 0, 6), ({"seconds": 9.0}, 0, timing.MOST_ROUNDS),
    ({"warmup": 4}, 4, 3), ({"warmup": 1, "warmup_s": 0.049}, 5, 3), ({"warmup": 7, "warmup_s": 0.05}, 7, 3),
])  # fmt: skip
def test_calls_and_seconds_are_least_numbers_of_rounds_and_of_warming_up(options, untimed, rounds):
    shop, ticks = Workshop(), []
    worker = shop.worker("ten", iter([10.0] * 500))
    [found] = shop.time({"ten": worker}, rounds=3, tick=ticks.append, **options).values()
    assert len(found.samples_ms) == rounds
    assert ticks == list(range(1, rounds + 1))
    assert shop.diary.count("ten") == untimed + rounds


def test_models_by_themselves_are_timed_at_the_third_call():
    shop = Workshop()
    worker = shop.worker("longer", iter(1e3 * turn for turn in range(1, 7)))
    watch = timing.wall_clock(clock=lambda: int(shop.now * 1e9), warm=2)
    assert [watch.time_ms(worker, IMAGES) for _ in range(2)] == pytest.approx([3000, 6000])
    assert watch.name == "wall clock after 2 calls"


def test_others_are_busy_with_all_but_idling_waiting_and_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STAT", tmp_path / "stat")
    assert timing.others_s() is WATCH(0.0) is None
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda pid: {1, 2})
    monkeypatch.setattr(timing.os, "sysconf", lambda name: 100)
    own, now = iter([(0.1, 0.2, 0.3, 0.1, 9.0), (5.1, 1.2, 1.3, 1.1, 9.0)]), iter([50.0, 60.0])
    monkeypatch.setattr(timing.os, "times", lambda: os.times_result(next(own)))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(now))
    stat = "cpu0 9 9 9 9 9 9 9 9 0 0\ncpu1 {} 20 30 5000 600 7 8 9 0 0\ncpu2 0 0 0 7 7 0 0 0 0 0\n"
    (tmp_path / "stat").write_text(stat.format(100))

    def work(seconds: float) -> None:
        (tmp_path / "stat").write_text(stat.format(1900))

    monkeypatch.setattr(timing.time, "sleep", work)  # 18 s in all, 8 s of them our own
    assert WATCH(10.0) == pytest.approx((18 - 8) / 10)


@pytest.mark.parametrize(("samples", "others", "threads", "why"), [
    ((100.0, 101.0) * 6, None, 2, ""),  # what isn't known is no reason
    ((100.0, 128.0) * 6, 0.4, 2, ""),  # 24.6 % of their median
    ((100.0, 150.0) * 6, 0.1, 2, "spread of dense 40 %"),
    ((100.0,) * 6, 0.6, 2, "other processes keep 0.6 of 2 cores busy"),
    ((100.0,) * 6, 0.6, 1, ""),
    ((100.0,) * 6, 0.4, 9, ""),  # more threads than cores need no more cores
])  # fmt: skip
def test_times_are_of_no_use_beside_others_or_where_dense_varies(samples, others, threads, why, monkeypatch):
    monkeypatch.setattr(timing, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert RULE(Timing(batch=1, samples_ms=samples, others_cores=others)) == why


QUIET, DISTURBED = ({"dense": Timing(batch=1, samples_ms=samples)} for samples in ((1.0,) * 6, (1.0, 2.0) * 3))


@pytest.mark.parametrize(("others", "timings", "runs", "looks", "why"), [
    ([0.0], [QUIET], 1, 1, ""),
    ([1.9, 1.9, 0.2], [QUIET], 1, 3, ""),
    ([1.9] * 32, [QUIET], 0, 31, "other processes keep 1.9 of 2 cores busy"),  # one look, and 30 seconds
    ([0.0, 1.9, 0.0], [DISTURBED, QUIET], 2, 3, ""),
    ([0.0] * 4, [DISTURBED, DISTURBED, DISTURBED, QUIET], 4, 4, ""),
    ([None] * 32, [DISTURBED] * 32, 31, 31, "spread of dense 67 %"),
    ([0.0, 0.0, *[1.9] * 30], [DISTURBED, DISTURBED], 2, 32, "other processes keep 1.9 of 2 cores busy"),
])  # fmt: skip
def test_a_timing_waits_for_others_and_is_repeated(others, timings, runs, looks, why, monkeypatch):
    monkeypatch.setattr(timing, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said, watched, timed = list[str](), Mock(side_effect=others), Mock(side_effect=timings)
    monkeypatch.setattr(timing, "watch_others", watched)
    monkeypatch.setattr(timing, "why_busy", RULE)
    patience = timing.Patience(say=said.append)
    if why:
        with pytest.raises(timing.BusyError, match=f"too busy to time: {why}; the same command"):
            patience.time(timed, CPU)
        if not runs:  # patience is for the whole command
            with pytest.raises(timing.BusyError):
                patience.time(timed, CPU)
            looks += 1
    else:
        assert patience.time(timed, CPU) is QUIET
    assert (timed.call_count, watched.call_count) == (runs, looks)
    assert [text.startswith("other processes keep 1.9 of 2 cores busy: waiting") for text in said] == [True] * any(
        one == 1.9 for one in others
    )
    patience.time(Mock(return_value=QUIET), torch.device("cuda"))  # shared in ways that aren't watched
    assert watched.call_count == looks


# --- runtimes: each computes what eager does, and what can't be run says why

Change = Callable[[Tensor], Tensor]
Prepare = Callable[..., timing.ReadyModel]


@pytest.mark.parametrize(("runtime", "device", "message"), [
    (CUDA_GRAPHS, CPU, r"--runtimes cuda-graphs on --device 'cpu': .* cuda alone"),
    (ONNXRUNTIME, CUDA, "--runtimes onnxruntime on --device 'cuda:0': .* cpu alone"),
    (OPENVINO, CPU, r"needs openvino: pip install '.*openvino\]'"),
])  # fmt: skip
def test_what_a_device_cannot_do_is_refused(runtime, device, message, monkeypatch):
    monkeypatch.setattr("zoo.deploy.runtime.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        timing.require_runtimes([EAGER, runtime], ["float32"], device)
    monkeypatch.undo()
    timing.require_runtimes([EAGER, OPTIMIZED, COMPILE], ["float32"], CPU)


def test_compiled_models_are_eager_and_what_cannot_be_optimized_says_so():
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    tower, images = timm.create_model("vit_small_patch16_224", **small), torch.randn(4, 3, 32, 32)
    vit = zoo.reduce(tower, method="tome", keep=0.5).eval()
    with torch.inference_mode():
        features = find_runtime(COMPILE).prepare(vit, images, "float32").call(images)
        assert timing.deviations(features, vit(images)).median() < 1e-4
    torch._dynamo.reset()
    tower = timm.create_model("vit_small_patch16_dinov3", **small)
    ready = timing.prepare(zoo.reduce(tower.eval(), method=None), OPTIMIZED, images)
    assert ready.prepared is None
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
        calls = [find_runtime(COMPILE).prepare(model, images, "float32").call for model in models]
        for _ in range(3):
            widths = [call(images).shape[1] for call in calls]
    assert (len(compiled), widths) == (len(models), [4 + index for index in range(12)])
    torch._dynamo.reset()


@pytest.fixture
def prepare_changed(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepare a model whose features are changed."""

    def run(change: Change, runtime: str = EAGER) -> timing.ReadyModel:
        vit = zoo.reduce(dense, method="random", keep=0.5).eval()
        prepared = Prepared(call=lambda batch: change(vit(batch)), dtype=torch.float32)
        monkeypatch.setattr(RUNTIMES[runtime], "prepare", lambda *_: prepared)
        monkeypatch.setattr(RUNTIMES[runtime], "devices", ())
        return timing.prepare(vit, runtime, torch.randn(2, 3, 64, 64))

    return run


def broken_capture(first: Exception) -> Change:
    """Ending a capture that broke is an error, too, which hides the first."""

    def change(features: Tensor) -> Tensor:
        try:
            raise first
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    return change


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(("runtime", "change", "reason"), [
    (EAGER, Mock(side_effect=NO_MEMORY), "out of memory"),
    (COMPILE, Mock(side_effect=torch._dynamo.exc.Unsupported("\n  a graph break\nand more")), "a graph break"),
    (CUDA_GRAPHS, broken_capture(RuntimeError("not permitted when stream is capturing")), "not permitted"),
    (CUDA_GRAPHS, broken_capture(NO_MEMORY), "out of memory"),
    (EAGER, lambda features: 1.01 * features, f"allowed {TOLERANCES['float32'].deviation:g}"),
    (EAGER, lambda features: 0 * features, "features differ from eager's by 1 "),
    (EAGER, lambda features: float("nan") * features, "features aren't finite"),
])  # fmt: skip
def test_a_model_that_cannot_be_timed(prepare_changed, runtime, change, reason):
    ready = prepare_changed(change, runtime)
    assert ready.prepared is None
    assert reason in ready.failed
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # an error of our own
        prepare_changed(Mock(side_effect=RuntimeError("shapes cannot be multiplied")), runtime)


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


def test_the_kernels_of_attention_are_what_a_call_runs(dense: zoo.ReducedViT, capfd):
    images = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        assert timing.attention_kernels(dense, images) == ("flash_attention_for_cpu",)
        with sdpa_kernel(SDPBackend.MATH):
            assert timing.attention_kernels(dense, images) == ("attention_math",)
        assert timing.attention_kernels(lambda images: images, images) == ()
    assert capfd.readouterr() == ("", "")  # the profiler is silent
