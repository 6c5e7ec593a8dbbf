"""Files that are there whole or not at all."""

import contextlib
import hashlib
import os
import socket
from pathlib import Path

PARTIAL = ".partial"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the machine stops.

    Raises:
        OSError: it can't be written; nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # So that the new name survives a power cut too; some network folders refuse.
        with contextlib.suppress(OSError):
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def digest_of(*paths: Path) -> str:
    """Return 16 hex digits of the sha256 over the content of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
