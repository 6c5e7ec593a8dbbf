"""Bring images to the device without making it wait: the next ones load while it computes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
MOST_THREADS = 8


def loaders(device: str) -> int:
    """Return how many threads load images: one beside a CPU that computes, else what is there."""
    if device.startswith("cpu"):
        return 1
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // shared))


def ahead(keys: Iterable[K], load: Callable[[K], V], threads: int) -> Iterator[tuple[K, V]]:
    """Yield each key with what ``load`` gives for it, in order, loading ahead in threads.

    A key is asked for when a thread is free for it. An error in ``load`` is raised where its value
    would have come.
    """
    waiting: deque[tuple[K, Future[V]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        try:
            for key in keys:
                waiting.append((key, pool.submit(load, key)))
                if len(waiting) > threads:
                    first, value = waiting.popleft()
                    yield first, value.result()
            while waiting:
                first, value = waiting.popleft()
                yield first, value.result()
        finally:
            for _, value in waiting:
                value.cancel()
