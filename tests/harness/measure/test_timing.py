"""Check order, pairing and arithmetic with clocks that only working advances."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.measure import timing
from harness.records.times import Surroundings, Timing

IMAGES = torch.zeros(4, 3, 8, 8)


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
    pruned = Timing(batch=1, samples_ms=tuple(0.6 * factor for factor in drift))
    assert pruned.ratio_to(dense) == pytest.approx((0.6, 0.6, 0.6))
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
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="third"):
        timing.interleave({"bad": fail_third}, IMAGES, rounds=1, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize(("options", "untimed", "rounds"), [
    ({}, 0, 3), ({"seconds": 0.02}, 0, 3), ({"seconds": 0.051}, 0, 6), ({"seconds": 9.0}, 0, timing.MOST_ROUNDS),
    ({"warmup": 4}, 4, 3), ({"warmup": 1, "warmup_s": 0.049}, 5, 3), ({"warmup": 7, "warmup_s": 0.05}, 7, 3),
])  # fmt: skip
def test_calls_and_seconds_are_least_numbers_of_rounds_and_of_warming_up(options, untimed, rounds):
    shop, ticks = Workshop(), []
    [found] = shop.time(
        {"ten": shop.worker("ten", iter([10.0] * 500))}, rounds=3, tick=ticks.append, **options
    ).values()
    assert len(found.samples_ms) == rounds
    assert ticks == list(range(1, rounds + 1))
    assert shop.diary.count("ten") == untimed + rounds


def test_torchs_timer_times_the_third_call_and_gives_the_threads_back():
    shop, threads, before = Workshop(), [], torch.get_num_threads()
    worker = shop.worker("longer", iter(1e3 * turn for turn in range(1, 7)))
    watch = timing.torch_timer(2, clock=lambda: shop.now)
    assert watch.time_ms(worker, IMAGES) == pytest.approx(3000)
    assert watch.time_ms(worker, IMAGES) == pytest.approx(6000)
    assert timing.torch_timer(before + 1).time_ms(lambda images: threads.append(torch.get_num_threads()), IMAGES) > 0
    assert set(threads) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.cuda
def test_events_time_what_the_device_does():
    """Many products take longer than one, though launching them returns at once."""
    matrix = torch.randn(2048, 2048, device="cuda")
    watch = timing.cuda_events(matrix.device)

    def many(images: Tensor) -> Tensor:
        for _ in range(50):
            images = images @ matrix
        return images

    for call in (many, lambda images: images @ matrix):
        watch.time_ms(call, matrix)
    one = min(watch.time_ms(lambda images: images @ matrix, matrix) for _ in range(5))
    assert 0 < 10 * one < watch.time_ms(many, matrix)


def test_others_are_busy_with_all_but_idling_waiting_and_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STAT", tmp_path / "stat")
    assert timing.others_s() is timing._look_around()().others_cores is None
    monkeypatch.setattr(timing.os, "sysconf", lambda name: 100)
    own, now = iter([(0.1, 0.2, 0.3, 0.1, 9.0), (5.1, 1.2, 1.3, 1.1, 9.0)]), iter([50.0, 60.0])
    monkeypatch.setattr(timing.os, "times", lambda: os.times_result(next(own)))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(now))
    (tmp_path / "stat").write_text("cpu  100 20 30 5000 600 7 8 9 0 0\ncpu0 1 2 3\n")
    surroundings = timing._look_around()  # others: 1.74 s of all, 0.7 s of them our own
    (tmp_path / "stat").write_text("cpu  1900 20 30 9000 900 7 8 9 0 0\n")
    assert surroundings().others_cores == pytest.approx((18 - 8) / 10)


@pytest.mark.parametrize(("samples", "others", "warning"), [
    ((100.0, 101.0) * 6, None, None),  # what isn't known is no reason to warn
    ((100.0, 110.8) * 6, 0.1, None),  # that's 10.2 % of their median, printed as 10 %
    ((100.0, 130.0) * 6, 0.1, "wide spread: quartiles 26 % of the median apart"),
    ((100.0,) * 6, 0.2, None),
    ((100.0,) * 6, 0.7, "other processes kept 0.7 of 2 cores busy"),
])  # fmt: skip
def test_warnings(samples, others, warning, monkeypatch):
    monkeypatch.setattr(timing, "cores", lambda: 2)
    found = timing.warnings_of(Timing(batch=1, samples_ms=samples, around=Surroundings(others_cores=others)))
    assert [text.startswith(str(warning)) for text in found] == [True] * (warning is not None)
