"""Check order, pairing and arithmetic with a fake clock; never how long anything takes."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from harness.latency.stopwatch import WallClock
from harness.latency.timing import MOST_ROUNDS, Timing, interleaved

IMAGES = torch.zeros(4, 3, 8, 8)


class Workshop:
    """Hold a clock that only working advances, and a diary of what happened."""

    def __init__(self) -> None:
        self.now = 0
        self.diary: list[str] = []

    def clock(self) -> int:
        return self.now

    def sync(self) -> None:
        self.diary.append("sync")

    @property
    def stopwatch(self) -> WallClock:
        return WallClock(self.sync, self.clock)

    def worker(self, name: str, durations_ms: Iterator[float]) -> Callable[[Tensor], Tensor]:
        def work(images: Tensor) -> Tensor:
            self.diary.append(name)
            self.now += int(next(durations_ms) * 1e6)
            return images

        return work


def test_samples_are_what_the_clock_says_and_warmup_is_not_among_them() -> None:
    shop = Workshop()
    slow = shop.worker("slow", iter([900, 10, 20, 30]))
    fast = shop.worker("fast", iter([900, 5, 5, 6]))
    timings = interleaved(
        {"slow": slow, "fast": fast}, IMAGES, rounds=3, warmup=1, stopwatch=shop.stopwatch
    )
    assert timings == {
        "slow": Timing(batch=4, samples_ms=(10, 20, 30)),
        "fast": Timing(batch=4, samples_ms=(5, 5, 6)),
    }
    assert list(timings) == ["slow", "fast"]
    assert timings["slow"].median_ms == 20
    assert timings["slow"].quartiles_ms == (15, 25)
    assert timings["slow"].images_per_s == 4 / 0.020


def test_order_rotates_and_every_call_is_fenced_by_the_device() -> None:
    shop = Workshop()
    workers = {name: shop.worker(name, iter([1.0] * 9)) for name in "abc"}
    interleaved(workers, IMAGES, rounds=4, warmup=0, stopwatch=shop.stopwatch)
    assert "".join(entry for entry in shop.diary if entry != "sync") == "abcbcacababc"
    assert shop.diary == [entry for name in "abcbcacababc" for entry in ("sync", name, "sync")]


def test_ratio_pairs_rounds_so_that_drift_cancels() -> None:
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    dense = Timing(batch=1, samples_ms=tuple(drift))
    pruned = Timing(batch=1, samples_ms=tuple(0.6 * factor for factor in drift))
    assert pruned.ratio_to(dense) == pytest.approx((0.6, 0.6, 0.6))
    assert dense.ratio_to(dense) == (1, 1, 1)
    noisy = Timing(batch=1, samples_ms=(0.5, 1.2, 2.8, 4.0, 8.0, 19.2, 25.6))
    assert noisy.ratio_to(dense) == pytest.approx((0.5, 0.4, 0.7))


def test_models_run_in_inference_mode_without_garbage_collection() -> None:
    seen = []

    def look(images: Tensor) -> Tensor:
        seen.append((torch.is_inference_mode_enabled(), gc.isenabled(), images is IMAGES))
        return images

    interleaved({"look": look}, IMAGES, rounds=1, warmup=1)
    assert seen == [(True, False, True)] * 2
    assert gc.isenabled()


def test_a_failing_model_gives_garbage_collection_back() -> None:
    def fail(images: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        interleaved({"fail": fail}, IMAGES, rounds=1, warmup=0)
    assert gc.isenabled()


def test_real_models_give_one_positive_sample_per_round() -> None:
    models = {"one": nn.Conv2d(3, 2, 1), "two": nn.Sequential(nn.Flatten(), nn.Linear(192, 3))}
    timings = interleaved(models, IMAGES, rounds=3, warmup=1)
    assert [len(timing.samples_ms) for timing in timings.values()] == [3, 3]
    assert all(sample > 0 for timing in timings.values() for sample in timing.samples_ms)
    first, third = timings["one"].quartiles_ms
    assert first <= timings["one"].median_ms <= third


def test_rounds_go_on_until_the_time_is_up_but_never_end_early() -> None:
    for seconds, count in ((0.0, 3), (0.02, 3), (0.051, 6), (9.0, MOST_ROUNDS)):
        shop, ticks = Workshop(), []
        worker = shop.worker("ten", iter([10.0] * 500))
        timings = interleaved(
            {"ten": worker},
            IMAGES,
            rounds=3,
            seconds=seconds,
            warmup=0,
            stopwatch=shop.stopwatch,
            now=lambda shop=shop: shop.now / 1e9,
            tick=ticks.append,
        )
        assert len(timings["ten"].samples_ms) == count
        assert ticks == list(range(1, count + 1))


def test_warming_up_takes_so_many_calls_and_so_much_time() -> None:
    for warmup, warmup_s, count in ((4, 0.0, 4), (1, 0.05, 5), (7, 0.05, 7), (0, 0.0, 0)):
        shop = Workshop()
        workers = {name: shop.worker(name, iter([5.0] * 99)) for name in "ab"}
        interleaved(
            workers,
            IMAGES,
            rounds=1,
            warmup=warmup,
            warmup_s=warmup_s,
            stopwatch=shop.stopwatch,
            now=lambda shop=shop: shop.now / 1e9,
        )
        untimed = [entry for entry in shop.diary if entry != "sync"][:-2]
        assert untimed == ["a", "b"] * count


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"seconds=-1"):
        interleaved({"same": lambda images: images}, IMAGES, rounds=1, seconds=-1)
    with pytest.raises(ValueError, match=r"warmup_s=-1"):
        interleaved({"same": lambda images: images}, IMAGES, rounds=1, warmup_s=-1)
    with pytest.raises(ValueError, match="0 callables"):
        interleaved({}, IMAGES, rounds=1)
    with pytest.raises(ValueError, match="rounds=0"):
        interleaved({"same": lambda images: images}, IMAGES, rounds=0)
    with pytest.raises(ValueError, match="warmup=-1"):
        interleaved({"same": lambda images: images}, IMAGES, rounds=1, warmup=-1)
    one = Timing(batch=1, samples_ms=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"not timed together.*\(2, 1\) and \(2, 32\)"):
        one.ratio_to(Timing(batch=32, samples_ms=(1.0, 2.0)))
