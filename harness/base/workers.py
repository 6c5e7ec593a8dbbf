"""Shards made in this process, or by Ray's actors on one machine or several."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.base.hints import describe_error
from zoo.core.settings import check_fields

MOST_DEATHS = 3  # of workers on one shard, which Ray gives to another one
TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell tells of a program that SIGTERM ended
# A function that makes shards by their numbers and yields values meanwhile.
Make = Callable[[Sequence[int]], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """How the shards of a store are made."""

    shard_size: int  # a run that stops loses at most the shards in work
    batch: int | None = None
    device: str = "cpu"
    workers: int | None = None  # Ray actors that share the work; None: this process alone

    def __post_init__(self) -> None:
        check_fields(self, shard_size="[1, inf)", batch="[1, inf)", workers="[1, inf)")
        if self.workers is not None:
            require_actors("--workers", self.workers, self.device)


def require_actors(flag: str, count: int, device: str) -> None:
    """Refuse ``count`` of Ray's actors, asked for by a flag, without Ray or a device for each."""
    if find_spec("ray") is None:
        raise ValueError(f"{flag} {count} needs Ray: pip install 'clip-patchrank[ray]'")
    kind, _, number = device.partition(":")
    if number:
        raise ValueError(f"--device {device!r} with {flag}: say {kind}; each of them takes its own")
    import torch

    gpus = torch.cuda.device_count()
    if kind == "cuda" and not cluster_address() and count > gpus:
        raise ValueError(f"{flag} {count} on a machine with {gpus} GPUs: each of them takes one")


def make_shards(
    job: ShardJob, todo: Sequence[int], make: Make, *, start: Callable[[], Make], release: Callable[[], object]
) -> Iterator[Any]:
    """Make shards here by ``make``, or by workers, and yield its values, as shards are done.

    Each worker calls ``start`` once and takes one shard at a time. A shard whose worker dies goes to another one, until
    it has ended ``MOST_DEATHS`` of them. ``release`` frees the device for the workers.
    """
    if job.workers is None:
        yield from make(todo)
        return
    import ray
    import torch
    from ray.exceptions import RayError
    from ray.util import ActorPool

    release()
    torch.cuda.empty_cache()
    gpus = 1 if job.device == "cuda" else 0
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=MOST_DEATHS - 1)(_Actor)
    with ray_running(job.workers):
        pool: Any = ActorPool([kind.remote(start, str(Path.cwd())) for _ in range(job.workers)])
        try:
            for values, error in pool.map_unordered(lambda actor, index: actor.make_shard.remote(index), list(todo)):
                if error:
                    raise ValueError(error)
                yield from values
        except RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"the workers can't go on ({reason}), as after {MOST_DEATHS} that one shard ended: too little memory, "
                "or an image that breaks its decoder? Finished shards are kept, the same command goes on; without "
                "--workers it may say more"
            ) from error


def require_same(differences: Sequence[str]) -> None:
    """Refuse to go on in a worker whose tower or images aren't the driver's."""
    if differences:
        raise ValueError(
            f"a worker has another tower or other images: {'; '.join(differences)}; "
            "every machine needs the same weights and files"
        )


class _Actor:
    """Make shards as an actor of Ray; errors that a user can mend come back as text, not as Ray's tracebacks."""

    def __init__(self, start: Callable[[], Make], place: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another machine's; its paths are absolute
            os.chdir(place)  # what relative paths start from
        self.start = start
        self.make: Make | None = None

    def make_shard(self, index: int) -> tuple[list[Any], str]:
        """Return the values of making a shard, or an error's text."""
        try:
            self.make = self.make or self.start()
            return list(self.make([index])), ""
        except (ValueError, OSError) as error:
            return [], describe_error(error)


def cluster_address() -> str | None:
    """Return the address of the cluster to use, None to start one on this machine."""
    address = os.environ.get("RAY_ADDRESS", "local")
    return None if address == "local" else address


@contextlib.contextmanager
def ray_running(cpus: int) -> Iterator[None]:
    """Join the cluster of ``RAY_ADDRESS``, or start one here; leave it at the end.

    SIGTERM then ends the body by SystemExit with `TERMINATED`, where Ray's own handler would abort the process.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray reads these when it starts: no reports home, no notes from its core on standard error, no abort by SIGTERM.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster_address()
    options = {"address": address} if address else {"num_cpus": cpus, "include_dashboard": False}
    # Ray tells on standard output of workers that die, until it has stopped; that is for results.
    with contextlib.redirect_stdout(sys.stderr):
        before = _end_by_sigterm()
        try:
            with patch("ray._private.utils.set_sigterm_handler", create=True):
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
            _end_by_sigterm()  # again, as Ray's core has set its own
            yield
        finally:
            ray.shutdown()
            if before is not None:
                signal.signal(signal.SIGTERM, before)


def _end_by_sigterm() -> Any:
    """Let SIGTERM raise SystemExit once, and return the handler before; None in a thread, which can't set one."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # so that the end isn't cut off
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, end)
