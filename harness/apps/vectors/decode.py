"""Pictures decoded and resized beside the model: in processes that may die, in the pictures' order.

torch's DataLoader isn't used: when a decoder takes its process along, as a damaged file may make it
do, the loader ends the run and can't say which picture it was.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.apps.vectors.source import PictureFile
from harness.datasets.images import decode_image

AHEAD = 3  # chunks per process that wait for the model at most
LONGEST = 1_000  # times the shorter side: resized by that, a longer side would fill the memory
MOST = 16  # processes beside a GPU
PRELOADED = ["harness.apps.vectors.decode", "open_clip", "timm.data", "torchvision.transforms"]
_NO_PROCESS = (
    "the processes that decode pictures end before they begin: too little memory? try --decoders 0, which decodes in "
    "the process of the model"
)
Transform = Callable[[Any], Any]  # from a PIL image to (C, H, W)


class DecodedChunk(NamedTuple):
    """What came of some pictures.

    paths: one for each. pixels: (n, C, H, W) float32, zeros where a picture can't be read; None if none
    can be. wrong: why, by position in the chunk. seconds: that it took one process.
    """

    paths: list[str]
    pixels: NDArray[np.float32] | None
    wrong: dict[int, str]
    seconds: float


def join_chunks(chunks: Sequence[DecodedChunk]) -> DecodedChunk:
    """Join chunks.

    A picture that can't be read keeps its place, as zeros: what else is in a batch moves the last bits.
    """
    paths, wrong = list[str](), dict[int, str]()
    for chunk in chunks:
        wrong |= {len(paths) + place: why for place, why in chunk.wrong.items()}
        paths += chunk.paths
    seconds = sum(chunk.seconds for chunk in chunks)
    shapes = [chunk.pixels.shape[1:] for chunk in chunks if chunk.pixels is not None]
    if not shapes:
        return DecodedChunk(paths, None, wrong, seconds)
    filled = [np.zeros((len(c.paths), *shapes[0]), np.float32) if c.pixels is None else c.pixels for c in chunks]
    return DecodedChunk(paths, np.concatenate(filled), wrong, seconds)


def prepare(pictures: Sequence[PictureFile], transform: Transform) -> DecodedChunk:
    """Read, decode, resize and normalise pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PIL, about metadata
        return join_chunks([_prepare_one(picture, transform) for picture in pictures])


def _prepare_one(picture: PictureFile, transform: Transform) -> DecodedChunk:
    start, pixels, wrong = time.perf_counter(), None, {}
    try:
        image = decode_image(picture.read(), repr(picture.path), way="leave it out")
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"it has {image.width} x {image.height} pixels; expected sides of 1 : {LONGEST}")
        pixels = np.asarray(transform(image), dtype=np.float32)[np.newaxis]
    except Exception as error:  # an odd size may stop a transform, too
        wrong[0] = str(error) or type(error).__name__
    return DecodedChunk([picture.path], pixels, wrong, time.perf_counter() - start)


def processes_beside(device: str) -> int:
    """Return how many processes decode: a quarter of the cores beside a model on the CPU, else all, up to `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cores // 4 if device.startswith("cpu") else cores))


class Decoders:
    """Processes that prepare pictures; with ``count`` 0 this process does, when they are asked for."""

    def __init__(self, count: int, transform: Transform) -> None:
        self.count, self._transform = count, transform
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def start(self) -> None:
        """Start the processes, unless they run, and wait for the first.

        Raises:
            ValueError: it ends at once.
        """
        if self.count and self._pool is None:
            self._pool = _pool(self.count, self._transform)
            try:
                self._pool.submit(_prepare, []).result()
            except BrokenProcessPool as error:
                raise ValueError(_NO_PROCESS) from error

    def prepare(self, chunks: Iterable[Sequence[PictureFile]]) -> Iterator[DecodedChunk]:
        """Yield what comes of each chunk, in order; the chunks are asked for as far ahead as they are worked on.

        A chunk whose process dies is prepared again, picture by picture in a process alone; a
        picture that ends that one as well can't be read.

        Raises:
            ValueError: no process can be started.
        """
        if self.count == 0:
            for chunk in chunks:
                yield prepare(chunk, self._transform)
            return
        rest = iter(chunks)
        pending: deque[tuple[Sequence[PictureFile], Future[DecodedChunk] | None]] = deque()
        while True:
            for new in islice(rest, AHEAD * self.count - len(pending)):
                pending.append((new, self._submit(new)))
            if not pending:
                return
            chunk, future = pending[0]
            try:
                result = future.result() if future else self._prepare_alone(chunk)
            except BrokenProcessPool:
                self._end()
                # Any of those that aren't done may have been its end.
                pending = deque((later, own if _is_done(own) else None) for later, own in pending)
                continue
            pending.popleft()
            yield result

    def _submit(self, chunk: Sequence[PictureFile]) -> "Future[DecodedChunk] | None":
        """Give a chunk to a process; None if the processes have died meanwhile."""
        self._pool = self._pool or _pool(self.count, self._transform)
        try:
            return self._pool.submit(_prepare, chunk)
        except BrokenProcessPool:
            return None

    def _prepare_alone(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        """Prepare a chunk in a process of its own, and if that dies, each of its pictures."""
        if (whole := self._attempt(chunk)) is not None:
            return whole
        return join_chunks([self._attempt([picture]) or self._give_up(picture) for picture in chunk])

    def _attempt(self, chunk: Sequence[PictureFile]) -> DecodedChunk | None:
        with contextlib.suppress(BrokenProcessPool), _pool(1, self._transform) as pool:
            return pool.submit(_prepare, chunk).result()
        return None

    def _give_up(self, picture: PictureFile) -> DecodedChunk:
        if self._attempt([]) is None:
            raise ValueError(_NO_PROCESS)
        why = f"image {picture.path!r} ends the process that decodes it: too large, or it breaks its decoder"
        return DecodedChunk([picture.path], None, {0: why}, 0.0)


def _is_done(future: "Future[DecodedChunk] | None") -> bool:
    return future is not None and future.done() and not future.cancelled() and future.exception() is None


def _pool(count: int, transform: Transform) -> ProcessPoolExecutor:
    """Start processes: forked from one that has nothing but the libraries, where that can be."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(PRELOADED)
    return ProcessPoolExecutor(count, context, _begin, (transform,))


_begun: list[Transform] = []  # of a decoding process, one


def _begin(transform: Transform) -> None:
    """Prepare a decoding process: one thread, Ctrl-C is the parent's, and none outlives the parent."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _begun.append(transform)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _prepare(chunk: Sequence[PictureFile]) -> DecodedChunk:
    return prepare(chunk, _begun[0])
