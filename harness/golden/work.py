"""The processes that share a job: one alone, or those that torchrun started, on any machines.

They agree once at the start (gloo or NCCL). After that each takes the next piece of work from a
counter in torch.distributed's store, so no process ever waits for a slower one but the first, at
the very end.
"""

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

START = timedelta(hours=1)  # for the first process to look through what is there
BEAT_S = 5.0  # seconds between two signs of life
SILENCE_S = 120.0  # without one, a process counts as dead
POLL_S = 0.05
_FAILED, _IMAGES, _NEXT = "failed", "images", "next"


class OtherProcessError(Exception):
    """Another process has failed and says why; this one ends without a word."""


class Team:
    """One of the processes that share a job.

    Attributes:
        rank: number of this process; the one with 0 leads and shows progress.
        world: number of processes.
        device: torch device of this process.
    """

    def __init__(self, device: str, rank: int = 0, world: int = 1, store: Any = None) -> None:
        """Join; without a store, alone."""
        self.rank, self.world, self.device = rank, world, device
        self._store: Any = HashStore() if store is None else store
        self._over = threading.Event()

    @property
    def leads(self) -> bool:
        """Tell whether this process decides and speaks for all."""
        return self.rank == 0

    def agree(self, decide: Callable[[], T]) -> T:
        """Let the first process decide and tell all others; call it once, in every process.

        Raises:
            OtherProcessError: the first process could not.
        """
        if self.world == 1:
            return decide()
        box: list[Any] = [None]
        failure: ValueError | OSError | None = None
        if self.leads:
            try:
                box = [decide()]
            except (ValueError, OSError) as error:
                failure = error  # told first: the others wait for an answer
        backend = "nccl" if self.device.startswith("cuda") else "gloo"
        told: dict[str, Any] = {"rank": self.rank, "world_size": self.world, "timeout": START}
        try:
            dist.init_process_group(backend, store=self._store, **told)
            dist.broadcast_object_list(box, src=0)
            dist.destroy_process_group()
        except RuntimeError as error:
            raise dist.DistError(str(error)) from error
        if failure is not None:
            raise failure
        if box[0] is None:
            raise OtherProcessError
        answer: T = box[0]
        return answer

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items that no other process gets; all of them together get every item once."""
        items = list(items)
        while (turn := self._store.add(_NEXT, 1) - 1) < len(items):
            yield items[turn]

    def report(self, images: int) -> int:
        """Add images that are done; return how many all processes have done.

        Raises:
            OtherProcessError: another process has failed.
        """
        done: int = self._store.add(_IMAGES, images)
        if self._store.add(_FAILED, 0):
            raise OtherProcessError
        return done

    def finish(self, show: Callable[[int], None]) -> None:
        """End this process's work; in the first, wait until every process has ended its own.

        Args:
            show: called now and then with the number of images done by all.

        Raises:
            OtherProcessError: another process has failed.
            ValueError: another process gives no sign of life.
        """
        self._store.set(f"end/{self.rank}", "")
        heard = {rank: (0, time.monotonic()) for rank in range(1, self.world)}
        while self.leads and heard:
            show(self.report(0))
            for rank, (beats, when) in list(heard.items()):
                now, count = time.monotonic(), self._store.add(f"beat/{rank}", 0)
                if self._store.check([f"end/{rank}"]):
                    del heard[rank]
                elif count != beats:
                    heard[rank] = (count, now)
                elif now - when > SILENCE_S:
                    raise ValueError(
                        f"process {rank} of {self.world} has given no sign of life for "
                        f"{SILENCE_S:.0f} s; finished shards are kept, the same command goes on"
                    )
            time.sleep(POLL_S)
        show(self.report(0))

    def _beat(self) -> None:
        # A store that is gone is the main thread's to report.
        with contextlib.suppress(dist.DistError):
            while not self._over.wait(BEAT_S):
                self._store.add(f"beat/{self.rank}", 1)

    def _first_to_fail(self) -> bool:
        try:
            return bool(self._store.add(_FAILED, 1) == 1)
        except dist.DistError:
            return self.leads

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Give signs of life while the body runs; of all that fail, let one say so."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        before = signal.signal(signal.SIGTERM, _ended)
        try:
            yield
        except dist.DistError as error:
            if not self.leads:
                raise OtherProcessError from error
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"lost contact with the other processes ({reason}); finished shards are kept, "
                "the same command goes on"
            ) from error
        except (ValueError, OSError) as error:
            if not self._first_to_fail():
                raise OtherProcessError from error
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
            self._over.set()
            beating.join()


def _ended(*_: Any) -> None:
    """End tidily when torchrun says so, because another process failed or it was told to."""
    raise OtherProcessError


@contextlib.contextmanager
def team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, or work alone.

    Args:
        device: torch device; under torchrun ``cuda`` means the one of the process's local rank.

    Raises:
        ValueError: a device that doesn't fit, or processes that got lost.
        OtherProcessError: another process has failed and says why.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Team(device)
        return
    raw, rank, world = next(iter(rendezvous("env://", timeout=START)))
    store = PrefixStore(_attempt(raw, rank, world), raw)
    member = Team(device, rank, world, store)
    with member._alive():
        member.device = _own_device(device)
        if member.device.startswith("cuda"):
            torch.cuda.set_device(member.device)
        yield member


def _own_device(device: str) -> str:
    """Return the device of this process."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return device
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if index and processes > 1:
        raise ValueError(
            f"--device {device!r}: under torchrun say cuda; each process takes its own"
        )
    if local >= count:
        raise ValueError(
            f"{processes} processes on a machine with {count} GPUs: use --nproc-per-node {count}"
        )
    return device if index else f"cuda:{local}"


def _attempt(store: Any, rank: int, world: int) -> str:
    """Agree on a name for this attempt, with a store that may hold what earlier ones left.

    torchrun keeps its store when it restarts processes, and counts restarts per machine. So each
    process announces an id, the first publishes the list of all, and the name, the first one's id,
    counts when a process finds its own id in the list.
    """
    own = uuid.uuid4().hex
    store.set(f"here/{rank}", own)
    limit = time.monotonic() + START.total_seconds()
    while time.monotonic() < limit:
        if rank == 0 and store.check([f"here/{other}" for other in range(world)]):
            present = [store.get(f"here/{other}").decode() for other in range(world)]
            store.set("roll", json.dumps(present))
            if store.add(f"known/{own}", 0) == world - 1:
                return own
        elif rank and store.check(["roll"]):
            present = json.loads(store.get("roll"))
            if len(present) == world and present[rank] == own:
                store.add(f"known/{present[0]}", 1)
                return str(present[0])
        time.sleep(POLL_S)
    raise ValueError(f"waited {START} for all {world} processes to start")
