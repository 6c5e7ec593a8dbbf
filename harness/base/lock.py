"""The lock by which processes keep each other out of a file or a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def hold_lock(path: Path, busy: str | None = None) -> Iterator[bool]:
    """Keep other processes out while the body runs; yield False where the file system has no locks.

    The file ``path`` is there as long as a process holds the lock. Wait for it, unless it says what to tell at once
    that it is ``busy``.

    Raises:
        ValueError: another process holds it; ``busy`` is the message.
    """
    lock = FileLock(path, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(busy) from None
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows keeps what is open
            path.unlink()
        lock.release()
