"""What would mend an error, and errors for lack of room on a disk or in memory."""

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

E = TypeVar("E", bound=BaseException)
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files this large are not allowed",
    errno.EROFS: "the disk is read-only",
}
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory")


class Remedy(NamedTuple):
    """The part whose making mends an error."""

    kind: str  # such as predictor
    facts: Mapping[str, Any]  # of the part, as its file's metadata has them


def add_remedy(error: E, kind: str, /, **facts: Any) -> E:
    """Return an error with a ``Remedy`` as its attribute ``remedy``, for which a command line may name a command."""
    error.__dict__["remedy"] = Remedy(kind, facts)
    return error


class NoRoomError(OSError):
    """A file can't be written for lack of room."""


def no_room(path: Path, size: int, error: BaseException) -> NoRoomError | None:
    """Return the error for a file of ``size`` bytes that has no room on its disk; None for errors of another cause."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    free = shutil.disk_usage(path.parent).free
    return NoRoomError(f"can't write {str(path)!r}: {_NO_ROOM[error.errno]}; {size:,} bytes needed, {free:,} free")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory didn't suffice, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
