"""Pictures decoded and resized beside the model: in processes that may die, in the pictures' order.

Each process has a pipe and a thread that waits for it. When a process dies, as a damaged file or too little memory may
make it, torch's DataLoader ends the run and can't say which picture it was; ProcessPoolExecutor ends all others, or
waits for ever for the rest of what the dead one was sending. So neither is used.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.apps.vectors.source import PictureFile
from harness.datasets.images import LEAVE_OUT, decode_image
from zoo.core.files import digest, is_out_of_memory

AHEAD = 3  # chunks per process that wait for the model at most
LONGEST = 1_000  # times the shorter side: resized by that, a longer side would fill the memory
MOST = 16  # processes beside a GPU
CRASHES = 2  # of a process that has one picture alone: the picture is bad
DEATHS = 6  # of processes that something else ends: no more are tried for a picture, or at their start
MOST_LOST = 16  # pictures, with which a run ends
PRELOADED = ["harness.apps.vectors.decode", "open_clip", "timm.data", "torchvision.transforms"]
_WITHOUT = "try fewer --decoders, or --decoders 0, which decodes in the process of the model"
Transform = Callable[[Any], Any]  # from a PIL image to (C, H, W)


class DecodedChunk(NamedTuple):
    """What came of some pictures.

    paths: one for each. pixels: (n, C, H, W) float32, zeros where a picture can't be read; None if none can be.
    digests: of the bytes that were read, "" where there are none. wrong: why a picture can't be read, by position in
    the chunk. lost: positions of what is in ``wrong`` for lack of memory, or because something ended the processes.
    seconds: that it took one process.
    """

    paths: list[str]
    pixels: NDArray[np.float32] | None
    digests: list[str]
    wrong: dict[int, str]
    lost: list[int]
    seconds: float


def join_chunks(chunks: Sequence[DecodedChunk]) -> DecodedChunk:
    """Join chunks.

    A picture that can't be read keeps its place, as zeros: what else is in a batch moves the last bits.
    """
    paths, digests, wrong, lost = list[str](), list[str](), dict[int, str](), list[int]()
    for chunk in chunks:
        wrong |= {len(paths) + place: why for place, why in chunk.wrong.items()}
        lost += [len(paths) + place for place in chunk.lost]
        paths += chunk.paths
        digests += chunk.digests
    seconds = sum(chunk.seconds for chunk in chunks)
    shapes = [chunk.pixels.shape[1:] for chunk in chunks if chunk.pixels is not None]
    if not shapes:
        return DecodedChunk(paths, None, digests, wrong, lost, seconds)
    filled = [np.zeros((len(c.paths), *shapes[0]), np.float32) if c.pixels is None else c.pixels for c in chunks]
    return DecodedChunk(paths, np.concatenate(filled), digests, wrong, lost, seconds)


def prepare(pictures: Sequence[PictureFile], transform: Transform, *, way: str = LEAVE_OUT) -> DecodedChunk:
    """Read, decode, resize and normalise pictures; ``way`` out of a bad one is for messages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PIL, about metadata
        return join_chunks([_prepare_one(picture, transform, way) for picture in pictures])


def _prepare_one(picture: PictureFile, transform: Transform, way: str) -> DecodedChunk:
    start, pixels, known, wrong, lost = time.perf_counter(), None, "", {}, []
    try:
        content = picture.read()
        known = digest(content)
        image = decode_image(content, repr(picture.path), way=way)
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"it has {image.width} x {image.height} pixels; expected sides of 1 : {LONGEST}")
        pixels = np.asarray(transform(image), dtype=np.float32)[np.newaxis]
    except Exception as error:  # an odd size may stop a transform, too
        wrong[0] = str(error) or type(error).__name__
        lost = [0] if is_out_of_memory(error) else []
    return DecodedChunk([picture.path], pixels, [known], wrong, lost, time.perf_counter() - start)


def processes_beside(device: str) -> int:
    """Return how many processes decode: a quarter of the cores beside a model on the CPU, else all, up to `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cores // 4 if device.startswith("cpu") else cores))


class DeadDecoderError(Exception):
    """A decoding process is dead; ``code`` is its exit code, below 0 for a signal, and None if nobody knows."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        """Say how it ended."""
        if self.code is None:
            return "for an unknown reason"
        if self.code >= 0:
            return f"with exit code {self.code}"
        return f"by signal {-self.code} ({signal.Signals(-self.code).name})"

    @property
    def by_itself(self) -> bool:
        """Whether what it was doing ended it, and nobody from outside, such as the system for lack of memory."""
        names = ("SIGKILL", "SIGTERM", "SIGHUP")  # Windows has one of them
        outside = [-getattr(signal, name) for name in names if hasattr(signal, name)]
        return self.code not in (None, NO_MEMORY, UNKNOWN_CODE, *outside)


NO_MEMORY = 0  # of a process that finds none for what it receives or sends
UNKNOWN_CODE = 255  # of multiprocessing, where the server that started a process is dead


class _Decoder:
    """A process that prepares pictures, forked from one that has nothing but the libraries, where that can be."""

    def __init__(self, transform: Transform) -> None:
        """Start it and wait until it is ready; raise DeadDecoderError if it can't be."""
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(pipe, transform), daemon=True)
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise DeadDecoderError(_code_of_server()) from error
        finally:
            pipe.close()
        self._receive()

    def prepare(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        """Prepare pictures; raise DeadDecoderError if that ends it, or takes more memory than it has."""
        with contextlib.suppress(OSError):  # it is dead; to receive says so
            self._pipe.send(chunk)
        result: DecodedChunk = self._receive()
        if result.lost:
            self.close()
            raise DeadDecoderError(None)
        return result

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise DeadDecoderError(self._process.exitcode) from error

    @property
    def alive(self) -> bool:
        """Whether nothing has ended it since."""
        return bool(self._process.is_alive())

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join()


def _code_of_server() -> int | None:
    """Return how the process ended from which others are forked, None if it didn't; multiprocessing doesn't tell."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return None
    with contextlib.suppress(ChildProcessError, AttributeError):  # macOS has no waitid
        for _ in range(10):
            if (facts := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is not None:
                return facts.si_status if facts.si_code == os.CLD_EXITED else -facts.si_status
            time.sleep(0.1)
    return None


def _serve(pipe: Connection, transform: Transform) -> None:
    """Prepare what comes until the parent's end closes, with one thread; Ctrl-C is the parent's."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError, MemoryError):
        pipe.send(None)
        while True:
            pipe.send(prepare(pipe.recv(), transform))


class Decoders:
    """Processes that prepare pictures; with ``count`` 0 this process does, when they are asked for."""

    def __init__(self, count: int, transform: Transform) -> None:
        self.count, self._transform = count, transform
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[_Decoder] = []
        self._lost: list[str] = []  # names of pictures

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        while self._idle:
            self._idle.pop().close()

    def start(self) -> None:
        """Start the first process, unless one runs already.

        Raises:
            ValueError: processes die at their start.
        """
        if self.count and self._threads is None:
            self._idle.append(self._start_one())
            self._threads = ThreadPoolExecutor(self.count)

    def _start_one(self) -> _Decoder:
        for _ in range(DEATHS):
            try:
                return _Decoder(self._transform)
            except DeadDecoderError as error:
                dead = error
        raise ValueError(
            f"a process that decodes pictures ends at its start, {dead}, {DEATHS} times in a row: too little memory? "
            f"{_WITHOUT}"
        )

    def prepare(self, chunks: Iterable[Sequence[PictureFile]]) -> Iterator[DecodedChunk]:
        """Yield what comes of each chunk, in order; the chunks are asked for as far ahead as they are worked on.

        A chunk whose process dies is prepared again, picture by picture. A picture that ends its process once more,
        and again, can't be read; one whose processes are ended by something else is lost, which another run may mend.

        Raises:
            ValueError: processes die at their start, or many pictures are lost.
        """
        if self.count == 0:
            for chunk in chunks:
                yield prepare(chunk, self._transform)
            return
        self.start()
        assert self._threads is not None
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
            return join_chunks([self._prepare_alone(picture) for picture in chunk])

    def _attempt(self, chunk: Sequence[PictureFile]) -> DecodedChunk:
        """Give a chunk to a process that has nothing to do, or to a new one."""
        try:
            decoder = next(one for one in iter(self._idle.pop, None) if one.alive)
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
                return DecodedChunk([picture.path], None, [picture.digest()], {0: why}, [], 0.0)
        self._lost.append(picture.path)
        if len(self._lost) > MOST_LOST:
            raise ValueError(
                f"{len(self._lost)} pictures are lost, such as {self._lost[0]!r}, as something ends the processes that "
                f"decode them, {dead}: too little memory? Finished shards are kept; {_WITHOUT}"
            )
        return DecodedChunk([picture.path], None, [""], {0: f"its process ended {dead}"}, [0], 0.0)
