"""What times a call, with clocks that only working advances."""

import pytest
import torch

from harness.latency.stopwatch import Events, TorchTimer, WallClock, stopwatch, waiting

IMAGES = torch.zeros(2, 3)


class Worker:
    """Work for longer each time, and remember the threads."""

    def __init__(self) -> None:
        self.now, self.calls, self.threads = 0.0, 0, set()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.threads.add(torch.get_num_threads())
        self.now += self.calls
        return images


def test_the_wall_clock_times_one_call():
    worker = Worker()
    watch = WallClock(clock=lambda: int(worker.now * 1e9))
    assert watch.time_ms(worker, IMAGES) == 1000
    assert watch.time_ms(worker, IMAGES) == 2000
    assert worker.calls == 2


def test_torchs_timer_calls_twice_before_and_times_the_third():
    worker = Worker()
    watch = TorchTimer(2, clock=lambda: worker.now)
    assert watch.time_ms(worker, IMAGES) == pytest.approx(3000)
    assert watch.time_ms(worker, IMAGES) == pytest.approx(6000)


def test_torchs_timer_sets_the_threads_and_gives_them_back():
    before, worker = torch.get_num_threads(), Worker()
    TorchTimer(before + 1).time_ms(worker, IMAGES)
    assert worker.threads == {before + 1}
    assert torch.get_num_threads() == before


def test_a_real_call_takes_time():
    assert TorchTimer(1).time_ms(lambda images: images @ images.T, IMAGES) > 0


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", TorchTimer), ("cuda:0", Events), ("meta", WallClock)]
)
def test_each_device_has_its_stopwatch(device: str, kind: type):
    assert type(stopwatch(torch.device(device), 1)) is kind


def test_a_cpu_is_done_when_the_call_returns():
    assert waiting(torch.device("cpu"))() is None


@pytest.mark.cuda
def test_events_time_what_the_device_does():
    """Many products take longer than one, though launching them returns at once."""
    matrix = torch.randn(2048, 2048, device="cuda")
    watch = Events(matrix.device)

    def many(images: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            images = images @ matrix
        return images

    for call in (many, lambda images: images @ matrix):
        watch.time_ms(call, matrix)
    one = min(watch.time_ms(lambda images: images @ matrix, matrix) for _ in range(5))
    assert 0 < 10 * one < watch.time_ms(many, matrix)
