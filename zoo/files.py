"""Files that are there whole or not at all."""

import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

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


def read_facts(path: Path, kind: str) -> dict[str, Any]:
    """Read what a safetensors file of ours says about itself.

    Args:
        path: the file.
        kind: key of its metadata, which says what it is: ``predictor`` or ``prompts``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of that kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {str(path)!r}: the file does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} holds no {kind}: {error}") from error
    if kind not in metadata:
        raise ValueError(f"{str(path)!r} holds no {kind}: it lacks the {kind!r} metadata")
    facts: dict[str, Any] = json.loads(metadata[kind])
    return facts


def digest_of(*paths: Path) -> str:
    """Return 16 hex digits of the sha256 over the content of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
