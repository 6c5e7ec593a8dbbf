"""Pictures decoded and resized, in their order: by threads in turn with the model, or by processes that may die.

Each process has a pipe and a thread that waits for it. When a process dies, as a damaged file or too little memory may
make it, torch's DataLoader ends the run and can't say which picture it was; ProcessPoolExecutor ends all others, or
waits for ever for the rest of what the dead one was sending. So neither is used.
"""

import contextlib
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.apps.vectors.source import PictureFile
from harness.datasets.images import decode_image
from zoo.core.digests import digest
from zoo.core.errors import is_out_of_memory

AHEAD = 3  # chunks per process that wait for the model at most
LONGEST = 1_000  # times the shorter side: resized by that, a longer side would fill the memory
CRASHES = 2  # of a process that has one picture alone: the picture is bad
PAUSE_S = 0.1  # after a process that died at its start, once more after each
DEATHS = 6  # of processes that something else ends: no more are tried for a picture, or at their start
PRELOADED = ["harness.apps.vectors.decode", "open_clip", "timm.data", "torchvision.transforms"]
_TOO_OFTEN = (
    f"{DEATHS} times in a row: too little memory? Finished shards are kept and the same command goes on; try fewer "
    "--decoders, or --decoders 0, which decodes in the model's process"
)
Transform = Callable[[Any], Any]  # from a PIL image to one of the tower's size, or to pixels (C, H, W)


class Item(NamedTuple):
    """A decoded picture or a text."""

    name: str  # its path, or the text itself
    pixels: NDArray[Any] | None = None  # of a picture that can be read, (H, W, C) uint8 or (C, H, W) float32
    digest: str = ""  # of the bytes that were read
    wrong: str = ""  # why it can't be embedded


class DecodedChunk(NamedTuple):
    """Decoded pictures, and the seconds that one process took."""

    items: list[Item]
    seconds: float
    places: Sequence[int] = ()  # of the items in the source, once they are a batch
    budget: int = 0  # of all of them, for an adaptive tower
    assigning_s: float = 0.0  # seconds that took


def join(chunks: Iterable[DecodedChunk]) -> DecodedChunk:
    """Join several chunks."""
    parts = list(chunks)
    return DecodedChunk([*chain.from_iterable(part.items for part in parts)], sum(part.seconds for part in parts))


def prepare(
    pictures: Sequence[PictureFile], transform: Transform, map_all: Callable[..., Iterable[Any]] = map
) -> DecodedChunk:
    """Read, decode and transform pictures; raise MemoryError for too little memory, which is no fault of a picture.

    ``map_all`` does what `map` does, such as a thread pool's.
    """
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PIL, about metadata
        items = list(map_all(partial(_prepare_one, transform), pictures))
    return DecodedChunk(items, time.perf_counter() - start)


def _prepare_one(transform: Transform, picture: PictureFile) -> Item:
    known = ""
    try:
        content = picture.read()
        known = digest(content)
        image = decode_image(content)
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"it has {image.width} x {image.height} pixels; expected sides of 1 : {LONGEST}")
        pixels = np.asarray(transform(image))
        return Item(picture.path, pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32, copy=False), known)
    except Exception as error:  # an odd size may stop a transform, too
        if is_out_of_memory(error):
            raise MemoryError(f"out of memory at image {picture.path!r}") from error
        return Item(picture.path, digest=known, wrong=str(error) or type(error).__name__)


def stack(items: Sequence[Item], out: NDArray[Any] | None = None) -> NDArray[Any] | None:
    """Return the pixels of pictures (n, ...), in ``out`` if given; None if no picture has any.

    A picture that can't be read keeps its place, as zeros: how many are in a batch moves the last bits.
    """
    like = next((item.pixels for item in items if item.pixels is not None), None)
    if like is None:
        return None
    return np.stack([np.zeros_like(like) if item.pixels is None else item.pixels for item in items], out=out)


# Exit codes of processes that something else ended, as the system for lack of memory: 0 where a process finds none, 255
# is multiprocessing's, where the server that started a process is dead, and Windows has one of these signals.
FROM_OUTSIDE = {None, 0, 255} | {
    -number for number in signal.Signals if number.name in ("SIGKILL", "SIGTERM", "SIGHUP")
}


class DeadDecoderError(Exception):
    """A decoding process is dead; ``by_itself`` tells whether its work ended it, and no signal from outside."""

    def __init__(self, code: int | None) -> None:
        cause = "for an unknown reason"
        if code is not None:
            cause = f"with exit code {code}" if code >= 0 else f"by signal {signal.Signals(-code).name}"
        super().__init__(cause)
        self.by_itself = code not in FROM_OUTSIDE


class _Decoder:
    """A process that prepares pictures, forked from one that has nothing but the libraries, where that can be.

    All that is asked of a dead one raises DeadDecoderError.
    """

    def __init__(self, transform: Transform) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(pipe, transform), daemon=True)
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise DeadDecoderError(None) from error
        finally:
            pipe.close()
        self._receive()

    def prepare(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        with contextlib.suppress(OSError):  # it is dead; to receive says so
            self._pipe.send(chunk)
        result: DecodedChunk = self._receive()
        return result

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise DeadDecoderError(self._process.exitcode) from error

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, transform: Transform) -> None:
    """Prepare chunks until the parent's end closes, with one thread; Ctrl-C is the parent's."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError, MemoryError):
        pipe.send(None)
        while True:
            pipe.send(prepare(pipe.recv(), transform))


class Decoders:
    """Processes that prepare pictures; with ``count`` 0 torch's number of threads does, when they are asked for."""

    def __init__(self, count: int, transform: Transform) -> None:
        self.count, self._transform = count, transform
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[_Decoder] = []

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        while self._idle:
            self._idle.pop().close()

    def _start_one(self) -> _Decoder:
        for attempt in range(DEATHS):
            time.sleep(attempt * PAUSE_S)  # until the system has noticed that the server is dead
            try:
                return _Decoder(self._transform)
            except DeadDecoderError as error:
                dead = error
        raise ValueError(f"a process that decodes pictures ends at its start, {dead}, {_TOO_OFTEN}")

    def prepare(self, chunks: Iterable[Sequence[PictureFile]]) -> Iterator[DecodedChunk]:
        """Yield the results of chunks, in order; chunks are asked for as far ahead as they are worked on.

        A chunk whose process dies is prepared again, picture by picture. A picture that ends its process once more,
        and again, can't be read.

        Raises:
            ValueError: something else ends the processes, as for lack of memory, or they die at their start.
        """
        if self.count == 0:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                for chunk in chunks:
                    yield prepare(chunk, self._transform, pool.map)
            return
        self._threads = self._threads or ThreadPoolExecutor(self.count)
        rest, pending = iter(chunks), deque[Future[DecodedChunk]]()
        while True:
            for chunk in islice(rest, AHEAD * self.count - len(pending)):
                pending.append(self._threads.submit(self._prepare, chunk))
            if not pending:
                return
            yield pending.popleft().result()

    def _prepare(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        try:
            return self._attempt(chunk)
        except DeadDecoderError:
            return join(map(self._prepare_alone, chunk))

    def _attempt(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        """Give a chunk to an idle process, or to a new one."""
        try:
            decoder = next(decoder for decoder in iter(self._idle.pop, None) if decoder.alive)
        except IndexError:
            decoder = self._start_one()
        result = decoder.prepare(chunk)
        self._idle.append(decoder)
        return result

    def _prepare_alone(self, picture: PictureFile) -> DecodedChunk:
        """Prepare a picture that may have ended a process."""
        crashes = 0
        for _ in range(DEATHS):
            try:
                return self._attempt([picture])
            except DeadDecoderError as error:
                dead = error
            crashes += dead.by_itself
            if crashes == CRASHES:
                why = f"image {picture.path!r} crashes its decoder: the process ends {dead}"
                return DecodedChunk([Item(picture.path, digest=picture.digest(), wrong=why)], 0.0)
        raise ValueError(f"image {picture.path!r}: the processes that decode it end {dead}, {_TOO_OFTEN}")
