"""Processes that share a job: every piece once, an end for all, and no trap left by earlier ones.

Here they are threads that share a store; test_torchrun.py has the real thing.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from harness.golden import work as module
from harness.golden.feed import ahead, loaders
from harness.golden.work import OtherProcessError, Team, _attempt, team


def test_alone_everything_is_ones_own():
    with team("cpu") as crew:
        assert (crew.rank, crew.world, crew.device, crew.leads) == (0, 1, "cpu", True)
        assert crew.agree(lambda: "mine") == "mine"
        assert list(crew.share("abc")) == ["a", "b", "c"]
        assert crew.report(2) == 2
        shown: list[int] = []
        crew.finish(shown.append)
        assert shown == [2]


@pytest.mark.parametrize("world", [2, 3])
def test_every_piece_goes_to_one_process(world: int):
    store = dist.HashStore()
    teams = [Team("cpu", rank, world, store) for rank in range(world)]
    shares = [crew.share(range(20)) for crew in teams]
    taken: list[list[int]] = [[] for _ in range(world)]
    for rank in [*range(world), 0, 0, 0] * 20:  # the first is faster than the others
        taken[rank] += [piece for piece in [next(shares[rank], None)] if piece is not None]
    assert sorted(piece for part in taken for piece in part) == list(range(20))
    assert len(taken[0]) > len(taken[-1]) > 0
    assert teams[0].report(3) == 3
    assert teams[1].report(4) == 7


def test_of_all_that_fail_one_says_so_and_the_others_hear_of_it():
    store = dist.HashStore()
    first, second, third = (Team("cpu", rank, 3, store) for rank in range(3))
    with pytest.raises(ValueError, match="the disk burns"), second._alive():
        raise ValueError("the disk burns")
    with pytest.raises(OtherProcessError), first._alive():
        raise OSError("mine too")
    with pytest.raises(OtherProcessError):
        third.report(1)


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (1, OtherProcessError)])
def test_a_store_that_is_gone_is_told_by_the_first(rank: int, error: type[Exception]):
    with pytest.raises(error) as raised, Team("cpu", rank, 2)._alive():
        raise dist.DistNetworkError("connection reset")
    if rank == 0:
        assert "lost contact with the other processes (connection reset)" in str(raised.value)


def test_the_first_waits_for_the_others_and_shows_how_far_they_are():
    store = dist.HashStore()
    first, second = (Team("cpu", rank, 2, store) for rank in range(2))
    shown: list[int] = []

    def late() -> None:
        time.sleep(0.2)
        second.report(5)
        second.finish(lambda _: None)

    thread = threading.Thread(target=late)
    thread.start()
    first.finish(shown.append)
    thread.join()
    assert shown[0] == 0
    assert shown[-1] == 5


def test_a_process_that_fell_silent_ends_the_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    with pytest.raises(ValueError, match="process 1 of 2 has given no sign of life for 0 s"):
        Team("cpu", 0, 2).finish(lambda _: None)


def test_a_slow_process_that_gives_signs_of_life_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.3)
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    store = dist.HashStore()
    first, second = (Team("cpu", rank, 2, store) for rank in range(2))
    beating = threading.Thread(target=second._beat)
    ending = threading.Timer(0.8, second.finish, [lambda _: None])
    beating.start()
    ending.start()
    begun = time.monotonic()
    first.finish(lambda _: None)
    second._over.set()
    beating.join()
    assert time.monotonic() - begun > 0.7


def test_attempts_do_not_fall_for_what_earlier_ones_left():
    """torchrun keeps its store over restarts: old ids, an old list, an old counter."""
    store = dist.HashStore()

    def start(rank: int) -> str:
        time.sleep(0.1 * ((rank + 2) % 3))  # not in the order of their numbers
        return _attempt(store, rank, 3)

    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            [name] = set(pool.map(start, range(3)))
        names.append(name)
    assert len(set(names)) == 3


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_each_process_takes_its_own_gpu(gpus: None, monkeypatch: pytest.MonkeyPatch):
    assert module._own_device("cuda") == "cuda:1"
    assert module._own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="--device 'cuda:0': under torchrun say cuda"):
        module._own_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"3 processes on a machine with 2 GPUs: .* 2"):
        module._own_device("cuda")


@pytest.mark.parametrize("threads", [1, 3])
def test_images_come_in_order_and_no_more_are_loaded_than_are_soon_wanted(threads: int):
    asked: list[int] = []

    def keys() -> Iterator[int]:
        for key in range(9):
            asked.append(key)
            yield key

    for key, value in ahead(keys(), lambda key: key * key, threads):
        assert value == key * key
        assert asked == list(range(min(9, key + threads + 1)))


def test_loading_goes_on_while_a_piece_is_computed():
    loaded = threading.Event()

    def load(key: int) -> int:
        if key == 1:
            loaded.set()
        return key

    for key, _ in ahead(range(3), load, 1):
        if key == 0:
            assert loaded.wait(5)


def test_an_error_comes_where_the_images_would_have_come():
    def load(key: int) -> int:
        if key == 2:
            raise ValueError("image 'x.png' can't be read")
        return key

    got: list[int] = []
    with pytest.raises(ValueError, match=r"image 'x\.png' can't be read"):
        got.extend(key for key, _ in ahead(range(5), load, 2))
    assert got == [0, 1]


def test_one_thread_beside_a_cpu_that_computes_and_more_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert loaders("cpu") == 1
    assert loaders("cuda:0") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert loaders("cuda:0") == 2
